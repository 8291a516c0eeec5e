"""Go back to a data version: its data, contract, params, dvc.lock and metrics from Git, its outputs from the DVC cache.

In: a commit. Out: its files, staged, every one hashed. Whatever a commit holds, only what is listed here is written or
removed: DATA, RESULTS, and outputs of today's dvc.yaml below OUTPUTS. Code, workflows and dvc.yaml stay as they are.
Everything is looked up before a file is touched. A rollback that is killed leaves files of the old and of the new
version, which its note in .git names; the next one, to whatever version, takes it from there.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import Any

from stages.shared import strict_json, writing
from stages.shared.cli import InputError
from versions import dvc_cache, history, record
from versions.dvc_cache import Finding
from versions.history import LOCK, RAW, TEST, git, printable, short, within

DATA = (RAW, TEST, "data/behaviour", "data/schema.json", "data/rules.yaml")
RESULTS = ("expectations", record.PARAMS, LOCK, "metrics")
OUTPUTS = ("data", "models")
PAGES = ("data/docs",)  # to read, and made again by `dvc repro validate`: a version is whole without them
STEERS = ("dvc.yaml", "dvc.lock", ".dvcignore", ".gitattributes")  # in any folder, DVC and Git obey these
SHOWN = 10


class MissingError(InputError):
    """The cache and the remotes lack something that the commit recorded; the message says what makes it again."""

    exit_code = 3


class AlteredError(InputError):
    """A file differs from what the commit recorded, or the rollback broke off; the message says which."""

    exit_code = 4


@dataclass(frozen=True)
class Goal:
    """What to bring back, by path: `files` are Git's blob ids, `outs` md5 of what DVC holds.

    `roots` are the files and folders that Git restores as a whole. `forgotten` outputs are no longer made by today's
    dvc.yaml, `made_by` is the stage of each.
    """

    commit: str
    roots: tuple[str, ...]
    files: dict[str, str]
    outs: dict[str, str]
    forgotten: list[str]
    made_by: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """What to do: outputs to put `away`, all of them saved, to `take` from the cache, and those that are `missing`."""

    goal: Goal
    away: list[str]
    take: list[str]
    missing: list[str]


# What the commit holds


def goal_of(commit: str, data_only: bool) -> Goal:
    """What `commit` recorded. Raises InputError where its record is of something else, or its files reach elsewhere."""
    if not data_only:
        refuse_out_of_step(commit)
    lock = history.Lock({}) if data_only else history.lock(commit)
    cached, plain = todays_outs()
    roots = (*DATA, *(() if data_only else (*RESULTS, *plain)))
    files = {path: oid for path, oid in history.files(commit, *roots).items() if not within(path, record.APART)}
    history.blobs(files.values())  # an object that Git can't read shows now, not half-way
    if not any(within(path, [RAW]) for path in files):
        raise InputError(f"{short(commit)} has no {RAW} in Git")
    for path in files:
        refuse_name(path)
    recorded = {path: md5 for path, md5 in lock.outs.items() if not within(path, roots)}
    outs = {path: md5 for path, md5 in recorded.items() if path in cached}
    outs |= history.pointers(commit, RAW, TEST)
    held = tuple(root for root in roots if any(within(path, [root]) for path in files))
    return Goal(commit, held, files, outs, sorted(recorded.keys() - outs.keys()), lock.made_by)


def refuse_out_of_step(commit: str) -> None:
    """Code may have changed since the run; data, params and results must be those that the lock records."""
    for problem in record.problems(commit):
        if within(problem.file.split(":")[0], (*DATA, *RESULTS, *OUTPUTS)):
            raise InputError(
                f"{LOCK} of {short(commit)} is out of step: {printable(problem.file)}: {problem.reason}. "
                "--data-only takes the data, `dvc repro` then makes the rest"
            )


def todays_outs() -> tuple[list[str], list[str]]:
    """The outputs of today's dvc.yaml that a rollback may write: those in DVC's cache, and those in Git."""
    contents = [path.read_bytes() if path.is_file() else b"{}" for path in map(Path, (record.PIPELINE, record.PARAMS))]
    outs = {out: cached for stage in record.pipeline(*contents).values() for out, cached in stage.outs.items()}
    apart = [out for out in outs if within(out, OUTPUTS) and not overlaps(out, (*DATA, "data/general"))]
    return [out for out in apart if outs[out]], [out for out in apart if not outs[out]]


def overlaps(path: str, roots: Iterable[str]) -> bool:
    return any(within(path, [root]) or within(root, [path]) for root in roots)


def refuse_name(path: str) -> None:
    """Raise InputError for a file that would steer Git or DVC, or that they could not name."""
    name = PurePosixPath(path).name
    hidden = any(part.startswith(".") for part in PurePosixPath(path).parts) and name != ".gitignore"
    points = name.endswith(".dvc") and not within(path, [RAW, TEST])
    if not path.isprintable() or hidden or points or (name in STEERS and path != LOCK):
        raise InputError(f"{printable(path)} is no file of a data version: a rollback does not write it")


# What is there now, and what would be lost


def refuse_links(paths: Iterable[str]) -> None:
    for path in map(Path, paths):
        linked = [place for place in (path, *path.parents) if place.is_symlink()]
        if linked:
            raise InputError(f"{linked[-1]} is a link: a rollback would write behind it; put the folder itself there")


def refuse_uncommitted(goal: Goal, pointed: Iterable[str]) -> None:
    """Raise InputError for work that would be lost: under the roots, and neither of HEAD nor of an earlier rollback."""
    status = git("status", "-z", "--no-renames", "-uall", "--ignored", "--ignore-submodules", "--", *goal.roots)
    lines = [line for line in status.decode("utf-8", "surrogateescape").split("\0") if line]
    changed = [
        line[3:] for line in lines if not (line[:2] in ("!!", "??") and within(line[3:], {*pointed, *goal.outs}))
    ]
    changed = [path for path in changed if not within(path, record.APART) and path not in half_written()]
    known = [history.files(commit) for commit in ["HEAD", *noted()]]
    staged = history.files(git("write-tree").decode().strip())
    states = zip(changed, map(content, changed), strict=True)
    lost = [path for path, now in states if not {now, staged.get(path)} <= {held.get(path) for held in known}]
    if lost:
        rest = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        names = ", ".join(map(printable, lost[:SHOWN])) + rest
        raise InputError(f"uncommitted work would be lost: {names}; commit it, stash it or move it away first")


def content(path: str) -> str | None:
    """Git's id of a file here; None where there is none, '' for what is no file."""
    file = Path(path)
    if not file.is_symlink() and not file.exists():
        return None
    return history.blob_ids([path])[0] if file.is_file() and not file.is_symlink() else ""


def note() -> Path:
    """The file that names HEAD and the commits whose files a rollback has been writing."""
    return Path(git("rev-parse", "--git-path", "lockstep-rollback").decode().rstrip("\n"))


def noted() -> list[str]:
    """The commits in the note, none where HEAD has moved since."""
    head, *commits = note().read_text(encoding="utf-8").split() if note().is_file() else [""]
    return commits if head == history.resolve("HEAD") else []


def half_written() -> set[str]:
    """The temporary files that a rollback which was killed may have left."""
    return {part_of(Path(path)).as_posix() for commit in noted() for path in history.files(commit, *DATA, *RESULTS)}


def part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def take_note(commits: Iterable[str]) -> None:
    with writing.replacing(note()) as file:
        file.write("\n".join([history.resolve("HEAD"), *dict.fromkeys(commits)]))


def plan(repo: Any, goal: Goal, rev: str, allow_missing: bool) -> Plan:
    """Look everything up and hash it, without touching a file. Raises InputError for whatever stands in the way."""
    pointed = pointed_here(goal)
    refuse_links({*goal.files, *pointed, *tracked(goal)})
    refuse_links(PurePosixPath(out).parent.as_posix() for out in goal.outs)
    refuse_uncommitted(goal, pointed)
    dvc_cache.refuse_running(repo)
    lock = Path(git("rev-parse", "--git-path", "index.lock").decode().rstrip("\n"))
    if lock.exists():
        raise InputError(f"{lock} exists: a git is running, or was killed; remove it if none is")

    store = repo.cache.local
    wrong = {out: md5 for out, md5 in goal.outs.items() if dvc_cache.md5_of(Path(out)) != md5}
    dvc_cache.fetch(repo, wrong)
    refuse_altered(dvc_cache.inspect(store, goal.outs), rev)
    missing = missing_outs(dvc_cache.inspect(store, wrong), goal, rev, allow_missing)
    away = set(wrong) | (pointed - goal.outs.keys())
    dvc_cache.refuse_unsaved(away, store)
    held = {out: md5 for out, md5 in goal.outs.items() if out not in missing}
    return Plan(replace(goal, outs=held), sorted(away), sorted(wrong.keys() - set(missing)), missing)


def tracked(goal: Goal) -> set[str]:
    """The files under the roots that Git knows here, or that a rollback wrote before it was killed."""
    listed = git("ls-files", "-z", "--", *goal.roots).decode("utf-8", "surrogateescape").split("\0")
    written = {path for commit in noted() for path in history.files(commit, *goal.roots)}
    return {path for path in {*listed, *written} - {""} if not within(path, record.APART)}


def pointed_here(goal: Goal) -> set[str]:
    """What the *.dvc files in the index point to."""
    return set(history.pointers(git("write-tree").decode().strip(), *goal.roots)) if RAW in goal.roots else set()


def refuse_altered(findings: list[Finding], rev: str) -> None:
    altered = [finding for finding in findings if finding.actual]
    if altered:
        raise AlteredError(
            "the DVC cache is altered, nothing was restored:",
            *(f"  {finding}" for finding in altered),
            f"Remove these files from the cache, then: python -m tools.rollback {rev}",
            "It fetches them from a remote, or names the stage that makes them again.",
        )


def missing_outs(findings: list[Finding], goal: Goal, rev: str, allowed: bool) -> list[str]:
    """The outputs that can't be had. Raises MissingError unless that is allowed, or they are only pages."""
    absent = sorted({finding.out for finding in findings})
    if not allowed and not set(absent) <= set(PAGES):
        lines = [f"  {finding}" for finding in findings]
        stages = " ".join(dict.fromkeys(goal.made_by[out] for out in goal.made_by if out in absent))
        again = f"python -m tools.rollback {rev} --allow-missing && dvc repro {stages}"
        advice = f"To make it again: {again}" if stages else "It was added with `dvc add`: only a remote can have it."
        raise MissingError("neither cache nor remote has it, nothing was restored:", *lines, advice)
    return absent


# Going back


def bring_back(repo: Any, todo: Plan) -> None:
    """Write the goal. From the first line on files change, so that no error may end with the status of a refusal."""
    take_note([*noted(), todo.goal.commit])
    for path in half_written():
        Path(path).unlink(missing_ok=True)
    for out in map(Path, todo.away):
        rmtree(out) if out.is_dir() and not out.is_symlink() else out.unlink(missing_ok=True)
    restore(todo.goal)
    if todo.take:
        repo._reset()
        repo.checkout(targets=todo.take, force=True)
    verify(todo.goal)
    take_note([todo.goal.commit])


def restore(goal: Goal) -> None:
    """Write Git's files here and into the index, without filters; dvc.lock comes last, when the rest is its own."""
    gone = sorted(tracked(goal) - goal.files.keys())
    for path in map(Path, gone):
        path.unlink(missing_ok=True)
        for parent in path.parents:
            inside = within(parent.as_posix(), goal.roots) and parent.as_posix() not in goal.roots
            if inside and parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
    contents = dict(zip(goal.files, history.blobs(goal.files.values()), strict=True))
    for name in sorted(contents, key=lambda path: path == LOCK):
        put(Path(name), contents[name])
    nothing = "0" * len(goal.commit)
    lines = [f"0 {nothing}\t{path}\0" for path in gone] + [
        f"100644 {oid}\t{path}\0" for path, oid in goal.files.items()
    ]
    git("update-index", "-z", "--index-info", given="".join(lines).encode("utf-8", "surrogateescape"))
    git("status")  # Git looks at each file once, and notes its size and time


def put(path: Path, content: bytes) -> None:
    """Write a file by way of another name, unless it has these bytes."""
    if path.is_file() and path.read_bytes() == content:
        return
    if path.is_dir():
        rmtree(path)  # of empty folders: what they held is gone by now, and was all known
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    part.write_bytes(content)
    part.replace(path)


def verify(goal: Goal) -> None:
    """Hash every restored file, as Git or as DVC does."""
    hashes = dict(zip(goal.files, history.blob_ids(goal.files), strict=True))
    hashes |= {out: dvc_cache.md5_of(Path(out)) for out in goal.outs}
    wrong = [
        Finding(path, path, md5, hashes[path]) for path, md5 in (goal.files | goal.outs).items() if md5 != hashes[path]
    ]
    if wrong:
        raise AlteredError("not restored, though the cache was sound:", *(f"  {finding}" for finding in wrong))


def roll_back(rev: str, data_only: bool, allow_missing: bool) -> Iterator[str]:
    """Go back to what `rev` means, and yield what to tell the user."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    goal = goal_of(history.commit_of(rev), data_only)
    try:
        repo = Repo()
        with lock_repo(repo):
            todo = plan(repo, goal, rev, allow_missing)
            try:
                bring_back(repo, todo)
                again = would_run(repo.status())
            except AlteredError:
                raise
            except (Exception, KeyboardInterrupt) as error:
                reason = printable(str(error) or repr(error))
                raise AlteredError(f"broken off half-way: {reason}; mend that and run this again") from error
    except DvcException as error:
        raise InputError(f"DVC: {printable(str(error))}") from error
    yield from report(todo, data_only, again)


def would_run(status: dict[str, Any]) -> list[str]:
    """A line per stage that today's code would run again on the restored data, with what changed for it."""
    lines = []
    for stage, changes in status.items():
        parts = [change if isinstance(change, str) else ", ".join(*change.values()) for change in changes]
        lines.append(f"{stage} ({'; '.join(parts)})")
    return lines


def report(todo: Plan, data_only: bool, again: list[str]) -> Iterator[str]:
    goal = todo.goal
    files = sum(len(dvc_cache.walk(Path(out))) for out in goal.outs)
    yield (
        f"{short(goal.commit)}: {len(goal.files)} files from Git, {files} of DVC in {len(goal.outs)} outputs, "
        "every hash as recorded. Staged; to undo: python -m tools.rollback HEAD"
    )
    if todo.missing:
        yield f"Missing: {', '.join(todo.missing)}"
    if goal.forgotten:
        yield f"Left out, as today's dvc.yaml does not make it: {', '.join(map(printable, goal.forgotten))}"
    if data_only:
        yield "`dvc repro` now trains today's code on this data"
    elif again:
        yield "`dvc repro` would run these again, and what follows from them:\n  " + "\n  ".join(again)
    else:
        yield "`dvc repro` has nothing to do"


# The versions


def table() -> list[str]:
    """One line per data version behind HEAD, newest first, under a line of headings."""
    names = history.names()
    lines = [("name", "commit", "date", "rows", "data", "tuned exact match")]
    for md5, commit in history.versions().items():
        date = history.date(commit)[:10]
        lines.append((names.get(md5, "-"), short(commit), date, rows_of(commit), md5[:12], metric_of(commit)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def metric_of(commit: str) -> str:
    """Exact match of the tuned system with its interval and n, as `commit` recorded it."""
    if not record.is_recorded(commit):
        return "not recorded"
    try:
        tuned = strict_json.parse((history.read(commit, history.METRICS) or b"").decode("utf-8"))["tuned"]
        rate, low, high = (tuned[name] for name in ("exact_match", "exact_match_low", "exact_match_high"))
        return f"{rate:.3f} [{low:.3f}, {high:.3f}], n = {tuned['n']}"
    except (ValueError, KeyError, TypeError):
        return "can't be read"


def rows_of(commit: str) -> str:
    """Number of training rows; '+' stands for DVC-tracked files, which are not in Git."""
    held = [oid for path, oid in history.files(commit, RAW).items() if path.endswith(".jsonl")]
    count = sum(bool(line.strip()) for rows in history.blobs(held) for line in rows.split(b"\n"))
    return f"{count}{'+' if history.pointers(commit, RAW) else ''}"
