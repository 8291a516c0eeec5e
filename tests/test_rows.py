"""Every format in, every kind of bad line out with its reason."""

import json
from pathlib import Path

import pytest

from stages.data import rows

ANSWER = '{"action":"list","filter":"all"}'
ASKED = {"role": "user", "content": "show me everything"}
TOLD = {"role": "assistant", "content": ANSWER}
SYSTEM = {"role": "system", "content": "x"}
TEXT = {"type": "text"}


def read(tmp_path: Path, content: bytes | str) -> list[rows.Row]:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(rows.read(file))


def read_one(tmp_path: Path, value: object) -> rows.Row:
    (row,) = read(tmp_path, json.dumps(value) + "\n")
    return row


@pytest.mark.parametrize(
    "value",
    [
        {"instruction": "show me everything", "output": ANSWER},
        {"instruction": "show me everything", "input": "", "output": ANSWER},
        {"instruction": "show me everything", "output": json.loads(ANSWER)},
        {"conversations": [ASKED, TOLD]},
        {"messages": [ASKED, TOLD]},
        {"messages": [{"from": "human", "value": ASKED["content"]}, {"from": "gpt", "value": ANSWER}]},
        {"conversations": [{"from": "user", "value": ASKED["content"]}, {"from": "assistant", "value": ANSWER}]},
        {"conversations": [ASKED, {"role": "assistant", "content": json.loads(ANSWER)}]},
        {"messages": [{"role": "user", "content": [TEXT | {"text": "show me "}, TEXT | {"text": "everything"}]}, TOLD]},
        {"prompt": "show me everything", "completion": ANSWER},
        {"prompt": [ASKED], "completion": [TOLD]},
        {"messages": [ASKED, TOLD], "tools": "[]"},
        {"messages": [ASKED, TOLD | {"tool_calls": None}], "tools": [], "images": None},
        {"id": None, "system": "", "instruction": "show me everything", "input": None, "output": ANSWER},
        {"instruction": "show me everything", "output": ANSWER, "label": 0},
        {"messages": [ASKED | {"train": False, "weight": 0}, TOLD | {"train": True}]},
    ],
)
def test_every_format_gives_the_same_turns(tmp_path: Path, value: object) -> None:
    row = read_one(tmp_path, value)
    assert (row.reason, list(row.turns)) == ("", [ASKED, TOLD])


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [{"role": "system", "content": "Be terse."}, ASKED, TOLD]},
        {"system": "Be terse.", "conversations": [ASKED, TOLD]},
        {"system": "Be terse.", "instruction": ASKED["content"], "output": ANSWER},
        {"system": "Be terse.", "prompt": ASKED["content"], "completion": ANSWER, "label": True},
    ],
)
def test_a_system_turn_is_kept(tmp_path: Path, value: object) -> None:
    assert list(read_one(tmp_path, value).turns) == [{"role": "system", "content": "Be terse."}, ASKED, TOLD]


def test_ids_input_and_unknown_fields(tmp_path: Path) -> None:
    row = read_one(tmp_path, {"id": 7, "instruction": "a", "input": "b", "output": ANSWER, "note": "x"})
    assert (row.id, row.ignored, row.turns[0]["content"]) == ("7", ("note",), "a\n\nb")


@pytest.mark.parametrize(
    ("completion", "ignored"),
    [([TOLD | {"note": "x"}], ("note of a turn",)), ([{"from": "x", "to": "y"}], ()), ([TOLD, {"to": "y"}], ())],
)
def test_a_completion_is_turns_where_all_of_it_has_roles(tmp_path: Path, completion: object, ignored: object) -> None:
    row = read_one(tmp_path, {"prompt": "a", "completion": completion})
    answer = ANSWER if ignored else json.dumps(completion, separators=(",", ":"))
    assert (row.reason, row.turns[-1]["content"], row.ignored) == ("", answer, ignored)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"instruction": "a"}, "'output' is missing"),
        ({"instruction": None, "output": ANSWER}, "'instruction' is missing"),
        ({"instruction": "  ", "output": ANSWER}, "'instruction' is empty"),
        ({"instruction": 3, "output": ANSWER}, "'instruction' must be text"),
        ({"instruction": "a\u0000b", "output": ANSWER}, "NUL"),
        ({"question": "a", "answer": ANSWER}, "no 'instruction'"),
        ({"Instruction ": "a", "output": ANSWER}, "write 'instruction' for 'Instruction '"),
        ({"instruction": "a", "output": ANSWER, "messages": [ASKED, TOLD]}, "two formats"),
        ({"messages": []}, "must be a list of turns"),
        ({"messages": "hi"}, "must be a list of turns"),
        ({"messages": [TOLD, ASKED]}, "must alternate"),
        ({"messages": [ASKED, TOLD, ASKED]}, "must alternate"),
        ({"prompt": "a", "completion": ANSWER, "label": 0}, "'label' is false or 0"),
        ({"messages": [SYSTEM]}, "must alternate"),
        ({"messages": [ASKED, SYSTEM, TOLD]}, "must alternate"),
        ({"system": "a", "messages": [SYSTEM, ASKED, TOLD]}, "must alternate"),
        ({"messages": [ASKED, {"role": "tool", "content": "x"}, TOLD]}, "role 'tool'"),
        ({"messages": [{"role": ["user"], "content": "x"}, TOLD]}, "role"),
        ({"instruction": "a", "output": ANSWER, "history": [["b", ANSWER]]}, "'history' is not supported"),
        ({"prompt": "a", "completion": ANSWER, "rejected": "b"}, "'rejected' is not supported"),
        ({"instruction": "a", "output": ANSWER, "label": False}, "'label' is false"),
        ({"messages": [ASKED, TOLD | {"weight": 0}]}, "'weight' is 0"),
        ({"messages": [ASKED, TOLD | {"loss": False}]}, "'loss' is false"),
        ({"messages": [ASKED, TOLD | {"train": False}]}, "'train' is false"),
        ({"messages": [ASKED, {**TOLD, "tool_calls": [{"id": 1}]}]}, "'tool_calls' is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, TOLD]}, "only text parts"),
        ({"messages": [{"role": "user", "content": [TEXT | {"text": "a"}, {"type": "image_url"}]}, TOLD]}, "only text"),
        ({"messages": [{"role": "user", "content": [TEXT | {"text": 3}]}, TOLD]}, "only text parts"),
        ({"messages": [{"role": "user", "content": {"a": 1}}, TOLD]}, "'messages[0].content' must be text"),
        ({"messages": [{"role": "user", "content": None}, TOLD]}, "'messages[0].content' is missing"),
        *(
            ({"instruction": "a", "output": ANSWER, name: ["x"]}, f"{name!r} is not supported")
            for name in ("tools", "tool_calls", "function_call", "chosen", "images", "audios", "videos")
        ),
        ({"id": "", "instruction": "a", "output": ANSWER}, "'id' must be"),
        ({"id": True, "instruction": "a", "output": ANSWER}, "'id' must be"),
        (["a"], "JSON array"),
        ("a", "an object is expected"),
    ],
)
def test_refused_with_a_reason(tmp_path: Path, value: object, reason: str) -> None:
    row = read_one(tmp_path, value)
    assert reason in row.reason
    assert row.turns == ()
    assert row.line == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "not JSON"),
        ('{\n  "instruction": "a",\n  "output": "{}"\n}', "write one object a line"),
        (b'{"instruction":"caf\xe9","output":"{}"}', "not UTF-8 at byte"),
        (b'{"instruction":"\xed\xa0\xbd\xed\xb8\x80","output":"{}"}', "not UTF-8 at byte"),
        ('{"instruction":"a","output":"{}"}'.encode("utf-16"), "UTF-16"),
    ],
)
def test_bytes_that_are_not_a_row(tmp_path: Path, content: bytes | str, reason: str) -> None:
    assert reason in read(tmp_path, content)[0].reason


def test_only_newlines_end_a_line_and_blank_lines_are_not_rows(tmp_path: Path) -> None:
    first = json.dumps({"instruction": "one\u2028two\u0085", "output": ANSWER}, ensure_ascii=False)
    found = read(tmp_path, f"{first}\r\n\n   \n{json.dumps({'instruction': 'b'})}")
    assert [(row.line, bool(row.reason)) for row in found] == [(1, False), (4, True)]
    assert found[0].turns[0]["content"] == "one\u2028two\u0085"


def test_a_byte_order_mark_is_not_data(tmp_path: Path) -> None:
    (row,) = read(tmp_path, b"\xef\xbb\xbf" + json.dumps({"instruction": "a", "output": ANSWER}).encode())
    assert row.reason == ""
