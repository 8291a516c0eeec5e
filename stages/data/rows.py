"""Rows in: the bytes of a *.jsonl file become conversations, or a refusal with file, line and reason.

Every row format of the field that can be told apart safely is read: Alpaca (`instruction`, `input`, `output`),
`conversations` or `messages` with `role`/`content` (OpenAI) or `from`/`value` (ShareGPT), and TRL's
`prompt`/`completion`. All of them come out as one shape, `Row`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import strict_json
from stages.core.cli import InputError

Turn = dict[str, str]
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
SHAPES = ("conversations", "messages", "prompt", "instruction")
NOT_UTF8 = "not UTF-8"
MARKS = ("weight", "train", "loss")  # whether a turn is trained on
# Fields that carry content in some formats: a row that has them says more than this project reads.
UNSUPPORTED = ("tools", "tool_calls", "function_call", "rejected", "chosen", "history", "images", "audios", "videos")


@dataclass(frozen=True)
class Row:
    """One line of a file. `turns` is empty when the row is refused, and `reason` says why."""

    file: str
    line: int
    id: str
    turns: tuple[Turn, ...]
    reason: str
    raw: str
    ignored: tuple[str, ...] = ()


def content_id(turns: Sequence[Turn]) -> str:
    """An id for a row without one: the same wherever the row moves, and however its answers are spelt."""
    spelt = [turn | {"content": _compact(turn["content"])} if turn["role"] == "assistant" else turn for turn in turns]
    return hashlib.sha256(strict_json.compact(spelt).encode()).hexdigest()[:12]


def _compact(answer: str) -> str:
    try:
        return strict_json.compact(strict_json.parse(answer))
    except strict_json.JsonError:
        return answer


def read(path: Path) -> Iterator[Row]:
    """Yield every row of a file, the bad ones with a reason. Blank lines are not rows; only `\\n` ends a line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    reason = "the file is UTF-16; save it as UTF-8"
                    yield Row(str(path), 1, "", (), reason, line[:60].decode("utf-16", "replace"))
                    return
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _row(str(path), number, line)


def _row(file: str, number: int, line: bytes) -> Row:
    raw = line.decode("utf-8", "replace").rstrip("\r\n")
    try:
        value = _object(line)
        turns, read_fields = turns_of(value)
        ignored = tuple(sorted((set(value) - read_fields - {"id"}) | _unread(value)))
        return Row(file, number, _id(value), turns, "", raw, ignored)
    except InputError as error:
        return Row(file, number, "", (), str(error), raw)


def _unread(value: dict[str, Any]) -> set[str]:
    """Fields of the turns that are not read."""
    turns = [turn for name in SHAPES if isinstance(value.get(name), list) for turn in value[name]]
    turns += value["completion"] if _has_roles(value.get("completion")) else []
    read_fields = {"role", "from", "content", "value", *MARKS, *UNSUPPORTED}
    return {f"{name} of a turn" for turn in turns for name in turn.keys() - read_fields}


def parse(row: Row) -> dict[str, Any]:
    """The object of a refused row, for callers that need no turns. Raises InputError where it is none."""
    if row.reason.startswith((NOT_UTF8, "the file is UTF-16")):  # `raw` has other characters in place of those bytes
        raise InputError(row.reason)
    return _object(row.raw.encode())


def _object(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{NOT_UTF8} at byte {error.start}") from None
    if text.lstrip().startswith("["):
        raise InputError("a JSON array, not JSON Lines: write one object a line (`jq -c '.[]' FILE` does it)")
    if text.strip() == "{":
        raise InputError("JSON over several lines, not JSON Lines: write one object a line (`jq -c . FILE` does it)")
    value = strict_json.parse(text)
    if not isinstance(value, dict):
        raise InputError(f"an object is expected, not {type(value).__name__}")
    return value


def _id(value: dict[str, Any]) -> str:
    found = value.get("id")
    if found is None:
        return ""
    if isinstance(found, bool) or not isinstance(found, (str, int)) or not str(found).strip():
        raise InputError(f"'id' must be a string or an integer, not {found!r}")
    return str(found)


def turns_of(value: dict[str, Any]) -> tuple[tuple[Turn, ...], set[str]]:
    """The turns of one row, and the names of the fields they came from. Raises InputError."""
    if extra := [name for name in UNSUPPORTED if value.get(name) not in (None, "", "[]", [], {})]:
        raise InputError(f"field {extra[0]!r} is not supported")
    if value.get("label") is False or (value.get("label") == 0 and "prompt" in value):  # elsewhere 0 may be a class
        raise InputError("'label' is false or 0: an answer that is marked as bad is not for training")
    shapes = [shape for shape in SHAPES if shape in value]
    if not shapes:
        meant = [f" (write {n.strip().lower()!r} for {n!r})" for n in value if n.strip().lower() in SHAPES]
        raise InputError(f"no 'instruction', 'conversations', 'messages' or 'prompt'{''.join(meant)}")
    if len(shapes) > 1:
        raise InputError(f"two formats in one row: {' and '.join(map(repr, shapes))}")
    shape = shapes[0]
    if shape == "instruction":
        turns, fields = _alpaca(value), ["input", "output"]
    elif shape == "prompt":
        turns, fields = _prompt_completion(value), ["completion"]
    else:
        turns, fields = _messages(value[shape], shape), []
    if value.get("system"):
        turns = [{"role": "system", "content": _text(value["system"], "system")}, *turns]
    _check_order(turns)
    return tuple(turns), {shape, "system", *fields, *UNSUPPORTED}


def _text(value: Any, name: str) -> str:
    if value is None:
        raise InputError(f"{name!r} is missing")
    if not isinstance(value, str):
        raise InputError(f"{name!r} must be text, not {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{name!r} is empty")
    if "\x00" in value:
        raise InputError(f"{name!r} holds a NUL character")
    return value


def _answer(value: dict[str, Any], name: str) -> str:
    """An answer may be given as the object itself; it is written compactly then."""
    answer = value.get(name)
    return strict_json.compact(answer) if isinstance(answer, (dict, list)) else _text(answer, name)


def _alpaca(value: dict[str, Any]) -> list[Turn]:
    request = _text(value.get("instruction"), "instruction")
    if value.get("input") not in (None, ""):
        request += "\n\n" + _text(value["input"], "input")
    return [{"role": "user", "content": request}, {"role": "assistant", "content": _answer(value, "output")}]


def _prompt_completion(value: dict[str, Any]) -> list[Turn]:
    """Each side may be text or turns; a completion that is another list is an answer."""
    prompt = value["prompt"]
    said = prompt if isinstance(prompt, list) else [{"role": "user", "content": _text(prompt, "prompt")}]
    before = _messages(said, "prompt")
    if _has_roles(value.get("completion")):
        return before + _messages(value["completion"], "completion")
    return [*before, {"role": "assistant", "content": _answer(value, "completion")}]


def _has_roles(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and "role" in turn for turn in value)


def _messages(value: Any, name: str) -> list[Turn]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{name!r} must be a list of turns")
    return [_turn(turn, f"{name}[{number}]") for number, turn in enumerate(value)]


def _turn(turn: Any, name: str) -> Turn:
    if not isinstance(turn, dict):
        raise InputError(f"{name} must be an object, not {type(turn).__name__}")
    if extra := [key for key in UNSUPPORTED if turn.get(key) not in (None, "", [], {})]:
        raise InputError(f"{name}: field {extra[0]!r} is not supported")
    said = turn.get("role", turn.get("from"))
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise InputError(f"{name}: role {said!r} is not one of {', '.join(ROLES)}")
    off = [key for key in MARKS if key in turn and turn[key] in (False, 0)]
    if off and role == "assistant":
        raise InputError(f"{name}: {off[0]!r} is {strict_json.compact(turn[off[0]])}, but every answer is trained on")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, dict) and role == "assistant":
        return {"role": role, "content": strict_json.compact(content)}
    return {"role": role, "content": _text(_joined(content, name), f"{name}.content")}


def _joined(content: Any, name: str) -> Any:
    """OpenAI also writes content as a list of parts; only text parts can be read."""
    if not isinstance(content, list):
        return content
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts: list[Any] = [part.get("text", part.get("value")) for part in parts]
    if not texts or len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name}: only text parts are supported")
    return "".join(texts)


def _check_order(turns: list[Turn]) -> None:
    roles = [turn["role"] for turn in turns]
    talk = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(talk) // 2)
    if not talk or talk != expected:
        raise InputError(f"turns must alternate user, assistant and end on assistant; found {', '.join(roles)}")
