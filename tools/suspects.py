"""Which rows did it: training rows whose label may be wrong, or those most like a request that is answered wrongly.

The measure is the smaller of a row's losses in the first two epochs. Both were taken before the step that learnt the
row. The first knows nothing of the label, but is large for every row that an untrained model met; the second met a
model that has learnt the task and seen the row once. A wrong label surprises both. So does a rare request that is
labelled well: read a row before you change it. Later epochs know the labels by heart.

With --wrong or --request: the training rows whose requests are most like the one asked, by their letters (TF-IDF of
character n-grams), with their answers. Choose by held-out rows; the test rows are for the verdict.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from stages.core import cli, params
from stages.data import contract, records
from stages.data.examples import Example
from stages.scores import scoring
from tools import table

LOSSES = Path("metrics/detail/row_losses.csv")
TRAIN = Path("data/chat/train.jsonl")
# Rows with answers, and what the tuned model answered.
ANSWERED = {
    "held-out": (Path("data/chat/valid.jsonl"), Path("data/held_out/tuned.jsonl")),
    "test": (Path("data/chat/test.jsonl"), Path("data/predictions/tuned.jsonl")),
}
SUSPECTS, NEAREST = 20, 5


@dataclass(frozen=True)
class Row:
    """A training row; `losses`: nats per answer token in each epoch, as it was met."""

    id: str
    request: str
    answer: str
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Near:
    """`likeness`: cosine of the two requests, 1 for the same text."""

    likeness: float
    row: Row


def suspicion(losses: Sequence[float]) -> float:
    """0 for a row that a training of less than one epoch did not meet."""
    return min(losses[:2], default=0.0)


def read_losses(file: Path) -> dict[str, tuple[float, ...]]:
    """The losses of each training row by its id. Raises InputError for what the train stage does not write."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            header, *rows = csv.reader(lines)
        found = {row[0]: tuple(float(cell) for cell in row[1:] if cell) for row in rows}
        if header[0] != "id" or not all(math.isfinite(loss) for losses in found.values() for loss in losses):
            raise ValueError("an id and finite losses are expected in each line")
    except (OSError, IndexError, ValueError, csv.Error) as error:
        raise cli.InputError(f"{file}: {cli.printable(str(error))}; the stage train writes it") from error
    return found


def read_rows(train: Path, file: Path) -> list[Row]:
    """The training rows with their losses. Raises InputError where the two files are not of the same rows."""
    examples, losses = records.read(train, Example, extra="ignore"), read_losses(file)
    if losses.keys() != {example.id for example in examples}:
        raise cli.InputError(f"{file}: it is of other rows than {train}; run `dvc repro train`")
    return [Row(e.id, request(e), e.answer, losses[e.id]) for e in examples]


def request(example: Example) -> str:
    """All that was said, on one line."""
    return " ⏎ ".join(turn["content"] for turn in example.prompt if turn["role"] != "system")


def ranked(losses: Mapping[str, Sequence[float]]) -> list[str]:
    """The ids, the most suspect row first; ties in the order of the file."""
    return sorted(losses, key=lambda name: -suspicion(losses[name]))


def nearest(requests: Sequence[str], rows: Sequence[Row], count: int) -> list[list[Near]]:
    """For each request the rows that are most like it."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    known = vectors.fit_transform([row.request for row in rows])
    likeness = (vectors.transform(requests) @ known.T).toarray()
    orders = (-likeness).argsort(axis=1, kind="stable")[:, :count]
    return [[Near(float(alike[n]), rows[n]) for n in order] for alike, order in zip(likeness, orders, strict=True)]


def wrong(which: str, schema: Path) -> list[dict[str, str]]:
    """The requests that the tuned model answered wrongly, with what was expected and what it said."""
    rules = contract.load(schema, params.load("contract", contract.Params).discriminator)
    rows, answers = ANSWERED[which]
    scores = scoring.score_file(records.read(rows, Example), answers, rules)
    return [
        {"id": s.example.id, "request": request(s.example), "expected": s.example.answer, "given": s.prediction.answer}
        for s in scores
        if not s.counts("exact_match")
    ]


def cells(row: Row) -> list[str]:
    losses = ", ".join(f"{loss:.3f}" for loss in row.losses)
    return [losses, *map(cli.printable, (row.id, row.request, row.answer))]


def lines(asked: dict[str, str], near: Sequence[Near]) -> list[str]:
    """What was asked and answered, and the rows like it."""
    header = ["likeness", "loss by epoch", "id", "request", "answer"]
    told = [f"{name}: {cli.printable(text)}" for name, text in asked.items()]
    return [*told, *table.grid(header, [[f"{one.likeness:.2f}", *cells(one.row)] for one in near]), ""]


@click.command(cls=cli.Command, help=__doc__)
@click.option("--wrong", "which", type=click.Choice(list(ANSWERED)), help="rows like each wrong answer of these")
@click.option("--request", "text", help="rows like this request")
@click.option("--top", type=click.IntRange(1), help=f"how many rows; {SUSPECTS}, or {NEAREST} for each request")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
@cli.path_option("--train", "training examples", required=False, default=TRAIN, show_default=True)
@cli.path_option("--losses", "losses of each row", required=False, default=LOSSES, show_default=True)
@cli.path_option("--schema", "contract", required=False, default=Path("data/schema.json"), show_default=True)
def main(
    which: str | None, text: str | None, top: int | None, as_json: bool, train: Path, losses: Path, schema: Path
) -> None:
    if which and text is not None:
        raise click.UsageError("--wrong and --request ask two questions: one at a time")
    rows = read_rows(train, losses)
    if not which and text is None:
        by_id = {row.id: row for row in rows}
        found = [by_id[name] for name in ranked({row.id: row.losses for row in rows})[: top or SUSPECTS]]
        printed: Any = [asdict(row) | {"suspicion": suspicion(row.losses)} for row in found]
        shown = table.grid(["loss by epoch", "id", "request", "answer"], [cells(row) for row in found])
    else:
        asked = wrong(which, schema) if which else [{"request": str(text)}]
        near = nearest([one["request"] for one in asked], rows, top or NEAREST) if asked else []
        pairs = list(zip(asked, near, strict=True))
        printed = [one | {"nearest": [asdict(row) for row in like]} for one, like in pairs]
        shown = [line for one, like in pairs for line in lines(one, like)] or ["No answer is wrong."]
    click.echo(json.dumps(printed, indent=2, ensure_ascii=False, allow_nan=False) if as_json else "\n".join(shown))


if __name__ == "__main__":
    main()
