"""A row on its way through the checklist: its answers, each with what was said before it, and why it is refused."""

from dataclasses import dataclass, field
from typing import Any

from stages.shared import strict_json, text
from stages.shared.rows import Row


@dataclass(frozen=True)
class Example:
    """One answer of a row. `prompt` and `talk`: everything said before, normalised, with and without system turns."""

    said: str  # what the user has said so far, as written
    request: str  # the last thing the user said, normalised
    prompt: str
    talk: str
    answer: dict[str, Any]
    key: str  # one text for all spellings of the answer
    kind: str

    def words(self) -> set[str]:
        return set(text.normalise(self.said).split())


@dataclass
class Checked:
    """A row, and for each check that it failed the reason: those that refuse it, and those that only flag it."""

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

    def asked(self) -> str:
        """All that the user says, normalised: what two rows are compared by."""
        return text.normalise(self.examples[-1].said) if self.examples else ""

    def answers(self) -> str:
        return "\n".join(example.key for example in self.examples)


def key(answer: Any) -> str:
    """Equal for answers that differ only in spelling, order of keys, or case ("BUY MILK" asks for "BUY MILK")."""
    return strict_json.canonical(answer).casefold()


def texts(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str]]:
    """Every text in a JSON value, with the names of the fields that lead to it."""
    if isinstance(value, dict):
        return [found for name, part in value.items() for found in texts(part, (*path, name))]
    if isinstance(value, list):
        return [found for part in value for found in texts(part, path)]
    return [(path, value)] if isinstance(value, str) else []


def sound(table: list[Checked]) -> list[Checked]:
    """The rows that no check has refused so far."""
    return [checked for checked in table if not checked.reasons]


def flag(table: list[Checked], checks: list[str]) -> None:
    """Turn refusals by these checks into flags, so that the rows stay."""
    for checked in table:
        for name in checked.reasons.keys() & set(checks):
            checked.flags[name] = checked.reasons.pop(name)
