"""Should this be a fine-tune? The decision tree of the SFT lesson, answered from this repository's own evidence.

In: metrics/validate.json, metrics/evaluate.json, metrics/timing/train.json, metrics/timing/latency.json (which
tools.latency writes; it may be absent), and your own figures in params.yaml, section `advise`. Out: an answer to each
question with its evidence and file, or what to fill in; then a recommendation, and the break-even in requests a day.

With --write, the advice also replaces the one between the marks in a Markdown file.
"""

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from stages.shared import params, writing
from tools import table
from tools.advising import cost, evidence, tree
from tools.advising.tree import EVALUATE, LATENCY, MEASURE, TRAINED, VALIDATE, Evidence, Known

MARKS = ("<!-- advice -->", "<!-- /advice -->")
WIDTH = 116
# What the lesson makes of each answer: no, yes.
LESSON = {
    "Q0": ("continue", "use RAG"),
    "Q1": ("use prompting, iterate on the behaviour", "continue"),
    "Q2": ("few-shot prompting, or collect more", "continue"),
    "Q3": ("calculate the costs", "fine-tuning is likely justified"),
    "Q4": ("consider RAG with prompting", "fine-tuning is likely appropriate"),
    "Q5": ("weigh the total cost", "fine-tuning creates an advantage"),
}


def known() -> Known:
    """Read everything. Raises InputError for a file that is missing, but for the latency, or not what it should be."""
    measured = evidence.read(LATENCY, evidence.Latency, evidence.MEASURE) if LATENCY.exists() else None
    return Known(
        own=params.load("advise", evidence.Own),
        validated=evidence.read(VALIDATE, evidence.Validated),
        evaluated=evidence.read(EVALUATE, evidence.Evaluated),
        trained=evidence.read(TRAINED, evidence.Trained),
        latency=measured,
    )


def accuracy(facts: Known) -> dict[str, Any]:
    measured = facts.evaluated
    systems = ", ".join(f"{name} {getattr(measured, name)}" for name in ("zero_shot", "few_shot", "tuned"))
    texts = f"exact match: {systems}", f"gain of tuned over few_shot {measured.gain_over_few_shot}"
    unknown = tree.fill_in("minimum_accuracy") if facts.own.minimum_accuracy is None else ()
    return {"evidence": [asdict(Evidence(text, str(EVALUATE))) for text in texts], "unknown": unknown}


def break_even(facts: Known) -> dict[str, Any]:
    """`requests_a_day`: None where it is not known, or where the tuned model never costs less; `evidence` says how."""
    costs, own = facts.costs, facts.own
    if costs is None:
        unknown = [*tree.fill_in(*cost.missing(own)), *([] if facts.latency else [MEASURE])]
        return {"requests_a_day": None, "evidence": [], "unknown": unknown}
    least = costs.break_even()
    paid = "by the token" if costs.basis == "tokens" else "by the hour of a busy machine"
    kept = f"on {own.machine_hours_a_day:g} hours a day" if costs.machine else "paid only while it answers"
    found = [
        Evidence("at no volume" if least is None else f"from {least} requests a day on", str(params.PARAMS)),
        Evidence(f"1,000 requests to {facts.rival}, paid {paid}: {1000 * costs.prompted:.3g}", str(LATENCY)),
        Evidence(
            f"1,000 requests to the tuned model on a busy machine: {1000 * costs.tuned:.3g}; it is {kept}", str(LATENCY)
        ),
        Evidence(f"a version: {costs.version * own.lifetime_days:.3g}, for {own.lifetime_days:g} days", str(TRAINED)),
    ]
    return {"requests_a_day": least, "evidence": [asdict(item) for item in found], "unknown": []}


def advice(facts: Known) -> dict[str, Any]:
    """Everything that is said, as data."""
    answers = tree.questions(facts)
    return {
        "questions": [asdict(answer) for answer in answers],
        "accuracy": accuracy(facts),
        "break_even": break_even(facts),
        **asdict(tree.decide(facts, answers)),
    }


def details(found: dict[str, Any]) -> list[str]:
    """Indented lines for evidence, and for what is not known."""
    lines = [f"{item['text']} ({item['file']})" for item in found["evidence"]]
    return [indented(line) for line in [*lines, *(f"not known: {todo}" for todo in found["unknown"])]]


def indented(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="   ", subsequent_indent="     ", break_on_hyphens=False)


def render(found: dict[str, Any]) -> list[str]:
    lines = []
    for item in found["questions"]:
        answer = item["answer"]
        said = "not known" if answer is None else f"{'yes' if answer else 'no'}: {LESSON[item['id']][answer]}"
        lines += [f"{item['id']} {item['question']} {said}", *details(item)]
    lines += ["Accuracy", *details(found["accuracy"]), "Break-even", *details(found["break_even"])]
    lines += [f"Recommendation: {found['recommendation']}", *(indented(f"because {why}") for why in found["reasons"])]
    return [*lines, *(indented(f"but {caution}") for caution in found["cautions"])]


def put(document: str, found: dict[str, Any]) -> str:
    """The document with the advice between its marks."""
    return table.put(document, ["```text", *render(found), "```"], MARKS)


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="print the advice as one JSON object")
@click.option("--write", type=click.Path(path_type=Path, exists=True), help="Markdown file to put the advice into")
def main(as_json: bool, write: Path | None) -> None:
    found = advice(known())
    printed = json.dumps(found, ensure_ascii=False, indent=2, allow_nan=False) if as_json else "\n".join(render(found))
    click.echo(printed)
    if write:
        document = put(write.read_text(encoding="utf-8"), found)
        with writing.replacing(write) as file:
            file.write(document)


if __name__ == "__main__":
    main()
