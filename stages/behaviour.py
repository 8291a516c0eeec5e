"""Score the behaviour tests: how many pass, by kind and by capability. CPU seconds, no model.

In: data/behaviour/*.jsonl and the tuned model's answers to their requests. Out: pass rates by kind of test
(metrics/behaviour.json, with n = 0 where there are no tests), by capability (metrics/detail/behaviour.json), and the
outcome of each test (metrics/behaviour.jsonl).
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from stages.core import cli, params, strict_json
from stages.data import behaviours, contract, records, writing
from stages.data.rows import Turn
from stages.scores import provenance, stats
from stages.scores.scoring import Prediction


@dataclass(frozen=True)
class Outcome:
    """One test: what was asked and answered, and the answer that would have passed (empty where none would)."""

    id: str
    capability: str
    passed: bool
    requests: list[str | list[Turn]]
    answers: list[str]
    expected: str


def passes(answer: str, wanted: str) -> bool:
    try:
        return strict_json.same(contract.parse_answer(answer), strict_json.parse(wanted))
    except strict_json.JsonError:
        return False


def judge(case: behaviours.Case, answers: list[str]) -> Outcome:
    """`answers`: one for each of the test's requests, in their order.

    Nothing passes where a variant is compared to an answer that is not a JSON object.
    """
    wanted = case.examples[0].answer
    if case.kind != "minimum":
        try:
            wanted = strict_json.compact(contract.parse_answer(answers[0]) | case.changes)
        except strict_json.JsonError:
            wanted = ""
    asked = [example.request() for example in case.examples]
    return Outcome(case.id, case.capability, passes(answers[-1], wanted), asked, answers, wanted)


def judge_all(cases: list[behaviours.Case], file: Path) -> list[Outcome]:
    """Raises InputError unless the file answers exactly the requests of these tests."""
    read = records.read(file, Prediction, extra="ignore") if cases else []
    predictions = {prediction.id: prediction.answer for prediction in read}
    if sorted(predictions) != sorted(example.id for case in cases for example in case.examples):
        raise cli.InputError(f"{file}: it answers other requests than those of the behaviour tests; predict again")
    return [judge(case, [predictions[example.id] for example in case.examples]) for case in cases]


def rate(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """n and pass rate; n alone where there are no tests."""
    passed = [outcome.passed for outcome in outcomes]
    return {"n": len(passed), **(stats.rate("passed", passed) if passed else {})}


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--tests", "folder of behaviour tests")
@cli.path_option("--answers", "the model's answers to their requests")
@cli.path_option("--schema", "JSON Schema of an answer")
@cli.path_option("--made-from", "made_from.json of the model")
@cli.path_option("--metrics", "pass rates by kind of test")
@cli.path_option("--detail", "pass rates by capability")
@cli.path_option("--outcomes", "outcome of each test")
def main(
    tests: Path, answers: Path, schema: Path, made_from: Path, metrics: Path, detail: Path, outcomes: Path
) -> None:
    rules = contract.load(schema, params.load("contract", contract.Params).discriminator)
    cases = behaviours.read(tests, rules)
    judged = judge_all(cases, answers)
    kinds = {kind: rate(o for o in judged if o.capability.partition("-")[0] == kind) for kind in behaviours.KINDS}
    names = sorted({case.capability for case in cases})
    capabilities = {name: rate(o for o in judged if o.capability == name) for name in names}
    origin = provenance.computed_from(made_from, ("scipy",), answers=answers)
    short = {"passed": "", "passed_low": "_low", "n": "_n"}
    headline = {f"{kind}{short[n]}": part[n] for kind, part in kinds.items() for n in short if n in part}
    writing.write_json(metrics, headline)
    writing.write_json(detail, {"kinds": kinds, "capabilities": capabilities, "computed_from": origin})
    writing.write_jsonl(outcomes, map(asdict, judged))
    counts = ", ".join(f"{kind} {part.get('passed', 0):.3f} of {part['n']}" for kind, part in kinds.items())
    click.echo(f"behaviour: {counts}", err=True)


if __name__ == "__main__":
    main()
