"""The contract: what it accepts, how it reads a schema, and what it never does."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA

from stages.core import strict_json
from stages.core.cli import InputError
from stages.data import contract

TASK_API = contract.load(SCHEMA)
CREATE = {"action": "create", "title": "Buy milk", "priority": "medium", "due_date": None}


def load(folder: Path, schema: Any, discriminator: str | None = None) -> contract.Contract:
    file = folder / "schema.json"
    file.write_text(schema if isinstance(schema, str) else json.dumps(schema), encoding="utf-8")
    return contract.load(file, discriminator)


def test_task_api_discriminator_and_kinds() -> None:
    assert TASK_API.discriminator == "action"
    assert TASK_API.kinds == ("create", "list", "update", "complete", "delete", "reject")


@pytest.mark.parametrize(
    "change",
    [
        {"action": "archive"},
        {"title": " Buy milk"},
        {"title": 3},
        {"priority": None},
        {"due_date": "someday"},
        {"due_date": "today\n"},
        {"title": "Buy milk\n"},
        {"title": "Buy\x00milk"},
        {"extra": 1},
    ],
)
def test_task_api_refuses(change: dict[str, Any]) -> None:
    assert TASK_API.error(CREATE | change)


@pytest.mark.parametrize("due", [None, "in_12_weeks", "2027-01-05"])
def test_task_api_accepts(due: str | None) -> None:
    assert TASK_API.error(CREATE | {"due_date": due}) is None


@pytest.mark.parametrize("text", ['["create"]', '"create"', "null", "3", '```{"a":1}```'])
def test_an_answer_is_one_strict_object(text: str) -> None:
    with pytest.raises(strict_json.JsonError):
        contract.parse_answer(text)


@pytest.mark.parametrize(
    ("pattern", "value", "matches"),
    [
        ("^a$", "a", True),
        ("^a$", "a\n", False),
        (r"^(a|b$)", "b\n", False),
        (r"^a\$", "a$", True),
        ("^a[$]", "a$", True),
        (r"^[^\]$]$", "$", False),
        ("a", "bab", True),
    ],
)
def test_a_dollar_ends_the_text(tmp_path: Path, pattern: str, value: str, matches: bool) -> None:
    rules = load(tmp_path, {"properties": {"x": {"pattern": pattern}}})
    assert (rules.error({"x": value}) is None) is matches


def test_a_dollar_ends_the_text_where_a_schema_refers_to_itself(tmp_path: Path) -> None:
    name = {"type": "string", "pattern": "^a$"}
    dialect = "https://json-schema.org/draft/2020-12/schema"
    rules = load(tmp_path, {"$schema": dialect, "properties": {"name": name, "inside": {"$ref": "#"}}})
    assert rules.error({"inside": {"name": "a"}}) is None
    assert rules.error({"inside": {"name": "a\n"}})


def test_discriminator_of_other_schemas(tmp_path: Path) -> None:
    fields = {"note": {"const": "1"}, "intent": {"enum": ["a", "b"]}}
    enum = {"type": "object", "required": ["note", "intent"], "properties": fields}
    assert load(tmp_path, enum).kinds == ("a", "b")
    some = [{"properties": {"size": {"const": "s"}, "kind": {"const": "x"}}}, {"properties": {"kind": {"const": "y"}}}]
    assert load(tmp_path, {"oneOf": some}).discriminator == "kind"
    refs = {
        "anyOf": [{"$ref": "#/$defs/x~1~01"}, {"$ref": "#/$defs/y"}],
        "$defs": {"x/~1": {"properties": {"kind": {"const": "x"}}}, "y": {"properties": {"kind": {"const": "y"}}}},
    }
    assert load(tmp_path, refs).discriminator == "kind"
    assert load(tmp_path, {"type": "object"}).discriminator == ""
    assert load(tmp_path, {"oneOf": [{"$ref": "#/anyOf/0"}], "anyOf": [{}]}).discriminator == ""
    old = {"$schema": "http://json-schema.org/draft-03/schema#", "required": True}
    assert load(tmp_path, old).discriminator == ""
    kind = {"properties": {"kind": {"const": "x"}}}
    root = {"$ref": "#/definitions/r", "definitions": {"r": {"oneOf": [{"$ref": "#/definitions/x"}]}, "x": kind}}
    assert load(tmp_path, root).kinds == ("x",)
    assert load(tmp_path, enum, "note").discriminator == "note"
    assert load(tmp_path, {"allOf": [enum]}, "intent").discriminator == "intent"
    with pytest.raises(InputError, match=r"schema\.json: nothing is called 'intend'"):
        load(tmp_path, enum, "intend")


@pytest.mark.parametrize("schema", ["[]", "{", '{"$schema": 3}', '{"type": "nonsense"}', '{"a": 1, "a": 2}'])
def test_a_bad_schema_is_refused_by_name(tmp_path: Path, schema: str) -> None:
    with pytest.raises(InputError, match=r"^[^ ]*schema\.json: (?!.*schema\.json)"):
        load(tmp_path, schema)


def test_a_schema_that_refers_to_itself_is_refused(tmp_path: Path) -> None:
    rules = load(tmp_path, {"$ref": "#"})
    with pytest.raises(InputError, match="itself"):
        rules.error({})


def test_remote_references_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    rules = load(tmp_path, {"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(InputError, match=r"127\.0\.0\.1"):
        rules.error({})


@pytest.mark.parametrize(
    "value",
    [
        {"action": "list", "filter": "all"},
        {"action": "list", "filter": "later"},
        {"action": "list"},
        {"action": "list", "filter": "all", "title": "Milk"},
        {"action": "dance"},
        {"filter": "all"},
        {"action": None, "filter": "all"},
        {"action": "delete", "title": ""},
    ],
)
def test_the_one_alternative_that_can_hold_decides_as_the_whole_schema_does(value: object) -> None:
    assert TASK_API.by_kind
    assert (TASK_API.error(value) is None) == TASK_API.validator.is_valid(value)


TREE = {
    "oneOf": [
        {"properties": {"op": {"const": "and"}, "args": {"items": {"$ref": "#"}}}, "required": ["op", "args"]},
        {"properties": {"op": {"const": "leaf"}, "word": {"type": "string"}}, "required": ["op", "word"]},
    ]
}


@pytest.mark.parametrize(("name", "by"), [({}, "#"), ({"$id": "urn:tree"}, "urn:tree"), ({"$anchor": "node"}, "#node")])
def test_a_schema_that_refers_to_itself_is_not_narrowed(tmp_path: Path, name: dict[str, str], by: str) -> None:
    leaf, tree = {"op": "leaf", "word": "cats"}, json.loads(json.dumps(TREE | name).replace('"#"', json.dumps(by)))
    assert load(tmp_path, tree).error({"op": "and", "args": [leaf, leaf]}) is None


def test_an_alternative_of_two_kinds_is_named_by_what_it_lacks(tmp_path: Path) -> None:
    both = {"properties": {"a": {"enum": ["x", "y"]}}}
    one = {"properties": {"a": {"const": "z"}}, "required": ["a", "u"]}
    rules = load(tmp_path, {"required": ["a"], "oneOf": [both, one]}, "a")
    assert rules.error({"a": "z"}) == "'u' is a required property"


def test_two_alternatives_of_one_kind_or_one_of_any_kind_are_not_narrowed(tmp_path: Path) -> None:
    first, second = ({"properties": {"a": {"const": "z"}}, "required": ["a", name]} for name in "uv")
    rules = load(tmp_path, {"oneOf": [first, second]}, "a")
    assert [rules.error({"a": "z", name: 1}) for name in "uv"] == [None, None]
    assert load(tmp_path, {"anyOf": [first, {"required": ["note"]}]}, "a").error({"a": "z", "note": 1}) is None


def test_rules_of_the_root_and_formats_hold_too(tmp_path: Path) -> None:
    branches = [{"properties": {"a": {"const": name}}} for name in "yz"]
    for word in ("allOf", "anyOf"):
        rules = load(tmp_path, {word: [{"required": ["note"]}], "oneOf": branches}, "a")
        assert rules.error({"a": "z"}) == "'note' is a required property"
    pair = {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"x": {"items": [{"type": "string"}]}}}
    assert load(tmp_path, pair).error({"x": [1]}) == "x/0: 1 is not of type 'string'"
    formats = ("date", "own-c", "own-b", "date-time", "own-a")
    dated = load(tmp_path, {"properties": {name: {"format": name} for name in formats}})
    assert dated.error({"date": "2026-13-01"})
    assert dated.unchecked == ("date-time", "own-a", "own-b", "own-c")


def test_what_all_alternatives_share_tells_no_kinds_and_an_enum_may_be_a_reference(tmp_path: Path) -> None:
    branches = [{"properties": {"version": {"const": "1"}, "a": {"const": name}}} for name in "yz"]
    assert load(tmp_path, {"oneOf": branches}).discriminator == "a"
    referring = {"required": ["a"], "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"enum": ["y", "z"]}}}
    rules = load(tmp_path, referring)
    assert (rules.discriminator, rules.kinds) == ("a", ("y", "z"))


def test_a_number_beyond_all_floats_is_an_error_of_the_answer(tmp_path: Path) -> None:
    rules = load(tmp_path, {"properties": {"x": {"multipleOf": 0.01}}})
    assert rules.error({"x": 10**400}) == "a number is too large to be checked"
