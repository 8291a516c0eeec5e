"""Files out: the same bytes for the same values, and never half a file or half a folder under the final name."""

import csv
import glob
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stages.core.cli import InputError
from stages.core.strict_json import compact


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """Open a temporary file beside `path` and rename it onto `path` at the end, so that no reader sees half a file."""
    part = _beside(path)
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        part.replace(path)
    finally:
        _remove(part)


@contextmanager
def replacing_folder(path: Path, mark: str) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `path` at the end; killed in between, there may be neither.

    Raises InputError where `path` has something in it, but not the file `mark`: it is somebody else's.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / mark).is_file()):
        raise InputError(f"{path} would be deleted, and has no {mark}: it is not this stage's; name another folder")
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
    """A name beside `path` that is this process's own: two runs never write one file. What killed runs left goes."""
    import psutil

    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        owner = re.search(r"\.(\d+)(\.part)+$", left.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            _remove(left)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one compact JSON value a line."""
    with replacing(path) as file:
        file.writelines(compact(row) + "\n" for row in rows)


def write_json(path: Path, value: Any) -> None:
    """Write metrics and the like: sorted keys, indented, trailing newline, NaN refused (ValueError)."""
    with replacing(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_csv(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    """Write a table for `dvc plots`."""
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
