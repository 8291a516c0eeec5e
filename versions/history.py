"""Read any version of this repository as Git's objects: files, data, dvc.lock, and DVC's hashes of what they hold.

In: a name from data/README.md, a commit, or the id of a tree. Nothing of a version is checked out or run, and links are
never followed, so that a stranger's commit can be read as safely as one's own.
"""

import hashlib
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from stages.shared import yaml12
from stages.shared.cli import InputError
from stages.shared.cli import printable as printable

RAW, TEST, LOCK = "data/raw", "data/test", "dvc.lock"
METRICS, OUTCOMES = "metrics/evaluate.json", "metrics/outcomes.jsonl"
NAMES = Path("data/README.md")
NAMED = re.compile(r"^\|\s*([^|`\s]+)\s*\|\s*`([0-9a-f]{32}(?:\.dir)?)`\s*\|", re.MULTILINE)
MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
ITEM = {"path", "md5", "hash", "size", "nfiles", "isexec"}
OBJECT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
VALUES = 100_000  # more in one YAML file than any of ours has: anchors can make a small file explode
# No hook, no program that the configuration names, no replaced objects, and every path is meant as it is written.
QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.autocrlf=false")
NEUTRAL = {"LC_ALL": "C", "GIT_LITERAL_PATHSPECS": "1", "GIT_NO_REPLACE_OBJECTS": "1", "GIT_TERMINAL_PROMPT": "0"}
INHERITED = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_CEILING_DIRECTORIES")


@dataclass(frozen=True)
class Stage:
    """What dvc.lock records of one stage: the command, md5 of dependencies and outputs by path, values of params."""

    cmd: str
    deps: dict[str, str]
    outs: dict[str, str]
    params: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Lock:
    """A dvc.lock: its stages by name, in their order."""

    stages: dict[str, Stage]

    @property
    def deps(self) -> dict[str, str]:
        return {path: md5 for stage in self.stages.values() for path, md5 in stage.deps.items()}

    @property
    def outs(self) -> dict[str, str]:
        return {path: md5 for stage in self.stages.values() for path, md5 in stage.outs.items()}

    @property
    def made_by(self) -> dict[str, str]:
        return {path: name for name, stage in self.stages.items() for path in stage.outs}


# Git


def git(*arguments: str, given: bytes = b"", index: Path | None = None) -> bytes:
    """Run git and return what it prints. `index` stands in for the real index. Raises InputError with git's reason."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in INHERITED}
    env = own | NEUTRAL | ({"GIT_INDEX_FILE": str(index.absolute())} if index else {})
    command = ["git", *QUIET, *arguments]
    try:
        ran = subprocess.run(command, input=given, capture_output=True, env=env, check=False)
    except (OSError, ValueError) as error:
        raise InputError(f"git can't be run: {error}") from None
    if ran.returncode:
        reason = ran.stderr.decode("utf-8", "replace").strip().split("\n")[0]
        raise InputError(f"git {arguments[0]}: {printable(reason)}")
    return ran.stdout


def require_root() -> None:
    """Raise InputError unless this is the top folder of a Git repository that DVC knows and that has a commit."""
    try:
        top = os.fsdecode(git("rev-parse", "--show-toplevel")).rstrip("\n")
    except InputError:
        raise InputError(f"{Path.cwd()} is not in a Git repository") from None
    if Path(top).resolve() != Path.cwd().resolve():
        raise InputError(f"run this in the top folder of the repository: cd {top}")
    if not Path(".dvc").is_dir():
        raise InputError(".dvc is missing: DVC does not know this repository")
    resolve("HEAD")


def resolve(rev: str) -> str:
    """The full hash of a commit. Raises InputError where `rev` names none."""
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", rev + "^{commit}").decode().strip()
    except InputError:
        hint = "; this clone is shallow: git fetch --unshallow" if is_shallow() else ""
        raise InputError(f"{rev!r} is neither a commit here nor a data version named in {NAMES}{hint}") from None


def is_shallow() -> bool:
    return git("rev-parse", "--is-shallow-repository").strip() == b"true"


def short(commit: str) -> str:
    return commit[:7]


def date(commit: str) -> str:
    """The date of a commit, ISO 8601."""
    return git("show", "--no-patch", "--format=%cI", commit).decode().strip()


def commits(*revisions: str) -> list[str]:
    """Commits as `git rev-list` gives them, newest first."""
    return git("rev-list", *revisions).decode().split()


def working_tree() -> str:
    """The id of a tree with the bytes of every file here that Git tracks, or would after `git add .`; links left out.

    It is written to Git's object store and nowhere else; the index stays as it is.
    """
    listed = git("ls-files", "-zco", "--exclude-standard").decode("utf-8", "surrogateescape").split("\0")
    modes = {path: mode for path in sorted({*listed} - {""}) if (mode := _mode(Path(path)))}
    lines = [f"{mode} {oid}\t{path}\0" for (path, mode), oid in zip(modes.items(), blob_ids(modes, "-w"), strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        git("update-index", "-z", "--index-info", given="".join(lines).encode("utf-8", "surrogateescape"), index=index)
        return git("write-tree", index=index).decode().strip()


def _mode(path: Path) -> str:
    """Git's mode of a regular file; '' for anything else, and for what lies behind a link."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    if not stat.S_ISREG(mode) or any(parent.is_symlink() for parent in path.parents):
        return ""
    return "100755" if mode & stat.S_IXUSR else "100644"


def blob_ids(paths: Iterable[str], *options: str) -> list[str]:
    """Git's ids of files here as they are, without filters. A name that its list of paths can't hold goes alone."""
    paths = list(paths)
    plain = [path for path in paths if "\n" not in path and not path.startswith('"')]
    given = "".join(f"{path}\n" for path in plain).encode("utf-8", "surrogateescape")
    command = ("hash-object", "--no-filters", *options)
    known = dict(zip(plain, git(*command, "--stdin-paths", given=given).decode().split(), strict=True))
    return [known.get(path) or git(*command, "--", path).decode().strip() for path in paths]


def tree_of(rev: str | None) -> str:
    """What `rev` means to a comparison: a commit, or for None the working tree."""
    return working_tree() if rev is None else commit_of(rev)


# Files of a version


def files(tree: str, *paths: str) -> dict[str, str]:
    """Path and blob id of the regular files that a commit or tree holds in `paths`; of all of them without `paths`."""
    held = _files(tree) if OBJECT.fullmatch(tree) else _files.__wrapped__(tree)
    return {path: oid for path, oid in held.items() if within(path, paths)} if paths else dict(held)


@cache
def _files(tree: str) -> dict[str, str]:
    listed = git("ls-tree", "-rz", "--full-tree", tree).decode("utf-8", "surrogateescape").split("\0")
    entries = (line.partition("\t") for line in listed if line)
    held = {path: head.split()[2] for head, _, path in entries if head.startswith("100")}
    for path in held:
        if {"", ".", "..", ".git"} & {part.lower() for part in path.split("/")}:
            raise InputError(f"{short(tree)} holds a file named {path!r}, which Git itself would never check out")
    return held


def within(path: str, roots: Iterable[str]) -> bool:
    """Is this one of the roots, or a file below one?"""
    return any(path == root or path.startswith(f"{root}/") for root in roots)


def blobs(oids: Iterable[str]) -> list[bytes]:
    """The contents of many blobs, in order, from one process."""
    oids = list(oids)
    answer = git("cat-file", "--batch", given="".join(f"{oid}\n" for oid in oids).encode())
    contents, at = [], 0
    for oid in oids:
        end = answer.index(b"\n", at)
        words = answer[at:end].split()
        if len(words) != 3:
            raise InputError(f"git cat-file: object {oid} can't be read; try `git fsck`")
        at = end + int(words[2]) + 2
        contents.append(answer[end + 1 : at - 1])
    return contents


def read(tree: str, path: str) -> bytes | None:
    """The bytes of one regular file of a commit or tree, None where it holds no such file."""
    oid = files(tree).get(path)
    return blobs([oid])[0] if oid else None


def changed_files(base: str, head: str) -> list[str]:
    """Paths of the regular files whose bytes differ between two commits or trees, or that only one of them holds."""
    before, after = files(base), files(head)
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


# What DVC makes of it


@cache
def _md5(oid: str) -> str:
    return hashlib.md5(blobs([oid])[0], usedforsecurity=False).hexdigest()


def folder_md5(entries: dict[str, str]) -> str:
    """DVC's hash of a folder, from the md5 of each file by its path inside the folder."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for path, md5 in entries.items():
        tree.add(tuple(path.split("/")), None, HashInfo("md5", md5))
    tree.digest()
    return str(tree.hash_info.value)


def content_hash(tree: str, path: str, also: dict[str, str] | None = None) -> str | None:
    """DVC's md5 of a file or folder as a commit or tree holds it, None without any.

    Files that `dvc add` tracks are part of it, and so are those in `also`: md5 by path inside the folder.
    """
    held = files(tree, path)
    if path in held:
        return _md5(held[path])
    entries = {name: _md5(oid) for name, oid in held.items()} | pointers(tree, path)
    inside = {name.removeprefix(f"{path}/"): md5 for name, md5 in entries.items()} | (also or {})
    return folder_md5(inside) if inside else None


def pointers(tree: str, *paths: str) -> dict[str, str]:
    """Path and md5 of the files that `dvc add` tracks. Raises InputError for a *.dvc file that points elsewhere."""
    held = files(tree, *paths)
    tracked = {}
    for path, oid in held.items():
        if path.endswith(".dvc") and not path.startswith(".dvc/"):
            target, md5 = _pointed_to(path, oid)
            if any(within(name, [target]) for name in held):
                raise InputError(f"{path}: {target} is in Git as well; only one of the two can hold it")
            tracked[target] = md5
    return tracked


@cache
def _pointed_to(path: str, oid: str) -> tuple[str, str]:
    """What one *.dvc file points to. Nothing but the file beside it that it is named after is taken for an answer."""
    name = PurePosixPath(path).name.removesuffix(".dvc")
    document = parse_yaml(blobs([oid])[0], path)
    try:
        [out] = document["outs"]
        target, md5 = _item(out)
        fits = target == name and document.keys() == {"outs"} and not md5.endswith(".dir")
        if fits and name.isprintable() and not (name.startswith(".") or name.endswith(".dvc")):
            return path.removesuffix(".dvc"), md5
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise InputError(
        f"{printable(path)} doesn't point to just the file beside it, {name!r}; `dvc add` files one by one"
    )


def lock(tree: str) -> Lock:
    """The dvc.lock of a commit or tree. Raises InputError where it is missing or can't be read, as after a conflict."""
    oid = files(tree).get(LOCK)
    if not oid:
        raise InputError(f"{short(tree)} has no {LOCK}: nothing records its model and metrics")
    return _lock(oid, f"{LOCK} of {short(tree)}")


@cache
def _lock(oid: str, name: str) -> Lock:
    stages = parse_yaml(blobs([oid])[0], name).get("stages", {})
    try:
        return Lock({str(stage): _stage(entry) for stage, entry in stages.items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name} is not a lock file of DVC: {error!r}") from None


def _stage(entry: dict[str, Any]) -> Stage:
    deps, outs = (dict(_item(item) for item in entry.get(key, []) if "md5" in item) for key in ("deps", "outs"))
    params = {str(file): dict(values) for file, values in entry.get("params", {}).items()}
    return Stage(str(entry["cmd"]), deps, outs, params)


def _item(item: dict[str, Any]) -> tuple[str, str]:
    """A path and its md5. DVC follows other keys to other places, so that an entry with any more is refused."""
    path, md5 = item["path"], item["md5"]
    if not (isinstance(path, str) and MD5.fullmatch(md5)) or item.keys() - ITEM or item.get("hash") != "md5":
        raise ValueError(f"no path with its md5: {item!r:.200}")
    return path, md5


@cache
def parse_yaml(content: bytes, name: str) -> dict[str, Any]:
    """A YAML mapping that somebody else wrote. Raises InputError for what isn't one, or grows without end."""
    try:
        document = yaml12.parse(content.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: {error}") from None
    level: list[Any] = [document]
    seen = 0
    while level:
        seen += len(level)
        if seen > VALUES:
            raise InputError(f"{name}: more than {VALUES} values")
        mappings = [item.values() for item in level if isinstance(item, dict)]
        level = [inner for items in [*mappings, *(item for item in level if isinstance(item, list))] for inner in items]
    return document


# Data versions


def names() -> dict[str, str]:
    """Names of data versions by the hash of data/raw, from the table in data/README.md; empty without one."""
    text = NAMES.read_text(encoding="utf-8", errors="replace") if NAMES.is_file() else ""
    return {md5: name for name, md5 in NAMED.findall(text)}


def data_hashes(commits: list[str]) -> list[str | None]:
    """DVC's md5 of data/raw in each commit: two commits with the same one have the same data version."""
    asked = "".join(f"{commit}:{RAW}\n" for commit in commits).encode()
    answers = git("cat-file", "--batch-check=%(objectname) %(objecttype)", given=asked).decode().split("\n")[:-1]
    return [_tree_hash(answer.split()[0]) if answer.endswith(" tree") else None for answer in answers]


@cache
def _tree_hash(oid: str) -> str | None:
    held = {path: _md5(blob) for path, blob in files(oid).items()} | pointers(oid)
    return folder_md5(held) if held else None


def holders() -> dict[str, list[str]]:
    """The data versions behind HEAD, newest first: hash of data/raw, and the commits that hold it."""
    behind = commits("HEAD")
    found: dict[str, list[str]] = {}
    for commit, md5 in zip(behind, data_hashes(behind), strict=True):
        if md5:
            found.setdefault(md5, []).append(commit)
    return found


def versions() -> dict[str, str]:
    """Each data version by hash with the newest commit that records its metrics, or else the newest that holds it."""
    return {md5: _recording(having) for md5, having in holders().items()}


def _recording(having: list[str]) -> str:
    from versions import record

    return next(filter(record.is_recorded, having), having[0])


def commit_of(rev: str) -> str:
    """The commit that `rev` means: that of a data version's name, or else any commit.

    Raises InputError for neither, and for a name that Git knows as a commit with other data: a table in a page must not
    decide what `main` is.
    """
    wanted = [md5 for md5, name in names().items() if name == rev]
    try:
        commit = resolve(rev)
    except InputError:
        having = holders().get(wanted[0]) if wanted else None
        if not having:
            raise
        return _recording(having)
    if wanted and data_hashes([commit]) != wanted:
        raise InputError(f"{rev!r} is a commit and the name of another data version in {NAMES}; give the commit's hash")
    return commit
