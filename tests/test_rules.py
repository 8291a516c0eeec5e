"""What the labelling rules can express, which settings are refused, and what the schema lists."""

import json
from pathlib import Path

import pytest
from conftest import KNOBS, ROOT, SCHEMA, SHIPPED

from stages import validate
from stages.checklist import labelling
from stages.checklist.complete import SchemaValue, coverage, schema_values
from stages.checklist.labelling import Rule
from stages.checklist.row import CheckedRow, Example
from stages.core import params
from stages.core.cli import InputError
from stages.data import contract, writing
from stages.data.rows import Row

DAY = Rule(["due"], "requested", "(?P=day)", "names the day", r"(next_)?(?P<day>mon|tue)\w*day")
ARTICLE = Rule(["title"], "never", r"\b(a|the)\b", "no articles")
CAPITAL = Rule(["title"], "matches", "^[A-Z]", "a capital")
ORDER = Rule(["title"], "in_order", r"\bat \d+(am|pm)?$", "own order")
URGENT = Rule(["title"], "requested", "urgent", "says so")
RULE = "{fields: [title], rule: never, pattern: x, why: y}"


def asked(text: str) -> Example:
    return Example(text, "", "", "", {}, "", "")


@pytest.mark.parametrize(
    ("rule", "value", "request_text", "broken"),
    [
        (CAPITAL, "Milk", "milk", False),
        (CAPITAL, "milk", "milk", True),
        (ARTICLE, "Feed the cat", "feed the cat", True),
        (ARTICLE, "The cat", "feed the cat", True),
        (ARTICLE, "The Wire", 'watch "The Wire"', False),
        (ORDER, "Call Dana", "please call um Dana", False),
        (ARTICLE, "The Wire", "watch “the wire”", False),
        (ORDER, "Dana call", "please call Dana", True),
        (ORDER, "Call Dana at 3PM", "at 3pm call Dana", False),
        (ORDER, "Call Dana at 3pm", "at 3pm call Dana", False),
        (DAY, "monday", "see you on Monday", False),
        (DAY, "next_monday", "mon", False),
        (DAY, "tuesday", "see you on Monday", True),
        (DAY, "today", "whenever", False),
        (DAY, "monday eve", "whenever", False),
        (URGENT, "now\nurgent", "do it now", True),
        (URGENT, "now", "do it now, it is\nurgent", False),
    ],
)
def test_a_rule_is_broken_or_not(rule: Rule, value: str, request_text: str, broken: bool) -> None:
    assert rule.is_broken(value, asked(request_text)) is broken


@SHIPPED
def test_the_shipped_rules_are_read() -> None:
    task = labelling.load(ROOT / "data" / "rules.yaml")
    assert task.copied_fields
    assert task.rules


@pytest.mark.parametrize("text", ["labeling: {}", "copied_field: [title]"])
def test_an_unknown_section_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "rules.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"unknown section: {text.partition(':')[0]}"):
        labelling.load(tmp_path / "rules.yaml")


def test_what_stands_beside_the_kinds_is_listed_once_and_counts_in_all(tmp_path: Path) -> None:
    listed = {"kind": {"enum": ["a", "b"]}, "size": {"enum": ["s", "m", "l"]}}
    writing.write_json(tmp_path / "schema.json", {"properties": listed, "required": ["kind", "size"]})
    values = schema_values(contract.load(tmp_path / "schema.json"))
    assert list(map(str, values)) == ['kind = "a"', 'kind = "b"', 'size = "s"', 'size = "m"', 'size = "l"']
    made = [Example("", "", "", "", {"kind": kind, "size": "s"}, "", kind) for kind in "aab"]
    table = [CheckedRow(Row("rows.jsonl", 1, "", (), "", ""), examples=[example]) for example in made]
    assert [count for count, _ in coverage(table, values)] == [2, 1, 3, 0, 0]


@pytest.mark.parametrize("text", [None, "", " \n", "{}", "copied_fields: [title]", "labelling: {rules: []}"])
def test_a_task_may_do_without_rules(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "rules.yaml").write_text(text, encoding="utf-8")
    assert labelling.load(tmp_path / "rules.yaml") == labelling.Labelling()


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("pattern: x", "pattern: (", "rules.1: .*not a regular expression"),
        ("pattern: x", "only: '(?P<d>x)', pattern: '(?P=d)'", "rules.1: .*not a regular expression"),
        ("rule: never", "rule: nevr", "rules.1.rule: .*'nevr'"),
        ("why: y", "wy: y", "rules.1.wy"),
        (", why: y", "", "rules.1.why"),
        ("[title]", "title", "rules.1.fields"),
    ],
)
def test_a_rule_that_is_none_is_named_with_its_file(tmp_path: Path, right: str, wrong: str, named: str) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(f"labelling:\n  rules: [{RULE}, {RULE.replace(right, wrong)}]\n", encoding="utf-8")
    with pytest.raises(params.ParamsError, match=rf"rules\.yaml: labelling\.{named}"):
        labelling.load(file)


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("flag_only: [order,", "flag_only: [odour,", "flag_only can't have odour: not a check"),
        ("flag_only: [order,", "flag_only: [contract,", "can't have contract: .* must refuse"),
        ("flag_only: [order,", "flag_only: [duplicate,", "can't have duplicate: .* must refuse"),
        ("phone_region: US", "phone_region: UK", "UK"),
        ("stop_at: critical", "stop_at: crucial", "validate.stop_at"),
        ("similarity: 0.95", "similarity: 95", "validate.similarity"),
        ("trigger_rows: 5", "triger_rows: 5", "validate.triger_rows"),
    ],
)
def test_a_misspelt_setting_is_refused(tmp_path: Path, right: str, wrong: str, named: str) -> None:
    text = KNOBS.read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "params.yaml").write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises(params.ParamsError, match=named):
        params.load("validate", validate.Params, tmp_path / "params.yaml")


def test_every_kind_enumerated_value_and_default_is_listed_once() -> None:
    names = [str(value) for value in schema_values(contract.load(SCHEMA))]
    assert len(names) == len(set(names))
    assert {'create: priority = "medium"', "create: due_date = null", 'list: filter = "overdue"'} <= set(names)
    assert 'update: due_date = "none"' in names
    assert 'complete: action = "complete"' in names
    assert not any("title" in name.split(":")[1].split("=")[0] and '"' in name.split("=")[1] for name in names)


def test_a_schema_without_alternatives_lists_the_values_of_nested_fields(tmp_path: Path) -> None:
    lamp = {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}, "on": {"default": True}}}
    kind = {"$ref": "#/$defs/kind", "default": "z"}
    fields = {"lamp": lamp, "rooms": {"type": "array", "items": {"enum": ["hall"]}}, "kind": kind}
    free = {"any": True, "some": {"anyOf": [True]}}
    schema = {"type": "object", "properties": fields | free, "$defs": {"kind": {"enum": ["y"]}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    values = schema_values(contract.load(tmp_path / "schema.json"))
    assert [str(value) for value in values] == [
        'lamp.colour = "red"',
        'lamp.colour = "green"',
        "lamp.on = true",
        'rooms = "hall"',
        'kind = "y"',
        'kind = "z"',
    ]
    answer = {"lamp": {"colour": "red"}, "rooms": ["hall", "attic"]}
    assert [value.is_in(answer) for value in values] == [True, False, False, True, False, False]
    assert [values[2].is_in({"lamp": lamp}) for lamp in (None, {"on": 1}, {"on": True})] == [False, False, True]
    assert SchemaValue("", ("rooms",), ["hall"]).is_in({"rooms": ["hall"]})


def test_a_schema_that_refers_to_itself_lists_its_values_once(tmp_path: Path) -> None:
    node = {"properties": {"op": {"enum": ["a"]}, "next": {"$ref": "#/$defs/n"}}}
    writing.write_json(tmp_path / "schema.json", {"$ref": "#/$defs/n", "$defs": {"n": node}})
    values = schema_values(contract.load(tmp_path / "schema.json"))
    assert list(map(str, values)) == ['next.op = "a"', 'op = "a"']


def test_a_value_counts_once_for_each_sound_row_of_its_kind() -> None:
    def row(*kinds: str, **refused: str) -> CheckedRow:
        examples = [Example("", "", "", "", {"filter": "all"}, "", kind) for kind in kinds]
        return CheckedRow(Row("rows.jsonl", 1, "", (), "", ""), refused, examples=examples)

    table = [row("list", "list"), row("list"), row("show"), row("list", "show"), row("list", secret="a key")]
    values = [SchemaValue("list", ("filter",), "all"), SchemaValue("list", ("filter",), "overdue")]
    assert [count for count, _ in coverage(table, values)] == [3, 0]
