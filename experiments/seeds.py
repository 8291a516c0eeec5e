"""Retraining noise: train the committed state again with other seeds, and see how much the answers move.

    python -m experiments.seeds --jobs 2

In: a repository whose pipeline has run. Out: metrics/experiments/seeds.json. The trainings differ in nothing but
train.seed. `spread`: the standard deviation of a rate over the seeds. `flip_variance`: the variance that answers which
flip independently of each other would give alone; `sigma_seed`: what is left, an effect that a seed has on all answers
(Jordan 2023, arXiv 2304.01910). `times_right`: of each test row, in how many trainings its answer was exact; `right`:
the same by seed, a digit for each row in the order of their ids. A training that is done is not done again; with
`--adopt` that of the repository itself, the first seed, is one of them.

`--jobs`: trainings side by side, each on its share of the cores. On two cores, two trainings of one thread do 1.3 times
the work of one with two. Another number of threads rounds otherwise, so all trainings of a file have the same.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from experiments import trial
from stages import train
from stages.core import cli, hashes, params, strict_json
from stages.data import writing
from stages.scores import scoring
from versions import history

SCRATCH = Path(".dvc/tmp/seeds")
OUT = Path("metrics/experiments/seeds.json")
TEST = Path("data/chat/test.jsonl")
Table = Sequence[Sequence[bool]]  # by seed, then by test row: whether the answer counts


@dataclass(frozen=True)
class Noise:
    """Of one rate over K seeds: its standard deviation, and the two parts of its variance."""

    spread: float
    flip_variance: float
    sigma_seed: float


def noise(right: Table) -> Noise:
    """Raises ValueError for fewer than two seeds or no rows."""
    seeds, n = len(right), len(right[0])
    rates = [sum(row) / n for row in right]
    mean = sum(rates) / seeds
    variance = sum((rate - mean) ** 2 for rate in rates) / (seeds - 1)
    shares = [sum(by_seed) / seeds for by_seed in zip(*right, strict=True)]
    flips = sum(p * (1 - p) for p in shares) / n**2 * seeds / (seeds - 1)
    return Noise(math.sqrt(variance), flips, math.sqrt(max(0.0, variance - flips)))


def flipping(right: Table) -> float:
    """The share of answers that are right with one seed and wrong with another, on average over pairs of seeds."""
    seeds, n = len(right), len(right[0])
    times: list[int] = [sum(by_seed) for by_seed in zip(*right, strict=True)]
    return sum(2 * k * (seeds - k) for k in times) / float(seeds * (seeds - 1) * n)


def origin(folders: Sequence[Path]) -> dict[str, Any]:
    """What all trainings share, and the adapter of the repository, by which a version knows that they are its own.

    Raises InputError where one of them was made from something else.
    """
    made = [trial.made_from(folder) for folder in folders]
    names = ("base", "device", "replay", "threads", "train", "versions")
    shared = [
        {**{name: one[name] for name in names}, "params": {k: v for k, v in one["params"].items() if k != "seed"}}
        for one in made
    ]
    for folder, one in zip(folders, shared, strict=True):
        if one != shared[0]:
            raise cli.InputError(f"{folder} and {folders[0]} were not made from the same; remove one of them")
    return {**shared[0], "adapter": trial.made_from()["adapter"], "test": hashes.of_file(TEST)}


def result(seeds: Sequence[int], folders: Sequence[Path], date: str) -> dict[str, Any]:
    """The file, from what the trials left."""
    answered = [{row["id"]: row["tuned"]["verdict"] for row in trial.outcomes(folder)} for folder in folders]
    ids = sorted(answered[0])
    tables = {
        metric: [[scoring.counts(verdict[name], metric) for name in ids] for verdict in answered]
        for metric in scoring.METRICS
    }
    noises, exact = {metric: noise(table) for metric, table in tables.items()}, tables["exact_match"]
    return {
        "seeds": len(seeds),
        "trained_with": list(seeds),
        "date": date,
        "n": len(ids),
        "rates": {metric: [sum(row) / len(ids) for row in table] for metric, table in tables.items()},
        **{part: {name: getattr(n, part) for name, n in noises.items()} for part in Noise.__annotations__},
        "flipping": flipping(exact),
        "times_right": dict(zip(ids, map(sum, zip(*exact, strict=True)), strict=True)),
        "right": {str(seed): "".join("01"[hit] for hit in row) for seed, row in zip(seeds, exact, strict=True)},
        "computed_from": origin(folders),
    }


def require_own_metrics(threads: int | None) -> None:
    """Raise InputError unless the metrics here are of this adapter and these test rows, on as many threads."""
    made_from = trial.made_from()
    measured = strict_json.read(Path("metrics/detail/evaluate.json"))["computed_from"]
    if (measured["adapter"], measured["test"]) != (made_from["adapter"], hashes.of_file(TEST)):
        raise cli.InputError("the metrics are not of this adapter and these test rows; run `dvc repro` first")
    if threads not in (None, made_from["threads"]):
        raise cli.InputError(f"--adopt: the adapter here was trained on {made_from['threads']} threads, not {threads}")


def train_all(seeds: Sequence[int], folders: Sequence[Path], jobs: int, threads: int | None) -> None:
    """`jobs` at a time. Raises InputError, and begins no other, when one stops or differs from those that are done."""

    def one(seed: int, folder: Path) -> None:
        try:
            trial.run(folder, {"train.seed": seed}, {}, threads=threads)
            origin([other for other in folders if (other / "evaluate.done").is_file()])
        except cli.InputError:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, seeds, folders))


@click.command(cls=cli.Command, help=__doc__)
@click.option("--count", default=8, show_default=True, type=click.IntRange(2, 1000), help="how many trainings")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1, 64), help="how many at a time")
@click.option("--adopt", is_flag=True, help="take the first training from this repository, where `dvc repro` ran here")
@cli.path_option("--scratch", "folder for the trainings", required=False, default=SCRATCH, show_default=True)
@cli.path_option("--out", "file for the result", required=False, default=OUT, show_default=True)
def main(count: int, jobs: int, adopt: bool, scratch: Path, out: Path) -> None:
    trial.require_reproduced()
    first, date = params.load("train", train.Params).seed, history.git("log", "-1", "--format=%cs").decode().strip()
    seeds = range(first, first + count)
    folders = [scratch.absolute() / str(seed) for seed in seeds]
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    if adopt and not (folders[0] / "evaluate.done").is_file():
        require_own_metrics(threads)
        trial.adopt(folders[0], {"train.seed": first})
    train_all(seeds, folders, jobs, threads)
    figures = result(seeds, folders, date)
    writing.write_json(out, figures)
    rates, spread = figures["rates"]["exact_match"], figures["spread"]["exact_match"]
    click.echo(f"seeds: exact match {min(rates):.3f} to {max(rates):.3f}, spread {spread:.4f}, {count} trainings")


if __name__ == "__main__":
    main()
