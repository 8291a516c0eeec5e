"""Go back to a data version: its data, contract, params, dvc.lock and metrics from Git, its outputs from the DVC cache.

In: a commit. Out: its files, staged, every one hashed. Whatever a commit holds, nothing is written or removed but DATA,
RESULTS, and outputs of today's dvc.yaml below OUTPUTS. Everything is looked up before a file is touched. A killed
rollback leaves files of both versions, which its note in .git names; the next one, to any version, goes on from there.
"""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from shutil import move, rmtree
from typing import Any

from stages.core.cli import InputError
from stages.data import writing
from versions import dvc_cache, history, names, record
from versions.dvc_cache import Finding
from versions.history import LOCK, RAW, TEST, git, printable, short, within

DATA = (RAW, TEST, "data/behaviour", "data/general", "data/schema.json", "data/rules.yaml")
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
    dvc.yaml, `made_by` is the stage of each output.
    """

    commit: str
    roots: tuple[str, ...]
    files: dict[str, str]
    outs: dict[str, str]
    forgotten: list[str]
    made_by: dict[str, str]


def goal_of(commit: str, data_only: bool) -> Goal:
    """What `commit` recorded. Raises InputError where its record is of something else, or its files reach elsewhere."""
    stages = {}
    if not data_only:
        refuse_out_of_step(commit)
        declared = record.pipeline(*(history.read(commit, path) or b"{}" for path in (record.PIPELINE, record.PARAMS)))
        stages = {name: ran for name, ran in history.lock(commit).items() if name in declared}
    cached, plain = todays_outs()
    roots = (*DATA, *(() if data_only else (*RESULTS, *plain)))
    files = {path: oid for path, oid in history.files(commit, *roots).items() if not within(path, record.APART)}
    present = {root for root in roots for path in files if within(path, [root])}
    if RAW not in present:
        raise InputError(f"{short(commit)} has no {RAW} in Git")
    lacking = {root for earlier in noted() for root in roots if root not in present and history.files(earlier, root)}
    files |= history.files("HEAD", *lacking) if lacking else {}  # in place of what an earlier rollback wrote
    history.blobs(files.values())  # an object that Git can't read shows now, not half-way
    pointed = history.pointers(commit, RAW, TEST) | (history.pointers("HEAD", TEST) if TEST in lacking else {})
    for path in (*files, *pointed):
        refuse_name(path)
    recorded = {path: md5 for stage in stages.values() for path, md5 in stage.outs.items() if not within(path, roots)}
    made_by = {path: name for name, stage in stages.items() for path in stage.outs}
    own = {path: md5 for path, md5 in recorded.items() if cached.get(path) == made_by[path]}
    outs = own | pointed
    held = tuple(root for root in roots if root in present | lacking)
    return Goal(commit, held, files, outs, sorted(recorded.keys() - outs.keys()), made_by)


def refuse_out_of_step(commit: str) -> None:
    """Raise InputError where data, params or results changed since the run; code may have."""
    for problem in record.problems(commit):
        if within(problem.file.split(":")[0], (*DATA, *RESULTS, *OUTPUTS)):
            reason = f"{short(commit)} is out of step: {printable(problem.file)}: {problem.reason}"
            raise InputError(f"{LOCK} of {reason}. --data-only takes the data, `dvc repro` then makes the rest")


def todays_pipeline() -> dict[str, record.Declared]:
    contents = [path.read_bytes() if path.is_file() else b"{}" for path in map(Path, (record.PIPELINE, record.PARAMS))]
    return record.pipeline(*contents)


def todays_outs() -> tuple[dict[str, str], list[str]]:
    """The outputs of today's dvc.yaml that a rollback may write: those in DVC's cache, and those in Git."""
    made = {out: (name, cached) for name, stage in todays_pipeline().items() for out, cached in stage.outs.items()}
    apart = [out for out in made if within(out, OUTPUTS) and not within(out, DATA)]
    apart = [out for out in apart if not any(within(root, [out]) for root in DATA)]
    return {out: made[out][0] for out in apart if made[out][1]}, [out for out in apart if not made[out][1]]


def lacking_params(commit: str) -> list[str]:
    """The sections of params.yaml that today's stages read and `commit` doesn't have."""
    asked = {key.split(".")[0] for stage in todays_pipeline().values() for key in stage.params.get(record.PARAMS, ())}
    return sorted(asked - history.parse_yaml(history.read(commit, record.PARAMS) or b"{}", record.PARAMS).keys())


def refuse_name(path: str) -> None:
    """Raise InputError for a file that would steer Git or DVC, or that they could not name."""
    *folders, name = PurePosixPath(path).parts
    hidden = any(part.startswith(".") for part in folders) or (name.startswith(".") and name != ".gitignore")
    points = name.endswith(".dvc") and not within(path, [RAW, TEST])
    if not path.isprintable() or hidden or points or (name in STEERS and path != LOCK):
        raise InputError(f"{printable(path)} is no file of a data version: a rollback does not write it")


def refuse_links(paths: Iterable[str]) -> None:
    for path in map(Path, paths):
        if linked := [place for place in (path, *path.parents) if place.is_symlink()]:
            raise InputError(f"{linked[-1]} is a link: a rollback would write behind it; put the folder itself there")


def note() -> Path:
    """The file that names HEAD and the commits whose files a rollback has been writing."""
    return Path(git("rev-parse", "--git-path", "lockstep-rollback").decode().rstrip("\n"))


def noted() -> list[str]:
    """The commits in the note, none where HEAD has moved since."""
    words = note().read_text(encoding="utf-8").split() if note().is_file() else []
    return words[1:] if words[:1] == [history.resolve("HEAD")] else []


def take_note(commits: Iterable[str]) -> None:
    with writing.replacing(note()) as file:
        file.write("\n".join([history.resolve("HEAD"), *dict.fromkeys(commits)]))


def known(goal: Goal) -> list[dict[str, str]]:
    """The files under the roots, as HEAD holds them and as each rollback since wrote them, or was about to."""
    return [history.files(commit, *goal.roots) for commit in ("HEAD", *noted())]


def refuse_lost(goal: Goal, pointed: set[str]) -> None:
    """Raise InputError for work that would be lost: under the roots, and neither of HEAD nor of an earlier rollback.

    What DVC holds, `pointed` to here or by the goal, is looked at apart.
    """
    apart = (*pointed, *goal.outs, *record.APART)
    places = [place for root in map(Path, goal.roots) for place in (root, *root.rglob("*"))]
    here = [place.as_posix() for place in places if place.is_symlink() or place.is_file()]
    here = [path for path in here if not within(path, apart)]
    refuse_links({*here, *goal.files, *(str(PurePosixPath(out).parent) for out in (*goal.outs, *pointed))})
    now = history.blob_ids(here)
    now |= {path: head.split()[1] for path, head in history.sparse().items() if within(path, goal.roots)}
    index, versions = history.files(git("write-tree").decode().strip(), *goal.roots), known(goal)
    staged = {path for path in history.listed("ls-files", "-z", "--", *goal.roots) if not within(path, record.APART)}
    if other := sorted(staged - index.keys()):
        raise InputError(f"{printable(other[0])} is a link, a submodule or not yet added: a rollback would drop it")
    paths = [path for path in sorted({*now, *index, *versions[0]}) if not within(path, apart)]
    lost = [path for path in paths if not {now.get(path), index.get(path)} <= {held.get(path) for held in versions}]
    if lost:
        rest = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        shown = ", ".join(map(printable, lost[:SHOWN])) + rest
        raise InputError(f"uncommitted work would be lost: {shown}; commit it, stash it or move it away first")


def plan(repo: Any, goal: Goal, rev: str, allow_missing: bool) -> tuple[Goal, set[str]]:
    """The goal without what is missing, and the outputs to put away, all of them saved. Not a file is touched.

    Everything is looked up and hashed. Raises InputError for whatever stands in the way.
    """
    pointed = set(history.pointers(git("write-tree").decode().strip(), *goal.roots))
    refuse_lost(goal, pointed)
    store = repo.cache.local
    wrong = {out: md5 for out, md5 in goal.outs.items() if dvc_cache.md5_of(Path(out)) != md5}
    dvc_cache.fetch(repo, wrong)
    findings = dvc_cache.inspect(store, goal.outs)
    if altered := [finding for finding in findings if finding.actual]:
        raise AlteredError(
            "the DVC cache is altered, nothing was restored:",
            *(f"  {finding}" for finding in altered),
            f"Remove these files from the cache, then: python -m tools.rollback {rev}",
            "It fetches them from a remote, or names the stage that makes them again.",
        )
    findings = [finding for finding in findings if finding.out in wrong]
    missing = {finding.out for finding in findings}
    if not allow_missing and not missing <= set(PAGES):
        stages = " ".join(dict.fromkeys(name for out, name in goal.made_by.items() if out in missing))
        again = f"To make it again: python -m tools.rollback {rev} --allow-missing && dvc repro {stages}"
        advice = [again if stages else "It was added with `dvc add`: only a remote can have it."]
        if stages and (lacks := lacking_params(goal.commit)):
            lack = f"The params.yaml of {short(goal.commit)} lacks {', '.join(lacks)}. If dvc repro stops there, only"
            advice += [lack, "the code of that time can make it (git worktree add)."]
        lines = [f"  {finding}" for finding in findings]
        raise MissingError("neither cache nor remote has it, nothing was restored:", *lines, *advice)
    away = set(wrong) | (pointed - goal.outs.keys())
    ids = history.blob_ids([out for out in away if Path(out).is_file() and not Path(out).is_symlink()])
    versions = known(goal)
    in_git = {out for out, oid in ids.items() if oid in {held.get(out) for held in versions}}
    dvc_cache.refuse_unsaved(away - in_git, store)
    return replace(goal, outs={out: md5 for out, md5 in goal.outs.items() if out not in missing}), away


def stage(goal: Goal) -> set[str]:
    """Put the goal into the index, and return the paths that go. Where another git holds the index, that is all."""
    index = history.listed("ls-files", "-z", "--", *goal.roots)
    paths = {*index, *(path for held in known(goal) for path in held)} - goal.files.keys()
    gone = {path for path in paths if not within(path, record.APART)}
    take_note([*noted(), goal.commit])
    lines = [f"0 {'0' * len(goal.commit)}\t{path}\0" for path in gone]
    lines += [f"100644 {oid}\t{path}\0" for path, oid in goal.files.items()]
    git("update-index", "-z", "--index-info", given="".join(lines))
    return gone - goal.outs.keys()


def bring_back(repo: Any, goal: Goal, gone: Iterable[str], away: Iterable[str]) -> None:
    """Write the goal. Files change, so that no error in here may end with the status of a refusal."""
    for out in map(Path, away):
        rmtree(out) if out.is_dir() and not out.is_symlink() else out.unlink(missing_ok=True)
    for path in map(Path, sorted(gone)):
        if path.is_file():
            path.unlink()
        for parent in path.parents:
            if within(parent.as_posix(), goal.roots) and parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
    contents = dict(zip(goal.files, history.blobs(goal.files.values()), strict=True))
    for name in sorted(contents, key=lambda path: path == LOCK):  # which comes last, when the rest is its own
        put(Path(name), contents[name], Path(repo.tmp_dir) / "lockstep.part")
    git("status")  # Git looks at each file once, and notes its size and time
    if take := [out for out, md5 in goal.outs.items() if dvc_cache.md5_of(Path(out)) != md5]:
        repo._reset()
        repo.checkout(targets=take, force=True)
    verify(goal)
    take_note([goal.commit])


def put(path: Path, content: bytes, part: Path) -> None:
    """Write a file by way of another name, unless it has these bytes."""
    if path.is_file() and path.read_bytes() == content:
        return
    if path.is_dir():
        rmtree(path)  # of empty folders: what they held is gone by now, and was all known
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    move(part, path)  # in one step, unless data is on a disk of its own


def verify(goal: Goal) -> None:
    """Hash every restored file, as Git or as DVC does."""
    hashes = history.blob_ids(goal.files) | {out: dvc_cache.md5_of(Path(out)) for out in goal.outs}
    expected = (goal.files | goal.outs).items()
    if wrong := [Finding(path, path, md5, hashes[path]) for path, md5 in expected if md5 != hashes[path]]:
        raise AlteredError("not restored, though the cache was sound:", *(f"  {finding}" for finding in wrong))


def roll_back(rev: str, data_only: bool, allow_missing: bool) -> Iterator[str]:
    """Go back to what `rev` means, and yield what to tell the user."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo
    from dvc.rwlock import rwlock

    goal = goal_of(names.commit_of(rev), data_only)
    try:
        repo = Repo()
        with lock_repo(repo):
            with rwlock(repo.tmp_dir, repo.fs, "tools.rollback", [], [repo.root_dir], False):
                pass  # refused while a stage runs: it reads and writes what is about to change
            todo, away = plan(repo, goal, rev, allow_missing)
            gone = stage(todo)
            try:
                bring_back(repo, todo, gone, away)
                again = [would_run(*each) for each in repo.status().items()]
            except AlteredError:
                raise
            except (Exception, KeyboardInterrupt) as error:
                reason = printable(str(error) or repr(error))
                raise AlteredError(f"broken off half-way: {reason}; mend that and run this again") from error
    except DvcException as error:
        raise InputError(f"DVC: {printable(' '.join(str(error).split()))}") from error
    yield from report(todo, data_only, again)
    if missing := goal.outs.keys() - todo.outs.keys():
        yield f"Missing: {', '.join(sorted(missing))}"


def would_run(stage: str, changes: list[Any]) -> str:
    """A stage that today's code would run again on the restored data, with what changed for it."""
    parts = [change if isinstance(change, str) else ", ".join(*change.values()) for change in changes]
    return f"{stage} ({'; '.join(parts)})"


def report(goal: Goal, data_only: bool, again: list[str]) -> Iterator[str]:
    undo = f"python -m tools.rollback HEAD{' --data-only' if data_only else ''}"
    try:
        goal_of(history.resolve("HEAD"), data_only)
    except InputError:
        paths = shlex.join([*goal.roots, *(f":(exclude){path}" for path in record.APART)])
        undo = f"git restore --staged --worktree -- {paths} && dvc checkout"
    files = sum(len(dvc_cache.walk(Path(out))) for out in goal.outs)
    yield (
        f"{short(goal.commit)}: {len(goal.files)} files from Git, {files} of DVC in {len(goal.outs)} outputs, "
        f"every hash as recorded. Staged; to undo: {undo}"
    )
    if goal.forgotten:
        named = ", ".join(map(printable, goal.forgotten))
        yield f"Left out, as today's dvc.yaml has no such output of the same stage: {named}"
    stale = sorted(out for out in todays_outs()[0].keys() - {*goal.outs, *goal.forgotten} if Path(out).exists())
    if stale and not data_only:
        yield f"Not of this version, which has no record of them: {', '.join(stale)}"
    if again:
        yield "`dvc repro` would run these again, and what follows from them:\n  " + "\n  ".join(again)
    else:
        yield "`dvc repro` has nothing to do"
