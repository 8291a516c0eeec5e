"""Strict JSON: every file and every model answer is read through this module.

Python's own `json` accepts `NaN`, lets the last of two equal keys win, and turns 1e999 into infinity; `str.splitlines`
cuts a line at U+2028.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core import cli
from stages.core.cli import InputError

MAX_DEPTH = 100  # deeper values would exhaust Python's stack in the recursive comparisons


class JsonError(InputError):
    """The text is not strict JSON; the message says why."""


def parse(text: str) -> Any:
    """Return the value of the JSON text. No repair, no fences, no NaN, no duplicate keys, no lone surrogates.

    Raises JsonError with the reason.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite_float)
        text.encode("utf-8")
        if "\\u" in text:  # an escape can hide a surrogate that no file could hold
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except JsonError:
        raise
    except RecursionError:
        raise JsonError("nested too deeply") from None
    except UnicodeEncodeError:
        raise JsonError("holds half of a surrogate pair") from None
    except ValueError as error:
        raise JsonError(f"not JSON: {error}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise JsonError("nested too deeply")
    return value


def _depth(value: Any) -> int:
    """Levels of nesting, without recursion: the input may be hostile."""
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise JsonError(f"key {key!r} occurs twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise JsonError(f"{name} is not JSON")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise JsonError(f"number {digits[:40]} is out of range")
    return number


def compact(value: Any) -> str:
    """The one spelling of a JSON value in this project: no spaces, keys as given, Unicode as itself."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> str:
    """One text for all spellings of equal JSON values: keys sorted, 1.0 written as 1."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def same(left: Any, right: Any) -> bool:
    """Equality of JSON values: numbers by value, `true` is not 1, the order of keys is irrelevant (JSON Schema)."""
    return canonical(left) == canonical(right)


def read(path: Path) -> Any:
    """Return the value of a JSON file. Raises JsonError naming the file, also when it is missing or not UTF-8."""
    try:
        return parse(cli.read_text(path))
    except JsonError as error:
        raise JsonError(f"{path}: {error}") from error
    except InputError as error:
        raise JsonError(error.message) from error


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the values of a JSON Lines file that a stage wrote. Raises JsonError naming file and line."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise JsonError(f"{path}: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, start=1):
            try:
                yield parse(line.decode("utf-8"))
            except ValueError as error:
                raise JsonError(f"{path}:{number}: {error}") from error
