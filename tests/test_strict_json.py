from pathlib import Path

import pytest

from stages.core import strict_json
from stages.data import writing


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1' + "0" * 60 + "e999}", "number 1" + "0" * 39 + " is out of range"),
        ('{"a": 1, "a": 2}', "key 'a' occurs twice"),
        ("{'a': 1}", "not JSON: "),
        ('{"a": 1,}', "not JSON: "),
        ('```json\n{"a": 1}\n```', "not JSON: "),
        ('Sure! {"a": 1}', "not JSON: "),
        ('{"a": 1} {"b": 2}', "not JSON: "),
        ('{"a": "\\ud800"}', "holds half of a surrogate pair"),
        ('{"a": "\ud800"}', "holds half of a surrogate pair"),
        ('{"a": 1 // one\n}', "not JSON: "),
        ("", "not JSON: "),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ('{"a":[' * 51 + "]}" * 51, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON: "),
    ],
)
def test_refuses(text: str, reason: str) -> None:
    with pytest.raises(strict_json.JsonError) as caught:
        strict_json.parse(text)
    assert caught.value.message.startswith(reason)


@pytest.mark.parametrize("text", ["[" * 100 + "]" * 100, '{"a":[' * 50 + "]}" * 50, "[" * 99 + "[],{}" + "]" * 99])
def test_a_hundred_levels_and_many_lists_pass(text: str) -> None:
    assert strict_json.compact(strict_json.parse(text)) == text


def test_spellings() -> None:
    value = {"b": 1.0, "a": ["é", 1.5, {"d": True, "c": 2.0}]}
    assert strict_json.canonical(value) == '{"a":["é",1.5,{"c":2,"d":true}],"b":1}'
    assert strict_json.compact(value) == '{"b":1.0,"a":["é",1.5,{"d":true,"c":2.0}]}'
    with pytest.raises(ValueError, match="JSON compliant"):
        strict_json.compact(float("nan"))


def test_accepts_json_with_space_around_and_keeps_big_integers() -> None:
    assert strict_json.parse(' {"a": 123456789012345678901234} \n') == {"a": 123456789012345678901234}


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        (1, 1.0, True),
        (True, 1, False),
        ({"a": False}, {"a": 0}, False),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        (None, 0, False),
        ("a", "A", False),
        ({"a": [True, None]}, {"a": [True, None]}, True),
    ],
)
def test_equality_is_json_equality(left: object, right: object, equal: bool) -> None:
    assert strict_json.same(left, right) is equal


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    writing.write_json(file, {"b": 1, "a": "é"})
    with pytest.raises(ValueError, match="JSON compliant"):
        writing.write_json(file, {"a": float("nan")})
    assert file.read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\u0085three"}, {"text": "four"}]
    writing.write_jsonl(tmp_path / "rows.jsonl", rows)
    writing.write_csv(tmp_path / "table.csv", ["text"], [["four"]])
    assert (tmp_path / "table.csv").read_bytes() == b"text\nfour\n"
    assert list(strict_json.read_jsonl(tmp_path / "rows.jsonl")) == rows


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"{"])
def test_a_file_that_can_not_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "file.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(strict_json.JsonError, match=r"file\.json"):
        strict_json.read(file)
    with pytest.raises(strict_json.JsonError, match=r"file\.json"):
        list(strict_json.read_jsonl(file))


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n', encoding="utf-8")
    with pytest.raises(strict_json.JsonError, match=r"rows\.jsonl:2"):
        list(strict_json.read_jsonl(tmp_path / "rows.jsonl"))
