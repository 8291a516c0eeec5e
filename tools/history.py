"""Read revisions of this repository from Git: their files, their dvc.lock, and the hash of their data as DVC takes it.

Nothing here touches the working tree. Git and DVC disagree about what a version is: Git names a commit, dvc.lock names
data by md5. `content_hash` gives DVC's name for what a commit holds, so that a dvc.lock can be held against it.
"""

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from stages.shared.cli import InputError

RAW, LOCK, METRICS, OUTCOMES = "data/raw", "dvc.lock", "metrics/evaluate.json", "metrics/outcomes.jsonl"
NAMES = Path("data/README.md")
NAMED = re.compile(r"^\|\s*([^|`\s]+)\s*\|\s*`([0-9a-f]{32}(?:\.dir)?)`\s*\|", re.MULTILINE)


@dataclass(frozen=True)
class Lock:
    """What a dvc.lock records: md5 of every output and of every dependency by path, and the stage of every output."""

    outs: dict[str, str]
    deps: dict[str, str]
    made_by: dict[str, str]


def git(*arguments: str, given: bytes = b"", index: Path | None = None) -> bytes:
    """Run git and return what it prints. `index` stands in for the real index. Raises InputError with git's reason."""
    env = os.environ | {"LC_ALL": "C"} | ({"GIT_INDEX_FILE": str(index.absolute())} if index else {})
    try:
        ran = subprocess.run(["git", *arguments], input=given, capture_output=True, env=env, check=False)  # noqa: S607
    except FileNotFoundError:
        raise InputError("git is not installed") from None
    if ran.returncode:
        reason = ran.stderr.decode("utf-8", "replace").strip().split("\n")[0]
        raise InputError(f"git {arguments[0]}: {reason}")
    return ran.stdout


def require_root() -> None:
    """Raise InputError unless this is the top folder of a Git repository that DVC knows and that has a commit."""
    try:
        top = git("rev-parse", "--show-toplevel").decode().rstrip("\n")
    except InputError:
        raise InputError(f"{Path.cwd()} is not in a Git repository") from None
    if Path(top).resolve() != Path.cwd().resolve():
        raise InputError(f"run this in the top folder of the repository: cd {top}")
    if not Path(".dvc").is_dir():
        raise InputError(".dvc is missing: DVC does not know this repository")
    resolve("HEAD")


def resolve(rev: str) -> str:
    """Return the full hash of a commit. Raises InputError where `rev` names none."""
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", rev + "^{commit}").decode().strip()
    except InputError:
        hint = "; this clone is shallow: git fetch --unshallow" if is_shallow() else ""
        raise InputError(f"{rev!r} is neither a commit here nor a data version named in {NAMES}{hint}") from None


def is_shallow() -> bool:
    return git("rev-parse", "--is-shallow-repository").strip() == b"true"


def short(commit: str) -> str:
    return commit[:7]


def files(tree: str, *paths: str) -> dict[str, str]:
    """Path and blob id of every file that a commit or tree holds below `paths`; all of them without `paths`."""
    listed = git("ls-tree", "-rz", tree, "--", *paths).decode("utf-8", "surrogateescape").split("\0")
    entries = (line.partition("\t") for line in listed if line)
    return {path: head.split()[2] for head, _, path in entries}


def ids(names: Iterable[str]) -> list[str]:
    """Object ids of many 'COMMIT:PATH' at once, '' where there is none."""
    asked = "".join(f"{name}\n" for name in names).encode()
    lines = git("cat-file", "--batch-check=%(objectname)", given=asked).decode().split("\n")[:-1]
    return ["" if line.endswith((" missing", " ambiguous")) else line for line in lines]


def blobs(oids: list[str]) -> Iterator[bytes]:
    """The contents of many blobs, in order, from one process."""
    answer = git("cat-file", "--batch", given="".join(f"{oid}\n" for oid in oids).encode())
    at = 0
    for _ in oids:
        end = answer.index(b"\n", at)
        size = int(answer[at:end].split()[2])
        yield answer[end + 1 : end + 1 + size]
        at = end + size + 2


def read(commit: str, path: str) -> bytes | None:
    """The bytes of one file of a commit, None where it holds no such file."""
    (oid,) = ids([f"{commit}:{path}"])
    return next(blobs([oid])) if oid else None


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def folder_md5(entries: dict[str, str]) -> str:
    """DVC's hash of a folder, from the md5 of each file by its path inside the folder."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for path, found in entries.items():
        tree.add(tuple(path.split("/")), None, HashInfo("md5", found))
    tree.digest()
    return str(tree.hash_info.value)


def pointers(tree: str, *paths: str) -> dict[str, str]:
    """Path and md5 of the files that `dvc add` tracks: what the *.dvc files of a commit or tree point to."""
    found = {path: oid for path, oid in files(tree, *paths).items() if path.endswith(".dvc")}
    documents = zip(found, blobs(list(found.values())), strict=True)
    return dict(entry for path, content in documents for entry in pointed_to(path, content))


def pointed_to(path: str, content: bytes) -> Iterator[tuple[str, str]]:
    """What one *.dvc file points to, as (path, md5). Raises InputError for a folder and for what can't be read."""
    for out in _yaml(content, path).get("outs", []):
        target = str(PurePosixPath(path).parent / out["path"])
        if not out.get("md5") or out["md5"].endswith(".dir"):
            raise InputError(f"{path}: {target} is not one file with an md5; `dvc add` the files one by one")
        yield target, out["md5"]


def content_hash(commit: str, path: str) -> str | None:
    """DVC's md5 of a file or folder as the commit holds it, DVC-tracked files included; None where it holds none."""
    (oid,) = ids([f"{commit}:{path}"])
    return object_md5(oid) if oid else None


@cache
def object_md5(oid: str) -> str:
    """DVC's md5 of a Git blob or tree. A history of many commits has few different ones."""
    if git("cat-file", "-t", oid).strip() == b"blob":
        return md5(next(blobs([oid])))
    held = files(oid)
    return folder_md5(dict(zip(held, map(md5, blobs(list(held.values()))), strict=True)) | pointers(oid))


def data_hashes(commits: list[str]) -> list[str | None]:
    """DVC's md5 of data/raw in each commit: two commits with the same one have the same data version."""
    oids = ids(f"{commit}:{RAW}" for commit in commits)
    return [object_md5(oid) if oid else None for oid in oids]


def lock(commit: str) -> Lock:
    """The dvc.lock of a commit. Raises InputError where it is missing or can't be read, as with conflict markers."""
    content = read(commit, LOCK)
    if content is None:
        raise InputError(f"{short(commit)} has no {LOCK}: nothing records its model and metrics")
    return parse_lock(content, f"{LOCK} of {short(commit)}")


@cache
def parse_lock(content: bytes, name: str) -> Lock:
    stages = _yaml(content, name).get("stages", {})
    outs: dict[str, str] = {}
    deps: dict[str, str] = {}
    made_by: dict[str, str] = {}
    try:
        for stage, entry in stages.items():
            deps |= {dep["path"]: dep["md5"] for dep in entry.get("deps", []) if "md5" in dep}
            outs |= {out["path"]: out["md5"] for out in entry.get("outs", []) if "md5" in out}
            made_by |= {out["path"]: stage for out in entry.get("outs", [])}
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{name} is not a lock file of DVC: {error!r}") from None
    return Lock(outs, deps, made_by)


def _yaml(content: bytes, name: str) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        document = YAML(typ="safe").load(content.decode("utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{name} can't be read: {str(error).split(chr(10))[0]}") from None
    if not isinstance(document, dict):
        raise InputError(f"{name} can't be read: not a mapping")
    return document


def is_recorded(commit: str) -> bool:
    """True when the metrics of a commit are those of its data: dvc.lock records both as the commit holds them."""
    try:
        held = lock(commit)
    except InputError:
        return False
    recorded = {RAW: held.deps.get(RAW)} | {path: held.outs.get(path) for path in (METRICS, OUTCOMES)}
    return all(found and found == content_hash(commit, path) for path, found in recorded.items())


def names() -> dict[str, str]:
    """Names of data versions by the hash of data/raw, from the table in data/README.md; empty without one."""
    text = NAMES.read_text(encoding="utf-8") if NAMES.is_file() else ""
    return {found: name for name, found in NAMED.findall(text)}


def commits(*revisions: str) -> list[str]:
    """Commits as `git rev-list` gives them, newest first."""
    return git("rev-list", *revisions).decode().split()


def versions() -> dict[str, str]:
    """The data versions behind HEAD, newest first: hash of data/raw, and the newest commit that records its metrics.

    Where no commit records them, the newest that holds the data.
    """
    behind = commits("HEAD")
    having: dict[str, list[str]] = {}
    for commit, found in zip(behind, data_hashes(behind), strict=True):
        if found:
            having.setdefault(found, []).append(commit)
    return {found: next(filter(is_recorded, holders), holders[0]) for found, holders in having.items()}


def commit_of(rev: str) -> str:
    """The commit that REV means: that of a data version's name, or else any commit. Raises InputError for neither."""
    wanted = [found for found, name in names().items() if name == rev]
    commit = versions().get(wanted[0]) if wanted else None
    return commit or resolve(rev)
