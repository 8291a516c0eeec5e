"""The answers of two versions to the same test rows, and whether the gate's rules hold. In: Git trees.

Pairs carry the evidence (McNemar 1947), conversations are drawn whole (Davison & Hinkley 1997).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from math import isfinite, sqrt
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Gt, Lt, MinLen

from stages.core import params, strict_json
from stages.core.cli import InputError
from stages.scores import scoring, stats
from stages.scores.stats import Comparison
from versions import history, record

GATE, SEEDS = "gate.yaml", "metrics/experiments/seeds.json"
LIKELIHOOD = "metrics/likelihood.jsonl"


@dataclass(frozen=True)
class Rule:
    system: str
    metric: str
    tolerated_drop: params.Share
    floor: params.Share

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    def __post_init__(self) -> None:
        if self.metric not in scoring.METRICS:
            raise ValueError(f"metric {self.metric!r} is none of {', '.join(scoring.METRICS)}")


@dataclass(frozen=True)
class Gate:
    """gate.yaml, which says what each key is for."""

    confidence: Annotated[float, Gt(0), Lt(1)]
    min_shared: params.Count
    allow_removed_test_rows: bool
    minimum_functionality: params.Share
    tolerated_retention_drop: params.Share
    rules: Annotated[tuple[Rule, ...], MinLen(1)]

    @property
    def level(self) -> float:
        """Level of each interval that the gate looks at, so that all looks together keep `confidence` (Bonferroni).

        Each rule looks twice (drop and floor), behaviour and retention once. A look errs at one end only, so its
        two-sided interval leaves out twice its share.
        """
        return 1 - 2 * (1 - self.confidence) / (2 * len(self.rules) + 2)


def gate_of(tree: str) -> Gate:
    """The gate of a version; today's for one from before there was a gate.yaml. Raises InputError."""
    from pydantic import ConfigDict, TypeAdapter, with_config

    strict = with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
    try:
        values = history.parse_yaml(history.read(tree, GATE) or Path(GATE).read_bytes(), GATE)
        return TypeAdapter(strict(Gate)).validate_json(json.dumps(values))
    except (OSError, TypeError, ValueError) as error:  # pydantic's own is a ValueError
        raise InputError(f"the gate of {history.short(tree)}: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class Outcome:
    """A test row and what each system made of it. `request` and `expected` are empty in old files, which lack them."""

    id: str
    group: str
    kind: str
    slice: str
    request: str
    expected: str
    verdicts: dict[str, str]
    answers: dict[str, str]  # those that were not exact

    def hit(self, rule: Rule) -> bool:
        return scoring.counts(self.verdicts[rule.system], rule.metric)


Outcomes = dict[str, Outcome]
Pair = tuple[Outcome, Outcome]
Line = TypeVar("Line")


def read(tree: str, path: str, made: Callable[[Any], Line]) -> dict[str, Line]:
    """What is made of each line of JSON Lines, by id; {} without a file. Raises InputError with path, line, reason."""
    content = history.read(tree, path)
    found: dict[str, Line] = {}
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), start=1):
        try:
            value = strict_json.parse(line.decode())
            row, name = made(value), text(value["id"])
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path}:{number}: {error}") from error
        if name in found:
            raise InputError(f"{path}:{number}: id {name!r} occurs twice")
        found[name] = row
    return found


def outcomes(tree: str, systems: Iterable[str]) -> Outcomes:
    """The outcomes of a version. Raises InputError unless each has a verdict of every one of `systems`."""
    found = read(tree, history.OUTCOMES, _outcome)
    if not found:
        raise InputError(f"{history.OUTCOMES}: missing or empty")
    for system in systems:
        if missing := [name for name, row in found.items() if system not in row.verdicts]:
            raise InputError(f"{history.OUTCOMES}: {missing[0]} has no verdict of {system}")
    return found


def _outcome(line: Any) -> Outcome:
    systems = {name: value for name, value in line.items() if isinstance(value, dict) and "verdict" in value}
    verdicts = {name: str(value["verdict"]) for name, value in systems.items()}
    if unknown := set(verdicts.values()) - set(scoring.VERDICTS):
        raise ValueError(f"unknown verdict {min(unknown)!r}")
    answers = {name: text(value["answer"]) for name, value in systems.items() if "answer" in value}
    texts = {key: text(line.get(key, "")) for key in ("kind", "slice", "request", "expected")}
    name = text(line["id"])
    return Outcome(name, text(line.get("group", name)), verdicts=verdicts, answers=answers, **texts)


def figures(tree: str, path: str) -> dict[str, Any]:
    """A metrics file; {} where it is missing or broken, which is for versions/record.py to say."""
    try:
        value = strict_json.parse((history.read(tree, path) or b"{}").decode())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def text(value: Any) -> str:
    """A request of several turns on one line; other JSON as it is spelt."""
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return " ⏎ ".join(str(turn.get("content", "")) for turn in value)
    return value if isinstance(value, str) else strict_json.compact(value)


@dataclass(frozen=True)
class Paired:
    """Test rows that ask and expect the same on both sides, and the ids of the others."""

    both: list[Pair]
    removed: list[str]
    added: list[str]
    edited: list[str]

    def counted(self, before: Outcomes, after: Outcomes) -> list[Outcome]:
        """The rows that a floor counts. What was removed or edited counts as it came out before: neither deleting hard
        rows nor rewriting them lifts a model over the floor."""
        return list((after | {name: before[name] for name in [*self.removed, *self.edited]}).values())


def paired(before: Outcomes, after: Outcomes) -> Paired:
    """Outcomes from before `expected` stood in them are known by their id alone."""
    shared = [(before[name], new) for name, new in after.items() if name in before]
    same = [not old.expected or (old.request, old.expected) == (new.request, new.expected) for old, new in shared]
    return Paired(
        both=[pair for pair, equal in zip(shared, same, strict=True) if equal],
        removed=[name for name in before if name not in after],
        added=[name for name in after if name not in before],
        edited=[new.id for (_, new), equal in zip(shared, same, strict=True) if not equal],
    )


@dataclass(frozen=True)
class Noise:
    """What retraining alone does to the tuned model: the standard deviation of each metric over `seeds` trainings.

    `restless`: the test rows that are right with one seed and wrong with another, of `n`. `right`: whether each test
    row was exact, by training; empty where the trainings are of another version than the one that recorded them.
    """

    seeds: int
    date: date
    spread: dict[str, float]
    restless: frozenset[str] = frozenset()
    n: int = 0
    right: dict[str, tuple[bool, ...]] = field(default_factory=dict)

    def on(self, rows: int, metric: str) -> tuple[float, int]:
        """The standard deviation on `rows` of the n, if they flip as often as the rest and independently; the seeds."""
        return self.spread[metric] * sqrt(max(1, self.n / rows)), self.seeds


def noise(tree: str) -> Noise | None:
    """The noise that a version has recorded; None where it has none, or measured it on other test rows."""
    recorded = figures(tree, SEEDS)
    try:
        spread = {str(metric): float(value) for metric, value in recorded["spread"].items()}
        seeds, day = int(recorded["seeds"]), date.fromisoformat(recorded["date"])
        times, digits = recorded["times_right"], list(recorded.get("right", {}).values())
        restless = frozenset(name for name, count in times.items() if 0 < count < seeds)
        made_from, measured_on = recorded["computed_from"], figures(tree, record.DETAIL)["computed_from"]
        same, own = made_from["test"] == measured_on["test"], made_from.get("adapter") == measured_on.get("adapter", "")
        by_row = {name: tuple(line[place] == "1" for line in digits) for place, name in enumerate(sorted(times))}
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    right = by_row if own and len(digits) == seeds else {}
    sound = same and seeds > 1 and all(map(isfinite, spread.values()))
    return Noise(seeds, day, spread, restless, len(times), right) if sound else None


@dataclass(frozen=True)
class Metric:
    """One metric of one system, on a part of the test rows ('' for all).

    Where retraining noise is known, interval, evidence and detectable change are those of the change, were it
    retrained, and `alone` is the interval for these two models.
    """

    system: str
    name: str
    part: str
    result: Comparison
    alone: tuple[float, float] | None


def measured(pairs: Sequence[Pair], rule: Rule, level: float, known: Noise | None = None, part: str = "") -> Metric:
    """`known` counts for the tuned system, whole or in part: no other was measured."""
    old, new = ([side.hit(rule) for side in sides] for sides in zip(*pairs, strict=True))
    groups = [after.group for _, after in pairs]
    result = stats.compare(old, new, groups, level)
    if not known or rule.system != "tuned" or rule.metric not in known.spread:
        return Metric(rule.system, rule.metric, part, result, None)
    changes = [after - before for before, after in zip(old, new, strict=True)]
    wide = retrained(result, changes, groups, known.on(len(pairs), rule.metric), level)
    return Metric(rule.system, rule.metric, part, wide, (result.low, result.high))


def retrained(
    result: Comparison,
    changes: Sequence[float],
    groups: Sequence[str],
    noise: tuple[float, int],
    level: float,
    runs: tuple[int, int] = (1, 1),
) -> Comparison:
    """The comparison for the change, were both sides trained anew: rows and seeds vary, and the larger counts.

    `noise`: standard deviation of the metric over so many trainings. `runs`: trainings of each side, of which `result`
    and `changes` are the means.
    """
    from scipy.stats import norm, t

    spread, seeds = noise
    sums = dict.fromkeys(groups, 0.0)
    for group, change in zip(groups, changes, strict=True):
        sums[group] += change - result.difference
    by_row = sum(value**2 for value in sums.values()) / result.n**2
    by_seed = spread**2 * sum(1 / side for side in runs)
    error, factor = sqrt(max(by_row, by_seed)), float(t.ppf((1 + level) / 2, seeds - 1))
    if not error:  # nothing varied: there is no noise to widen by
        return result
    low, high = result.difference - factor * error, result.difference + factor * error
    evidence = "better" if low > 0 else "worse" if high < 0 else "no evidence"
    least = min(1.0, (factor + float(norm.ppf(stats.POWER))) * error)
    p_value = 2 * float(t.sf(abs(result.difference) / error, seeds - 1))
    return replace(result, low=low, high=high, p_value=p_value, evidence=evidence, detectable=least)


def means(before: Sequence[float], after: Sequence[float]) -> Comparison:
    """The mean of one figure a row, paired; the interval, p and evidence are the caller's to fill in.

    `fixed` and `regressed` count the rows that went from 0 to 1 and back: of shares of trainings, from none to all.
    """
    n, changes = len(before), [new - old for old, new in zip(before, after, strict=True)]
    rates = (sum(before) / n, sum(after) / n, sum(changes) / n)
    return Comparison(n, *rates, 0.0, 0.0, 1.0, changes.count(1), changes.count(-1), "no evidence", 1.0)


def averaged(pairs: Sequence[Pair], rule: Rule, level: float, known: Noise | None, head: Noise | None) -> Metric | None:
    """Exact match over all trainings that a side has recorded of itself, else of the committed one; None without any.

    The spread is the base's (`known`): a change can't widen its own interval.
    """
    exact = replace(rule, metric="exact_match")
    if not known or rule.system != "tuned" or exact.metric not in known.spread:
        return None
    olds, news = zip(*pairs, strict=True)
    (before, earlier), (after, later) = _shares(olds, exact, known), _shares(news, exact, head)
    if earlier == later == 1:
        return None
    changes, groups = [new - old for old, new in zip(before, after, strict=True)], [row.group for row in news]
    noise = known.on(len(pairs), exact.metric)
    result = retrained(means(before, after), changes, groups, noise, level, (earlier, later))
    return Metric(rule.system, exact.metric, f"mean of {earlier} and {later} trainings", result, None)


def _shares(rows: Sequence[Outcome], rule: Rule, noise: Noise | None) -> tuple[list[float], int]:
    """Of each row the share of trainings that had it right, and how many these are."""
    listed = noise is not None and all(row.id in noise.right for row in rows)
    hits = [noise.right[row.id] if noise and listed else (row.hit(rule),) for row in rows]
    return [sum(one) / len(one) for one in hits], len(hits[0])


def likelihood(base: str, head: str, pairs: Sequence[Pair]) -> Comparison | None:
    """Mean nats of the expected answers (fewer are better) and an interval for these two models, without p or evidence.

    None where a side lacks it, or has what no stage writes.
    """
    try:
        sides = [read(tree, LIKELIHOOD, _nats) for tree in (base, head)]
    except InputError:
        return None
    rows = [row for _, row in pairs if all(row.id in side for side in sides)]
    if not rows:
        return None
    before, after = ([side[row.id] for row in rows] for side in sides)
    changes = [new - old for old, new in zip(before, after, strict=True)]
    low, high = stats.bootstrap_ratio(changes, [1.0] * len(rows), [row.group for row in rows])
    return replace(means(before, after), low=low, high=high)


def _nats(line: Any) -> float:
    """Negative log-likelihood of the expected answer to a test row, as the stage `likelihood` measured it."""
    nats = line["nats"]
    if type(nats) not in (int, float) or not 0 <= nats < 1e9:
        raise ValueError("nats: a number from 0 on is expected")
    return float(nats)


@dataclass(frozen=True)
class Check:
    """One thing that the gate requires, with the figures of both sides in words, and whether it holds."""

    what: str
    before: str
    after: str
    rule: str
    holds: bool


def drop(what: str, metric: Metric, rule: Rule) -> Check:
    """Broken only where the whole interval lies beyond what is tolerated."""
    result = metric.result
    after = f"{result.after:.3f}, a change of {result.difference:+.3f} [{result.low:+.3f}, {result.high:+.3f}]"
    holds = result.high >= -rule.tolerated_drop
    return Check(what, f"{result.before:.3f}", after, f"drop at most {rule.tolerated_drop:g}", holds)


def floor(what: str, rows: Iterable[Outcome], rule: Rule, level: float) -> Check:
    """Broken only where the whole Wilson interval of the rate lies below. Raises ValueError without rows."""
    hits = [row.hit(rule) for row in rows]
    low, high = stats.wilson(sum(hits), len(hits), level)
    after = f"{sum(hits) / len(hits):.3f} [{low:.3f}, {high:.3f}]"
    return Check(what, "", after, f"at least {rule.floor:g}", high >= rule.floor)


def judged(rows: Paired, before: Outcomes, after: Outcomes, gate: Gate, known: Noise | None) -> Iterator[Check]:
    """Both looks of every rule."""
    for rule in gate.rules:
        name = f"{rule.system} {rule.metric}"
        yield drop(name, measured(rows.both, rule, gate.level, known), rule)
        yield floor(name, rows.counted(before, after), rule, gate.level)
