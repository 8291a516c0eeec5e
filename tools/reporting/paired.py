"""Before and after on the same test answers: rates, paired intervals, exact tests, and the verdict of a gate rule.

Pairs carry the evidence (McNemar 1947), conversations are drawn whole (cluster bootstrap, Davison & Hinkley 1997), and
where nothing is shown, the smallest change that could have been is given (Connor 1987).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal

from stages.shared import params, stats, strict_json
from tools.reporting.revision import CannotCompareError

# What stages/evaluate.py says of an answer, best first; a metric counts the answers that are at least as good.
VERDICTS = ("exact", "normalised", "wrong", "off_contract", "not_json")
METRICS = {"exact_match": 1, "exact_match_normalised": 2, "schema_valid": 3, "json_valid": 4}
POWER = 0.8


@dataclass(frozen=True)
class Rule:
    """One rule of the gate. For `direction: lower` a rise counts as the drop and the floor is a ceiling."""

    system: str
    metric: Literal["exact_match", "exact_match_normalised", "schema_valid", "json_valid"]
    direction: Literal["higher", "lower"]
    tolerated_drop: params.Share
    floor: params.Share

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012


@dataclass(frozen=True)
class Settings:
    """The section `report` of params.yaml."""

    confidence: params.Share
    min_shared: params.Count
    bootstrap_resamples: params.Count
    seed: int
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Outcome:
    """A line of outcomes.jsonl; `answers` has those that were not exact."""

    id: str
    group: str
    kind: str
    verdicts: dict[str, str]
    answers: dict[str, str]


def outcome(row: Any) -> Outcome:
    """Raises JsonError on what stages/evaluate.py would not have written; old files may lack group and kind."""
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise strict_json.JsonError("an object with an 'id' is expected")
    systems = {name: part for name, part in row.items() if isinstance(part, dict)}
    verdicts = {name: str(part.get("verdict")) for name, part in systems.items()}
    if not verdicts or not set(verdicts.values()) <= set(VERDICTS):
        raise strict_json.JsonError(f"{row['id']!r} has no verdict, or an unknown one")
    answers = {name: str(part["answer"]) for name, part in systems.items() if "answer" in part}
    return Outcome(row["id"], str(row.get("group", row["id"])), str(row.get("kind", "")), verdicts, answers)


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """The outcomes by id. Raises JsonError naming the file when it is missing, unparsable or repeats an id."""
    if not path.is_file():
        raise strict_json.JsonError(f"{path}: missing")
    found: dict[str, Outcome] = {}
    for row in strict_json.read_jsonl(path):
        try:
            read = outcome(row)
        except strict_json.JsonError as error:
            raise strict_json.JsonError(f"{path}: {error}") from error
        if read.id in found:
            raise strict_json.JsonError(f"{path}: id {read.id!r} occurs twice")
        found[read.id] = read
    return found


def hit(verdict: str, metric: str) -> bool:
    """Whether an answer with this verdict counts for the metric."""
    return verdict in VERDICTS[: METRICS[metric]]


def hits(outcomes: Sequence[Outcome], system: str, metric: str) -> list[bool]:
    """Raises CannotCompareError where the system was not measured on every row."""
    if any(system not in o.verdicts for o in outcomes):
        raise CannotCompareError(f"metrics/outcomes.jsonl: no verdict of the system {system!r} on some rows")
    return [hit(o.verdicts[system], metric) for o in outcomes]


def interval(
    changes: Sequence[int], groups: Sequence[str], level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Interval of the mean of `changes` (each -1, 0 or 1) at `level`, whole groups drawn with replacement.

    Groups with the same size and sum are interchangeable, so drawing groups is one multinomial draw over their sorts.
    Without any change a bootstrap would claim certainty; the Wilson bound of 'none of n groups' stands in for it.
    """
    import numpy as np
    from scipy.stats import binomtest

    sums, sizes = Counter[str](), Counter(groups)
    for group, change in zip(groups, changes, strict=True):
        sums[group] += change
    if not any(changes):
        bound = float(binomtest(0, len(sizes)).proportion_ci(level, method="wilson").high)
        return -bound, bound
    sorts = Counter((sums[group], size) for group, size in sizes.items())
    kinds, weights = np.array(list(sorts)), np.array(list(sorts.values())) / len(sizes)
    drawn = np.random.default_rng(seed).multinomial(len(sizes), weights, size=resamples)
    means = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def detectable(n: int, discordant: float, level: float) -> float:
    """The smallest difference that n pairs show with 80% power at `level`, both signs (Connor 1987).

    Assumes that pairs go on differing as often as observed (`discordant`, a share), and at least as often as the
    difference itself needs; rows count as independent. Returns 1 where even that would not be shown.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    alpha, beta = float(norm.ppf((1 + level) / 2)), float(norm.ppf(POWER))

    def excess(d: float) -> float:
        share = max(discordant, d)
        return d * sqrt(n) - alpha * sqrt(share) - beta * sqrt(share - d * d)

    return float(brentq(excess, 1e-9, 1.0)) if excess(1.0) > 0 else 1.0


def compare(
    before: Sequence[bool], after: Sequence[bool], groups: Sequence[str], level: float, settings: Settings
) -> dict[str, Any]:
    """Rates, their paired difference with its interval, exact p, counts, and what that is in words.

    'better' and 'worse' need both the interval, which knows of conversations, and the exact test, which knows of few
    changes. Raises ValueError for sequences of different length.
    """
    changes = [int(new) - int(old) for old, new in zip(before, after, strict=True)]
    n, fixed, broken = len(changes), changes.count(1), changes.count(-1)
    low, high = interval(changes, groups, level, settings.bootstrap_resamples, settings.seed)
    p_value = stats.mcnemar(before, after)
    sure = p_value < 1 - level
    return {
        "n": n,
        "before": sum(before) / n,
        "after": sum(after) / n,
        "difference": (fixed - broken) / n,
        "low": low,
        "high": high,
        "p_value": p_value,
        "fixed": fixed,
        "broken": broken,
        "evidence": "better" if sure and low > 0 else "worse" if sure and high < 0 else "no evidence",
        "detectable": detectable(n, (fixed + broken) / n, level),
    }


def rule_level(settings: Settings) -> float:
    """Level of each interval that the gate looks at, so that all of its looks together keep `confidence`.

    A rule looks twice (drop and floor) and at one end only, so a look may err with (1 - confidence) / looks
    (Bonferroni), and its two-sided interval leaves out twice that.
    """
    looks = 2 * len(settings.rules)
    return 1 - 2 * (1 - settings.confidence) / looks


def judge(
    rule: Rule, pairs: Sequence[tuple[Outcome, Outcome]], head: Sequence[Outcome], settings: Settings
) -> list[dict[str, Any]]:
    """Both looks of a rule: the drop on the shared rows, the floor on all rows of head. Raises CannotCompareError."""
    from scipy.stats import binomtest

    level, sign = rule_level(settings), 1 if rule.direction == "higher" else -1
    old = hits([before for before, _ in pairs], rule.system, rule.metric)
    new = hits([after for _, after in pairs], rule.system, rule.metric)
    changes = [sign * (int(b) - int(a)) for a, b in zip(old, new, strict=True)]
    groups = [after.group for _, after in pairs]
    low, high = interval(changes, groups, level, settings.bootstrap_resamples, settings.seed)
    now = hits(head, rule.system, rule.metric)
    rate = binomtest(sum(now), len(now)).proportion_ci(level, method="wilson")
    best = rate.high if sign > 0 else -rate.low
    looks = [
        ("drop", rule.tolerated_drop, (low, high), high >= -rule.tolerated_drop),
        ("floor", rule.floor, (float(rate.low), float(rate.high)), best >= sign * rule.floor),
    ]
    return [
        {
            "system": rule.system,
            "metric": rule.metric,
            "direction": rule.direction,
            "check": check,
            "limit": limit,
            "low": ends[0],
            "high": ends[1],
            "holds": bool(holds),
        }
        for check, limit, ends, holds in looks
    ]
