"""Read any version of this repository as Git's objects: files, data, dvc.lock, and DVC's hashes of what they hold.

In: a commit, or the id of a tree. Nothing of a version is checked out or run, and no link is followed, so that a
stranger's commit can be read as safely as one's own.
"""

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from stages.core import yaml12
from stages.core.cli import InputError
from stages.core.cli import printable as printable

RAW, TEST, LOCK = "data/raw", "data/test", "dvc.lock"
METRICS, OUTCOMES = "metrics/evaluate.json", "metrics/outcomes.jsonl"
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


def git(*arguments: str, given: str = "", index: Path | None = None) -> bytes:
    """Run git and return what it prints. `index` stands in for the real index. Raises InputError with git's reason."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in INHERITED}
    env = own | NEUTRAL | ({"GIT_INDEX_FILE": str(index.absolute())} if index else {})
    command, data = ["git", *QUIET, *arguments], given.encode("utf-8", "surrogateescape")
    try:
        ran = subprocess.run(command, input=data, capture_output=True, env=env, check=False)
    except (OSError, ValueError) as error:
        raise InputError(f"git can't be run: {error}") from None
    if ran.returncode:
        reason = ran.stderr.decode("utf-8", "replace").strip().split("\n")[0]
        raise InputError(f"git {arguments[0]}: {printable(reason)}")
    return ran.stdout


def listed(*arguments: str) -> list[str]:
    """What a git command with -z lists: paths of any bytes."""
    return [entry for entry in git(*arguments).decode("utf-8", "surrogateescape").split("\0") if entry]


def require_root() -> None:
    """Raise InputError unless this is the top folder of a Git repository that has a commit."""
    if up := git("rev-parse", "--show-cdup").decode().strip():
        raise InputError(f"run this in the top folder of the repository: cd {up}")
    resolve("HEAD")


def resolve(rev: str) -> str:
    """The full hash of a commit. Raises InputError where `rev` names none."""
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", rev + "^{commit}").decode().strip()
    except InputError:
        hint = "; this clone is shallow: git fetch --unshallow" if is_shallow() else ""
        raise InputError(f"{rev!r} is neither a commit here nor a data version named in data/README.md{hint}") from None


def is_shallow() -> bool:
    return git("rev-parse", "--is-shallow-repository").strip() == b"true"


def short(commit: str) -> str:
    return commit[:7]


def commits(*revisions: str) -> list[str]:
    """Commits as `git rev-list` gives them, newest first."""
    return git("rev-list", *revisions).decode().split()


def working_tree() -> str:
    """The id of a tree with the bytes of every file here that Git tracks, or would after `git add .`; links left out.

    New files that DVC holds are left out too, whether or not .gitignore names them. The tree is written to Git's object
    store and nowhere else; the index stays as it is.
    """
    known, new = (listed("ls-files", "-z", *words) for words in (("-c",), ("-o", "--exclude-standard")))
    held = {path.removesuffix(".dvc") for path in (*known, *new) if path.endswith(".dvc") and _mode(Path(path))}
    modes = {path: mode for path in sorted({*known, *new} - (held - {*known})) if (mode := _mode(Path(path)))}
    lines = [f"{modes[path]} {oid}\t{path}\0" for path, oid in blob_ids(modes, "-w").items()]
    lines += [f"{head}\t{path}\0" for path, head in sparse().items() if head.startswith("100")]
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        git("update-index", "-z", "--index-info", given="".join(lines), index=index)
        return git("write-tree", index=index).decode().strip()


def sparse() -> dict[str, str]:
    """Path, with mode and blob id, of what a sparse checkout leaves out of the working tree."""
    skipped = (entry[2:].partition("\t") for entry in listed("ls-files", "-z", "-t", "-s") if entry.startswith("S "))
    return {path: head for head, _, path in skipped if not os.path.lexists(path)}


def _mode(path: Path) -> str:
    """Git's mode of a regular file; '' for anything else, and for what lies behind a link."""
    if any(place.is_symlink() for place in (path, *path.parents)) or not path.is_file():
        return ""
    return "100755" if path.stat().st_mode & 0o100 else "100644"


def blob_ids(paths: Collection[str], *options: str) -> dict[str, str]:
    """Git's ids of files here as they are, without filters. A name that its list of paths can't hold goes alone."""
    odd = {path for path in paths if "\n" in path or path.startswith('"')}
    plain = [path for path in paths if path not in odd]
    command = ("hash-object", "--no-filters", *options)
    ids = git(*command, "--stdin-paths", given="".join(f"{path}\n" for path in plain)).decode().split()
    return dict(zip(plain, ids, strict=True)) | {path: git(*command, "--", path).decode().strip() for path in odd}


def files(tree: str, *paths: str) -> dict[str, str]:
    """Path and blob id of the regular files that a commit or tree holds in `paths`; of all of them without `paths`."""
    held = _files(tree) if OBJECT.fullmatch(tree) else _files.__wrapped__(tree)
    return {path: oid for path, oid in held.items() if within(path, paths)} if paths else dict(held)


@cache
def _files(tree: str) -> dict[str, str]:
    entries = (line.partition("\t") for line in listed("ls-tree", "-rz", "--full-tree", tree))
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
    answer = git("cat-file", "--batch", given="".join(f"{oid}\n" for oid in oids))
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
    """Paths of the files whose bytes differ between two commits or trees, or that only one of them holds.

    With links and submodules that the head has new or changed; those that it lacks are left out, since the tree of the
    working folder has none.
    """
    regular = files(head)
    other = listed("diff-tree", "-r", "-z", "--name-only", "--no-renames", "--diff-filter=AMT", base, head)
    changed = {path for path, _ in files(base).items() ^ regular.items()}
    return sorted(changed | {path for path in other if path not in regular})


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


def content_hash(tree: str, path: str = "", also: dict[str, str] | None = None) -> str | None:
    """DVC's md5 of a file or folder as a commit or tree holds it, None without any; '' is all of it.

    Files that `dvc add` tracks are part of it, and so are those in `also`: md5 by path inside the folder.
    """
    paths = [path] if path else []
    held = files(tree, *paths)
    if path in held:
        return _md5(held[path])
    entries = {name: _md5(oid) for name, oid in held.items()} | pointers(tree, *paths)
    inside = {name.removeprefix(f"{path}/"): md5 for name, md5 in entries.items()} | (also or {})
    return folder_md5(inside) if inside else None


def pointers(tree: str, *paths: str) -> dict[str, str]:
    """Path and md5 of the files that `dvc add` tracks. Raises InputError for a *.dvc file that points elsewhere."""
    held = files(tree, *paths)
    tracked = dict(_pointed_to(path, oid) for path, oid in held.items() if path.endswith(".dvc"))
    for target in tracked:
        if any(within(name, [target]) for name in held):
            raise InputError(f"{target}.dvc: {target} is in Git as well; only one of the two can hold it")
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


def lock(tree: str) -> dict[str, Stage]:
    """The stages in the dvc.lock of a commit or tree. Raises InputError where it is missing or broken."""
    content, name = read(tree, LOCK), f"{LOCK} of {short(tree)}"
    if content is None:
        raise InputError(f"{short(tree)} has no {LOCK}: nothing records its model and metrics")
    document = parse_yaml(content, name)
    try:
        return {str(stage): _stage(entry) for stage, entry in document.get("stages", {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name} is not a lock file of DVC: {error!r}") from None


def _stage(entry: dict[str, Any]) -> Stage:
    deps, outs = (dict(_item(item) for item in entry.get(key, []) if "md5" in item) for key in ("deps", "outs"))
    held = entry.get("params", {}).items()
    params = {str(file): {str(key): value for key, value in values.items()} for file, values in held}
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
    level, seen = [document], 0
    while level:
        seen += len(level)
        if seen > VALUES:
            raise InputError(f"{name}: more than {VALUES} values")
        items = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))]
        level = [inner for outer in items for inner in outer]
    return document
