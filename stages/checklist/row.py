"""A row on its way through the checklist: its answers, each with what came before it, and why the row is refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.core import strict_json, text
from stages.data.rows import Row

MANY = 10  # of fewer rows a common beginning may be chance


@dataclass(frozen=True)
class Example:
    """One answer of a row, with the turns before it. `prompt` has the system turn, `dialogue` leaves it out."""

    user: str  # the user's turns so far, as written
    request: str  # the user's last turn, normalised
    prompt: str  # all turns, normalised
    dialogue: str
    answer: dict[str, Any]
    key: str  # one text for all spellings of the answer
    kind: str


@dataclass
class CheckedRow:
    """A row with, for each check that it failed, the reason: one that refuses the row, or one that only flags it."""

    row: Row
    reasons: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)

    @property
    def where(self) -> str:
        return f"{self.row.file}:{self.row.line}"

    def text(self) -> str:
        """Everything in the row that a model would see."""
        return "\n".join(turn["content"] for turn in self.row.turns)

    def requests(self) -> str:
        """All of the user's turns, normalised: what two rows are compared by."""
        return text.normalise(self.examples[-1].user) if self.examples else ""


def own_words(requests: Sequence[str]) -> list[str]:
    """Normalised requests without the words that all begin with: an instruction in every row makes no two alike."""
    split = [request.split() for request in requests]
    if len(split) < MANY:
        return list(requests)
    first, last = min(split), max(split)  # what these two begin with, all do
    shared = next((n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return [" ".join(words[shared:] or words) for words in split]


Table = list[CheckedRow]
Tables = dict[str, Table]  # train and test


def key(answer: Any) -> str:
    """Equal for answers that differ only in spelling, order of keys, or case ("BUY MILK" asks for "BUY MILK")."""
    return strict_json.canonical(answer).casefold()


def texts(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str]]:
    """Every text in a JSON value, with the names of the fields that lead to it."""
    if isinstance(value, dict):
        return [found for name, inner in value.items() for found in texts(inner, (*path, name))]
    if isinstance(value, list):
        return [found for inner in value for found in texts(inner, path)]
    return [(path, value)] if isinstance(value, str) else []


def sound(table: Table) -> Table:
    """The rows that no check has refused so far."""
    return [checked for checked in table if not checked.reasons]


def sound_examples(table: Table) -> list[Example]:
    return [example for checked in sound(table) for example in checked.examples]


def flag(table: Table, checks: list[str]) -> None:
    """Turn refusals by these checks into flags, so that the rows stay."""
    for checked in table:
        for name in [name for name in checked.reasons if name in checks]:
            checked.flags[name] = checked.reasons.pop(name)
