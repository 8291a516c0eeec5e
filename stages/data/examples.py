"""Examples: a request, everything said before it, and the answer expected of it; data/chat holds one a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.core import strict_json
from stages.core.cli import InputError
from stages.data import contract, rows
from stages.data.rows import Turn


@dataclass(frozen=True)
class Example:
    """`prompt`: the turns up to the request; `group`: the row, which all answers of a conversation share.

    `slice`: the part of the test rows that it belongs to. `answer` is empty where none is expected.
    """

    id: str
    group: str
    kind: str
    prompt: list[Turn]
    answer: str
    slice: str = ""

    def line(self) -> dict[str, Any]:
        """As written to a file. Training rows have no slice, so that how test rows are sliced never trains again."""
        return {name: value for name, value in vars(self).items() if name != "slice" or value}

    def request(self) -> str | list[Turn]:
        """What was asked, without system turns; plain text where it is one turn."""
        asked = [turn for turn in self.prompt if turn["role"] != "system"]
        return asked[0]["content"] if len(asked) == 1 else asked

    def turn(self) -> str:
        """`first` for the first request of a conversation, `later` for the others."""
        return "first" if sum(turn["role"] == "user" for turn in self.prompt) == 1 else "later"


def of_turns(row_id: str, turns: Sequence[Turn], rules: contract.Contract, part: str = "") -> list[Example]:
    """One example per assistant turn; the turns before it are its prompt. Raises JsonError for a broken answer."""
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    found = []
    for count, number in enumerate(answers, start=1):
        answer = turns[number]["content"]
        kind = rules.kind(strict_json.parse(answer))
        name = row_id if len(answers) == 1 else f"{row_id}#{count}"
        found.append(Example(name, row_id, kind, list(turns[:number]), answer, part))
    return found


def of_row(row: rows.Row, rules: contract.Contract, part: str = "") -> list[Example]:
    """The examples of a labelled row, answers spelt compactly. Raises InputError saying why the row can't be used."""
    if row.reason:
        raise InputError(row.reason)
    turns = []
    for turn in row.turns:
        content = turn["content"]
        if turn["role"] == "assistant":
            try:
                value = contract.parse_answer(content)
            except strict_json.JsonError as error:
                raise InputError(f"answer: {error}{hint(content)}") from None
            if broken := rules.error(value):
                raise InputError(f"answer: {broken}")
            content = strict_json.compact(value)
        turns.append({"role": turn["role"], "content": content})
    return of_turns(row.id or rows.content_id(row.turns), turns, rules, part)


def hint(answer: str) -> str:
    """What people usually meant when an answer is not JSON."""
    if answer.lstrip().startswith("```"):
        return " (take the code fence away)"
    if answer.lstrip().startswith("{'"):
        return " (single quotes: this is Python's spelling, not JSON)"
    return " (a comma before the closing bracket)" if answer.rstrip().endswith((",}", ", }", ",]")) else ""
