"""The shipped example data. Skipped when data/ holds another task."""

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from stages.shared import rows, text
from tools import due_date

DATA = Path(__file__).parent.parent / "data"
SCHEMA = json.loads((DATA / "schema.json").read_text(encoding="utf-8"))
pytestmark = pytest.mark.skipif(SCHEMA.get("$id") != "urn:lockstep:task-api", reason="data/ holds another task")


def answers() -> list[tuple[rows.Row, dict[str, Any]]]:
    """Every answer of the data with its row."""
    return [
        (row, json.loads(turn["content"]))
        for folder in ("raw", "test")
        for file in sorted((DATA / folder).glob("*.jsonl"))
        for row in rows.read(file)
        for turn in row.turns
        if turn["role"] == "assistant"
    ]


def test_every_due_date_is_in_the_vocabulary_and_resolves() -> None:
    named = {answer["due_date"] for _, answer in answers() if answer.get("due_date")} - {"none"}
    assert len(named) > 40
    for expression in named:
        assert re.fullmatch(SCHEMA["$defs"]["due_date"]["pattern"], expression)
        assert due_date.resolve(expression, date(2026, 1, 1)) >= date(2026, 1, 1)


def test_titles_are_made_of_the_user_s_words() -> None:
    for row, answer in answers():
        said = {
            word for turn in row.turns if turn["role"] == "user" for word in text.normalise(turn["content"]).split()
        }
        for field in ("title", "new_title"):
            invented = set(text.normalise(answer.get(field) or "").split()) - said
            assert not invented, (row.file, row.line, invented)


def test_the_same_action_has_the_same_keys_in_the_same_order() -> None:
    orders = {(answer["action"], tuple(answer)) for _, answer in answers()}
    assert len(orders) == 6
