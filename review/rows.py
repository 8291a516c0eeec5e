"""Rows of two versions: added, removed, relabelled (same request, other answer) and reworded (same id, other request).

A row is known by its id, or else by what it asks. One that only moved to another line, file or id, or whose JSON answer
is only spelt otherwise, is unchanged. In: Git's objects, read as stages/validate.py reads.
"""

import tempfile
from collections import Counter
from pathlib import Path

from stages.core import strict_json, text
from stages.data import rows
from stages.data.rows import Row
from versions import history

TURN = " ⏎ "
Pairs = list[tuple[Row | None, Row | None]]


def between(base: str, head: str, folder: str) -> dict[str, Pairs]:
    """Each sort of change with its rows, before and after. Files that both versions hold are not looked into."""
    files = [_files(tree, folder) for tree in (base, head)]
    before, after = _rows(files[0] - files[1]), _rows(files[1] - files[0])
    equal = Counter(map(_meaning, before)) & Counter(map(_meaning, after))
    old, new = _keyed(before, equal), _keyed(after, equal)
    found: dict[str, Pairs] = {"added": [], "removed": [], "relabelled": [], "reworded": []}
    for key in dict.fromkeys([*new, *old]):
        found[_sort(old.get(key), new.get(key))].append((old.get(key), new.get(key)))
    return found


def request(row: Row) -> str:
    """What is asked in a row; an unreadable row shows itself."""
    return TURN.join(turn["content"] for turn in row.turns if turn["role"] != "assistant") or row.raw


def answer(row: Row) -> str:
    return TURN.join(turn["content"] for turn in row.turns if turn["role"] == "assistant") or f"({row.reason})"


def _files(tree: str, folder: str) -> Counter[str]:
    """Blobs with rows; two files may be equal."""
    held = history.files(tree, folder).items()
    return Counter(oid for path, oid in held if path.endswith(".jsonl") and Path(path).parent == Path(folder))


def _rows(files: Counter[str]) -> list[Row]:
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for content in history.blobs(files.elements()):
            file = Path(folder, "rows.jsonl")
            file.write_bytes(content)
            found += rows.read(file)
    return found


def _meaning(row: Row) -> tuple[str, str]:
    """The request, and the answers by their JSON value."""
    return request(row), TURN.join(_canonical(turn["content"]) for turn in row.turns if turn["role"] == "assistant")


def _canonical(content: str) -> str:
    try:
        return strict_json.canonical(strict_json.parse(content))
    except strict_json.JsonError:
        return content


def _keyed(side: list[Row], equal: Counter[tuple[str, str]]) -> dict[tuple[str, int], Row]:
    """The rows that are not on both sides, by key; rows with the same key are numbered."""
    spare, seen, found = Counter(equal), Counter[str](), {}
    for row in side:
        if spare[_meaning(row)]:
            spare[_meaning(row)] -= 1
            continue
        key = row.id or text.normalise(request(row))
        found[key, seen[key]] = row
        seen[key] += 1
    return found


def _sort(before: Row | None, after: Row | None) -> str:
    if not (before and after):
        return "removed" if before else "added"
    same = text.normalise(request(before)) == text.normalise(request(after))
    return "relabelled" if same and _meaning(before)[1] != _meaning(after)[1] else "reworded"
