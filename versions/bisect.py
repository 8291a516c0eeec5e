"""Name the data version that made a metric worse between two commits, on paired evidence.

In: two commits, GOOD an ancestor of BAD. Out: a line per measured version, and the first that is worse than GOOD.
Recorded metrics cost nothing to read, so every version is compared with GOOD: a binary search would take it on trust
that a metric, once bad, stays bad. Looking more often finds more by chance, so each look gets its share of the 5%.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from stages.shared import scoring, stats, strict_json
from stages.shared.cli import InputError
from versions import history, record
from versions.history import RAW, TEST, short

CAUSES = ("params.yaml", "dvc.yaml", "constraints.txt", "stages", "expectations", "data/schema.json", TEST)


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
        return f"{history.names().get(self.data, self.data[:12])} ({short(self.commit)})"


def steps(good: str, bad: str) -> list[Step]:
    """The way from GOOD to BAD. A merge is one step: what it brought is seen as a whole."""
    try:
        history.git("merge-base", "--is-ancestor", good, bad)
    except InputError:
        raise InputError(f"{short(good)} is not an ancestor of {short(bad)}") from None
    path = [good, *reversed(history.commits("--first-parent", f"{good}..{bad}"))]
    outcomes = [history.files(commit).get(history.OUTCOMES) for commit in path]
    states = zip(path, history.data_hashes(path), outcomes, strict=True)
    found = []
    for (data, _), group in groupby(states, key=lambda state: state[1:]):
        same = [commit for commit, _, _ in group]
        if not data:
            raise InputError(f"{short(same[0])} has no {RAW}")
        recorded = next(filter(record.is_recorded, same), None)
        found.append(Step(recorded or same[0], data, recorded is not None))
    # Rows are often committed before the run: such a commit says nothing where a later one has the metrics.
    measured = {step.data for step in found if step.measured}
    return [step for step in found if step.measured or step.data not in measured]


def compare(before: Step, after: Step, system: str, metric: str, level: float) -> stats.Comparison:
    """Compare two versions on the test rows that both have, unchanged. Raises InputError where there are none."""
    changed = changed_tests(before.commit, after.commit)
    old, new = ({line["id"]: line for line in record.outcomes(step.commit)} for step in (before, after))
    groups = {name: str(old[name].get("group", name)) for name in old if name in new}
    groups = {name: group for name, group in groups.items() if group not in changed}
    if not groups:
        raise InputError(f"{before} and {after} share no test row")
    was, now = (record.verdicts([lines[name] for name in groups], system, metric) for lines in (old, new))
    return stats.compare(was, now, list(groups.values()), level)


def changed_tests(before: str, after: str) -> set[str]:
    """Ids of test rows that are in both commits but not the same: an answer to another question proves nothing."""
    old, new = (tests(commit) for commit in (before, after))
    return {name for name in old.keys() & new.keys() if old[name] != new[name]}


def tests(commit: str) -> dict[str, str]:
    """The test rows of a commit in Git by id, each as canonical JSON. A row without an id is known by its content."""
    held = [oid for path, oid in history.files(commit, TEST).items() if path.endswith(".jsonl")]
    lines = [
        line for rows in history.blobs(held) for line in rows.decode("utf-8", "replace").split("\n") if line.strip()
    ]
    rows = [strict_json.parse(line) for line in lines]
    return {str(row["id"]): strict_json.canonical(row) for row in rows if isinstance(row, dict) and "id" in row}


def search(good: str, bad: str, wanted: str) -> Iterator[str]:
    """Yield the lines of the answer. Raises NothingWorseError and NotMeasuredError where there is no culprit."""
    system, _, metric = wanted.partition(".")
    if metric not in scoring.METRICS:
        raise InputError(f"{wanted}: a system and one of {', '.join(scoring.METRICS)}, as in tuned.exact_match")
    way = steps(good, bad)
    measured = [step for step in way if step.measured]
    if not way[0].measured:
        raise NotMeasuredError(f"{way[0]} has no recorded metrics to compare with: run that commit, or start later")
    level = 1 - (1 - stats.CONFIDENCE) / max(len(measured) - 1, 1)
    yield f"{wanted} against {way[0]}, each look at {level:.2%}:"
    for before, step in pairwise(measured):
        result = compare(way[0], step, system, metric, level)
        yield f"  {step}: {shown(result)}"
        if result.evidence == "worse":
            yield from culprit(before, step, way, shown(compare(before, step, system, metric, stats.CONFIDENCE)))
            return
    if not way[-1].measured:
        raise NotMeasuredError(f"{way[-1]} has no recorded metrics: `dvc repro` there, commit, and ask again")
    raise NothingWorseError(f"no version has a worse {wanted}, as far as these test rows can tell")


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
        yield f"the data is the same as at {short(before.commit)}; changed: {', '.join(others)}; see {report}"
        raise NothingWorseError(f"no change of data made it worse: {short(step.commit)} did")
    yield f"first worse than the start: {step}"
    yield f"its own step, from {before}: {change}"
    if others:
        yield f"changed in the same step: {', '.join(others)}"
    yield report
