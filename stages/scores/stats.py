"""Intervals and paired tests for rates on a small test set."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 17  # of the resampling, so that a file of metrics has the same bytes every time
POWER = 0.8


def wilson(hits: int, n: int, level: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of a rate at `level` (Wilson 1927): right at 0 and 1 too. Raises ValueError for n = 0."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def rate(name: str, hits: Iterable[bool]) -> dict[str, float]:
    """A rate under `name` with its Wilson interval under `name`_low and `name`_high. Raises ValueError for nothing."""
    found = list(hits)
    low, high = wilson(sum(found), len(found))
    return {name: sum(found) / len(found), f"{name}_low": low, f"{name}_high": high}


def difference(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float]:
    """95% interval of rate(first) - rate(second), two independent samples (Newcombe 1998, method 10).

    Right at 0 and 1 too, where resampling gives an interval without width. Raises ValueError for an empty sample.
    """
    (one, n), (other, m) = ((sum(hits), len(hits)) for hits in (first, second))
    (low, high), (least, most) = wilson(one, n), wilson(other, m)
    p, q = one / n, other / m
    return p - q - math.hypot(p - low, most - q), p - q + math.hypot(high - p, q - least)


def bootstrap_ratio(above: Sequence[float], below: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """95% percentile interval of sum(above) / sum(below), whole clusters drawn with replacement; 0/0 counts as 0.

    Turns of one conversation rise and fall together; drawing rows instead would make the interval too narrow.
    """
    import numpy as np

    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    member = np.array([names[name] for name in clusters])
    tops, bottoms = (np.bincount(member, weights=np.asarray(part, dtype=float)) for part in (above, below))
    drawn = np.random.default_rng(SEED).integers(0, len(names), size=(RESAMPLES, len(names)))
    top, bottom = tops[drawn].sum(axis=1), bottoms[drawn].sum(axis=1)
    ratios = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def paired_interval(changes: Sequence[int], groups: Sequence[str], level: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of the mean of `changes` (each -1, 0 or 1) at `level`, whole groups drawn with replacement.

    Groups with the same size and sum are interchangeable, so drawing groups is one multinomial draw over their sorts.
    Without any change a bootstrap would claim certainty; the Wilson bound of 'none of n groups' stands in for it.
    """
    import numpy as np

    sums, sizes = Counter[str](), Counter(groups)
    for group, change in zip(groups, changes, strict=True):
        sums[group] += change
    if not any(changes):
        bound = wilson(0, len(sizes), level)[1]
        return -bound, bound
    sorts = Counter((sums[group], size) for group, size in sizes.items())
    kinds, weights = np.array(list(sorts)), np.array(list(sorts.values())) / len(sizes)
    drawn = np.random.default_rng(SEED).multinomial(len(sizes), weights, size=RESAMPLES)
    means = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def detectable(n: int, discordant: float, level: float = CONFIDENCE) -> float:
    """The smallest difference that n pairs show with about 80% power at `level`, both signs (Connor 1987).

    Assumes that pairs go on differing as often as observed (`discordant`, a share), and at least as often as the
    difference itself needs; rows count as independent. Returns 1 where even that would not be shown.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    alpha, beta = float(norm.ppf((1 + level) / 2)), float(norm.ppf(POWER))

    def excess(d: float) -> float:
        share = max(discordant, d)
        return d * math.sqrt(n) - alpha * math.sqrt(share) - beta * math.sqrt(share - d * d)

    return float(brentq(excess, 1e-9, 1.0)) if excess(1.0) > 0 else 1.0


@dataclass(frozen=True)
class Comparison:
    """Two sets of outcomes on the same n rows: rates, their paired difference with its interval, exact p, counts.

    `fixed`: failures that became successes; `regressed`: the reverse. `evidence`: `better`, `worse` or `no evidence`.
    """

    n: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    p_value: float
    fixed: int
    regressed: int
    evidence: str
    detectable: float


def compare(
    before: Sequence[bool], after: Sequence[bool], groups: Sequence[str], level: float = CONFIDENCE
) -> Comparison:
    """The one comparison of two sets of outcomes in this project; `groups` names each row's conversation.

    'better' and 'worse' need both the interval, which knows of conversations, and the exact test, which knows of few
    changes. Raises ValueError for sequences of different length and for empty ones.
    """
    from scipy.stats import binomtest

    changes = [int(new) - int(old) for old, new in zip(before, after, strict=True)]
    n, fixed, regressed = len(changes), changes.count(1), changes.count(-1)
    if not n:
        raise ValueError("nothing to compare")
    low, high = paired_interval(changes, groups, level)
    # Two-sided and exact (McNemar 1947): only rows where the two differ carry evidence; without any, p is 1.
    p_value = float(binomtest(fixed, fixed + regressed).pvalue) if fixed + regressed else 1.0
    sure = p_value < 1 - level
    return Comparison(
        n=n,
        before=sum(before) / n,
        after=sum(after) / n,
        difference=(fixed - regressed) / n,
        low=low,
        high=high,
        p_value=p_value,
        fixed=fixed,
        regressed=regressed,
        evidence="better" if sure and low > 0 else "worse" if sure and high < 0 else "no evidence",
        detectable=detectable(n, (fixed + regressed) / n, level),
    )
