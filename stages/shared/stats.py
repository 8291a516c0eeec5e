"""Intervals and paired tests for rates on a small test set."""

import math
from collections.abc import Iterable, Sequence

CONFIDENCE = 0.95


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95% interval of a rate (Wilson 1927): right at 0 and 1 too. Raises ValueError for n = 0."""
    from scipy.stats import binomtest

    if n == 0:
        raise ValueError("a rate of nothing has no interval")
    interval = binomtest(hits, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
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


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Two-sided exact p-value that two systems scored on the same rows are equally good (McNemar 1947).

    Only rows where they differ carry evidence; without any, p is 1.
    """
    from scipy.stats import binomtest

    better = sum(new and not old for old, new in zip(before, after, strict=True))
    worse = sum(old and not new for old, new in zip(before, after, strict=True))
    return float(binomtest(better, better + worse, 0.5).pvalue) if better + worse else 1.0


def bootstrap_mean(values: Sequence[float], clusters: Sequence[str], resamples: int, seed: int) -> tuple[float, float]:
    """95% percentile interval of the mean of `values`, whole clusters drawn with replacement.

    Turns of one conversation rise and fall together; drawing rows instead would make the interval too narrow.
    """
    return bootstrap_ratio(values, [1.0] * len(values), clusters, resamples, seed)


def bootstrap_ratio(
    above: Sequence[float], below: Sequence[float], clusters: Sequence[str], resamples: int, seed: int
) -> tuple[float, float]:
    """95% percentile interval of sum(above) / sum(below), whole clusters drawn with replacement; 0/0 counts as 0."""
    import numpy as np

    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    member = np.array([names[name] for name in clusters])
    tops, bottoms = (np.bincount(member, weights=np.asarray(part, dtype=float)) for part in (above, below))
    drawn = np.random.default_rng(seed).integers(0, len(names), size=(resamples, len(names)))
    top, bottom = tops[drawn].sum(axis=1), bottoms[drawn].sum(axis=1)
    ratios = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)
