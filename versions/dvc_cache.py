"""What DVC holds: hashes of outputs in the working tree, and whether the cache has them sound.

DVC trusts its cache and its notes of what it hashed before, so it checks out an altered object with exit status 0.
Here the bytes themselves are hashed.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import click

from stages.core import strict_json
from stages.core.cli import InputError
from versions import history

HALF_COPIED = re.compile(r"\.[\w-]{22}\.tmp")  # how DVC names a copy until it is whole


@dataclass(frozen=True)
class Finding:
    """An object of the cache, or a restored file, that is not what it should be; `actual` is '' where it is absent."""

    out: str
    path: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.actual or 'nothing'}"


def digest(path: Path) -> str:
    """md5 of the bytes, as DVC takes it. A file that stays as it is, by inode, size and time, is read once a run."""
    stat = path.stat()
    return _digest(path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@cache
def _digest(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def walk(path: Path) -> dict[str, str]:
    """md5 of each file by its path below `path`; the path of a file below itself is '.'."""
    held = [path, *path.rglob("*")]
    return {file.relative_to(path).as_posix(): digest(file) for file in held if file.is_file()}


def md5_of(path: Path) -> str:
    """DVC's md5 of a file or folder in the working tree, '' where there is none."""
    if not path.exists():
        return ""
    return digest(path) if path.is_file() else history.folder_md5(walk(path))


def inspect(store: Any, outs: dict[str, str]) -> list[Finding]:
    """Every object of the cache that the outputs need and that is absent or altered."""
    return [
        Finding(out, f"{path} in {store.oid_to_path(md5)}", md5, actual)
        for out, whole in outs.items()
        for path, md5 in _objects(store, out, whole)
        if (actual := _held(store, md5)) != md5
    ]


def _held(store: Any, md5: str) -> str:
    """The md5 that an object of the cache really has, '' where the cache lacks it."""
    path = Path(store.oid_to_path(md5))
    return digest(path) + (".dir" if md5.endswith(".dir") else "") if path.is_file() else ""


def _objects(store: Any, out: str, md5: str) -> Iterator[tuple[str, str]]:
    """The path and md5 of each object that an output needs: a folder is a list of files, and the list comes first."""
    yield out, md5
    if md5.endswith(".dir") and _held(store, md5) == md5:
        for entry in strict_json.read(Path(store.oid_to_path(md5))):
            path = PurePosixPath(entry["relpath"])
            if path.is_absolute() or ".." in path.parts or not history.MD5.fullmatch(entry["md5"]):
                raise InputError(f"{out}: the cache lists {str(path)!r} in it, which lies elsewhere")
            yield f"{out}/{path}", entry["md5"]


def refuse_unsaved(outs: Iterable[str], store: Any) -> None:
    """Raise InputError unless all that these outputs hold now is in the cache: they are about to be replaced."""
    for out in outs:
        if links := [place for place in Path(out).rglob("*") if place.is_symlink() and not place.is_file()]:
            raise InputError(f"{history.printable(str(links[0]))} is a link and would be lost; move it away")
        for name, md5 in walk(Path(out)).items():
            if _held(store, md5) != md5 and not HALF_COPIED.fullmatch(Path(name).name):
                path = history.printable(Path(out, name).as_posix())
                raise InputError(f"{path} is not in the DVC cache and would be lost; `dvc commit` it, or move it away")


def fetch(repo: Any, outs: dict[str, str]) -> None:
    """Ask the remote of today's configuration, if there is one, for all objects at once that the cache lacks.

    What did not come is seen by looking again. A folder's list has to come before what it lists.
    """
    from dvc_data.hashfile.hash_info import HashInfo

    for _ in ("lists and files", "what the lists name"):
        absent = {finding.expected for finding in inspect(repo.cache.local, outs) if not finding.actual}
        if absent and repo.config["core"].get("remote"):
            try:
                repo.cloud.pull({HashInfo("md5", md5) for md5 in absent})
            except Exception as error:  # noqa: BLE001  # remotes fail in as many ways as there are remotes
                click.echo(f"the remote could not give everything: {history.printable(str(error))}", err=True)
                return
