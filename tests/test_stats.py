import math

import pytest

from stages.shared import stats


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert stats.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert stats.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert stats.wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        stats.wilson(0, 0)


def test_mcnemar_is_the_exact_binomial_of_the_rows_that_differ() -> None:
    before = [False] * 37 + [True] * 9 + [True] * 254
    after = [True] * 37 + [False] * 9 + [True] * 254
    expected = 2 * sum(math.comb(46, k) for k in range(10)) / 2**46
    assert stats.mcnemar(before, after) == pytest.approx(expected)
    assert stats.mcnemar([True, False], [True, False]) == 1.0


def test_paired_sequences_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        stats.mcnemar([True], [True, False])


def test_bootstrap_covers_the_mean_and_repeats_itself() -> None:
    values = [1.0] * 30 + [0.0] * 70
    names = [str(n) for n in range(100)]
    low, high = stats.bootstrap_mean(values, names, 2000, 1)
    assert low == pytest.approx(0.21, abs=0.02)
    assert high == pytest.approx(0.39, abs=0.02)
    assert stats.bootstrap_mean(values, names, 2000, 1) == (low, high)


def test_clusters_widen_the_interval() -> None:
    values = [float(number % 2) for number in range(50)]
    repeated = [value for value in values for _ in range(4)]
    clusters = [str(n // 4) for n in range(200)]
    alone = stats.bootstrap_mean(repeated, [str(n) for n in range(200)], 2000, 1)
    together = stats.bootstrap_mean(repeated, clusters, 2000, 1)
    assert together[1] - together[0] > 1.7 * (alone[1] - alone[0])


def test_a_ratio_of_nothing_is_zero() -> None:
    assert stats.bootstrap_ratio([0.0, 0.0], [0.0, 0.0], ["a", "b"], 100, 1) == (0.0, 0.0)


def test_a_rate_stands_with_its_interval() -> None:
    assert stats.rate("hit", [True, False, False, False]) == {
        "hit": 0.25,
        "hit_low": stats.wilson(1, 4)[0],
        "hit_high": stats.wilson(1, 4)[1],
    }


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
