"""Prices and the break-even, against arithmetic by hand and against every number of requests."""

from typing import Any

import pytest

from tools.advising import cost, evidence

NOT_KNOWN: dict[str, Any] = {
    **dict.fromkeys(("requests_a_day", "latency_target_ms", "minimum_accuracy", "differentiation")),
    **dict.fromkeys(("knowledge_changes", "task_changes", "prompt_price", "answer_price", "machine_hour_price")),
    **{"machine_hours_a_day": 24, "preparation_cost": None, "lifetime_days": 100},
    **{"enough_examples": 500, "high_volume": 1000},
}
TOKENS = {"prompt_price": 0.01, "answer_price": 0.02, "machine_hour_price": 0.5}


def speed(per_second: float) -> evidence.Speed:
    return evidence.Speed(100, 10, 200, 300, 250, 350, 100, per_second)


def own(**known: Any) -> evidence.Own:
    return evidence.Own(**(NOT_KNOWN | known))


def test_prices_by_token_and_by_machine() -> None:
    assert cost.by_tokens(own(**TOKENS), speed(2)) == pytest.approx(1000 * (0.1 * 0.01 + 0.01 * 0.02))
    assert cost.by_machine(own(**TOKENS), speed(2)) == pytest.approx(0.5 * 500 / 3600)
    assert (cost.by_tokens(own(), speed(2)), cost.by_machine(own(), speed(2))) == (None, None)


@pytest.mark.parametrize(
    "known",
    [
        TOKENS,
        TOKENS | {"machine_hours_a_day": 0},
        TOKENS | {"machine_hours_a_day": 0.5},
        TOKENS | {"preparation_cost": 20_000, "machine_hour_price": 2.0},
        TOKENS | {"preparation_cost": 20_000, "machine_hour_price": 2.0, "machine_hours_a_day": 0},
        {"machine_hour_price": 0.5},
    ],
)
def test_the_break_even_is_the_first_number_of_requests_that_pays(known: dict[str, Any]) -> None:
    found = cost.compare(own(**known), speed(1), speed(2), training_seconds=3600)
    assert found
    least = found.break_even()
    assert least
    pays = [n for n in range(least + 1) if found.tuned_a_day(n) <= found.prompted_a_day(n)]
    assert pays == [least]


@pytest.mark.parametrize(
    ("known", "least"),
    [
        # A day of the machine and a hundredth of a training hour, against 0.0012 a request.
        (TOKENS, -(-(0.5 * 24 + 0.5 / 100) // 0.0012)),
        (TOKENS | {"preparation_cost": 200}, -(-(0.5 * 24 + 2.0 + 0.5 / 100) // 0.0012)),
        # Both on a machine paid 0.5 an hour that answers 3,600 and 7,200 requests in it.
        ({"machine_hour_price": 0.5}, 72),
    ],
)
def test_a_break_even_by_hand(known: dict[str, Any], least: float) -> None:
    found = cost.compare(own(**known), speed(1), speed(2), training_seconds=3600)
    assert found
    assert found.break_even() == least


def test_nothing_pays_where_a_request_costs_more_on_a_machine() -> None:
    found = cost.compare(own(**TOKENS | {"machine_hour_price": 50.0}), speed(1), speed(2), 3600)
    assert found
    assert found.break_even() is None


@pytest.mark.parametrize("absent", ["prompt_price", "answer_price", "machine_hour_price"])
def test_a_missing_price_is_named(absent: str) -> None:
    known = own(**TOKENS | {absent: None})
    assert cost.missing(known) == [absent]
    assert cost.compare(known, speed(1), speed(2), 3600) is None
