"""Measure the tuned model on a labelled file of yours: the pipeline's table, by kind of answer, and what went wrong.

FILE holds labelled rows, one a line, in any format that data/raw may have. Rows that can't be used are listed on stderr
by line and left out. `--summary` keeps the figures without any text of the rows: from metrics/experiments/requests.json
`make pages` writes them into the README. Exit status 2: there is no such file, or no row of it can be used.
"""

import json
from pathlib import Path
from typing import Any

import click

from stages.answers import generate
from stages.core import cli, params, strict_json
from stages.data import contract, examples, rows, writing
from stages.data.contract import constants
from stages.data.examples import Example
from stages.model import chat
from stages.scores import provenance, scoring
from stages.scores.scoring import Prediction, Score
from tools import ask, table


class NothingToMeasureError(cli.InputError):
    exit_code = 2


def read(file: Path, rules: contract.Contract) -> tuple[list[Example], list[str]]:
    """The examples of the rows that can be used, and for each other row its line and the reason."""
    found: list[Example] = []
    refused: list[str] = []
    for row in rows.read(file):
        try:
            found += examples.of_row(row, rules)
        except cli.InputError as error:
            refused.append(f"{file}:{row.line}: {error.message}")
    return found, refused


def answers(model: Path, asked: list[Example], schema: Path | None) -> list[Prediction]:
    """The model's answers; held to `schema` while they are written, where it is given."""
    settings = params.load("predict", generate.Params)
    network, tokenizer, masks = ask.load(model, schema)
    prompts = [chat.prompt_ids(tokenizer, example.prompt) for example in asked]
    written = generate.answers(network, tokenizer, settings, prompts, masks)
    return [Prediction(e.id, answer.text, answer.truncated) for e, answer in zip(asked, written, strict=True)]


def kind_and_value(example: Example, rules: contract.Contract) -> str:
    """`reject, unclear`: for kinds whose answers hold one more field, with a value that the contract lists; else ''."""
    value, schema = strict_json.parse(example.answer), rules.validator.schema
    rest = [name for name in value if name != rules.discriminator]
    parts = contract.branches(schema, schema)
    kinds = [part for part in parts if example.kind in constants(schema, part, rules.discriminator)]
    listed = len(rest) == 1 and any(value[rest[0]] in constants(schema, part, rest[0]) for part in kinds)
    return f"{example.kind}, {value[rest[0]]}" if listed else ""


def report(scores: list[Score], rules: contract.Contract) -> dict[str, Any]:
    """Everything measured. `slices`: by kind of answer, and by kind and value where a kind has listed values."""
    figures = scoring.figures(scores)
    figures["slices"] |= {"value": scoring.by(scores, lambda example: kind_and_value(example, rules))}
    failures = [
        {"id": score.example.id, "verdict": score.verdict, "request": score.example.request()}
        | {"expected": score.example.answer, "predicted": score.prediction.answer}
        for score in scores
        if score.verdict != "exact"
    ]
    return figures | {"failures": failures}


def lines(found: dict[str, Any]) -> list[str]:
    parts = {"all": found, **found["slices"]["kind"], **found["slices"]["value"]}
    wrong = [
        f"{part['verdict']}: {strict_json.compact(part['request'])}\n"
        f"  expected  {part['expected']}\n  predicted {shown(part['predicted'])}"
        for part in found["failures"]
    ]
    return [*table.rates("answers", parts), "", f"Not exact: {len(wrong)} of {found['n']}.", *wrong]


def shown(answer: str) -> str:
    """A model may write line ends and control characters: what is not JSON is printed as a JSON string."""
    try:
        return cli.printable(strict_json.compact(strict_json.parse(answer)))
    except strict_json.JsonError:
        return cli.printable(strict_json.compact(answer))


@click.command(cls=cli.Command, help=__doc__)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
@cli.path_option("--summary", "file for the figures", required=False)
@click.option("--constrained", is_flag=True, help="hold the answers to the schema while they are written")
@cli.path_option("--model", "folder of the model", required=False, default=Path("models/merged"), show_default=True)
@cli.path_option("--schema", "contract", required=False, default=Path("data/schema.json"), show_default=True)
def main(file: Path, as_json: bool, summary: Path | None, constrained: bool, model: Path, schema: Path) -> None:
    rules = contract.load(schema, params.load("contract", contract.Params).discriminator)
    asked, refused = read(file, rules)
    for line in refused:
        click.echo(cli.printable(line), err=True)
    if not asked:
        raise NothingToMeasureError(f"{file}: no labelled row that can be used")
    if not model.is_dir():
        raise cli.InputError(f"{model} is missing; run `make repro`")
    made_from, libraries = model / "made_from.json", ("torch", "transformers")  # looked at before minutes of answers
    origin = provenance.computed_from(made_from, libraries, requests=file, schema=schema) if summary else {}
    predictions = answers(model, asked, schema if constrained else None)
    pairs = zip(asked, predictions, strict=True)
    found = report([scoring.score(example, prediction, rules) for example, prediction in pairs], rules)
    if summary:
        figures = {name: value for name, value in found.items() if name != "failures"}
        writing.write_json(summary, figures | {"constrained": constrained, "computed_from": origin})
    if as_json:
        click.echo(json.dumps(found | {"refused": refused}, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        click.echo("\n".join(lines(found)))


if __name__ == "__main__":
    main()
