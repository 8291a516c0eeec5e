"""Known truths: planted counts, pairs without a change, simulated gates."""

import math
from pathlib import Path
from typing import Any

import pytest

from stages.shared import params, strict_json
from tools.reporting import paired
from tools.reporting.paired import Outcome, Rule, Settings

ROOT = Path(__file__).parent.parent
SHIPPED = params.load("report", Settings, ROOT / "params.yaml")
FAST = Settings(0.95, 30, 2000, 17, SHIPPED.rules)
RULE = Rule("tuned", "exact_match", "higher", 0.0, 0.0)


def settings(*rules: Rule) -> Settings:
    return Settings(0.95, 30, 2000, 17, rules)


def singles(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def outcomes(verdicts: list[str], groups: list[str] | None = None) -> list[Outcome]:
    names = groups or singles(len(verdicts))
    return [Outcome(str(n), names[n], "create", {"tuned": verdict}, {}) for n, verdict in enumerate(verdicts)]


def words(right: list[bool]) -> list[str]:
    return ["exact" if hit else "wrong" for hit in right]


def holds(rule: Rule, before: list[str], after: list[str], given: Settings | None = None) -> dict[str, bool]:
    old, new = outcomes(before), outcomes(after)
    looks = paired.judge(rule, list(zip(old, new, strict=True)), new, given or settings(rule))
    return {look["check"]: look["holds"] for look in looks}


def test_planted_flips_are_counted_and_tested_exactly() -> None:
    before = [False] * 37 + [True] * 9 + [True] * 254
    after = [True] * 37 + [False] * 9 + [True] * 254
    found = paired.compare(before, after, singles(300), 0.95, FAST)
    assert (found["fixed"], found["broken"], found["n"]) == (37, 9, 300)
    assert found["p_value"] == pytest.approx(2 * sum(math.comb(46, k) for k in range(10)) / 2**46)
    assert found["difference"] == pytest.approx(28 / 300)
    assert found["low"] < 28 / 300 < found["high"]
    assert found["evidence"] == "better"


def test_no_change_is_no_evidence_and_the_interval_still_has_a_width() -> None:
    same = [True] * 250 + [False] * 50
    found = paired.compare(same, same, singles(300), 0.95, FAST)
    assert (found["evidence"], found["p_value"]) == ("no evidence", 1.0)
    assert found["low"] < -0.01 < 0.01 < found["high"]


def test_the_smallest_change_that_could_show_agrees_with_sample_size_tables() -> None:
    # 80% power at 5%, a fifth of the pairs differing: about 150 rows for 10 points, 620 for 5
    assert paired.detectable(150, 0.2, 0.95) == pytest.approx(0.10, abs=0.005)
    assert paired.detectable(620, 0.2, 0.95) == pytest.approx(0.05, abs=0.002)
    assert paired.detectable(3, 0.0, 0.95) == 1.0


def test_a_change_of_that_size_shows_four_times_in_five() -> None:
    import numpy as np
    from scipy.stats import binomtest

    size = paired.detectable(300, 0.2, 0.95)
    draws = np.random.default_rng(1).multinomial(300, [(0.2 + size) / 2, (0.2 - size) / 2, 0.8], size=500)
    shown = sum(binomtest(int(a), int(a + b)).pvalue < 0.05 for a, b, _ in draws)
    assert 0.7 < shown / 500 < 0.87  # the exact test is a little stricter than the formula


def test_conversations_widen_the_interval() -> None:
    changes = [1] * 40 + [-1] * 8 + [0] * 152
    alone = paired.interval(changes, singles(200), 0.95, 2000, 1)
    together = paired.interval(changes, [str(number // 4) for number in range(200)], 0.95, 2000, 1)
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])


def test_a_few_changes_that_only_the_interval_believes_are_no_evidence() -> None:
    before, after = [False] * 4 + [True] * 196, [True] * 200
    found = paired.compare(before, after, singles(200), 0.95, FAST)
    assert found["low"] > 0
    assert (found["p_value"], found["evidence"]) == (0.125, "no evidence")


@pytest.mark.parametrize(
    ("verdict", "counted"),
    [
        ("exact", ["exact_match", "exact_match_normalised", "schema_valid", "json_valid"]),
        ("normalised", ["exact_match_normalised", "schema_valid", "json_valid"]),
        ("wrong", ["schema_valid", "json_valid"]),
        ("off_contract", ["json_valid"]),
        ("not_json", []),
    ],
)
def test_a_verdict_counts_for_the_metrics_that_it_meets(verdict: str, counted: list[str]) -> None:
    assert [metric for metric in paired.METRICS if paired.hit(verdict, metric)] == counted


def test_a_drop_within_the_interval_of_the_tolerance_holds() -> None:
    before = words([True] * 280 + [False] * 20)
    after = words([False] * 12 + [True] * 268 + [True] * 6 + [False] * 14)
    assert holds(Rule("tuned", "exact_match", "higher", 0.02, 0.0), before, after)["drop"]


def test_a_drop_beyond_the_tolerance_fails() -> None:
    before, after = words([True] * 300), words([False] * 40 + [True] * 260)
    assert holds(RULE, before, after) == {"drop": False, "floor": True}


def test_where_less_is_better_a_rise_is_the_drop_and_the_floor_a_ceiling() -> None:
    rule = Rule("tuned", "exact_match", "lower", 0.02, 0.5)
    few, many = words([True] * 20 + [False] * 280), words([True] * 220 + [False] * 80)
    assert holds(rule, few, many) == {"drop": False, "floor": False}
    assert holds(rule, many, few) == {"drop": True, "floor": True}


def test_a_floor_is_broken_only_by_the_whole_interval() -> None:
    rule = Rule("tuned", "exact_match", "higher", 1.0, 0.8)
    near, far = words([True] * 232 + [False] * 68), words([True] * 200 + [False] * 100)
    assert holds(rule, near, near)["floor"]
    assert not holds(rule, far, far)["floor"]


def draw(rng: Any, fixed: float, broken: float, rows: int = 300) -> tuple[list[str], list[str]]:
    """Verdicts of a system that is right on about 80%; of the rows, `fixed` get mended and `broken` break."""
    kinds = rng.choice(4, size=rows, p=[fixed, broken, 0.8 - broken, 0.2 - fixed])
    return words([kind in (1, 2) for kind in kinds]), words([kind in (0, 2) for kind in kinds])


def failures(given: Settings, fixed: float, broken: float, times: int) -> int:
    import numpy as np

    rng = np.random.default_rng(2026)
    pairs = [draw(rng, fixed, broken) for _ in range(times)]
    return sum(not all(all(holds(rule, *pair, given).values()) for rule in given.rules) for pair in pairs)


def test_of_200_changes_that_do_nothing_at_most_one_in_twenty_fails() -> None:
    assert failures(FAST, 0.1, 0.1, 200) <= 10


def test_without_any_tolerance_and_at_the_floor_the_level_still_holds() -> None:
    strict = settings(RULE, Rule("tuned", "exact_match", "higher", 0.0, 0.8))
    assert failures(strict, 0.1, 0.1, 200) <= 10


def test_a_drop_of_ten_points_on_300_rows_is_caught() -> None:
    assert failures(FAST, 0.05, 0.15, 200) >= 150


def test_more_rules_need_wider_intervals() -> None:
    assert paired.rule_level(settings(RULE)) == pytest.approx(0.95)
    assert paired.rule_level(settings(RULE, RULE)) == pytest.approx(0.975)


def test_an_unknown_key_or_metric_in_a_rule_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for wrong in ("metric: field_f1", "metric: exact_match, note: x"):
        (tmp_path / "params.yaml").write_text(text.replace("metric: exact_match", wrong), encoding="utf-8")
        with pytest.raises(params.ParamsError, match=r"report\.rules"):
            params.load("report", Settings, tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id":"a","tuned":{"verdict":"good"}}', "unknown"),
        ('{"id":"a"}', "no verdict"),
        ('{"tuned":{"verdict":"exact"}}', "'id'"),
        ('{"id":"b","tuned":{"verdict":"exact"}}', "twice"),
        ('{"id":"a","tuned":{"verdict":NaN}}', "NaN"),
    ],
)
def test_outcomes_that_evaluate_would_not_write_are_refused(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "outcomes.jsonl"
    file.write_text('{"id":"b","tuned":{"verdict":"exact"}}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(strict_json.JsonError, match=reason):
        paired.read_outcomes(file)
