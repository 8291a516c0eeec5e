"""Correct: every row can be read, every answer is strict JSON, meets the contract, and says what the request said."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from stages.checklist.listed import Listed
from stages.checklist.row import Checked, Example, key, texts
from stages.shared import contract, strict_json, text
from stages.shared.rows import Row, content_id

# Punctuation that makes another request: -5 and 5, 3*4 and 3/4, C# and C.
SIGNS = re.compile(r"(?<!\w)-(?=\d)|(?<=\d)[*/.:-](?=\d)|(?<=[A-Za-z])#")


def check_row(row: Row, rules: contract.Contract) -> Checked:
    """Check a row by itself (`well_formed`, `contract`); the answers of the result have the one compact spelling."""
    if row.reason:
        return Checked(row, {"well_formed": row.reason})
    turns: list[dict[str, str]] = []
    checked, said = Checked(row), {"prompt": "", "talk": "", "user": ""}
    for turn in row.turns:
        content = turn["content"]
        if turn["role"] == "assistant":
            try:
                value = contract.parse_answer(content)
            except strict_json.JsonError as error:
                return Checked(row, {"contract": f"answer: {error}{hint(content)}"})
            if broken := rules.error(value):
                return Checked(row, {"contract": f"answer: {broken}"})
            content = strict_json.compact(value)
            checked.examples.append(example(turns, said, value, rules.kind(value)))
        remember(said, turn["role"], content)
        turns.append({"role": turn["role"], "content": content})
    checked.row = replace(row, turns=tuple(turns), id=row.id or content_id(turns))
    return checked


def example(turns: list[dict[str, str]], said: dict[str, str], value: dict[str, Any], kind: str) -> Example:
    request = text.normalise(turns[-1]["content"])
    return Example(said["user"], request, said["prompt"], said["talk"], value, key(value), kind)


def remember(said: dict[str, str], role: str, content: str) -> None:
    line = f"{role}: {text.normalise(SIGNS.sub(spelt_out, content))}\n"
    said["prompt"] += line
    said["talk"] += line if role != "system" else ""
    said["user"] += f"{content}\n" if role == "user" else ""


def spelt_out(sign: re.Match[str]) -> str:
    return f" sign{ord(sign[0])} "


def hint(answer: str) -> str:
    """What people usually meant when an answer is not JSON."""
    if answer.lstrip().startswith("```"):
        return " (take the code fence away)"
    if answer.lstrip().startswith("{'"):
        return " (single quotes: this is Python's spelling, not JSON)"
    if answer.rstrip().endswith((",}", ", }", ",]")):
        return " (a comma before the closing bracket)"
    return ""


def check_grounded(tables: list[list[Checked]], values: list[Listed], copied: float, always: list[str]) -> None:
    """Refuse a row whose answer holds a word that the user never said.

    That is wrong only for a field that is copied from the request. Values that the contract lists are codes; whether a
    field is copied otherwise, no schema tells. The fields `always` are; for others the rows tell: their values are the
    user's words in at least the share `copied` of all answers.
    """
    codes = {(item.kind, item.path, item.value) for item in values if isinstance(item.value, str)}
    counts: Counter[tuple[str, ...]] = Counter()
    invented = []
    for checked in (checked for table in tables for checked in table):
        for example in checked.examples:
            said = example.words()
            for path, value in texts(example.answer):
                if (example.kind, path, value) not in codes:
                    counts[path] += 1
                    new = next((word for word in text.normalise(value).split() if not is_said(word, said)), None)
                    invented += [(checked, path, new)] if new else []
    misses = Counter(path for _, path, _ in invented)
    for checked, path, new in invented:
        if path[-1] in always or misses[path] <= (1 - copied) * counts[path]:
            checked.reasons["grounded"] = f"{'.'.join(path)}: {new!r} is nowhere in the request"


def is_said(word: str, said: set[str]) -> bool:
    """Whether the user said the word; scripts without spaces have no words, so there a part of one will do."""
    return word in said or (not word.isascii() and any(word in whole for whole in said))
