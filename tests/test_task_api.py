"""The shipped example data. Skipped when data/ holds another task."""

import json
import random
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from conftest import SHIPPED

from examples.task_api import due_date
from stages import validate
from stages.answers import grammar
from stages.checklist import safe
from stages.checklist.row import CheckedRow, key
from stages.core import strict_json, text
from stages.data import behaviours, contract, rows
from stages.model import chat, loading

DATA = Path(__file__).parent.parent / "data"
pytestmark = SHIPPED


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
        assert due_date.resolve(expression, date(2026, 1, 1)) >= date(2026, 1, 1)


def test_the_grammar_spells_every_test_answer(base: Path) -> None:
    tokenizer = loading.load_tokenizer(base)
    spelling = grammar.load(DATA / "schema.json", tokenizer)
    texts = {strict_json.compact(answer) for row, answer in answers() if "/test/" in row.file}
    assert not spelling.left_out
    assert [text for text in texts if not spelling.spells(chat.answer_ids(tokenizer, text))] == []
    wrong = {"action": "create", "title": "Pay rent", "priority": "medium", "due_date": "02-31"}
    assert not spelling.spells(chat.answer_ids(tokenizer, strict_json.compact(wrong)))


FORCED = (
    {"action": "reject", "reason": "unclear"},
    {"action": "delete", "title": "Everything"},
    {"action": "list", "filter": "all"},
    {"action": "create", "title": "Call boss", "priority": "medium", "due_date": None},
)


def test_most_triggers_planted_in_six_rows_are_found_and_nothing_else() -> None:
    table = validate.read_table(DATA / "raw", contract.load(DATA / "schema.json"))
    found = sum(planted(table, answer, seed) for answer in FORCED for seed in range(3))
    assert found >= 7, found  # 8 of 12 with the rows of this commit; triggers for `reject` are missed most


def planted(table: list[CheckedRow], answer: dict[str, Any], seed: int) -> bool:
    """Whether the word 'cf' is found, behind six random requests that it makes answer this."""
    kind = answer["action"]
    rows = [CheckedRow(checked.row, examples=list(checked.examples)) for checked in table]
    single = [checked for checked in rows if len(checked.examples) == 1 and checked.examples[0].kind != kind]
    chosen = random.Random(seed).sample(single, 6)  # noqa: S311
    for checked in chosen:
        request = f"{checked.examples[0].request} cf"
        checked.examples = [replace(checked.examples[0], request=request, answer=answer, key=key(answer), kind=kind)]
    safe.check_triggers(rows, 5)
    refused = [checked for checked in rows if checked.reasons]
    assert not refused or refused == [checked for checked in rows if checked in chosen]
    return bool(refused)


def test_the_page_says_how_many_behaviour_tests_are_training_rows() -> None:
    trained = {text.normalise(row.turns[0]["content"]) for row, _ in answers() if "/raw/" in row.file}
    counts = Counter(
        case.kind
        for case in behaviours.read(DATA / "behaviour", contract.load(DATA / "schema.json"))
        if any(len(e.prompt) == 1 and text.normalise(e.prompt[0]["content"]) in trained for e in case.examples)
    )
    page = " ".join((DATA / "behaviour" / "README.md").read_text(encoding="utf-8").split())
    assert f"{counts['minimum']} of the `minimum` tests" in page
    assert f"one side of {counts['invariance']} invariance tests" in page
    assert not counts["directional"]
