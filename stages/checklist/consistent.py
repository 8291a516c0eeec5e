"""Consistent: keys in one order, values of one type, and the same request always with the same answer."""

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

from stages.checklist.row import Table

TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}


def fields(answer: Any, path: str = "") -> list[tuple[str, str]]:
    """The fields of an answer in the order in which they stand, with the type of each."""
    if not isinstance(answer, dict):
        return []
    found = []
    for name, value in answer.items():
        here = f"{path}.{name}" if path else name
        found += [(here, TYPES.get(type(value), "null")), *fields(value, here)]
    return found


def check_order(table: Table) -> None:
    """Refuse rows whose answer has two neighbouring keys in another order than most answers of its kind."""
    seen: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    answers = [
        (checked, example.kind, list(pairwise(name for name, _ in fields(example.answer))))
        for checked in table
        for example in checked.examples
    ]
    for _, kind, neighbours in answers:
        seen[kind].update(neighbours)
    for checked, kind, neighbours in answers:
        for first, second in neighbours:
            if seen[kind][second, first] > seen[kind][first, second]:
                checked.reasons["order"] = f"{first!r} stands before {second!r}, in most answers after it"


def check_types(table: Table) -> None:
    """Refuse rows with a value of another type than in most answers of its kind. Null is no type of its own."""
    seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    values = [
        (checked, (example.kind, name), kind)
        for checked in table
        for example in checked.examples
        for name, kind in fields(example.answer)
        if kind != "null"
    ]
    for _, field, kind in values:
        seen[field][kind] += 1
    for checked, field, kind in values:
        usual, often = seen[field].most_common(1)[0]
        if seen[field][kind] < often:
            checked.reasons["types"] = f"{field[1]}: {kind}, in most answers {usual}"


def check_conflicts(table: Table) -> None:
    """Refuse every row whose request has another answer elsewhere: nothing tells which one is right."""
    answers: dict[str, dict[str, str]] = {}
    compared = [checked for checked in table if checked.reasons.keys() <= {"duplicate"}]
    for checked in compared:
        for example in checked.examples:
            answers.setdefault(example.prompt, {}).setdefault(example.key, checked.where)
    for checked in compared:
        for example in checked.examples:
            if others := [where for other, where in answers[example.prompt].items() if other != example.key]:
                checked.reasons["conflict"] = f"same request, other answer at {others[0]}"
