"""Complete: every kind of answer, every value that the contract lists and every default has enough rows."""

from collections import Counter
from typing import Any

from stages.checklist.listed import Listed
from stages.checklist.row import Checked, sound


def coverage(tables: dict[str, list[Checked]], values: list[Listed]) -> list[dict[str, Any]]:
    """For each listed value the number of sound rows, by split, that have it in an answer."""
    counts = {split: rows_with(table, values) for split, table in tables.items()}
    return [
        {"value": str(value), **{split: counts[split][value_number] for split in tables}}
        for value_number, value in enumerate(values)
    ]


def rows_with(table: list[Checked], values: list[Listed]) -> Counter[int]:
    by_kind: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        by_kind.setdefault(value.kind, []).append(number)
    found: Counter[int] = Counter()
    for checked in sound(table):
        found.update(
            {
                number
                for example in checked.examples
                for number in by_kind.get(example.kind, ())
                if values[number].found_in(example)
            }
        )
    return found
