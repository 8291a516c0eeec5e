"""The tree decides by what was measured, and says what it does not know in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from conftest import ROOT

from stages.core import params
from stages.data import writing
from tools import advise

NOTHING = advise.Own(None, None, None, None, None, None, None, None, None, None, 90.0)
BETTER = advise.Measured(
    few_shot=(0.3, 0.25, 0.35), tuned=(0.8, 0.75, 0.85), gain=(0.5, 0.4, 0.6), rows=1000, tokens=(500.0, 20.0)
)
EQUAL = replace(BETTER, gain=(0.0, -0.1, 0.1))
WORSE = replace(BETTER, gain=(-0.2, -0.3, -0.1))
P95: dict[str, Any] = {"few_shot_p95": (900.0, 800.0, 1000.0), "tuned_p95": (500.0, 400.0, 600.0)}
PRICES: dict[str, Any] = {"prompt_price": 1.0, "answer_price": 5.0, "machine_day_price": 5.0, "version_price": 63.0}


@pytest.mark.parametrize(
    ("own", "known", "answer"),
    [
        ({}, BETTER, "fine-tune: it is right more often"),
        ({"knowledge_changes": True, "task_changes": True}, BETTER, "retrieval"),
        ({"task_changes": True, "differentiation": True}, BETTER, "prompting: settle"),
        ({"differentiation": True}, WORSE, "few-shot prompting: it is right more often"),
        ({"differentiation": True}, replace(EQUAL, rows=499), "few-shot prompting: 499 training rows are few"),
        ({}, replace(BETTER, rows=499), "fine-tune: it is right more often"),
        ({"differentiation": True}, replace(EQUAL, rows=500), "fine-tune: the behaviour is worth owning"),
        ({"differentiation": False}, EQUAL, "few-shot prompting: nothing"),
        ({}, replace(EQUAL, gain=(0.0, 0.0, 0.0)), "few-shot prompting: nothing"),
        ({}, replace(EQUAL, gain=(0.0, 0.0, 0.0), rows=499), "few-shot prompting: 499 training rows are few"),
        ({"minimum_accuracy": 0.25}, BETTER, "few-shot prompting: nothing"),
        ({"minimum_accuracy": 0.26}, BETTER, "fine-tune: it is right more often"),
        ({"requests_a_day": 1000}, EQUAL, "fine-tune: this many requests"),
        ({"requests_a_day": 999}, EQUAL, "few-shot prompting: nothing"),
        # A request costs 0.6, a day of the machine 5 and of the version 0.7: even at 9.5 requests a day.
        ({"requests_a_day": 10, **PRICES}, EQUAL, "fine-tune: it costs less at this volume"),
        ({"requests_a_day": 9, **PRICES}, EQUAL, "few-shot prompting: nothing"),
        ({**PRICES, "machine_day_price": 0}, EQUAL, "few-shot prompting: nothing"),
        ({"latency_target_ms": 700}, replace(EQUAL, **P95), "fine-tune: it meets the latency target"),
        ({"latency_target_ms": 600}, replace(EQUAL, **P95), "fine-tune: it meets the latency target"),
        ({"latency_target_ms": 800}, replace(EQUAL, **P95), "few-shot prompting: nothing"),
        ({"latency_target_ms": 550}, replace(EQUAL, **P95), "few-shot prompting: nothing"),
        ({"latency_target_ms": 700}, EQUAL, "few-shot prompting: nothing"),
    ],
)
def test_the_first_branch_that_decides(own: dict[str, Any], known: advise.Measured, answer: str) -> None:
    assert advise.recommendation(replace(NOTHING, **own), known).startswith(answer)


def test_the_break_even_by_hand() -> None:
    # A request: 500 tokens at 1 and 20 at 5 a thousand. A day: 5 for the machine, 63 / 90 for the version.
    assert advise.break_even(replace(NOTHING, **PRICES), BETTER) == pytest.approx(5.7 / 0.6)
    assert advise.break_even(replace(NOTHING, **(PRICES | {"version_price": None})), BETTER) == pytest.approx(5 / 0.6)
    free = replace(NOTHING, prompt_price=0.0, answer_price=0.0, machine_day_price=1.0)
    assert advise.break_even(free, BETTER) == float("inf")


@pytest.mark.parametrize("price", ["prompt_price", "answer_price", "machine_day_price", "tokens"])
def test_there_is_no_break_even_while_a_figure_is_missing(price: str) -> None:
    prices: dict[str, Any] = {name: None if name == price else value for name, value in PRICES.items()}
    own = replace(NOTHING, **prices)
    assert advise.break_even(own, replace(BETTER, tokens=None) if price == "tokens" else BETTER) is None


def test_what_is_not_known_takes_one_line() -> None:
    lines = list(advise.lines(replace(NOTHING, **PRICES, minimum_accuracy=0.78), replace(BETTER, **P95)))
    assert len(lines) <= 12
    assert (
        lines[0]
        == "exact match: few-shot 0.300 [0.250, 0.350], tuned 0.800 [0.750, 0.850], gain +0.500 [+0.400, +0.600]"
    )
    assert lines[1] == "training answers: 1000; the rule of thumb asks for 500"
    assert lines[2] == "95 of 100 answers within: few-shot 900 [800, 1000] ms, tuned 500 [400, 600] ms"
    assert lines[3] == "break-even with a hosted model: 10 requests a day"
    assert "But the tuned model is not shown to reach minimum_accuracy = 0.78." in lines
    assert lines[-1].endswith(
        "sharpen it: knowledge_changes, task_changes, differentiation, latency_target_ms, requests_a_day"
    )


@pytest.fixture
def measured(here: Path) -> Path:
    rate = {"exact_match": 0.3, "exact_match_low": 0.2, "exact_match_high": 0.4}
    gain = {"exact_match": 0.1, "low": 0.05, "high": 0.15, "p_value": 0.01}
    systems = {"few_shot": rate, "tuned": rate | {"exact_match": 0.35}, "gain_over_few_shot": gain}
    writing.write_json(here / "metrics/evaluate.json", systems)
    writing.write_json(here / "metrics/train.json", {"rows": 700})
    (here / "advise.yaml").write_text(yaml.safe_dump({"advise": vars(NOTHING)}), encoding="utf-8")
    return here


def test_the_figures_are_read_where_they_stand(measured: Path) -> None:
    speed = {"prompt_tokens": 50, "answer_tokens": 5.5, "p95_ms": 2, "p95_ms_low": 1, "p95_ms_high": 3}
    systems = {"few_shot": speed, "tuned": speed | {"p95_ms": 1.5}}
    assert advise.measured() == advise.Measured((0.3, 0.2, 0.4), (0.35, 0.2, 0.4), (0.1, 0.05, 0.15), 700)
    writing.write_json(measured / "benchmarks/latency.json", {"systems": systems})
    assert advise.measured() == advise.Measured(
        (0.3, 0.2, 0.4), (0.35, 0.2, 0.4), (0.1, 0.05, 0.15), 700, (50, 5.5), (2, 1, 3), (1.5, 1, 3)
    )
    result = CliRunner().invoke(advise.main)
    assert (result.exit_code, "Recommendation: fine-tune" in result.output) == (0, True)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("metrics/evaluate.json", None, "metrics/evaluate.json"),
        ("metrics/evaluate.json", "[]", "gain_over_few_shot.exact_match"),
        ("metrics/train.json", '{"rows":true}', "rows"),
        ("metrics/train.json", "NaN", "NaN"),
        ("benchmarks/latency.json", '{"systems":{}}', "systems.few_shot.prompt_tokens"),
        ("advise.yaml", "advise: {lifetime_days: 0}", "lifetime_days"),
    ],
)
def test_a_figure_that_is_missing_is_named(file: str, content: str | None, named: str, measured: Path) -> None:
    (measured / file).unlink(missing_ok=True)
    if content is not None:
        (measured / file).parent.mkdir(exist_ok=True)
        (measured / file).write_text(content, encoding="utf-8")
    result = CliRunner().invoke(advise.main)
    assert (result.exit_code, named in result.output) == (1, True), result.output


def test_the_file_of_own_figures_has_their_names() -> None:
    params.load("advise", advise.Own, ROOT / "advise.yaml")  # raises for any other
