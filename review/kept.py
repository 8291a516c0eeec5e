"""What a model must not lose or copy: limits as the stages judged them, general questions, minimum functionality.

In: Git trees. Out: the gate's checks, problems where less was measured than before, and behaviours that flipped.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from review import compare
from review.changes import Listing, flips
from review.compare import Check, Gate, Outcome, Outcomes, Paired, Rule, text
from stages.shared.cli import InputError
from stages.shared.limits import Limit
from versions import history
from versions.record import Problem

LIMITS = ("metrics/detail/retention.json", "metrics/detail/memorisation.json")
QUESTIONS, BEHAVIOURS = "metrics/retention.jsonl", "metrics/behaviour.jsonl"
NAMED = 5
Item = TypeVar("Item")


@dataclass(frozen=True)
class Kept:
    checks: list[Check] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)


def judged(base: str, head: str, gate: Gate) -> Kept:
    """All that is looked at here. A file of the head that can't be read is a problem."""
    kept = Kept()
    for look in (_limits, _retention, _behaviour):
        try:
            look(base, head, gate, kept)
        except InputError as error:
            kept.problems.append(Problem("metrics", error.message))
    return kept


def gone(path: str, rows: Paired, gate: Gate) -> list[Problem]:
    """A problem where rows of the base are not asked any more: less measured is no better model."""
    if not rows.removed or gate.allow_removed_test_rows:
        return []
    names = ", ".join(rows.removed[:NAMED]) + (", …" if len(rows.removed) > NAMED else "")
    return [Problem(path, f"{len(rows.removed)} rows that the base has are gone: {names}")]


def _limits(base: str, head: str, _: Gate, kept: Kept) -> None:
    """Every limit of both versions; the stricter of the two counts, on at least as many rows as before."""
    for path in LIMITS:
        old, new = _sides(base, head, path, _listed)
        for what, before in old.items():
            n = new[what].n if what in new else 0
            if n < before.n:
                kept.problems.append(Problem(path, f"{what}: measured on {before.n} rows before, on {n} now"))
        for what, after in new.items():
            strict = replace(after, limit=min(after.limit, old.get(what, after).limit))
            words = _words(old[what]) if what in old else "not measured"
            kept.checks.append(Check(what, words, _words(after), f"at most {strict.limit:g}", strict.holds))


def _words(limit: Limit) -> str:
    return f"{limit.value:.3f} [{limit.low:.3f}, {limit.high:.3f}]"


def _listed(tree: str, path: str) -> dict[str, Limit]:
    from pydantic import TypeAdapter, ValidationError

    try:
        entries = json.dumps(compare.figures(tree, path).get("limits", []))
        limits: list[Limit] = TypeAdapter(list[Limit]).validate_json(entries, strict=True)
    except ValidationError as error:
        raise InputError(f"{path}: limits: {error.errors()[0]['msg']}") from error
    return {limit.what: limit for limit in limits}


def _retention(base: str, head: str, gate: Gate, kept: Kept) -> None:
    """The same general questions before and after: a change answers for what it changes, the limits for the sum."""
    rule = Rule("tuned", "exact_match", gate.tolerated_retention_drop, 0.0)
    old, new = _sides(base, head, QUESTIONS, _questions)
    rows = compare.paired(old, new)
    kept.problems.extend(gone(QUESTIONS, rows, gate))
    if rows.both:
        kept.checks.append(compare.drop("general questions right", compare.measured(rows.both, rule, gate.level), rule))


def _questions(tree: str, path: str) -> Outcomes:
    return _tests(tree, path, lambda line: ("", line["tuned"]["right"], "", "", ""))


def _behaviour(base: str, head: str, gate: Gate, kept: Kept) -> None:
    """Tests of minimum functionality: the share that passes, and which of them flipped."""
    rule = Rule("tuned", "exact_match", 0.0, gate.minimum_functionality)
    old, new = _sides(base, head, BEHAVIOURS, _behaviours)
    rows = compare.paired(old, new)
    kept.problems.extend(gone(BEHAVIOURS, rows, gate))
    kept.listings.extend(flips("behaviours", rows.both, rule))
    if new:
        kept.checks.append(compare.floor("minimum functionality", rows.counted(old, new), rule, gate.level))


def _behaviours(tree: str, path: str) -> Outcomes:
    def fields(line: Any) -> tuple[Any, ...]:
        return line["capability"], line["passed"], line["requests"][-1], line["expected"], line["answers"][-1]

    return {name: row for name, row in _tests(tree, path, fields).items() if row.kind.startswith("minimum-")}


def _tests(tree: str, path: str, fields: Callable[[Any], tuple[Any, ...]]) -> Outcomes:
    """A file of tests that pass or fail: kind, whether it passed, request, expected and given of each line."""

    def outcome(line: Any) -> Outcome:
        kind, passed, request, expected, given = fields(line)
        verdict = "exact" if passed is True else "wrong"
        texts = text(kind), "", text(request), text(expected)
        return Outcome(text(line["id"]), text(line["id"]), *texts, {"tuned": verdict}, {"tuned": text(given)})

    return compare.read(tree, path, outcome) if history.read(tree, path) else {}


def _sides(base: str, head: str, path: str, load: Callable[[str, str], dict[str, Item]]) -> list[dict[str, Item]]:
    """A file of both versions; a base that can't be read has none, or no change could mend it."""
    try:
        before = load(base, path)
    except InputError:
        before = {}
    return [before, load(head, path)]
