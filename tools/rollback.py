"""Go back to a data version: its data, contract, params, dvc.lock and metrics from Git, its outputs from the DVC cache.

REV is a commit, or the name of a data version in data/README.md. What comes back is staged, ready to commit, and
nothing is trained. Code and dvc.yaml stay as they are today. Everything is looked up and hashed before a file is
touched, and every restored file is hashed again, because DVC checks out an altered cache object without a word.

Exit status 0: restored; 1: refused, nothing touched; 3: the cache lacks something; 4: something is altered.
"""

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from stages.shared import strict_json
from stages.shared.cli import InputError
from tools import history, outputs

DATA = ("data/raw", "data/test", "data/schema.json")
RESULTS = ("expectations", "params.yaml", history.LOCK, "metrics")
STAYS = "metrics/experiments"  # of no run: what docs/experiments.md shows, whatever version is checked out
SHOWN = 10


class MissingError(InputError):
    """The cache and the remotes lack something that REV recorded; the message names it and what makes it again."""

    exit_code = 3


class AlteredError(InputError):
    """A file differs from what REV recorded; the message names it with both hashes."""

    exit_code = 4


@dataclass(frozen=True)
class Goal:
    """What to bring back, by path. `files`: Git blob ids; `recorded`: md5 of what Git holds; `outs`: of what DVC holds.

    `roots` are the files and folders that Git restores as a whole, `made_by` is the stage of an output.
    """

    commit: str
    roots: tuple[str, ...]
    files: dict[str, str]
    recorded: dict[str, str]
    outs: dict[str, str]
    made_by: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """What to do for a goal. `away`: outputs to remove, all of them saved; `take`: outputs to take from the cache.

    `missing` outputs can't be had; `forgotten` ones are no longer made by today's dvc.yaml.
    """

    goal: Goal
    away: list[str]
    take: list[str]
    missing: list[str]
    forgotten: list[str]


def goal_of(commit: str, data_only: bool) -> Goal:
    """What `commit` recorded. Raises InputError where its dvc.lock is missing or belongs to other data or metrics."""
    lock = history.Lock({}, {}, {}) if data_only else history.lock(commit)
    wanted = DATA if data_only else (*DATA, *RESULTS, *(out for out in lock.outs if not is_in_any(out, RESULTS)))
    files = {path: oid for path, oid in history.files(commit, *wanted).items() if not is_in_any(path, (STAYS,))}
    list(history.blobs(list(files.values())))  # an object that Git can't read shows now, not half-way
    roots = tuple(root for root in wanted if any(is_in_any(path, (root,)) for path in files))
    if history.RAW not in roots:
        raise InputError(f"{history.short(commit)} has no {history.RAW} in Git")
    recorded = {path: md5 for path, md5 in (lock.deps | lock.outs).items() if is_in_any(path, roots)}
    refuse_out_of_step(commit, recorded)
    if data_only:
        recorded = {root: history.content_hash(commit, root) or "" for root in roots}
    outs = history.pointers(commit, *DATA) | {path: md5 for path, md5 in lock.outs.items() if path not in recorded}
    return Goal(commit, roots, files, recorded, outs, lock.made_by)


def is_in_any(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)


def refuse_out_of_step(commit: str, recorded: dict[str, str]) -> None:
    for path, md5 in recorded.items():
        held = history.content_hash(commit, path)
        if held != md5:
            raise InputError(
                f"{history.LOCK} of {history.short(commit)} is out of step: it records {path} as {md5}, the commit "
                f"holds {held or 'none'}, so its model and metrics are not of its data. "
                "--data-only takes the data, `dvc repro` then makes the rest"
            )


# What is there now, and what would be lost


def snapshot(roots: tuple[str, ...]) -> tuple[str, str]:
    """Git trees of the index and of the working tree as they are, untracked files included."""
    staged = history.git("write-tree").decode().strip()
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        shutil.copy(history.git("rev-parse", "--git-path", "index").decode().strip(), index)
        seen = history.git("ls-files", "-zco", "--exclude-standard", "--", *roots)
        history.git("update-index", "--add", "--remove", "-z", "--stdin", given=seen, index=index)
        return staged, history.git("write-tree", index=index).decode().strip()


def refuse_uncommitted(goal: Goal, trees: tuple[str, str]) -> None:
    """Raise InputError when something under the roots is as no commit has it: only then can work be lost.

    So a rollback may follow a rollback, without a commit in between.
    """
    for root in goal.roots:
        now = set(history.ids(f"{tree}:{root}" for tree in trees))
        if now - set(history.ids([f"HEAD:{root}"])):
            known = history.commits("--all", "HEAD", "--full-history", "--", root)
            if now - set(history.ids(f"{commit}:{root}" for commit in known)):
                arguments = ("status", "--porcelain", "--no-renames", "-zuall", "--", root)
                status = history.git(*arguments).decode("utf-8", "replace").split("\0")
                changed = [line[3:] for line in status if line]
                raise InputError(f"uncommitted work would be lost: {listed(changed)}; commit or stash it first")


def refuse_ignored(goal: Goal, pointed: dict[str, str]) -> None:
    """Files that Git ignores and DVC does not hold would be hashed with the data, or overwritten."""
    arguments = ("ls-files", "-zoi", "--exclude-standard", "--", *goal.roots)
    ignored = history.git(*arguments).decode("utf-8", "surrogateescape").split("\0")
    unknown = [path for path in ignored if path and path not in pointed and path not in goal.outs]
    if unknown:
        raise InputError(f"ignored by Git and held by nobody: {listed(unknown)}; move it out of the way")


def refuse_running(repo: Any) -> None:
    """Raise InputError while DVC runs a stage: it reads and writes what is about to change, and notes so in a file."""
    import psutil

    note = Path(repo.tmp_dir) / "rwlock"
    held = strict_json.parse(note.read_text(encoding="utf-8") or "{}") if note.is_file() else {}
    readers = [reader for part in held.get("read", {}).values() for reader in part]
    for holder in [*held.get("write", {}).values(), *readers]:
        if psutil.pid_exists(holder["pid"]):
            raise InputError(f"`{holder['cmd']}` is running (process {holder['pid']}); wait for its end")


def refuse_unsaved(outs: Iterable[str], store: Any) -> None:
    """Outputs are about to be replaced: all that they hold now must be in the cache."""
    for out in outs:
        for name, md5 in outputs.walk(Path(out)).items():
            if outputs.found_in(store, md5) != md5:
                path = f"{out}/{name}".rstrip("/")
                raise InputError(f"{path} is not in the DVC cache and would be lost; `dvc commit` it, or move it away")


def listed(paths: list[str]) -> str:
    rest = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(path if path.isprintable() else repr(path) for path in paths[:SHOWN]) + rest


# Going back


def refuse_altered(findings: list[outputs.Finding], rev: str) -> None:
    altered = [finding for finding in findings if finding.found]
    if altered:
        lines = "\n  ".join(map(str, altered))
        raise AlteredError(
            f"the DVC cache is altered, nothing was restored:\n  {lines}\n"
            f"Remove these files from the cache, then: python -m tools.rollback {rev}\n"
            "It fetches them from a remote, or names the stage that makes them again."
        )


def missing_outs(findings: list[outputs.Finding], goal: Goal, rev: str, allowed: bool) -> list[str]:
    """The outputs that can't be had. Raises MissingError unless that is allowed."""
    absent = sorted({finding.out for finding in findings})
    if absent and not allowed:
        lines = "\n  ".join(map(str, findings))
        stages = " ".join(dict.fromkeys(goal.made_by[out] for out in goal.made_by if out in absent))
        again = f"python -m tools.rollback {rev} --allow-missing && dvc repro {stages}"
        advice = f"To make it again: {again}" if stages else "It was added with `dvc add`: only a remote can have it."
        raise MissingError(f"neither cache nor remote has it, nothing was restored:\n  {lines}\n{advice}")
    return absent


def plan(repo: Any, goal: Goal, rev: str, allow_missing: bool) -> Plan:
    """Look everything up and hash it, without touching a file. Raises InputError for whatever stands in the way."""
    trees = snapshot(goal.roots)
    pointed = history.pointers(trees[1], *DATA)
    refuse_uncommitted(goal, trees)
    refuse_ignored(goal, pointed)
    refuse_running(repo)

    today = {outputs.relative(out.fs_path) for out in repo.index.outs}
    forgotten = sorted(out for out in goal.made_by if out in goal.outs and out not in today)
    goal = without(goal, forgotten)
    store = repo.cache.local
    wrong = {out: md5 for out, md5 in goal.outs.items() if outputs.md5_of(Path(out)) != md5}
    absent = {finding.out for finding in outputs.inspect(store, wrong) if not finding.found}
    if absent:
        outputs.fetch(repo, goal.commit, absent)
    refuse_altered(outputs.inspect(store, goal.outs), rev)
    missing = missing_outs(outputs.inspect(store, wrong), goal, rev, allow_missing)
    away = set(wrong) | (set(pointed) - set(goal.outs))
    refuse_unsaved(away, store)
    return Plan(without(goal, missing), sorted(away), sorted(set(wrong) - set(missing)), missing, forgotten)


def without(goal: Goal, outs: list[str]) -> Goal:
    return replace(goal, outs={out: md5 for out, md5 in goal.outs.items() if out not in outs})


def bring_back(todo: Plan) -> None:
    from dvc.repo import Repo

    for out in todo.away:
        path = Path(out)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    paths = *todo.goal.roots, f":(exclude){STAYS}"
    history.git("restore", f"--source={todo.goal.commit}", "--staged", "--worktree", "--", *paths)
    if todo.take:
        Repo().checkout(targets=todo.take, force=True)


def verify(goal: Goal) -> None:
    """Hash every restored file: against the blob of the commit, against dvc.lock, and against its *.dvc file."""
    names = "".join(f"{path}\n" for path in goal.files).encode("utf-8", "surrogateescape")
    found = history.git("hash-object", "--stdin-paths", given=names).decode().split()
    wrong = [
        outputs.Finding(path, path, blob, now)
        for (path, blob), now in zip(goal.files.items(), found, strict=True)
        if blob != now
    ]
    for path, md5 in (goal.recorded | goal.outs).items():
        now = outputs.md5_of(Path(path))
        if now != md5:
            wrong.append(outputs.Finding(path, path, md5, now))
    if wrong:
        raise AlteredError("not restored, though the cache was sound:\n  " + "\n  ".join(map(str, wrong)))


def would_run(status: dict[str, Any]) -> list[str]:
    """A line per stage that today's code would run again on the restored data, with what changed for it."""
    lines = []
    for stage, changes in status.items():
        parts = [change if isinstance(change, str) else ", ".join(*change.values()) for change in changes]
        lines.append(f"{stage} ({'; '.join(parts)})")
    return lines


def report(todo: Plan, data_only: bool) -> None:
    from dvc.repo import Repo

    goal = todo.goal
    files = sum(len(outputs.walk(Path(out))) for out in goal.outs)
    click.echo(
        f"{history.short(goal.commit)}: {len(goal.files)} files from Git, {files} of DVC in {len(goal.outs)} outputs, "
        "every hash as recorded. Staged; to undo: python -m tools.rollback HEAD"
    )
    if todo.missing:
        click.echo(f"Missing: {', '.join(todo.missing)}")
    if todo.forgotten:
        click.echo(f"Left out, as today's dvc.yaml does not make it: {', '.join(todo.forgotten)}")
    if data_only:
        click.echo("`dvc repro` now trains today's code on this data")
        return
    again = would_run(Repo().status())
    if again:
        click.echo("`dvc repro` would run these again, and what follows from them:\n  " + "\n  ".join(again))
    else:
        click.echo("`dvc repro` has nothing to do")


def roll_back(rev: str, data_only: bool, allow_missing: bool) -> None:
    from dvc.repo import Repo

    goal = goal_of(history.commit_of(rev), data_only)
    todo = plan(Repo(), goal, rev, allow_missing)
    bring_back(todo)
    verify(todo.goal)
    report(todo, data_only)


# The versions


def metric_of(commit: str) -> str:
    """Exact match of the tuned system with its interval and n, as `commit` recorded it."""
    if not history.is_recorded(commit):
        return "not recorded"
    try:
        tuned = strict_json.parse((history.read(commit, history.METRICS) or b"").decode("utf-8"))["tuned"]
        rate, low, high = (tuned[name] for name in ("exact_match", "exact_match_low", "exact_match_high"))
        return f"{rate:.3f} [{low:.3f}, {high:.3f}], n = {tuned['n']}"
    except (ValueError, KeyError, TypeError):
        return "can't be read"


def rows_of(commit: str) -> str:
    """Number of training rows; '+' stands for DVC-tracked files, which are not in Git."""
    held = [oid for path, oid in history.files(commit, history.RAW).items() if path.endswith(".jsonl")]
    count = sum(bool(line.strip()) for content in history.blobs(held) for line in content.split(b"\n"))
    return f"{count}{'+' if history.pointers(commit, history.RAW) else ''}"


def table() -> list[str]:
    """One line per data version, newest first, under a line of headings."""
    names = history.names()
    lines = [("name", "commit", "date", "rows", "data", "tuned exact match")]
    for md5, commit in history.versions().items():
        date = history.git("show", "-s", "--format=%cs", commit).decode().strip()
        lines.append((names.get(md5, "-"), history.short(commit), date, rows_of(commit), md5[:12], metric_of(commit)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


@click.command(help=__doc__)
@click.argument("rev", required=False)
@click.option("--data-only", is_flag=True, help="take the data and the schema only; `dvc repro` then trains on them")
@click.option("--allow-missing", is_flag=True, help="bring back the rest when the cache lacks an output")
@click.option("--list", "listing", is_flag=True, help="list the data versions behind HEAD, newest first")
def main(rev: str | None, data_only: bool, allow_missing: bool, listing: bool) -> None:
    if bool(rev) == listing:
        raise click.UsageError("give a REV, or --list")
    history.require_root()
    if listing:
        click.echo("\n".join(table()))
        if history.is_shallow():
            click.echo("this clone is shallow: older versions come with `git fetch --unshallow`", err=True)
    if rev:
        from dvc.exceptions import DvcException

        try:
            roll_back(rev, data_only, allow_missing)
        except (DvcException, OSError) as error:
            raise InputError(f"{error}; mend that and run this again") from error


if __name__ == "__main__":
    main()
