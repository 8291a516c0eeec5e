"""Does `tools.suspects` find wrong labels? Plant some among the training rows, train, and look for them in its list.

    python -m experiments.wrong_labels --scratch /tmp/wrong_labels

In: a repository whose pipeline has run. Out: metrics/experiments/wrong_labels.json. PLANTED training examples, drawn by
a fixed seed, get a wrong answer in the right form: half of them one of another kind, half their own with one field from
another row. `found`: the share of them among the LOOKED_AT most suspect rows; `by_epoch`: how many of them the losses
of each epoch alone would have put there.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from experiments import trial
from stages.core import cli, strict_json
from stages.data import writing
from stages.scores import stats
from tools import suspects

Row = dict[str, Any]
PLANTED, LOOKED_AT, SEED = 50, 150, 17
OUT = Path("metrics/experiments/wrong_labels.json")


def another_kind(row: Row, rows: Sequence[Row], rng: random.Random) -> str:
    """The answer of a row of another kind. Raises InputError where there is none."""
    others = [other["answer"] for other in rows if other["kind"] != row["kind"]]
    if not others:
        raise cli.InputError(f"all answers are of the kind {row['kind']!r}")
    return str(rng.choice(others))


def another_value(row: Row, rows: Sequence[Row], rng: random.Random) -> str | None:
    """The row's answer with one field from another row of its kind; None where all of them have the same fields."""
    answer = strict_json.parse(row["answer"])
    others = [strict_json.parse(other["answer"]) for other in rows if other["kind"] == row["kind"]]
    differ = {key: [o[key] for o in others if key in o and o[key] != value] for key, value in answer.items()}
    keys = sorted(key for key, values in differ.items() if values)
    if not keys:
        return None
    key = rng.choice(keys)
    return strict_json.compact(answer | {key: rng.choice(differ[key])})


def plant(rows: Sequence[Row], count: int) -> tuple[list[Row], dict[str, str]]:
    """The rows with wrong answers in `count` of them, and by their id what was done."""
    rng = random.Random(SEED)  # noqa: S311
    if count > len(rows):
        raise cli.InputError(f"{len(rows)} training rows are fewer than the {count} to be made wrong")
    chosen, spoiled, ways = rng.sample(range(len(rows)), count), list(rows), {}
    for place, number in enumerate(chosen):
        row = rows[number]
        value = another_value(row, rows, rng) if place % 2 else None
        spoiled[number] = row | {"answer": value or another_kind(row, rows, rng)}
        ways[row["id"]] = "another value" if value else "another kind"
    return spoiled, ways


def result(ways: Mapping[str, str], losses: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """How many of the wrong labels are among the most suspect rows."""
    seen = set(suspects.ranked(losses)[:LOOKED_AT])
    epochs = range(min(map(len, losses.values())))  # those that all rows were met in
    alone = [sorted(losses, key=lambda name: -losses[name][epoch])[:LOOKED_AT] for epoch in epochs]
    parts = {way: [name in seen for name, done in ways.items() if done == way] for way in sorted(set(ways.values()))}
    return {
        "rows": len(losses),
        "n": len(ways),
        "looked_at": LOOKED_AT,
        **stats.rate("found", (name in seen for name in ways)),
        "ways": {way: {"n": len(hits), **stats.rate("found", hits)} for way, hits in parts.items()},
        "by_epoch": [sum(name in ways for name in names) for names in alone],
    }


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--scratch", "folder for the training")
@cli.path_option("--out", "file for the result", required=False, default=OUT, show_default=True)
def main(scratch: Path, out: Path) -> None:
    trial.require_reproduced()
    folder = scratch.absolute() / "training"
    rows, ways = plant(list(strict_json.read_jsonl(suspects.TRAIN)), PLANTED)
    trial.run(folder, {}, {str(suspects.TRAIN): rows}, ["train"])
    figures = result(ways, suspects.read_losses(folder / suspects.LOSSES))
    writing.write_json(out, figures | {"computed_from": trial.made_from(folder)})
    click.echo(f"wrong_labels: {figures['found']:.2f} of {PLANTED} among the {LOOKED_AT} most suspect rows", err=True)


if __name__ == "__main__":
    main()
