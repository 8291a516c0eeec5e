"""Are 'better', 'worse' and failures of the gate as rare as promised when only the seed differs? And what is noticed?

\b
    python -m experiments.calibration

In: metrics/experiments/seeds.json of these test rows, outcomes, gate.yaml. Out: metrics/experiments/calibration.json.
The judge is the report's own: review/compare.py, with the gate's rule for exact match. It judges

\b
- `recorded`: each pair of the recorded trainings, both ways;
- `simulated`: trainings drawn from the rates of the rows. A row's chance to be right has the Beta distribution that
  fits how often two trainings disagree, given how often this row was right. A training shifts the log-odds of all rows
  by a normal amount, so that rates differ by the standard deviation `common`, beside the flips of single rows. A head
  loses `drop` of the rate. Each time as many trainings as were recorded measure the noise anew.

`better`, `worse`, `fails`: shares of the comparisons. `alone_`: the same words without a measurement of the noise, when
they are about the two models. `runs`: trainings a side, whose means are compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from experiments import seeds
from review import compare
from review.compare import Gate, Metric, Noise, Outcome, Rule
from stages.core import cli
from stages.data import writing
from versions import history

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Hits = np.ndarray[Any, np.dtype[np.bool_]]  # by training, then by test row

OUT = Path("metrics/experiments/calibration.json")
COMMON, DROPS, RUNS, SEED = (0.0, 0.01, 0.02), (0.0, 0.05, 0.1), (1, 3), 17


@dataclass(frozen=True)
class Judge:
    """The test rows, each as it is when answered wrongly and when rightly, and what the report judges them by."""

    rows: list[tuple[Outcome, Outcome]]
    gate: Gate
    rule: Rule

    def metric(self, before: "Hits", after: "Hits", level: float, known: Noise | None) -> Metric:
        """As the report has it; several trainings a side are compared by their means, for which noise must be known."""
        if not known or len(before) == 1:
            hits = zip(self.rows, before[0].tolist(), after[0].tolist(), strict=True)
            pairs = [(row[old], row[new]) for row, old, new in hits]
            return compare.measured(pairs, self.rule, level, known)
        old, new = before.mean(axis=0), after.mean(axis=0)
        groups, noise = [right.group for _, right in self.rows], (known.spread[self.rule.metric], known.seeds)
        mean, runs = compare.means(old.tolist(), new.tolist()), (len(before), len(after))
        result = compare.retrained(mean, (new - old).tolist(), groups, noise, level, runs)
        return Metric(self.rule.system, self.rule.metric, "", result, None)

    def words(self, before: "Hits", after: "Hits", known: Noise) -> dict[str, bool]:
        word = self.metric(before, after, self.gate.confidence, known).result.evidence
        check = compare.drop("", self.metric(before, after, self.gate.level, known), self.rule)
        found = {"better": word == "better", "worse": word == "worse", "fails": not check.holds}
        if len(before) == 1:
            alone = self.metric(before, after, self.gate.confidence, None).result.evidence
            found |= {"alone_better": alone == "better", "alone_worse": alone == "worse"}
        return found


def shares(judged: Sequence[dict[str, bool]]) -> dict[str, float]:
    return {"n": len(judged), **{name: sum(one[name] for one in judged) / len(judged) for name in judged[0]}}


def recorded(judge: Judge, right: "Hits", known: Noise) -> dict[str, float]:
    """Each pair of trainings, both ways. They measured the noise themselves, which makes them look a little quieter."""
    return shares([judge.words(one[None], other[None], known) for one, other in permutations(right, 2)])


@dataclass(frozen=True)
class Model:
    """What trainings are drawn from: Beta(a, b) of each row's chance, given how often it was right; flips of a pair."""

    a: "Floats"
    b: "Floats"
    flipping: float

    def chances(self, rng: "np.random.Generator") -> "Floats":
        return rng.beta(self.a, self.b)

    def train(
        self, rng: "np.random.Generator", chances: "Floats", runs: int, common: float, drop: float = 0.0
    ) -> "Hits":
        """`drop`: what the rate falls by, as if each right answer were lost with the same chance."""
        import numpy as np

        shift = rng.normal(0, common / (self.flipping / 2), size=(runs, 1))
        odds = np.log(chances) - np.log1p(-chances) + shift
        right: Hits = rng.random(odds.shape) < (1 - drop / chances.mean()) / (1 + np.exp(-odds))
        return right


def fitted(right: "Hits") -> Model:
    """By moments. Raises InputError where trainings never disagree: there is no noise to calibrate for."""
    import numpy as np

    flipping, mean, k = seeds.flipping(right.tolist()), float(right.mean()), right.sum(axis=0)
    if not flipping:
        raise cli.InputError("the recorded trainings give the same answers: no noise, and nothing to calibrate")
    share = min(flipping / (2 * mean * (1 - mean)), 0.99)
    size = share / (1 - share)
    return Model(np.asarray(mean * size + k), np.asarray((1 - mean) * size + len(right) - k), flipping)


def simulated(
    judge: Judge, model: Model, known: Noise, times: int, common: float, drop: float, runs: int
) -> dict[str, float]:
    import numpy as np

    rng, judged = np.random.default_rng(SEED), []
    for _ in range(times):
        chances = np.clip(model.chances(rng), 1e-6, 1 - 1e-6)
        rates = model.train(rng, chances, known.seeds, common).mean(axis=1)
        noise = replace(known, spread={judge.rule.metric: float(rates.std(ddof=1))})
        before = model.train(rng, chances, runs, common)
        judged.append(judge.words(before, model.train(rng, chances, runs, common, drop), noise))
    return shares(judged)


def scenarios(judge: Judge, model: Model, known: Noise, times: int, measured: float) -> Iterator[dict[str, float]]:
    from tqdm import tqdm

    every = list(product(sorted({*COMMON, measured}), DROPS, RUNS))
    for common, drop, runs in tqdm(every, desc="calibration"):
        found = simulated(judge, model, known, times, common, drop, runs)
        yield {"common": common, "drop": drop, "runs": runs, **found}


def read(tree: str) -> tuple[Judge, "Hits", Noise, dict[str, Any]]:
    """Judge, recorded trainings and their noise. Raises InputError where these test rows have none."""
    import numpy as np

    gate, known, file = compare.gate_of(tree), compare.noise(tree), compare.figures(tree, compare.SEEDS)
    rules = [rule for rule in gate.rules if (rule.system, rule.metric) == ("tuned", "exact_match")]
    if not known or not rules:
        raise cli.InputError("no retraining noise of these test rows, or no rule for it: run experiments.seeds")
    outcomes = compare.outcomes(tree, {rule.system for rule in gate.rules})
    names = sorted(file["times_right"])
    if len(file.get("right", {})) != known.seeds:
        raise cli.InputError(f"{compare.SEEDS} has no answers by seed; run experiments.seeds again")
    if set(names) != set(outcomes):
        raise cli.InputError(f"{compare.SEEDS} and {history.OUTCOMES} are of different test rows")
    wrong, exact = ({rules[0].system: word} for word in ("wrong", "exact"))
    rows = [(replace(outcomes[name], verdicts=wrong), replace(outcomes[name], verdicts=exact)) for name in names]
    right = np.array([[digit == "1" for digit in line] for line in file["right"].values()])
    return Judge(rows, gate, rules[0]), right, known, file


@click.command(cls=cli.Command, help=__doc__)
@click.option("--times", default=1000, show_default=True, type=click.IntRange(1), help="simulations of each case")
@cli.path_option("--out", "file for the result", required=False, default=OUT, show_default=True)
def main(times: int, out: Path) -> None:
    judge, right, known, file = read(history.working_tree())
    measured = round(float(file["sigma_seed"]["exact_match"]), 4)
    pairs, model = recorded(judge, right, known), fitted(right)
    found = {
        "seeds": known.seeds,
        "measured": measured,
        "recorded": pairs,
        "simulated": list(scenarios(judge, model, known, times, measured)),
        "rule": asdict(judge.rule),
        "computed_from": file["computed_from"],
    }
    writing.write_json(out, found)
    click.echo(f"calibration: {pairs['worse']:.3f} of {pairs['n']} recorded pairs are called worse", err=True)


if __name__ == "__main__":
    main()
