"""Consistent: the same kind of request is answered in the same form, the same request with the same answer."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

from stages.checklist.row import Checked, Example, texts
from stages.shared import params, text


@dataclass(frozen=True)
class Rule:
    """A rule of the labelling guide that a program can check, for the values of its fields that `only` matches.

    `matches` and `never`: the value holds the pattern, or does not; a value that the user put between quotation marks
    is exempt from `never`. `in_order`: the value's words stand in the request in this order; what the pattern matches
    may stand elsewhere. `said`: the user's words hold the pattern.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    fields: list[str]
    rule: Literal["matches", "never", "in_order", "said"]
    pattern: str
    only: str | None
    why: str

    def __post_init__(self) -> None:
        try:
            re.compile(f"(?:{self.only or ''})(?:{self.pattern})")
        except re.error as error:
            raise params.ParamsError(f"params.yaml: validate.rules: {self.why!r}: {error}") from None

    def broken(self, value: str, example: Example, before: set[str]) -> bool:
        """Whether `value` breaks the rule. `before`: values of earlier answers, which were checked where they arose."""
        if self.only and not re.fullmatch(self.only, value):
            return False
        if self.rule == "matches":
            return not re.search(self.pattern, value)
        if self.rule == "never":
            return bool(re.search(self.pattern, value, re.IGNORECASE)) and not quoted(value, example.said)
        if self.rule == "said":
            # One pattern over both, so that what was said can refer to a part of the value.
            both = rf"\A(?:{self.only or '.*'})\n(?s:.*?)(?:{self.pattern})"
            return not re.search(both, f"{value}\n{example.said}", re.IGNORECASE)
        fixed = re.sub(self.pattern, " ", value, flags=re.IGNORECASE)
        return value not in before and not in_order(text.normalise(fixed).split(), text.normalise(example.said).split())


def quoted(value: str, said: str) -> bool:
    return bool(re.search(r"[\"'“”\u2018\u2019«»„`]\s*" + re.escape(value), said, re.IGNORECASE))


def in_order(words: list[str], said: list[str]) -> bool:
    """Whether `words` is a subsequence of `said`."""
    rest = iter(said)
    return all(word in rest for word in words)


def check_rules(table: list[Checked], rules: list[Rule]) -> None:
    """Refuse rows that break a rule."""
    by_field = defaultdict(list)
    for rule in rules:
        for name in rule.fields:
            by_field[name].append(rule)
    for checked in table:
        before: set[str] = set()
        for example in checked.examples:
            values = texts(example.answer)
            for path, value in values:
                for rule in by_field.get(path[-1], ()):
                    if rule.broken(value, example, before):
                        checked.reasons["labels"] = f"{'.'.join(path)}: {value[:60]!r}: {rule.why}"
            before |= {value for _, value in values}


def shape(value: Any, path: str = "") -> list[tuple[str, str]]:
    """The fields of an answer in the order in which they stand, with the type of each."""
    if not isinstance(value, dict):
        return []
    found = []
    for name, part in value.items():
        here = f"{path}.{name}" if path else name
        found += [(here, type_name(part)), *shape(part, here)]
    return found


def type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return {"dict": "object", "list": "array", "str": "string"}.get(type(value).__name__, "null")


def check_order(table: list[Checked]) -> None:
    """Refuse rows whose answer has two neighbouring keys in another order than most answers of its kind."""
    seen: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    pairs = [(checked, example, neighbours(example)) for checked in table for example in checked.examples]
    for _, example, found in pairs:
        seen[example.kind].update(found)
    for checked, example, found in pairs:
        for first, second in found:
            if seen[example.kind][second, first] > seen[example.kind][first, second]:
                checked.reasons["order"] = f"{first!r} stands before {second!r}, in most answers after it"


def neighbours(example: Example) -> list[tuple[str, str]]:
    names = [name for name, _ in shape(example.answer)]
    return list(pairwise(names))


def check_types(table: list[Checked]) -> None:
    """Refuse rows with a value of another type than in most answers of its kind. Null is no type of its own."""
    seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for checked in table:
        for example in checked.examples:
            for name, kind in shape(example.answer):
                seen[example.kind, name][kind] += kind != "null"
    for checked in table:
        for example in checked.examples:
            for name, kind in shape(example.answer):
                usual, often = seen[example.kind, name].most_common(1)[0]
                if kind != "null" and seen[example.kind, name][kind] < often:
                    checked.reasons["types"] = f"{name}: {kind}, in most answers {usual}"


def check_conflicts(table: list[Checked]) -> None:
    """Refuse every row whose request has another answer elsewhere: nothing tells which one is right."""
    answers: dict[str, dict[str, str]] = {}
    compared = [checked for checked in table if checked.reasons.keys() <= {"duplicate"}]
    for checked in compared:
        for example in checked.examples:
            answers.setdefault(example.prompt, {}).setdefault(example.key, checked.where)
    for checked in compared:
        for example in checked.examples:
            others = [where for other, where in answers[example.prompt].items() if other != example.key]
            if others:
                checked.reasons["conflict"] = f"same request, other answer at {others[0]}"
