"""Score the predictions of every system on the same test rows. CPU seconds, no model.

In: data/predictions/*.jsonl (an empty constrained.jsonl leaves that system out), the test rows, the contract, what the
adapter was made from. Out: metrics/evaluate.json (rates with 95% intervals, the gain over few_shot, slices),
metrics/outcomes.jsonl (a verdict per row and system), and two plots: a confusion matrix and the exact match per kind of
answer.
"""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from stages.shared import cli, contract, hashes, params, stats, strict_json, text, writing

SYSTEMS = ("zero_shot", "few_shot", "tuned", "constrained")
ARTICLES = {"a", "an", "the"}
INVALID = "(invalid)"
LIBRARIES = ("jsonschema", "numpy", "scipy")


@dataclass(frozen=True)
class Params:
    bootstrap_resamples: params.Count
    seed: int


@dataclass(frozen=True)
class Score:
    """What one answer is worth. `hits`, `said` and `wanted` count fields: equal ones, those given, those expected."""

    id: str
    group: str
    turn: str
    wanted_kind: str
    said_kind: str
    json_valid: bool
    schema_valid: bool
    exact: bool
    normalised: bool
    hits: int
    said: int
    wanted: int
    truncated: bool
    answer: str

    @property
    def action(self) -> bool:
        return self.said_kind == self.wanted_kind

    @property
    def verdict(self) -> str:
        if self.exact:
            return "exact"
        if self.normalised:
            return "normalised"
        return "wrong" if self.schema_valid else "off_contract" if self.json_valid else "not_json"


def loose(value: Any) -> Any:
    """Strings reduced to their words without articles: 'The budget review!' equals 'budget review'."""
    if isinstance(value, str):
        return " ".join(word for word in text.normalise(value).split() if word not in ARTICLES)
    if isinstance(value, list):
        return [loose(item) for item in value]
    return {key: loose(item) for key, item in value.items()} if isinstance(value, dict) else value


def fields(value: Any, path: str = "") -> set[tuple[str, str]]:
    """The leaves of a JSON value as (path, JSON text) pairs. Empty objects and lists are leaves."""
    if isinstance(value, dict) and value:
        return {leaf for key, item in value.items() for leaf in fields(item, f"{path}/{key}")}
    if isinstance(value, list) and value:
        return {leaf for number, item in enumerate(value) for leaf in fields(item, f"{path}/{number}")}
    return {(path, strict_json.canonical(value))}


def score(example: dict[str, Any], prediction: dict[str, Any], rules: contract.Contract) -> Score:
    """Score one answer. An answer that is not strict JSON has no fields at all."""
    expected = strict_json.parse(example["answer"])
    try:
        said: Any = contract.parse_answer(prediction["answer"])
    except strict_json.JsonError:
        said = None
    valid = said is not None and rules.error(said) is None
    wanted_fields, said_fields = fields(expected), fields(said) if said is not None else set()
    return Score(
        id=example["id"],
        group=example["group"],
        turn="first" if len([t for t in example["prompt"] if t["role"] == "user"]) == 1 else "later",
        wanted_kind=rules.kind(expected),
        said_kind=INVALID if said is None else rules.kind(said),
        json_valid=said is not None,
        schema_valid=valid,
        exact=said is not None and strict_json.same(said, expected),
        normalised=valid and strict_json.same(loose(said), loose(expected)),
        hits=len(wanted_fields & said_fields),
        said=len(said_fields),
        wanted=len(wanted_fields),
        truncated=prediction["truncated"],
        answer=prediction["answer"],
    )


def scores(examples: list[dict[str, Any]], predictions: Path, rules: contract.Contract) -> list[Score]:
    """Pair answers with rows by id. Raises InputError unless both hold exactly the same ids."""
    answers = {row["id"]: row for row in strict_json.read_jsonl(predictions)}
    ids = [example["id"] for example in examples]
    if sorted(answers) != sorted(ids):
        raise cli.InputError(f"{predictions}: answers and rows have different ids; predict again")
    return [score(example, answers[example["id"]], rules) for example in examples]


def f1(scored: list[Score], settings: Params) -> dict[str, float]:
    """Micro F1 over fields: twice the equal fields over all fields given and expected."""
    above, below = [2.0 * s.hits for s in scored], [float(s.said + s.wanted) for s in scored]
    low, high = stats.bootstrap_ratio(
        above, below, [s.group for s in scored], settings.bootstrap_resamples, settings.seed
    )
    return {"field_f1": sum(above) / sum(below), "field_f1_low": low, "field_f1_high": high}


def slices(scored: list[Score], key: Callable[[Score], str]) -> dict[str, Any]:
    """n, exact match and normalised exact match for each value of `key`."""
    parts: dict[str, list[Score]] = {}
    for item in scored:
        parts.setdefault(key(item), []).append(item)
    return {
        name: {
            "n": len(part),
            **stats.rate("exact_match", (s.exact for s in part)),
            **stats.rate("exact_match_normalised", (s.normalised for s in part)),
        }
        for name, part in parts.items()
        if name
    }


def figures(scored: list[Score], settings: Params) -> dict[str, Any]:
    """All figures of one system."""
    return {
        "n": len(scored),
        **stats.rate("json_valid", (s.json_valid for s in scored)),
        **stats.rate("schema_valid", (s.schema_valid for s in scored)),
        **stats.rate("exact_match", (s.exact for s in scored)),
        **stats.rate("exact_match_normalised", (s.normalised for s in scored)),
        **(stats.rate("action_accuracy", (s.action for s in scored)) if any(s.wanted_kind for s in scored) else {}),
        **f1(scored, settings),
        **stats.rate("truncated", (s.truncated for s in scored)),
        "slices": {"action": slices(scored, lambda s: s.wanted_kind), "turn": slices(scored, lambda s: s.turn)},
    }


def gain(before: list[Score], after: list[Score], settings: Params) -> dict[str, Any]:
    """How much better `after` is than `before`, paired by row: difference, 95% interval over groups, McNemar's p."""
    old, new = [s.exact for s in before], [s.exact for s in after]
    difference = [float(b) - float(a) for a, b in zip(old, new, strict=True)]
    low, high = stats.bootstrap_mean(difference, [s.group for s in before], settings.bootstrap_resamples, settings.seed)
    return {
        "n": len(old),
        "exact_match": sum(difference) / len(difference),
        "low": low,
        "high": high,
        "p_value": stats.mcnemar(old, new),
    }


def gain_of_grammar(scored: dict[str, list[Score]], settings: Params) -> dict[str, Any]:
    """What the grammar adds to the tuned model; nothing where it is off."""
    if "constrained" not in scored:
        return {}
    return {"constrained_over_tuned": gain(scored["tuned"], scored["constrained"], settings)}


def outcome(per_system: dict[str, Score]) -> dict[str, Any]:
    """One line of outcomes.jsonl: the answer stands there only where it was wrong."""
    any_score = next(iter(per_system.values()))
    verdicts = {
        name: {"verdict": s.verdict} | ({} if s.exact else {"answer": s.answer}) for name, s in per_system.items()
    }
    return {"id": any_score.id, "group": any_score.group, "kind": any_score.wanted_kind, **verdicts}


def write_csv(path: Path, header: list[str], lines: Iterable[list[Any]]) -> None:
    with writing.replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)


@click.command(help=__doc__)
@cli.path_option("--test", "test rows, as built")
@cli.path_option("--valid", "validation rows, as built")
@cli.path_option("--schema", "JSON Schema of an answer")
@cli.path_option("--zero-shot", "answers of the base model, instructed")
@cli.path_option("--few-shot", "answers of the base model, shown examples")
@cli.path_option("--tuned", "answers of the tuned model")
@cli.path_option("--constrained", "answers of the tuned model under the grammar; an empty file where it is off")
@cli.path_option("--tuned-valid", "answers of the tuned model to the validation rows")
@cli.path_option("--made-from", "made_from.json of the adapter")
@cli.path_option("--metrics", "metrics file")
@cli.path_option("--outcomes", "verdict per row and system")
@cli.path_option("--confusion", "plot: expected and given kind of each answer of the tuned system")
@cli.path_option("--by-action", "plot: exact match of the tuned system per kind")
def main(
    test: Path,
    valid: Path,
    schema: Path,
    zero_shot: Path,
    few_shot: Path,
    tuned: Path,
    constrained: Path,
    tuned_valid: Path,
    made_from: Path,
    metrics: Path,
    outcomes: Path,
    confusion: Path,
    by_action: Path,
) -> None:
    settings = params.load("evaluate", Params)
    rules = contract.load(schema, params.load("contract", contract.Params).discriminator)
    examples = list(strict_json.read_jsonl(test))
    predicted = dict(zip(SYSTEMS, (zero_shot, few_shot, tuned, constrained), strict=True))
    if not constrained.stat().st_size:
        del predicted["constrained"]
    scored = {name: scores(examples, file, rules) for name, file in predicted.items()}
    held_out = scores(list(strict_json.read_jsonl(valid)), tuned_valid, rules)
    result = {name: figures(part, settings) for name, part in scored.items()}
    libraries = [*LIBRARIES, *(["llguidance"] if "constrained" in scored else [])]
    origin = strict_json.read(made_from)
    writing.write_json(
        metrics,
        {
            **result,
            "gain_over_few_shot": gain(scored["few_shot"], scored["tuned"], settings),
            **gain_of_grammar(scored, settings),
            "validation": {"tuned": figures(held_out, settings)},
            "computed_from": {
                "test": hashes.of_file(test),
                "schema": hashes.of_file(schema),
                "adapter": origin["adapter"],
                "base": origin["base"],
                "versions": {**origin["versions"], **{name: version(name) for name in libraries}},
            },
        },
    )
    rows = [dict(zip(scored, per_row, strict=True)) for per_row in zip(*scored.values(), strict=True)]
    writing.write_jsonl(outcomes, map(outcome, rows))
    write_csv(confusion, ["expected", "given"], ([s.wanted_kind, s.said_kind or "(none)"] for s in scored["tuned"]))
    best = result["tuned"]
    columns = ["exact_match", "exact_match_low", "exact_match_high", "n"]
    kinds = best["slices"]["action"].items()
    write_csv(by_action, ["action", *columns], ([kind, *(part[name] for name in columns)] for kind, part in kinds))
    click.echo(f"evaluate: tuned exact match {best['exact_match']:.3f} of {best['n']} test rows", err=True)


if __name__ == "__main__":
    main()
