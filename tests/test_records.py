"""A bad line is refused with file, line and reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from stages.core.cli import InputError
from stages.data import records


@dataclass(frozen=True)
class Point:
    id: str
    at: tuple[int, ...]
    size: float = 1

    def __post_init__(self) -> None:
        if len(self.at) != 2:
            raise ValueError("two numbers are expected")


ROWS: list[dict[str, Any]] = [{"id": "p1", "at": [1, 2]}, {"id": "p2", "at": [3, 4], "size": 2}]


def test_rows_become_dataclasses(tmp_path: Path) -> None:
    assert records.read(write_rows(tmp_path / "p.jsonl", ROWS), Point) == [Point("p1", (1, 2)), Point("p2", (3, 4), 2)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "p3", "at": [1, 2], "colour": 1}, "colour: Unexpected keyword argument"),
        ({"id": "p3"}, "at: Field required"),
        ({"id": "p3", "at": [1, "2"]}, "at.1: Input should be a valid integer"),
        ({"id": "p3", "at": [1, True]}, "at.1: Input should be a valid integer"),
        ({"id": "p3", "at": [1]}, "Value error, two numbers are expected"),
        ({"id": "p1", "at": [1, 2]}, "id 'p1' occurs twice"),
        (["p3"], "Input should be an object"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_reason(tmp_path: Path, row: Any, reason: str) -> None:
    file = write_rows(tmp_path / "p.jsonl", [*ROWS, row])
    with pytest.raises(InputError) as caught:
        records.read(file, Point)
    assert caught.value.message == f"{file}:3: {reason}"


def test_other_fields_can_be_ignored(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "p.jsonl", [ROWS[0] | {"colour": "red"}])
    assert records.read(file, Point, extra="ignore") == [Point("p1", (1, 2))]


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b"", "no rows"), (b"\xff\n", ":1: "), (b"{\n", ":1: not JSON")]
)
def test_a_file_that_holds_no_rows_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "p.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        records.read(file, Point)
