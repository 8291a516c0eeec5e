"""Never half a file or half a folder under its final name: whatever is written takes the old one's place at the end.

Apart from stages/shared/writing.py, so that the looks of a JSON file don't fetch the base model again.
"""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def file(path: Path) -> Iterator[IO[str]]:
    """Open a temporary file beside `path` and rename it onto `path` at the end, so that no reader sees half a file."""
    part = _beside(path)
    try:
        with part.open("w", encoding="utf-8", newline="\n") as opened:
            yield opened
        part.replace(path)
    finally:
        _remove(part)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `path` at the end; killed in between, there may be neither."""
    part = _beside(path)
    old = part.with_name(f"{part.name}.part")
    part.mkdir()
    try:
        yield part
        if path.exists():
            path.rename(old)
        part.rename(path)
    finally:
        _remove(part)
        _remove(old)


def _beside(path: Path) -> Path:
    """A name beside `path` that is this process's own: two runs never write one file. Leftovers of killed runs go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        _remove(left)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
