"""The answers of two revisions to the test rows they share: metrics, flips, and kinds of answer that moved.

In: outcomes and test rows of both. Out: plain data with short texts, for report.schema.json.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.shared import strict_json
from tools.reporting import changes, paired, row_changes
from tools.reporting.changes import clip
from tools.reporting.paired import METRICS, Outcome, Rule, Settings

FLIPS = 150  # of each sort in the report's data
SCORER = (
    "stages/evaluate.py",
    "stages/shared/contract.py",
    "stages/shared/strict_json.py",
    "stages/shared/text.py",
    "data/schema.json",
)
Pair = tuple[Outcome, Outcome]
Asked = dict[str, tuple[str, str, str]]


def shared(old: dict[str, Outcome], new: dict[str, Outcome], before: Asked, after: Asked) -> tuple[list[Pair], int]:
    """The pairs with the same id whose request and expected answer are the same too, and how many are not.

    Test rows that DVC holds can't be read; there the id alone counts.
    """
    both = [name for name in new if name in old]
    same = [name for name in both if before.get(name, after.get(name)) == after.get(name, before.get(name))]
    return [(old[name], new[name]) for name in same], len(both) - len(same)


def compare(
    old: dict[str, Outcome],
    new: dict[str, Outcome],
    pairs: list[Pair],
    edited: int,
    folders: tuple[Path, Path],
    settings: Settings,
) -> dict[str, Any]:
    """Everything about the answers; `metrics` begins with that of the first rule, by which answers flip."""
    first = settings.rules[0]
    moved, seen = slices(pairs, first, settings)
    return {
        "shared": len(pairs),
        "only_before": len(old.keys() - new.keys()),
        "only_after": len(new.keys() - old.keys()),
        "edited": edited,
        "scorer": changes.differing(*folders, SCORER),
        "metrics": metrics(pairs, first, settings),
        "flips": flips(pairs, asked(folders[1]), first),
        "slices": moved,
        "slices_seen": seen,
        "confidence": settings.confidence,
        "rules": [look for rule in settings.rules for look in paired.judge(rule, pairs, list(new.values()), settings)],
    }


def asked(folder: Path) -> Asked:
    return row_changes.examples(folder / "data" / "test")


def measured(pairs: Sequence[Pair], system: str, metric: str, level: float, settings: Settings) -> dict[str, Any]:
    """One metric of one system, before and after."""
    old, new = (paired.hits([pair[side] for pair in pairs], system, metric) for side in (0, 1))
    found = paired.compare(old, new, [after.group for _, after in pairs], level, settings)
    return {"system": system, "metric": metric, **found}


def metrics(pairs: Sequence[Pair], first: Rule, settings: Settings) -> list[dict[str, Any]]:
    """All metrics of the system that the gate looks at first, and its metric of the other systems."""
    systems = [name for name in pairs[0][1].verdicts if all(name in side.verdicts for pair in pairs for side in pair)]
    names = [(first.system, metric) for metric in METRICS] + [(name, first.metric) for name in systems]
    wanted = dict.fromkeys([(first.system, first.metric), *names])
    return [measured(pairs, system, metric, settings.confidence, settings) for system, metric in wanted]


def slices(pairs: Sequence[Pair], first: Rule, settings: Settings) -> tuple[list[dict[str, Any]], int]:
    """The kinds of answer that moved, and how many kinds there are: each look is the stricter the more there are."""
    parts: dict[str, list[Pair]] = {}
    for pair in pairs:
        parts.setdefault(pair[1].kind, []).append(pair)
    kinds = [kind for kind in parts if kind]
    level = 1 - (1 - settings.confidence) / max(len(kinds), 1)
    found = [{"kind": clip(k, 100), **measured(parts[k], first.system, first.metric, level, settings)} for k in kinds]
    return [part for part in found if part["evidence"] != "no evidence"][: changes.MOST], len(kinds)


def flips(pairs: Sequence[Pair], rows: Asked, first: Rule) -> dict[str, Any]:
    """The answers that were right and are wrong now, and the reverse."""
    sides = [[paired.hit(side.verdicts[first.system], first.metric) for side in pair] for pair in pairs]
    flipped = {
        name: [pair for pair, (was, now) in zip(pairs, sides, strict=True) if was != now and now is right]
        for name, right in (("broken", False), ("fixed", True))
    }
    return {
        name: changes.listing((flip(pair, rows, first.system, name == "fixed") for pair in part), FLIPS)
        for name, part in flipped.items()
    }


def flip(pair: Pair, rows: Asked, system: str, after_right: bool) -> dict[str, Any]:
    """One answer before and after; '' where it was exactly as expected."""
    before, after = (side.answers.get(system, "") for side in pair)
    request, expected, _ = rows.get(pair[1].id, ("(held by DVC)", "", ""))
    return {
        "id": clip(pair[1].id, 100),
        "kind": clip(pair[1].kind, 100),
        "request": clip(request),
        "expected": clip(expected),
        "before": clip(before),
        "after": clip(after),
        "after_right": after_right,
        "fields": differing_fields(expected, before if after_right else after),
    }


def differing_fields(expected: str, given: str) -> list[dict[str, str]]:
    """The fields in which an answer is wrong; none where either is no JSON, for then there are no fields to compare."""
    try:
        wanted, said = (dict(changes.leaves(strict_json.parse(answer))) for answer in (expected, given))
    except strict_json.JsonError:
        return []
    names = [name for name in dict.fromkeys([*wanted, *said]) if wanted.get(name) != said.get(name)]
    return [
        {"name": clip(n, 100), "expected": clip(wanted.get(n, ""), 150), "given": clip(said.get(n, ""), 150)}
        for n in names[:10]
    ]
