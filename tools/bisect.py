"""Name the data version that made a metric worse between two commits, and show the rows that came with it.

Recorded metrics cost nothing to read, so every data version from GOOD to BAD is looked at: a binary search would take
it on trust that a metric, once bad, stays bad. A commit's metrics count when its dvc.lock records both them and its
data. Where a version has none and the answer hangs on it, they come from DVC's run cache, or with --run from running
that commit in a temporary worktree.

Worse means evidence, not a raw difference. Rates of single answers are paired with those of GOOD on the test rows that
both have, unchanged, and tested with McNemar's exact test at 5%. Other metrics are worse when their 95% intervals lie
apart. GOOD is an ancestor of BAD; both may be names from data/README.md.

Exit status 0: a version is named; 1: the question can't be asked; 3: nothing got worse; 4: metrics are missing.
"""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from stages.shared import rows, stats, strict_json
from stages.shared.cli import InputError
from tools import history

# Verdicts of metrics/outcomes.jsonl that count as a hit, by the metric that counts them.
HITS = {
    "exact_match": {"exact"},
    "exact_match_normalised": {"exact", "normalised"},
    "schema_valid": {"exact", "normalised", "wrong"},
    "json_valid": {"exact", "normalised", "wrong", "off_contract"},
}
TEST = "data/test"
WIDTH = 100
Shown = tuple[str, str, str, str]


@dataclass(frozen=True)
class Measured:
    """The metrics of one commit: the values of metrics/evaluate.json and the lines of metrics/outcomes.jsonl by id."""

    commit: str
    data: str
    metrics: dict[str, Any]
    outcomes: dict[str, dict[str, Any]]
    source: str


@dataclass(frozen=True)
class Step:
    """A data version on the way from GOOD to BAD: its first commit, and its measured commits in order."""

    data: str
    commit: str
    measured: tuple[Measured, ...]


@dataclass(frozen=True)
class Change:
    """A metric from one commit to another. `worse` and `better` say that there is evidence, `why` says which."""

    worse: bool
    better: bool
    why: str


@dataclass(frozen=True)
class RowChanges:
    """Training rows of two commits that differ, each as (id, request, answer before, answer after)."""

    added: list[Shown]
    removed: list[Shown]
    relabelled: list[Shown]


# The way from GOOD to BAD


def steps(good: str, bad: str) -> list[Step]:
    """The data versions in order. A merge is one step: what it brought is seen as a whole."""
    try:
        history.git("merge-base", "--is-ancestor", good, bad)
    except InputError:
        raise InputError(f"{history.short(good)} is not an ancestor of {history.short(bad)}") from None
    path = [good, *reversed(history.commits("--first-parent", f"{good}..{bad}"))]
    found = []
    for data, part in groupby(zip(path, history.data_hashes(path), strict=True), key=lambda entry: entry[1]):
        commits = [commit for commit, _ in part]
        if not data:
            raise InputError(f"{history.short(commits[0])} has no {history.RAW}")
        found.append(Step(data, commits[0], tuple(recorded(data, commits))))
    return found


def recorded(data: str, commits: list[str]) -> Iterator[Measured]:
    """The commits that record metrics, without those that repeat the metrics of the one before."""
    metrics = history.ids(f"{commit}:{history.METRICS}" for commit in commits)
    for _, part in groupby(zip(commits, metrics, strict=True), key=lambda entry: entry[1]):
        commit = next((commit for commit, _ in part if history.is_recorded(commit)), "")
        if commit:
            contents = [history.read(commit, path) or b"" for path in (history.METRICS, history.OUTCOMES)]
            yield measured(commit, data, "recorded", *contents)


def measured(commit: str, data: str, source: str, metrics: bytes, outcomes: bytes) -> Measured:
    try:
        lines = [strict_json.parse(line) for line in outcomes.decode("utf-8").split("\n") if line.strip()]
        by_id = {line["id"]: line for line in lines}
        return Measured(commit, data, strict_json.parse(metrics.decode("utf-8")), by_id, source)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"metrics of {history.short(commit)} can't be read: {error}") from None


# Is it worse?


def value(one: Measured, metric: str) -> Any:
    """The number at a path such as `tuned.exact_match`. Raises InputError where there is none."""
    found: Any = one.metrics
    for name in metric.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise InputError(f"{history.METRICS} of {history.short(one.commit)} has no number at {metric}")
    return found


def compare(before: Measured, after: Measured, metric: str, lower_is_better: bool) -> Change:
    """Has the metric changed from one commit to the other, as far as the test rows can tell?"""
    values = f"{value(before, metric):.3f} to {value(after, metric):.3f}"
    system, _, name = metric.rpartition(".")
    if name in HITS and all(system in line for one in (before, after) for line in one.outcomes.values()):
        up, down, why = paired(before, after, system, HITS[name])
    else:
        up, down, why = apart(before, after, metric)
    worse, better = (up, down) if lower_is_better else (down, up)
    return Change(worse, better, f"{values}, {why}")


def paired(before: Measured, after: Measured, system: str, hits: set[str]) -> tuple[bool, bool, str]:
    changed = changed_tests(before.commit, after.commit)
    shared = [name for name in before.outcomes if name in after.outcomes]
    shared = [name for name in shared if before.outcomes[name].get("group", name) not in changed]
    if not shared:
        raise InputError(f"{history.short(before.commit)} and {history.short(after.commit)} share no test row")
    old, new = ([one.outcomes[name][system]["verdict"] in hits for name in shared] for one in (before, after))
    gained = sum(b and not a for a, b in zip(old, new, strict=True))
    lost = sum(a and not b for a, b in zip(old, new, strict=True))
    p = stats.mcnemar(old, new)
    sure = p < 1 - stats.CONFIDENCE
    return sure and gained > lost, sure and lost > gained, f"{gained} gained, {lost} lost of {len(old)}, p = {p:.2g}"


def apart(before: Measured, after: Measured, metric: str) -> tuple[bool, bool, str]:
    """For metrics that no single answer has, such as F1: do the intervals lie apart? Stricter than a paired test."""
    low, high = (f"{metric}_low", f"{metric}_high")
    up, down = value(after, low) > value(before, high), value(after, high) < value(before, low)
    return up, down, "intervals apart" if up or down else "intervals overlap"


def changed_tests(before: str, after: str) -> set[str]:
    """Ids of test rows that are in both commits but not the same: an answer to another question proves nothing."""
    if len(set(history.ids([f"{before}:{TEST}", f"{after}:{TEST}"]))) == 1:
        return set()
    old, new = ({row.id: row.turns for row in rows_at(commit, TEST)} for commit in (before, after))
    return {name for name in old.keys() & new.keys() if old[name] != new[name]}


# Metrics that no commit recorded


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A temporary checkout of a commit that shares the DVC cache of this one, its DVC-tracked rows in place."""
    from dvc.repo import Repo

    here = Repo()
    pointed = list(history.pointers(commit, history.RAW, TEST))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "worktree"
        history.git("worktree", "add", "--detach", "--quiet", str(place), commit)
        try:
            local = Path(".dvc/config.local")
            if local.is_file():  # remotes that only this machine knows
                (place / ".dvc" / "config.local").write_bytes(local.read_bytes())
            with Repo(place).config.edit("local") as config:
                config["cache"]["dir"] = str(Path(here.cache.local.path).parent.parent)
            if pointed:
                with chdir(place):
                    (Repo().pull if has_remote(here) else Repo().checkout)(targets=pointed)
            yield place
        finally:
            history.git("worktree", "remove", "--force", str(place))


def has_remote(repo: Any) -> bool:
    return bool(repo.config["core"].get("remote"))


def measure(step: Step, run: bool) -> Measured | None:
    """Metrics of a version that has none recorded: from the run cache, else with `run` by running its commit."""
    from dvc.exceptions import DvcException

    try:
        with worktree(step.commit) as place:
            source = "run cache" if from_run_cache(place) else "run again" if run and reproduce(place) else ""
            contents = [(place / path).read_bytes() for path in (history.METRICS, history.OUTCOMES) if source]
            return measured(step.commit, step.data, source, *contents) if source else None
    except (DvcException, OSError) as error:
        click.echo(f"bisect: {history.short(step.commit)} can't be measured: {error}", err=True)
        return None


def from_run_cache(place: Path) -> bool:
    """Restore every stage from DVC's run cache, in order; False when one would have to run."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # it would report each stage on stdout
    with chdir(place):
        repo = Repo()
        with lock_repo(repo):
            graph = repo.index.graph
            try:
                for stage in TopologicalSorter({stage: graph.successors(stage) for stage in graph}).static_order():
                    if stage.cmd:
                        repo.stage_cache.restore(stage)
            except DvcException:
                return False
    return True


def reproduce(place: Path) -> bool:
    """Run the pipeline of the worktree; what it says goes to stderr. False when it fails."""
    from dvc.repo import Repo

    pull = ["--pull"] if has_remote(Repo(place)) else []
    command = [sys.executable, "-m", "dvc", "repro", *pull]
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=place, env=env, stdout=2, check=False).returncode == 0


# The search

Judge = Callable[[Measured], Change]


def first_worse(found: list[Step], judge: Judge) -> tuple[int, int] | None:
    """Where the first worse measurement is: number of the version, and of the measurement within it."""
    for number, step in enumerate(found):
        for place, one in enumerate(step.measured):
            if judge(one).worse:
                return number, place
    return None


def hanging(found: list[Step], judge: Judge) -> list[int]:
    """Versions without metrics on which the answer hangs: those right before the first worse one, or else BAD."""
    worse = first_worse(found, judge)
    end = worse[0] if worse else len(found)
    start = end
    while start and not found[start - 1].measured:
        start -= 1
    return list(range(start, end)) if worse else list(range(start, end))[-1:]


def settle(found: list[Step], judge: Judge, run: bool) -> list[Step]:
    """Measure what the answer hangs on, until it hangs on nothing or nothing more can be measured."""
    tried: set[int] = set()
    while todo := [number for number in hanging(found, judge) if number not in tried]:
        found = with_measure(found, todo[0], run)
        tried.add(todo[0])
    return found


def with_measure(found: list[Step], number: int, run: bool) -> list[Step]:
    click.echo(f"bisect: no metrics recorded for {label(found[number])}; looking in the run cache", err=True)
    one = measure(found[number], run)
    return [*found[:number], replace(found[number], measured=(one,) if one else ()), *found[number + 1 :]]


# The rows that came


def rows_at(commit: str, folder: str) -> list[rows.Row]:
    """The rows of data/raw or data/test in a commit. DVC-tracked files come from the cache, or are left out."""
    held = {path: oid for path, oid in history.files(commit, folder).items() if path.endswith(".jsonl")}
    contents = dict(zip(held, history.blobs(list(held.values())), strict=True)) | from_cache(commit, folder)
    found = []
    with tempfile.TemporaryDirectory() as place:
        for path, content in sorted(contents.items()):
            file = Path(place) / Path(path).name
            file.write_bytes(content)
            found += [row for row in rows.read(file) if row.turns]
    return found


def from_cache(commit: str, folder: str) -> dict[str, bytes]:
    from dvc.repo import Repo

    found = {}
    for path, md5 in history.pointers(commit, folder).items():
        held = Path(Repo().cache.local.oid_to_path(md5))
        content = held.read_bytes() if held.is_file() else b""
        if history.md5(content) == md5:
            found[path] = content
        else:
            click.echo(
                f"bisect: {path} of {history.short(commit)} is not in the cache, its rows are left out", err=True
            )
    return found


def row_changes(before: Iterable[rows.Row], after: Iterable[rows.Row]) -> RowChanges:
    """Rows that differ. The same request with another answer is relabelled; another id alone is no change."""
    old, new = ({said(row, "user"): row for row in part} for part in (before, after))
    relabelled = [
        (row.id, request, said(old[request], "assistant"), said(row, "assistant"))
        for request, row in new.items()
        if request in old and said(old[request], "assistant") != said(row, "assistant")
    ]
    added = [(row.id, text, "", said(row, "assistant")) for text, row in new.items() if text not in old]
    removed = [(row.id, text, said(row, "assistant"), "") for text, row in old.items() if text not in new]
    return RowChanges(added, removed, relabelled)


def said(row: rows.Row, role: str) -> str:
    return " / ".join(turn["content"] for turn in row.turns if turn["role"] == role)


# What is printed


def safe(text: str) -> str:
    """Rows are anybody's text: nothing in them may steer a terminal."""
    shown = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in shown)


def label(step: Step) -> str:
    return f"{history.names().get(step.data, step.data[:12])} ({history.short(step.commit)})"


def table(found: list[Step], judge: Judge) -> Iterator[str]:
    """A line for each measurement of each version, as it compares with GOOD."""
    for step in found:
        for one in step.measured:
            change = judge(one)
            word = "worse" if change.worse else "better" if change.better else "no evidence of a change"
            yield f"  {label(step)}, {one.source} at {history.short(one.commit)}: {change.why}: {word}"
        if not step.measured:
            yield f"  {label(step)}: no metrics recorded"


def row_lines(changes: RowChanges, shown: int) -> Iterator[str]:
    for name, part in vars(changes).items():
        yield f"{name}: {len(part)} rows"
        for row_id, request, before, after in part[:shown]:
            answers = " -> ".join(safe(text) for text in (before, after) if text)
            yield f"  {safe(row_id or '-')}  {safe(request)}  {answers}"
        if len(part) > shown:
            yield f"  and {len(part) - shown} more"


def also_changed(before: str, after: str) -> list[str]:
    """What else could be the cause: files outside data/raw that the metrics depend on."""
    paths = ("params.yaml", "dvc.yaml", "stages", "expectations", "data/schema.json", TEST)
    return history.git("diff", "--name-only", before, after, "--", *paths).decode().split("\n")[:-1]


def conclusion(found: list[Step], judge: Judge, metric: str, shown: int) -> tuple[int, list[str]]:
    """The exit status and the lines of the answer."""
    if open_ := hanging(found, judge):
        names = ", ".join(label(found[number]) for number in open_)
        return 4, [f"no metrics for {names}, and not in the run cache: --run runs what the run cache lacks"]
    worse = first_worse(found, judge)
    if worse is None:
        return 3, [f"no version has a worse {metric}, as far as these test rows can tell"]
    number, place = worse
    every = [one for step in found[: number + 1] for one in step.measured]
    culprit = found[number].measured[place]
    before = every[every.index(culprit) - 1]
    other = also_changed(before.commit, culprit.commit)
    where = f"from {history.short(before.commit)} to {history.short(culprit.commit)}"
    if place:
        return 3, [f"{metric} got worse {where}, on the same data {label(found[number])}: {', '.join(other)} changed"]
    lines = [f"{label(found[number])} made {metric} worse: {judge(culprit).why}"]
    if other:
        lines.append(f"{where} these changed as well: {', '.join(other)}")
    rows_before, rows_after = (rows_at(step.commit, history.RAW) for step in found[number - 1 : number + 1])
    return 0, [*lines, *row_lines(row_changes(rows_before, rows_after), shown)]


@click.command(help=__doc__)
@click.argument("good")
@click.argument("bad")
@click.option("--metric", default="tuned.exact_match", show_default=True, help="a path in metrics/evaluate.json")
@click.option("--lower-is-better", is_flag=True, help="for metrics such as tuned.truncated")
@click.option("--run", is_flag=True, help="run the pipeline of a commit whose metrics are needed and nowhere recorded")
@click.option("--rows", "shown", default=5, show_default=True, help="rows to show of each kind")
def main(good: str, bad: str, metric: str, lower_is_better: bool, run: bool, shown: int) -> None:
    history.require_root()
    found = steps(history.commit_of(good), history.commit_of(bad))
    if not found[0].measured:
        found = with_measure(found, 0, run)
    if not found[0].measured:
        click.echo(
            f"no metrics for {label(found[0])}, and not in the run cache: --run runs what the run cache lacks", err=True
        )
        sys.exit(4)
    baseline = found[0].measured[0]

    def judge(one: Measured) -> Change:
        return compare(baseline, one, metric, lower_is_better)

    found = settle(found, judge, run)
    status, lines = conclusion(found, judge, metric, shown)
    click.echo("\n".join([f"{metric}, against {label(found[0])}:", *table(found, judge), *lines]))
    sys.exit(status)


if __name__ == "__main__":
    main()
