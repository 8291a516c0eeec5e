"""What the model kept and what it copied, before and after: the figures of two metrics files against their limits.

In: a revision's folder. Out: the few figures that the report shows; None where a file is missing, as in revisions from
before these stages. A limit is one that both sides have agreed to: the stricter of the two.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.shared import strict_json
from tools.reporting.changes import clip

FILES = {"retention": "metrics/retention.json", "memorisation": "metrics/memorisation.json"}
# Where each figure stands in its file.
PATHS = {
    "retention": {
        "n": "tuned_over_base.n",
        "base": "base.accuracy",
        "tuned": "tuned.accuracy",
        "difference": "tuned_over_base.accuracy",
        "low": "tuned_over_base.low",
        "high": "tuned_over_base.high",
        "ratio": "tuned_over_base.perplexity_ratio",
        "ratio_low": "tuned_over_base.perplexity_ratio_low",
        "ratio_high": "tuned_over_base.perplexity_ratio_high",
        "tolerated_drop": "limits.tolerated_drop",
        "tolerated_ratio": "limits.tolerated_ratio",
        "items": "computed_from.items",
        "text": "computed_from.text",
    },
    "memorisation": {
        "train_n": "answer_alone.train.n",
        "train": "answer_alone.train.copied",
        "test_n": "answer_alone.test.n",
        "test": "answer_alone.test.copied",
        "difference": "answer_alone.difference.copied",
        "low": "answer_alone.difference.low",
        "high": "answer_alone.difference.high",
        "tolerated": "limits.tolerated",
        "ids": "answer_alone.copied_ids",
    },
}
Figures = dict[str, Any]
Sides = dict[str, Figures | None]


@dataclass(frozen=True)
class Limit:
    """One limit with the interval that it looks at, by the names of the figures. `sign` -1: a fall is bad."""

    part: str
    figures: tuple[str, str, str]
    limit: str
    sign: int
    what: str
    rule: str
    breach: str

    def words(self, found: Figures | None) -> str:
        if found is None:
            return "not measured"
        plus = "" if self.figures[0] == "ratio" else "+"
        value, low, high = (format(found[name], f"{plus}.3f") for name in self.figures)
        return f"{value} [{low}, {high}]"

    def allowed(self, *sides: Figures | None) -> float:
        return float(min(side[self.limit] for side in sides if side))

    def holds(self, found: Figures | None, allowed: float) -> bool:
        """Broken only by a whole interval."""
        if found is None:
            return True
        _, low, high = self.figures
        return bool(found[high] >= -allowed if self.sign < 0 else found[low] <= allowed)


LIMITS = (
    Limit(
        part="retention",
        figures=("difference", "low", "high"),
        limit="tolerated_drop",
        sign=-1,
        what="general questions, tuned minus base",
        rule="drop at most",
        breach="the tuned model lost general questions",
    ),
    Limit(
        part="retention",
        figures=("ratio", "ratio_low", "ratio_high"),
        limit="tolerated_ratio",
        sign=1,
        what="perplexity of plain text, tuned over base",
        rule="at most",
        breach="the tuned model lost plain text",
    ),
    Limit(
        part="memorisation",
        figures=("difference", "low", "high"),
        limit="tolerated",
        sign=1,
        what="answers recited, training minus test rows",
        rule="at most",
        breach="the tuned model copied training answers",
    ),
)


def between(before: Path, after: Path) -> tuple[dict[str, Sides], list[dict[str, str]]]:
    """The figures of both sides, and what is wrong with the files of `after`."""
    found: dict[str, Sides] = {}
    problems = []
    for part in FILES:
        old, _ = _read(before, part)
        new, reason = _read(after, part)
        found[part] = {"before": old, "after": new}
        if old and not (after / FILES[part]).exists():
            reason = "measured before, and missing now; run dvc repro"
        if reason:
            problems.append({"file": FILES[part], "reason": reason})
    return found, problems


def _read(folder: Path, part: str) -> tuple[Figures | None, str]:
    """The figures, or None and the reason, which is empty where there is no file."""
    from jsonschema import Draft202012Validator

    file = folder / FILES[part]
    if not file.is_file():
        return None, ""
    schema = strict_json.read(Path(__file__).with_name("report.schema.json"))
    rules = Draft202012Validator({"$ref": f"#/$defs/{part}", "$defs": schema["$defs"]})
    try:
        value = strict_json.read(file)
    except ValueError:
        return None, ""  # trust.py says so of every metrics file
    figures = {name: _at(value, path) for name, path in PATHS[part].items()}
    if isinstance(figures.get("ids"), list):
        figures["ids"] = [clip(name, 150) if isinstance(name, str) else name for name in figures["ids"]]
    if not rules.is_valid(figures):
        return None, f"not what stages/{part}.py writes"
    held = all(limit.holds(figures, limit.allowed(figures)) for limit in LIMITS if limit.part == part)
    if (_at(value, "verdict") == "held") != held:
        return None, "its verdict is not the one that follows from its figures"
    return figures, ""


def asked_otherwise(kept: dict[str, Sides]) -> bool:
    """Whether the two sides answered different general questions, so that their figures can't be compared."""
    before, after = (kept["retention"][side] for side in ("before", "after"))
    return bool(before and after and any(before[name] != after[name] for name in ("items", "text")))


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def broken(kept: dict[str, Sides]) -> Iterator[tuple[Limit, Figures, float]]:
    """The limits that `after` breaks, with its figures and what is allowed."""
    for limit in LIMITS:
        sides = kept[limit.part]
        if sides["after"] is not None:
            allowed = limit.allowed(*sides.values())
            if not limit.holds(sides["after"], allowed):
                yield limit, sides["after"], allowed
