"""Name the data version that made a metric worse between two commits.

GOOD is an ancestor of BAD; both may be names from data/README.md. A version is named when it is worse than GOOD on
paired evidence, with a stricter level the more versions there are; what its own step changed is shown beside it. Where
BAD or GOOD has a record of the retraining noise, the evidence is about the change, were it retrained.

Exit status 0: a version is named; 1: the question can't be asked; 3: no data made it worse; 4: metrics are missing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

import click

from review import compare, rows
from review.compare import Noise, Rule
from stages.core import cli
from stages.core.cli import InputError
from stages.scores import scoring, stats
from versions import history, names, record
from versions.history import OUTCOMES, RAW, TEST, short

CAUSES = ["params.yaml", "dvc.yaml", "constraints.txt", "stages", "expectations"]
CAUSES += ["data/general", "data/rules.yaml", "data/schema.json", TEST]


class NothingWorseError(InputError):
    """No version is worse than GOOD, or data is not the cause."""

    exit_code = 3


class NotMeasuredError(InputError):
    """The answer hangs on a version without recorded metrics."""

    exit_code = 4


@dataclass(frozen=True)
class Step:
    """Commits with the same data and outcomes: the first that records its metrics, or else the first."""

    commit: str
    data: str
    measured: bool

    def __str__(self) -> str:
        return f"{names.names().get(self.data, self.data[:12])} ({short(self.commit)})"


def steps(good: str, bad: str) -> list[Step]:
    """The way from GOOD to BAD. A merge is one step: what it brought is seen as a whole."""
    if good not in history.commits(bad):
        raise InputError(f"{short(good)} is not an ancestor of {short(bad)}")
    path = [good, *reversed(history.commits("--first-parent", "--ancestry-path", f"{good}..{bad}"))]
    states = zip(path, names.data_hashes(path), [history.files(commit).get(OUTCOMES) for commit in path], strict=True)
    found: list[Step] = []
    for (data, _), group in groupby(states, key=lambda state: state[1:]):
        same = [commit for commit, _, _ in group]
        if not data:
            raise InputError(f"{short(same[0])} has no {RAW}, or a pointer there that can't be read")
        recorded = next(filter(record.is_recorded, same), None)
        # Rows are often committed before the run: such a commit says nothing where the next one has the metrics.
        while recorded and found and found[-1].data == data and not found[-1].measured:
            found.pop()
        found.append(Step(recorded or same[0], data, recorded is not None))
    return found


def compared(before: Step, after: Step, rule: Rule, level: float, known: Noise | None) -> stats.Comparison:
    """Two versions on the test rows that both have: an answer to another question proves nothing. Raises InputError."""
    sides = [compare.outcomes(step.commit, [rule.system]) for step in (before, after)]
    changes = rows.between(before.commit, after.commit, TEST)  # older outcomes don't say what was asked
    changed = {row.id for sort in ("relabelled", "reworded") for row, _ in changes[sort] if row}
    pairs = [pair for pair in compare.paired(*sides).both if pair[0].group not in changed]
    if not pairs:
        raise InputError(f"{before} and {after} share no test row")
    return compare.measured(pairs, rule, level, known).result


def search(good: str, bad: str, wanted: str) -> Iterator[str]:
    """Yield the lines of the answer. Raises NothingWorseError and NotMeasuredError where there is no culprit.

    Recorded metrics cost nothing to read, so every version is compared with GOOD: a binary search would take it on
    trust that a metric, once bad, stays bad. More looks find more by chance, so each gets its share of the 5%.
    """
    system, _, metric = wanted.rpartition(".")  # a system is a file name, which may hold dots
    if metric not in scoring.METRICS:
        raise InputError(f"{wanted}: a system and one of {', '.join(scoring.METRICS)}, as in tuned.exact_match")
    rule, way = Rule(system, metric, 0.0, 0.0), steps(good, bad)
    measured = [step for step in way if step.measured]
    if not way[0].measured:
        raise NotMeasuredError(f"{way[0]} has no recorded metrics to compare with: run that commit, or start later")
    level = 1 - (1 - stats.CONFIDENCE) / max(len(measured) - 1, 1)
    known = (compare.noise(bad) or compare.noise(good)) if system == "tuned" else None
    about = f"a retraining, of which {known.seeds} seeds were measured" if known else "these models, retraining apart"
    yield f"{wanted} against {way[0]}, each look at {level:.2%}, about {about}:"
    for before, step in pairwise(measured):
        result = compared(way[0], step, rule, level, known)
        yield f"  {step}: {shown(result)}"
        if result.evidence == "worse":
            yield from culprit(before, step, way, shown(compared(before, step, rule, stats.CONFIDENCE, known)))
            return
    if not way[-1].measured:
        raise NotMeasuredError(f"{way[-1]} has no recorded metrics: `dvc repro` there, commit, and ask again")
    raise NothingWorseError(f"no recorded version has a worse {wanted}, as far as these test rows can tell")


def shown(result: stats.Comparison) -> str:
    return (
        f"{result.before:.3f} to {result.after:.3f}, difference {result.difference:+.3f} "
        f"[{result.low:+.3f}, {result.high:+.3f}], {result.fixed} fixed, {result.regressed} regressed of {result.n}, "
        f"p = {result.p_value:.2g}: {result.evidence}"
    )


def culprit(before: Step, step: Step, way: list[Step], change: str) -> Iterator[str]:
    """What is to blame, what else may be, and the command that shows it."""
    report = f"python -m tools.report {short(before.commit)} --head {short(step.commit)}"
    between = [str(other) for other in way[way.index(before) + 1 : way.index(step)]]
    if between:
        raise NotMeasuredError(f"worse by {step}; before it, nothing is recorded for {', '.join(between)}: {report}")
    others = [path for path in history.changed_files(before.commit, step.commit) if history.within(path, CAUSES)]
    if before.data == step.data:
        changed = ", ".join(others) or "none of params, code, contract or test rows"
        yield f"the data is the same as at {short(before.commit)}; changed: {changed}; see {report}"
        raise NothingWorseError(f"no change of data made it worse: {short(step.commit)} did")
    yield f"first worse than the start: {step}"
    yield f"its own step, from {before}: {change}"
    if others:
        yield f"changed in the same step: {', '.join(others)}"
    yield report


@click.command(cls=cli.Command, help=__doc__)
@click.argument("good")
@click.argument("bad", default="HEAD")
@click.option("--metric", default="tuned.exact_match", show_default=True, help="a system, and a rate of its answers")
def main(good: str, bad: str, metric: str) -> None:
    history.require_root()
    for line in search(names.commit_of(good), names.commit_of(bad), metric):
        click.echo(line)


if __name__ == "__main__":
    main()
