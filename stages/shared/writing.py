"""Files out: the same bytes for the same values, and never half a file under the final name."""

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stages.shared.strict_json import compact


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """Open a temporary file beside `path` and rename it onto `path` at the end, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
