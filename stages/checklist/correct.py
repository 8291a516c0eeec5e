"""Correct: the row can be read, its answers are strict JSON, meet the contract and use the words of the request."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from stages.checklist.complete import SchemaValue
from stages.checklist.row import CheckedRow, Example, Table, key, texts
from stages.core import strict_json, text
from stages.core.cli import InputError
from stages.data import contract, examples
from stages.data.rows import Row

LATIN = r"[a-z0-9\u00c0-\u024f\u1e00-\u1eff]"  # a letter or digit, in lower case
# Punctuation that makes another request: -5 and 5, 3*4 and 3/4, C# and C, 5% and 5.
SIGNS = re.compile(r"(?<!\w)-(?=\d)|(?<=\d)[*/.:-](?=\d)|(?<=[A-Za-z])#|(?<=\d)%")


def check_row(row: Row, rules: contract.Contract) -> CheckedRow:
    """Check a row by itself (`well_formed`, `contract`); the answers of the result have the one compact spelling."""
    if row.reason:
        return CheckedRow(row, {"well_formed": row.reason})
    try:
        made = examples.of_row(row, rules)
    except InputError as error:
        return CheckedRow(row, {"contract": error.message})
    turns = (*made[-1].prompt, {"role": "assistant", "content": made[-1].answer})
    found = [example(each.prompt, strict_json.parse(each.answer), each.kind) for each in made]
    return CheckedRow(replace(row, turns=turns, id=made[0].group), examples=found)


def example(turns: list[dict[str, str]], value: dict[str, Any], kind: str) -> Example:
    user = "".join(f"{turn['content']}\n" for turn in turns if turn["role"] == "user")
    content = [SIGNS.sub(lambda sign: f" sign{ord(sign[0])} ", turn["content"]) for turn in turns]
    lines = [f"{turn['role']}: {text.normalise(c)}\n" for turn, c in zip(turns, content, strict=True)]
    dialogue = "".join(line for line in lines if not line.startswith("system:"))
    request = text.normalise(turns[-1]["content"])
    return Example(user, request, "".join(lines), dialogue, value, key(value), kind)


def check_grounded(tables: list[Table], values: list[SchemaValue], copied: float, always: list[str]) -> None:
    """Refuse a row whose answer has a word that the user did not use, in a field that is copied from the request.

    Fields in `always` are copied; another field is when at least the share `copied` of its values, in all answers,
    consists of the user's words. Values that the schema lists are codes, not copies.
    """
    codes = {(listed.kind, listed.path, listed.value) for listed in values if isinstance(listed.value, str)}
    counts: Counter[tuple[str, ...]] = Counter()
    invented = []
    for checked in (checked for table in tables for checked in table):
        for example in checked.examples:
            used = set(text.normalise(example.user).split())
            for path, value in texts(example.answer):
                if not codes & {(example.kind, path, value), ("", path, value)}:
                    counts[path] += 1
                    new = next((word for word in text.normalise(value).split() if not is_used(word, used)), None)
                    invented += [(checked, path, new)] if new else []
    misses = Counter(path for _, path, _ in invented)
    for checked, path, new in invented:
        if path[-1] in always or misses[path] <= round((1 - copied) * counts[path], 9):
            checked.reasons["grounded"] = f"{'.'.join(path)}: {new!r} is nowhere in the request"


def is_used(word: str, used: set[str]) -> bool:
    """Whether `word` is one of the user's words; scripts without spaces have no words, so a piece of one is enough."""
    if word in used:
        return True
    piece = re.escape(word)
    if word.isascii():  # Latin among Chinese ones
        piece = rf"(?<!{LATIN}){piece}(?!{LATIN})"
    return any(re.search(piece, whole) for whole in used if not whole.isascii())
