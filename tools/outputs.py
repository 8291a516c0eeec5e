"""What DVC holds: the hashes of outputs in the working tree, and whether the cache has them sound.

DVC trusts its cache and its notes of what it hashed before, so it checks out an altered object with exit status 0.
Here the bytes themselves are hashed.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from stages.shared import strict_json
from tools import history


@dataclass(frozen=True)
class Finding:
    """An object of the cache, or a restored file, that is not what it should be; `found` is '' where it is absent."""

    out: str
    path: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found or 'nothing'}"


def digest(path: Path) -> str:
    """md5 of the bytes, as DVC takes it. A file that stays as it is, by inode, size and time, is read once a run."""
    stat = path.stat()
    return _digest(path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@cache
def _digest(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def walk(path: Path) -> dict[str, str]:
    """md5 of each file by its path below `path`; the path of a file below itself is ''."""
    if path.is_file():
        return {"": digest(path)}
    return {file.relative_to(path).as_posix(): digest(file) for file in path.rglob("*") if file.is_file()}


def md5_of(path: Path) -> str:
    """DVC's md5 of a file or folder in the working tree, '' where there is none."""
    if not path.exists():
        return ""
    found = walk(path)
    return found[""] if path.is_file() else history.folder_md5(found)


def found_in(store: Any, md5: str) -> str:
    """The md5 that an object of the cache really has, '' where the cache lacks it."""
    path = Path(store.oid_to_path(md5))
    return digest(path) + (".dir" if md5.endswith(".dir") else "") if path.is_file() else ""


def objects(store: Any, out: str, md5: str) -> Iterator[tuple[str, str]]:
    """The path and md5 of each object that an output needs: a folder is a list of files, and the list comes first."""
    yield out, md5
    if md5.endswith(".dir") and found_in(store, md5) == md5:
        for entry in strict_json.parse(Path(store.oid_to_path(md5)).read_text(encoding="utf-8")):
            yield f"{out}/{entry['relpath']}", entry["md5"]


def inspect(store: Any, outs: dict[str, str]) -> list[Finding]:
    """Every object of the cache that the outputs need and that is absent or altered."""
    return [
        Finding(out, f"{path} in {relative(store.oid_to_path(md5))}", md5, found)
        for out, whole in outs.items()
        for path, md5 in objects(store, out, whole)
        if (found := found_in(store, md5)) != md5
    ]


def relative(path: str) -> str:
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def fetch(repo: Any, commit: str, outs: set[str]) -> None:
    """Ask the remote, if there is one, for what the cache lacks; what did not come is seen by looking again."""
    from dvc.exceptions import DvcException

    if repo.config["core"].get("remote"):
        try:
            repo.fetch(targets=sorted(outs), revs=[commit], workspace=False)
        except DvcException as error:
            click.echo(f"the remote could not give everything: {error}", err=True)
