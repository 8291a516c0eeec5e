"""What a model must not lose or copy: limits as the stages judged them, general questions, minimum functionality.

In: Git trees. Out: the gate's checks, problems where less was measured than before, and behaviours that flipped.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from review import compare
from review.changes import Listing, flips
from review.compare import Check, Gate, Outcome, Outcomes, Paired, Rule, text
from stages.core import strict_json
from stages.core.cli import InputError
from stages.scores.limits import Limit
from versions.record import Problem

LIMITS = ("metrics/detail/retention.json", "metrics/detail/memorisation.json")
ITEMS = "data/general/items.jsonl"
QUESTIONS, BEHAVIOURS = "metrics/retention.jsonl", "metrics/behaviour.jsonl"
NAMED = 5
Finding = Check | Problem | Listing


def judged(base: str, head: str, gate: Gate) -> Iterator[Finding]:
    """All that is looked at here. A file of the head that can't be read is a problem."""
    for look in (_limits, _retention, _behaviour):
        try:
            yield from look(base, head, gate)
        except InputError as error:
            yield Problem("metrics", error.message)


def gone(path: str, rows: Paired, gate: Gate) -> Iterator[Problem]:
    """A problem where rows of the base are not asked any more: less measured is no better model."""
    if rows.removed and not gate.allow_removed_test_rows:
        names = ", ".join(rows.removed[:NAMED]) + (", …" if len(rows.removed) > NAMED else "")
        yield Problem(path, f"{len(rows.removed)} rows that the base has are gone: {names}")


def _limits(base: str, head: str, _: Gate) -> Iterator[Finding]:
    """Every limit of both versions; the stricter of the two counts, on at least as many rows as before."""
    for path in LIMITS:
        old, new = _sides(_listed, base, head, path)
        for what, before in old.items():
            n = new[what].n if what in new else 0
            if n < before.n:
                yield Problem(path, f"{what}: measured on {before.n} rows before, on {n} now")
        for what, after in new.items():
            strict = replace(after, limit=min(after.limit, old.get(what, after).limit))
            words = _words(old[what]) if what in old else "not measured"
            yield Check(what, words, _words(after), f"at most {strict.limit:g}", strict.holds)


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


def _retention(base: str, head: str, gate: Gate) -> Iterator[Finding]:
    """The same general questions before and after: a change answers for what it changes, the limits for the sum."""
    rule = Rule("tuned", "exact_match", gate.tolerated_retention_drop, 0.0)
    rows = compare.paired(*_sides(_questions, base, head, QUESTIONS))
    yield from gone(QUESTIONS, rows, gate)
    if rows.edited and not rows.both and not gate.allow_removed_test_rows:
        yield Problem(QUESTIONS, "no question of the base is asked as it was")
    if rows.both:
        yield compare.drop("general questions right", compare.measured(rows.both, rule, gate.level), rule)


def _behaviour(base: str, head: str, gate: Gate) -> Iterator[Finding]:
    """Which tests flipped, of all capabilities, and the share of minimum functionality that passes."""
    rule = Rule("tuned", "exact_match", 0.0, gate.minimum_functionality)
    before, after = _sides(lambda tree, path: compare.read(tree, path, _case), base, head, BEHAVIOURS)

    def as_now(row: Outcome) -> Outcome:
        """What a variant has to be follows from the model's first answer: where that moved, the test is the same."""
        now = after.get(row.id, row)
        same = (now.kind, now.request) == (row.kind, row.request) and not row.kind.startswith("minimum-")
        return replace(row, expected=now.expected) if same else row

    before = {name: as_now(row) for name, row in before.items()}
    rows = compare.paired(before, after)
    yield from gone(BEHAVIOURS, rows, gate)
    yield from flips("behaviours", rows.both, rule)
    old, new = (
        {name: row for name, row in side.items() if row.kind.startswith("minimum-")} for side in (before, after)
    )
    if counted := compare.paired(old, new).counted(old, new):
        yield compare.floor("minimum functionality", counted, rule, gate.level)


def _questions(tree: str, path: str) -> Outcomes:
    """With the whole item of each question, so that one that was rewritten under its id counts as another."""
    asked = compare.read(tree, ITEMS, strict_json.canonical)

    def question(line: Any) -> Outcome:
        name, answer = text(line["id"]), text(line.get("answer", ""))
        return _test(name, line["tuned"]["right"], "", asked.get(name, ""), answer, "")

    return compare.read(tree, path, question)


def _case(line: Any) -> Outcome:
    asked = " → ".join(map(text, line["requests"]))
    kind, expected, given = map(text, (line["capability"], line["expected"], line["answers"][-1]))
    return _test(text(line["id"]), line["passed"], kind, asked, expected, given)


def _test(name: str, passed: Any, kind: str, asked: str, expected: str, given: str) -> Outcome:
    verdict = "exact" if passed is True else "wrong"
    return Outcome(name, name, kind, "", asked, expected, {"tuned": verdict}, {"tuned": given})


def _sides(load: Callable[[str, str], dict[str, Any]], base: str, head: str, path: str) -> list[dict[str, Any]]:
    """A file of both versions; a base that can't be read has none, or no change could mend it."""
    try:
        before = load(base, path)
    except InputError:
        before = {}
    return [before, load(head, path)]
