"""What the labelling rules of params.yaml can express, and what the contract lists."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, SCHEMA

from stages.checklist.consistent import Rule
from stages.checklist.listed import listed
from stages.checklist.row import Example
from stages.checklist.verdicts import Settings
from stages.shared import contract, params

DAY = Rule(["due"], "said", "(?P=day)", r"(next_)?(?P<day>mon|tue)\w*day", "the day has to be said")
ARTICLE = Rule(["title"], "never", r"\b(a|the)\b", None, "no articles")
CAPITAL = Rule(["title"], "matches", "^[A-Z]", None, "a capital")
ORDER = Rule(["title"], "in_order", r"\bat \d+(am|pm)?$", None, "own order")


def said(text: str) -> Example:
    return Example(text, "", "", "", {}, "", "")


@pytest.mark.parametrize(
    ("rule", "value", "request_text", "broken"),
    [
        (CAPITAL, "Milk", "milk", False),
        (CAPITAL, "milk", "milk", True),
        (ARTICLE, "Feed the cat", "feed the cat", True),
        (ARTICLE, "The Wire", 'watch "The Wire"', False),
        (ARTICLE, "Theatre", "theatre", False),
        (ORDER, "Call Dana", "please call um Dana", False),
        (ORDER, "Dana call", "please call Dana", True),
        (ORDER, "Call Dana at 3pm", "at 3pm call Dana", False),
        (DAY, "monday", "see you on Monday", False),
        (DAY, "next_monday", "mon", False),
        (DAY, "tuesday", "see you on Monday", True),
        (DAY, "today", "whenever", False),
    ],
)
def test_a_rule_is_broken_or_not(rule: Rule, value: str, request_text: str, broken: bool) -> None:
    assert rule.broken(value, said(request_text), set()) is broken


def test_a_value_of_an_earlier_answer_keeps_its_order() -> None:
    assert not ORDER.broken("Call Dana", said("and make that urgent"), {"Call Dana"})


def test_a_pattern_that_is_none_is_named() -> None:
    with pytest.raises(params.ParamsError, match="'odd'"):
        Rule(["title"], "never", "(", None, "odd")


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("rule: in_order", "rule: inorder", "rules"),
        ("flag_only: [order,", "flag_only: [odour,", "odour"),
        ("    leak: 0.0 ", "    leek: 0.0 ", "validate.limits"),
        ("only: null,", "onyl: null,", "onyl"),
        ("flag_only: [order,", "flag_only: [contract,", "must refuse"),
        ("phone_region: US", "phone_region: UK", "UK"),
    ],
)
def test_a_misspelt_setting_is_refused(tmp_path: Path, right: str, wrong: str, named: str) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "params.yaml").write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises(params.ParamsError, match=named):
        params.load("validate", Settings, tmp_path / "params.yaml")


def test_every_kind_enumerated_value_and_default_is_listed_once() -> None:
    names = [str(value) for value in listed(contract.load(SCHEMA))]
    assert len(names) == len(set(names))
    assert {'create: priority = "medium"', "create: due_date = null", 'list: filter = "overdue"'} <= set(names)
    assert 'update: due_date = "none"' in names
    assert 'complete: action = "complete"' in names
    assert not any("title" in name.split(":")[1].split("=")[0] and '"' in name.split("=")[1] for name in names)


def test_a_schema_without_alternatives_lists_the_values_of_nested_fields(tmp_path: Path) -> None:
    lamp = {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}, "on": {"default": True}}}
    schema = {"type": "object", "properties": {"lamp": lamp, "rooms": {"type": "array", "items": {"enum": ["hall"]}}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    found = listed(contract.load(tmp_path / "schema.json"))
    assert [str(value) for value in found] == [
        'lamp.colour = "red"',
        'lamp.colour = "green"',
        "lamp.on = true",
        'rooms = "hall"',
    ]
    example = Example("", "", "", "", {"lamp": {"colour": "red"}, "rooms": ["hall", "attic"]}, "", "")
    assert [value.found_in(example) for value in found] == [True, False, False, True]
