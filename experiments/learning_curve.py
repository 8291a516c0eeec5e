"""The learning curve: the same pipeline on 50, 100, 200 ... training rows.

    python -m experiments.learning_curve --scratch /tmp/learning_curve

In: a repository whose pipeline has run. Out: metrics/experiments/learning_curve.json and .csv (for `dvc plots`). The
subsets are nested and hold each kind of answer in its share (build.train_rows). Each size is trained for the configured
epochs and, where that is under STEPS optimizer steps, again for enough epochs.
"""

from dataclasses import dataclass
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import click

from experiments import trial
from stages import train
from stages.core import cli, params, strict_json
from stages.data import writing
from stages.scores import stats

SIZES = (50, 100, 200, 400, 800)
STEPS = 150  # with fewer, a size says more about the time it was given than about the rows
OUT = Path("metrics/experiments/learning_curve.json")


@dataclass(frozen=True)
class Point:
    """One training. `rows`: None for all of them."""

    rows: int | None
    epochs: int


def points(sizes: tuple[int, ...], epochs: int, batch: int) -> dict[str, list[Point]]:
    """The trainings of each series, smallest first; where both are the same, so is the training."""
    whole = Point(None, epochs)
    return {
        "same epochs": [*(Point(size, epochs) for size in sizes), whole],
        "enough steps": [*(Point(size, max(epochs, ceil(STEPS * batch / size))) for size in sizes), whole],
    }


def measure(scratch: Path, point: Point) -> dict[str, Any]:
    """Train one point, and the figures of it."""
    folder = scratch / f"{point.rows or 'all'}-rows-{point.epochs}-epochs"
    settings = {"build.train_rows": point.rows, "train.epochs": point.epochs}
    trial.run(folder, settings, {}, ("build", *trial.MODEL))
    trained = strict_json.read(folder / "metrics/train.json")
    examples = list(strict_json.read_jsonl(folder / "data/chat/train.jsonl"))
    rates = [stats.rate(metric, trial.hits(folder, metric)) for metric in ("exact_match", "schema_valid", "json_valid")]
    return {
        "rows": len({example["group"] for example in examples}),
        "examples": len(examples),
        "epochs": point.epochs,
        "steps": trained["steps"],
        "n": len(trial.hits(folder)),
        "adapter": trial.made_from(folder)["adapter"],
        **{name: value for rate in rates for name, value in rate.items()},
    }


def write_csv(path: Path, curves: dict[str, list[dict[str, Any]]]) -> None:
    """A line for each size, with the exact match of each series and its interval."""
    ends = ("", "_low", "_high")
    header = [f"{series}{end.replace('_', ' ')}" for series in curves for end in ends]
    sizes = zip(*curves.values(), strict=True)
    lines = ([same[0]["rows"], *(point[f"exact_match{end}"] for point in same for end in ends)] for same in sizes)
    writing.write_csv(path, ["rows", *header], lines)


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--scratch", "folder for the trainings")
@cli.path_option("--out", "file for the result", required=False, default=OUT, show_default=True)
@click.option("--size", "sizes", type=click.IntRange(1), multiple=True, default=SIZES, show_default=True)
def main(scratch: Path, out: Path, sizes: tuple[int, ...]) -> None:
    trial.require_reproduced()
    settings = params.load("train", train.Params)
    rows = len({example["group"] for example in strict_json.read_jsonl(Path("data/chat/train.jsonl"))})
    if max(sizes) >= rows:
        raise cli.InputError(f"--size {max(sizes)}: name sizes below {rows}, the number of training rows")
    series = points(sizes, int(settings.epochs), settings.batch_size)
    measured = {point: measure(scratch.absolute(), point) for point in dict.fromkeys(chain(*series.values()))}
    curves = {name: [measured[point] for point in part] for name, part in series.items()}
    writing.write_json(out, {"series": curves, "computed_from": trial.made_from()})
    write_csv(out.with_suffix(".csv"), curves)


if __name__ == "__main__":
    main()
