"""Files out: the same bytes for the same values, and never half a file under its final name."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.shared import replacing
from stages.shared.strict_json import compact


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one compact JSON value a line."""
    with replacing.file(path) as file:
        file.writelines(compact(row) + "\n" for row in rows)


def write_json(path: Path, value: Any) -> None:
    """Write metrics and the like: sorted keys, indented, trailing newline, NaN refused (ValueError)."""
    with replacing.file(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_csv(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    """Write a table for `dvc plots`."""
    with replacing.file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
