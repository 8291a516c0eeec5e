"""Rows of two revisions: which were added, removed, relabelled or reworded, known by their ids and by their content.

In: folders of *.jsonl files, read as stages/validate.py reads them. Out: counts and the first few of each sort.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.shared import rows, strict_json, text
from stages.shared.rows import Row
from tools.reporting.changes import clip, listing

SHOWN = 5  # rows of each sort


def identity(row: Row) -> str:
    """The id that stages/validate.py gives a row: its own, or one made of its content with answers spelt compactly."""
    if row.id:
        return row.id
    turns = [t if t["role"] != "assistant" else {**t, "content": _compact(t["content"])} for t in row.turns]
    return hashlib.sha256(strict_json.compact(turns).encode()).hexdigest()[:12]


def _compact(answer: str) -> str:
    try:
        return strict_json.compact(strict_json.parse(answer))
    except strict_json.JsonError:
        return answer


def request(row: Row) -> str:
    """What is asked in a row, for people; an unreadable row shows itself."""
    return " ⏎ ".join(turn["content"] for turn in row.turns if turn["role"] == "user") or row.raw


def answer(row: Row) -> str:
    """What is answered in a row, for people."""
    return " ⏎ ".join(turn["content"] for turn in row.turns if turn["role"] == "assistant") or f"({row.reason})"


def meaning(row: Row) -> tuple[str, str]:
    """Request and answers such that a JSON answer counts by its value, not its spelling."""
    return request(row), " ".join(_canonical(t["content"]) for t in row.turns if t["role"] == "assistant")


def _canonical(answer: str) -> str:
    try:
        return strict_json.canonical(strict_json.parse(answer))
    except strict_json.JsonError:
        return answer


def examples(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Request and expected answer of each example, and the whole prompt, under the ids that stages/build.py gives."""
    found: dict[str, tuple[str, str, str]] = {}
    for row in read_rows(folder):
        ends = [number for number, turn in enumerate(row.turns) if turn["role"] == "assistant"]
        for count, end in enumerate(ends, start=1):
            name = identity(row) if len(ends) == 1 else f"{identity(row)}#{count}"
            asked = " ⏎ ".join(turn["content"] for turn in row.turns[:end] if turn["role"] != "assistant")
            example = (asked, _compact(row.turns[end]["content"]), strict_json.compact(row.turns[:end]))
            found.setdefault(name, example)  # a second row of the same id is refused
    return found


def read_rows(folder: Path) -> list[Row]:
    return [row for file in sorted(folder.glob("*.jsonl")) for row in rows.read(file)]


def between(before: Path, after: Path) -> dict[str, Any]:
    """Rows added, removed, relabelled (same request, other answer) and reworded (same id, other request).

    Rows are the same row when they have the same id, else when they ask the same; a row that only moved to another
    line, file or id is unchanged.
    """
    old, new = read_rows(before), read_rows(after)
    same = Counter(map(meaning, old)) & Counter(map(meaning, new))
    left, right = _without(old, same), _without(new, same)
    pairs = [*_matched(left, right, identity), *_matched(left, right, _asked)]
    relabelled = [(a, b) for a, b in pairs if _asked(a) == _asked(b) and meaning(a)[1] != meaning(b)[1]]
    reworded = [(a, b) for a, b in pairs if _asked(a) != _asked(b) or meaning(a)[1] == meaning(b)[1]]
    return {
        "before": len(old),
        "after": len(new),
        "added": listing((_row(row) for row in right), SHOWN),
        "removed": listing((_row(row) for row in left), SHOWN),
        "relabelled": listing(({**_row(b), "was": clip(answer(a))} for a, b in relabelled), SHOWN),
        "reworded": listing(({**_row(b), "was": clip(f"{request(a)} → {answer(a)}")} for a, b in reworded), SHOWN),
    }


def _asked(row: Row) -> str:
    return text.normalise(request(row))


def _row(row: Row) -> dict[str, str]:
    return {"id": clip(identity(row), 100), "request": clip(request(row)), "answer": clip(answer(row))}


def _without(side: list[Row], same: Counter[tuple[str, str]]) -> list[Row]:
    """The rows that are not on both sides; equal rows count as often as they occur."""
    spare, kept = Counter(same), []
    for row in side:
        if spare[meaning(row)]:
            spare[meaning(row)] -= 1
        else:
            kept.append(row)
    return kept


def _matched(left: list[Row], right: list[Row], key: Callable[[Row], str]) -> list[tuple[Row, Row]]:
    """Pairs of rows with the same key, taken out of both lists."""
    waiting: dict[str, list[Row]] = {}
    for row in left:
        waiting.setdefault(key(row), []).append(row)
    pairs = [(waiting[key(row)].pop(0), row) for row in right if waiting.get(key(row))]
    gone = {id(row) for pair in pairs for row in pair}
    left[:], right[:] = ([row for row in side if id(row) not in gone] for side in (left, right))
    return pairs
