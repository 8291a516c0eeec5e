"""The learning curve: the same pipeline on 50, 100, 200 ... training rows, each a DVC experiment of its own.

    python -m experiments.learning_curve

In: a clean commit whose pipeline has run. Out: metrics/experiments/learning_curve.json and .csv (for `dvc plots`). The
subsets are nested and hold each kind of answer in its share (build.train_rows). Each size is trained twice: for the
epochs of params.yaml, and, where those give fewer than STEPS optimizer steps, for as many as it takes; for with
the same epochs the small sets differ in training time too, not in rows alone. Experiments that exist are not run again,
so an interrupted run goes on; `dvc exp show` lists them, `dvc exp apply` takes one over.
"""

import csv
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from stages import train
from stages.shared import cli, params, strict_json, writing
from tools import history

SIZES = (50, 100, 200, 400, 800)
STEPS = 150  # with fewer, a size says more about the time it was given than about the rows
FIGURES = ("json_valid", "schema_valid", "exact_match", "exact_match_normalised", "action_accuracy", "field_f1")
MAKING = ("validate", "build", "train", "predict")  # the stages that decide what a model answers ...
FOLLOWS = ("data/chat", "data/validated", "models/adapter")  # ... those of their inputs that others of them make ...
VARIED = (("build", "train_rows"), ("train", "epochs"))  # ... and what the experiments vary
OFF = ("constrained.enabled=false",)  # its own system, not asked here


@dataclass(frozen=True)
class Point:
    """One experiment. `rows`: None for all of them, which is the pipeline as it stands."""

    rows: int | None
    epochs: float

    @property
    def name(self) -> str:
        return f"curve-{self.rows}-rows-{self.epochs:g}-epochs"


def points(sizes: tuple[int, ...], epochs: float, batch: int) -> dict[str, list[Point]]:
    """The experiments of each series, smallest first; where both are the same, so is the experiment."""
    enough = [max(epochs, ceil(STEPS * batch / size)) for size in sizes]
    whole = Point(None, epochs)
    return {
        "same epochs": [*(Point(size, epochs) for size in sizes), whole],
        "enough steps": [*(Point(size, more) for size, more in zip(sizes, enough, strict=True)), whole],
    }


def recipe(commit: str) -> dict[str, Any]:
    """What a commit's model was made of and with, by its dvc.lock, but for the number of rows and of epochs."""
    lock = YAML(typ="safe").load(history.read(commit, history.LOCK) or b"")
    made: dict[str, Any] = {}
    for name in MAKING:
        stage = lock["stages"][name]
        given = {section: dict(values) for section, values in stage.get("params", {}).get("params.yaml", {}).items()}
        for section, key in VARIED:
            given.get(section, {}).pop(key, None)
        made[name] = given, {dep["path"]: dep["md5"] for dep in stage["deps"] if not dep["path"].startswith(FOLLOWS)}
    return made


def found(name: str) -> str | None:
    """The commit of the newest experiment of that name and today's recipe, None where there is none."""
    listed = history.git("for-each-ref", "--sort=-committerdate", "--format=%(refname) %(objectname)", "refs/exps")
    refs = (line.split() for line in listed.decode().splitlines())
    named = [commit for ref, commit in refs if ref.endswith(f"/{name}")]
    today = recipe("HEAD") if named else {}
    return next((commit for commit in named if recipe(commit) == today), None)


def commit_of(point: Point) -> str:
    """The commit that holds the figures of a point; its experiment is run where there is none yet."""
    if point.rows is None:
        return history.resolve("HEAD")
    if not found(point.name):
        run(point)
    return history.resolve(found(point.name) or point.name)


def run(point: Point) -> None:
    """Run one experiment in a folder of its own. Raises InputError when DVC stopped."""
    changes = [f"build.train_rows={point.rows}", f"train.epochs={point.epochs:g}", *OFF]
    options = [word for change in changes for word in ("--set-param", change)]
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", point.name, *options, "evaluate"]
    if subprocess.run(command, check=False).returncode:
        raise cli.InputError(f"experiment {point.name} stopped; what it says stands above")


def metrics(commit: str, name: str) -> Any:
    content = history.read(commit, f"metrics/{name}.json")
    if content is None:
        raise cli.InputError(f"{commit}: has no metrics/{name}.json")
    return strict_json.parse(content.decode())


def entry(point: Point, commit: str) -> dict[str, Any]:
    """The figures of one experiment, on the test rows and on the validation rows."""
    built, trained, evaluate = (metrics(commit, name) for name in ("build", "train", "evaluate"))
    tuned, valid = evaluate["tuned"], evaluate["validation"]["tuned"]
    bounds = ("exact_match_low", "exact_match_high")
    return {
        "rows": built["train"]["groups"],
        "examples": built["train"]["examples"],
        "epochs": point.epochs,
        "steps": trained["steps"],
        "n": tuned["n"],
        **{name: tuned[name] for name in (*FIGURES, *bounds)},
        "gain_over_few_shot": evaluate["gain_over_few_shot"],
        "adapter": evaluate["computed_from"]["adapter"],
        "validation": {name: valid[name] for name in ("n", "exact_match", *bounds)},
    }


def write_csv(path: Path, curves: dict[str, list[dict[str, Any]]]) -> None:
    """A line for each size, with the exact match of each series and its interval beside it."""
    names = ("exact_match", "exact_match_low", "exact_match_high")
    header = [f"{series}{name.removeprefix('exact_match').replace('_', ' ')}" for series in curves for name in names]
    with writing.replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rows", *header])
        for places in zip(*curves.values(), strict=True):
            writer.writerow([places[0]["rows"], *(point[name] for point in places for name in names)])


def require_clean() -> None:
    """DVC takes what is uncommitted into an experiment, and nobody could say later what that was.

    Raises InputError for uncommitted changes, and where the committed metrics are not those of the committed data.
    """
    if not history.is_recorded("HEAD"):
        raise cli.InputError("the metrics of HEAD are not those of its data; run `dvc repro` and commit")
    if history.git("status", "--porcelain", "--untracked-files=no"):
        raise cli.InputError("there are uncommitted changes; commit them first, or run this in another clone")


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default="metrics/experiments/learning_curve.json")
@click.option("--size", "sizes", type=int, multiple=True, default=SIZES, show_default=True)
def main(out: Path, sizes: tuple[int, ...]) -> None:
    from tqdm import tqdm

    history.require_root()
    require_clean()
    settings = params.load("train", train.Params)
    series = points(sizes, settings.epochs, settings.batch_size)
    commits = {}
    for point in tqdm(dict.fromkeys(chain(*series.values())), desc="learning curve", unit=" sizes"):
        commits[point] = commit_of(point)
    curves = {name: [entry(point, commits[point]) for point in part] for name, part in series.items()}
    whole = metrics(history.resolve("HEAD"), "evaluate")["computed_from"]
    writing.write_json(out, {"series": curves, "computed_from": whole})
    write_csv(out.with_suffix(".csv"), curves)


if __name__ == "__main__":
    main()
