"""The labelling rules of the task that a program can check. In: data/rules.yaml, which also documents its keys."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from stages.checklist.row import Example, Table, texts
from stages.core import cli, params, text, yaml12


@dataclass(frozen=True)
class Rule:
    """A rule for the values of `fields`, or for those of them that `only` matches in full.

    matches: the value contains the pattern. never: it does not, unless the user put it between quotation marks.
    in_order: without what the pattern matches, its words stand in the request in the same order. requested: the
    user's words contain the pattern, which may refer to a named group of `only`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    fields: list[str]
    rule: Literal["matches", "never", "in_order", "requested"]
    pattern: str
    why: str
    only: str | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.only or "")
            re.compile(f"(?:{self.only or ''})(?:{self.pattern})" if self.rule == "requested" else self.pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None

    def is_broken(self, value: str, example: Example) -> bool:
        """Whether `value` breaks the rule. The user's words are those of all turns so far."""
        if self.only and not re.fullmatch(self.only, value):
            return False
        if self.rule == "matches":
            return not re.search(self.pattern, value)
        if self.rule == "never":
            return bool(re.search(self.pattern, value, re.IGNORECASE)) and not is_quoted(value, example.user)
        if self.rule == "requested":
            # One pattern over both, so that it can refer to a group of `only`.
            both = rf"\A(?:{self.only or '.*'})\n(?s:.*?)(?:{self.pattern})"
            one_line = value.replace("\n", " ")
            return not re.search(both, f"{one_line}\n{example.user}", re.IGNORECASE)
        own = re.sub(self.pattern, " ", value, flags=re.IGNORECASE)
        request = iter(text.normalise(example.user).split())  # `in` reads on from the last word found
        return not all(word in request for word in text.normalise(own).split())


@dataclass(frozen=True)
class Labelling:
    copied_fields: list[str] = field(default_factory=list)
    allowed_words: list[str] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)


def load(file: Path) -> Labelling:
    """Read the file; one that is missing or blank, or has no section `labelling`, has no rules.

    Raises InputError naming file and entry.
    """
    blank = not file.is_file() or not file.read_bytes().strip()
    sections = {} if blank else yaml12.parse(cli.read_text(file), str(file))
    if unknown := sections.keys() - {"copied_fields", "labelling"}:
        raise cli.InputError(f"{file}: unknown section: {', '.join(sorted(map(str, unknown)))}")
    return params.load("labelling", Labelling, file) if "labelling" in sections else Labelling()


def is_quoted(value: str, request: str) -> bool:
    return bool(re.search(r"[\"'“”\u2018\u2019«»„`]\s*" + re.escape(value), request, re.IGNORECASE))


def check_labels(table: Table, rules: list[Rule]) -> None:
    """Refuse rows that break a rule."""
    by_field = defaultdict(list)
    for rule in rules:
        for name in rule.fields:
            by_field[name].append(rule)
    for checked in table:
        for example in checked.examples:
            for path, value in texts(example.answer):
                for rule in by_field.get(path[-1], ()):
                    if rule.is_broken(value, example):
                        checked.reasons["labels"] = f"{'.'.join(path)}: {value[:60]!r}: {rule.why} (data/rules.yaml)"
