"""The report of a change: the gate's verdict with its reasons, and what a reviewer asks next, as Markdown.

In: the names of two versions, read as Git objects. The gate is that of the base, so a change can't loosen its own.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from review import changes, compare, inert, kept
from review.changes import Line, Listing, Note
from review.compare import Check, Gate, Metric, Noise, Outcomes, Pair, Paired
from review.inert import Safe
from stages.core.cli import InputError
from stages.scores.scoring import METRICS
from stages.scores.stats import Comparison
from versions import history, names, record
from versions.record import Problem

LONGEST = 60_000  # bytes; GitHub takes 65,536 characters
SHOWN = 20  # entries of a list
HOLDS, FAILS, REFUSED = 0, 1, 2


@dataclass(frozen=True)
class Report:
    """`metrics` begins with that of the gate's first rule; `moved` holds those of `kinds` of answer that changed.

    `left_out`: how many test rows of the base are removed or edited.
    """

    base: str
    head: str
    problems: list[Problem]
    refused: str
    left_out: int
    noise: Safe
    notes: list[Note]
    metrics: list[Metric]
    likelihood: Comparison | None
    moved: list[Metric]
    kinds: int
    checks: list[Check]
    listings: list[Listing]

    @property
    def broken(self) -> list[Check]:
        return [check for check in self.checks if not check.holds]

    @property
    def status(self) -> int:
        """The exit status: what is wrong with the head counts before what can't be compared."""
        return FAILS if self.problems or self.broken else REFUSED if self.refused else HOLDS


def build(base: str, head: str | None) -> Report:
    """Compare two versions, the working tree where `head` is None. Raises InputError."""
    old, new = names.commit_of(base), names.commit_of(head) if head else history.working_tree()
    gate, known, own = compare.gate_of(old), compare.noise(old), compare.noise(new)
    (before, why), (after, wrong) = (_outcomes(tree, gate) for tree in (old, new))
    rows, first = compare.paired(before, after), gate.rules[0]
    fewer = [Problem(history.OUTCOMES, wrong)] if wrong else kept.gone("data/test", rows, gate)
    enough = len(rows.both) >= gate.min_shared
    metrics, moved, kinds = _metrics(rows.both, gate, known, own) if enough else ([], [], 0)
    beside = list(kept.judged(old, new, gate))
    checks = compare.judged(rows, before, after, gate, known) if enough else []
    # Which rows flip by themselves is known of exact matches of the tuned system, and of nothing else.
    restless = known.restless if known and (first.system, first.metric) == ("tuned", "exact_match") else ()
    return Report(
        base=_name(base, old),
        head=_name(head, new) if head else "working tree",
        problems=list(dict.fromkeys([*_record(new), *fewer, *(each for each in beside if isinstance(each, Problem))])),
        refused="" if enough else why or f"{len(rows.both)} test answers on both sides, {gate.min_shared} are needed",
        left_out=len(rows.removed) + len(rows.edited),
        noise=_noise(known, gate),
        notes=[*(_test_set(rows) if before and after else ()), *changes.notes(old, new)],
        metrics=metrics,
        likelihood=compare.likelihood(old, new, rows.both),
        moved=moved,
        kinds=kinds,
        checks=[*checks, *(each for each in beside if isinstance(each, Check))],
        listings=[
            *changes.flips("answers", rows.both, first, restless),
            *(each for each in beside if isinstance(each, Listing)),
            *changes.listings(old, new),
        ],
    )


def _name(rev: str, commit: str) -> str:
    return rev if commit.startswith(rev) else f"{rev} ({history.short(commit)})"


def _record(tree: str) -> list[Problem]:
    """What is wrong with the record; a file of such a shape that nobody thought of it is wrong, too."""
    try:
        return record.problems(tree)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return [Problem(history.LOCK, f"the record can't be followed: {error!r}")]


def _outcomes(tree: str, gate: Gate) -> tuple[Outcomes, str]:
    """The outcomes of a version, or none and the reason."""
    try:
        return compare.outcomes(tree, {rule.system for rule in gate.rules}), ""
    except InputError as error:
        return {}, f"no usable outcomes: {error.message}"


def _test_set(rows: Paired) -> Iterator[Note]:
    left_out = {"removed": rows.removed, "added": rows.added, "edited": rows.edited}
    if any(left_out.values()):
        counts = ", ".join(f"{len(names)} {sort}" for sort, names in left_out.items() if names)
        words = f"**The test set changed** ({counts}); compared are the {len(rows.both)} rows that both sides have"
        yield Safe(words), [*rows.removed, *rows.edited]


def _noise(known: Noise | None, gate: Gate) -> Safe:
    from scipy.stats import norm, t

    metric, end = gate.rules[0].metric, (1 + gate.confidence) / 2
    if not known or metric not in known.spread:
        return Safe(
            "Retraining noise: not measured (`python -m experiments.seeds`); the words are about these two models."
        )
    spread = f"{known.spread[metric]:.4f}, the standard deviation of {known.seeds} trainings on {known.date}"
    wider = f"{known.seeds} seeds measured: the interval is {t.ppf(end, known.seeds - 1) / norm.ppf(end):.1f} times as"
    return Safe(
        f"Retraining noise: {spread}. For the tuned system, better and worse are about this change, were it retrained; "
        f"for the others, about these two models. {wider} wide as with many."
    )


def _metrics(
    pairs: Sequence[Pair], gate: Gate, known: Noise | None, own: Noise | None
) -> tuple[list[Metric], list[Metric], int]:
    """Metrics of the system that the gate looks at first, its slices, the other systems; kinds of answer that moved."""
    first, level = gate.rules[0], gate.confidence
    names = dict.fromkeys([first.metric, *METRICS])
    found = [compare.measured(pairs, replace(first, metric=name), level, known) for name in names]
    if of_several := compare.averaged(pairs, first, level, known, own):
        found.insert(1, of_several)
    slices, kinds = _parts(pairs, "slice"), _parts(pairs, "kind")
    if len(slices) > 1:
        found += [compare.measured(part, first, level, known, name) for name, part in slices.items()]
    for name in pairs[0][1].verdicts:
        if name != first.system and all(name in side.verdicts for pair in pairs for side in pair):
            found.append(compare.measured(pairs, replace(first, system=name), level, known))
    stricter = 1 - (1 - level) / max(len(kinds), 1)
    looks = [compare.measured(part, first, stricter, known, name) for name, part in kinds.items()]
    return found, [look for look in looks if look.result.evidence != "no evidence"], len(kinds)


def _parts(pairs: Sequence[Pair], key: str) -> dict[str, list[Pair]]:
    names = dict.fromkeys(getattr(new, key) for _, new in pairs)
    return {name: [pair for pair in pairs if getattr(pair[1], key) == name] for name in names if name}


def render(report: Report) -> str:
    """The Markdown, at most LONGEST bytes: lists get shorter until it fits, and each says what it leaves out."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(  # noqa: S701  # Markdown: `finalize` escapes
        loader=FileSystemLoader(Path(__file__).parent),
        finalize=inert.finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"own": Safe, "more": _more, "diff": _diff, "signed": lambda value: Safe(f"{value:+.3f}")}
    template, most = env.get_template("report.md.j2"), SHOWN
    while True:
        text = re.sub(r"\n{3,}", "\n\n", template.render(report=report, most=most).strip()) + "\n"
        if len(text.encode()) <= LONGEST or not most:
            return text
        most = most * 2 // 3


def _more(items: Sequence[Any], most: int) -> Safe:
    return Safe(f" … and {len(items) - most} more, not shown" if len(items) > most else "")


def _diff(line: Line) -> Safe:
    """Never begins with data, so that neither a fence nor a log command can."""
    text = inert.line(line.text)
    label = f"{line.label:8} " if line.label else ""
    return Safe(f"@@ {text} @@" if line.sign == "@" else f"{line.sign} {label}{text}")
