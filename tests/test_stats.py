import math

import pytest

from stages.scores import stats


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_values(hits: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, table I, method 3."""
    assert stats.wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_nothing_and_sequences_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="not less than 1"):
        stats.wilson(0, 0)
    with pytest.raises(ValueError, match="argument"):
        stats.compare([True], [True, False], ["a", "b"])
    with pytest.raises(ValueError, match="argument"):
        stats.compare([True, False], [True, True], ["a"])
    with pytest.raises(ValueError, match=r"^nothing to compare$"):
        stats.compare([], [], [])


def names(count: int, size: int = 1) -> list[str]:
    return [str(number // size) for number in range(count)]


def test_the_bootstrap_of_a_ratio_is_near_the_normal_interval_and_repeats_itself() -> None:
    values = [number / 100 for number in range(100)]
    low, high = stats.bootstrap_ratio(values, [2.0] * 100, names(100))
    error = math.sqrt((100**2 - 1) / 12 / 100) / 100 / 2
    assert (low, high) == pytest.approx((0.2475 - 1.96 * error, 0.2475 + 1.96 * error), abs=0.08 * error)
    assert stats.bootstrap_ratio(values, [2.0] * 100, names(100)) == (low, high)


@pytest.mark.parametrize(
    ("above", "below", "low", "high"),
    [([0.0, 0.0], [0.0, 0.0], 0, 0), ([0.25, 0.25], [0.5, 0.5], 0.5, 0.5), ([2.0, 0.0], [2.0, 2.0], 0, 1)],
)
def test_the_bootstrap_of_two_clusters(above: list[float], below: list[float], low: float, high: float) -> None:
    stats.bootstrap_ratio([7.0, 7.0], [1.0, 1.0], ["a", "b"])  # memory that 0/0 must not be read from
    assert stats.bootstrap_ratio(above, below, ["a", "b"]) == (low, high)


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.95996), (0.9, 1.64485)])
def test_the_paired_interval_is_near_the_normal_one_and_repeats_itself(level: float, z: float) -> None:
    changes = [1] * 3000 + [-1] * 1000 + [0] * 36000
    error = math.sqrt((0.1 - 0.05**2) / 40000)
    found = stats.paired_interval(changes, names(40000), level)
    assert found == pytest.approx((0.05 - z * error, 0.05 + z * error), abs=0.08 * error)
    assert stats.paired_interval(changes, names(40000), level) == found


def test_conversations_widen_both_intervals() -> None:
    changes = [1 if number % 8 < 4 else 0 for number in range(200)]
    values, ones = [float(change) for change in changes], [1.0] * 200
    for alone, together in (
        (stats.bootstrap_ratio(values, ones, names(200)), stats.bootstrap_ratio(values, ones, names(200, 4))),
        (stats.paired_interval(changes, names(200)), stats.paired_interval(changes, names(200, 4))),
    ):
        assert together[1] - together[0] > 1.7 * (alone[1] - alone[0])


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.95996), (0.9, 1.64485)])
def test_where_nothing_changed_the_bound_is_wilson_s_for_the_conversations(level: float, z: float) -> None:
    bound = z**2 / (50 + z**2)
    assert stats.paired_interval([0] * 100, names(100, 2), level) == pytest.approx((-bound, bound), rel=1e-5)


def test_a_comparison_in_one_place() -> None:
    before = [True] * 60 + [False] * 40
    after = [*[True] * 57, *[False] * 3, *[True] * 20, *[False] * 20]
    found = stats.compare(before, after, names(100), 0.99)
    assert (found.n, found.before, found.after, found.difference) == (100, 0.6, 0.77, 0.17)
    assert (found.fixed, found.regressed, found.evidence) == (20, 3, "better")
    # The exact binomial of the rows that differ.
    assert found.p_value == pytest.approx(2 * sum(math.comb(23, k) for k in range(4)) / 2**23)
    assert (found.low, found.high) == stats.paired_interval([0] * 57 + [-1] * 3 + [1] * 20 + [0] * 20, names(100), 0.99)
    assert found.detectable == stats.detectable(100, 0.23, 0.99)
    assert stats.compare(before, before, names(100)).p_value == 1.0
    after = [*[True] * 58, *[False] * 2, *[True] * 9, *[False] * 31]  # p = 0.065
    words = [stats.compare(before, after, names(100), level).evidence for level in (0.9, 0.95)]
    assert words == ["better", "no evidence"]


def test_evidence_needs_both_the_interval_and_the_test() -> None:
    before, after = [False] * 100, [True] * 5 + [False] * 95
    few = stats.compare(before, after, names(100))
    assert (few.low > 0, few.p_value < 0.05, few.evidence) == (True, False, "no evidence")
    one = stats.compare([False] * 12 + [True] * 88, [True] * 12 + [True] * 88, ["a"] * 12 + names(88))
    assert (one.low > 0, one.p_value < 0.05, one.evidence) == (False, True, "no evidence")
    lost = stats.compare([True] * 100, [False] * 12 + [True] * 88, ["a"] * 12 + names(88))
    assert (lost.high, lost.p_value < 0.05, lost.evidence) == (0.0, True, "no evidence")


def test_worse_is_the_mirror_of_better() -> None:
    before, after = [True] * 40, [True] * 20 + [False] * 20
    worse, better = stats.compare(before, after, names(40)), stats.compare(after, before, names(40))
    assert (worse.evidence, better.evidence) == ("worse", "better")
    assert (worse.difference, worse.regressed) == (-better.difference, better.fixed)


@pytest.mark.parametrize(("n", "discordant", "level"), [(364, 0.135, 0.95), (100, 0.05, 0.95), (364, 0.135, 0.99)])
def test_a_detectable_difference_is_found_in_four_of_five_draws(n: int, discordant: float, level: float) -> None:
    import numpy as np
    from scipy.stats import binomtest

    difference = stats.detectable(n, discordant, level)
    flips = max(discordant, difference)
    shares = [(flips + difference) / 2, (flips - difference) / 2, 1 - flips]
    drawn = np.random.default_rng(1).multinomial(n, np.clip(shares, 0, 1), size=400)
    found = [binomtest(better, better + worse).pvalue < 1 - level for better, worse, _ in drawn.tolist()]
    assert 0.7 < sum(found) / len(found) < 0.9


def test_a_detectable_difference_is_connor_s_and_at_most_one() -> None:
    d = stats.detectable(364, 0.135)
    assert ((1.95996 * 0.135**0.5 + 0.84162 * (0.135 - d * d) ** 0.5) / d) ** 2 == pytest.approx(364, rel=1e-4)
    assert stats.detectable(3, 0.1) == 1.0
    assert 0.9 < stats.detectable(5, 0.1) < 1.0


def test_a_rate_stands_with_its_interval() -> None:
    low, high = stats.wilson(1, 4)
    assert stats.rate("hit", [True, False, False, False]) == {"hit": 0.25, "hit_low": low, "hit_high": high}


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),  # the examples of Newcombe 1998, method 10
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_the_difference_of_two_samples_has_the_published_interval(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    samples = [[True] * hits + [False] * (n - hits) for hits, n in (first, second)]
    assert stats.difference(samples[0], samples[1]) == pytest.approx((low, high), abs=1e-4)
