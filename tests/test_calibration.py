"""The report's words hold what they promise where only the seed differs: on synthetic trainings."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from click.testing import CliRunner
from scipy.stats import binom

from experiments import calibration, page
from experiments.calibration import Judge, Model
from review import compare
from review.compare import Gate, Noise, Outcome, Rule
from stages.core import strict_json
from versions import history, record

ROWS, TIMES = 300, 100
RULE = Rule("tuned", "exact_match", 0.02, 0.0)
JUDGE = Judge(
    [
        (
            Outcome(name, name, "", "", "", "", {"tuned": "wrong"}, {}),
            Outcome(name, name, "", "", "", "", {"tuned": "exact"}, {}),
        )
        for name in map(str, range(ROWS))
    ],
    Gate(0.95, 30, False, 0.9, 0.02, (RULE, RULE)),
    RULE,
)
# Rows that are right with chances around 0.87, most of them always or never; two trainings disagree on about 8%.
MODEL = Model(np.full(ROWS, 0.87 * 0.5), np.full(ROWS, 0.13 * 0.5), 0.08)


def noise(seeds: int) -> Noise:
    return Noise(seeds, date(2026, 11, 20), {})


def case(seeds: int, common: float, drop: float, runs: int, times: int = TIMES) -> dict[str, float]:
    return calibration.simulated(JUDGE, MODEL, noise(seeds), times, common, drop, runs)


@pytest.mark.parametrize(
    ("seeds", "common", "runs"), [(3, 0.0, 1), (3, 0.02, 1), (8, 0.02, 1), (3, 0.02, 3), (8, 0.02, 3)]
)
def test_of_changes_that_do_nothing_one_in_20_is_called_either_at_most(seeds: int, common: float, runs: int) -> None:
    found, most = case(seeds, common, 0.0, runs), binom.ppf(0.999, TIMES, 0.05) / TIMES
    assert max(found["better"], found["worse"], found["fails"]) <= most


def test_the_gate_fails_at_its_own_level() -> None:
    before, after = np.ones((1, ROWS), bool), np.arange(ROWS)[None] >= 20
    words = JUDGE.words(before, after, replace(noise(8), spread={"exact_match": 0.012}))
    assert (words["worse"], words["fails"]) == (True, False)


def test_without_a_measurement_of_the_noise_an_effect_of_the_seed_is_taken_for_one_of_the_change() -> None:
    found = case(8, 0.03, 0.0, 1, 40)
    assert found["alone_better"] + found["alone_worse"] > 0.2 > 2 * (found["better"] + found["worse"])


def test_more_seeds_notice_more() -> None:
    few, many, more = (case(seeds, 0.02, 0.1, runs, 40) for seeds, runs in ((3, 1), (8, 1), (8, 3)))
    assert few["worse"] < many["worse"] < more["worse"]
    assert more["worse"] > 0.85


def test_the_model_is_that_of_the_trainings() -> None:
    rng = np.random.default_rng(3)
    right = MODEL.train(rng, np.clip(MODEL.chances(rng), 1e-6, 1 - 1e-6), 6, 0.0)
    model = calibration.fitted(right)
    chances = np.clip(np.mean([model.chances(rng) for _ in range(50)], axis=0), 1e-6, 1 - 1e-6)
    assert chances.mean() == pytest.approx(right.mean(), abs=0.01)
    assert chances[right.all(axis=0)].min() > 0.8
    again = model.train(rng, np.clip(model.chances(rng), 1e-6, 1 - 1e-6), 40, 0.02)
    flips = model.flipping / 2 / ROWS
    assert again.mean(axis=1).std() == pytest.approx((0.02**2 + flips) ** 0.5, rel=0.3)
    assert 2 * (again.mean(axis=0) * (1 - again.mean(axis=0))).mean() == pytest.approx(model.flipping, abs=0.03)


def put_seeds(right: list[str]) -> None:
    names = sorted(f"r{number}" for number in range(100))
    times = [sum(line[index] == "1" for line in right) for index in range(100)]
    rates = [line.count("1") / 100 for line in right]
    recorded: dict[str, Any] = {"seeds": len(right), "date": "2026-11-20", "computed_from": {"test": "t"}}
    recorded |= {"spread": {"exact_match": float(np.std(rates, ddof=1))}, "sigma_seed": {"exact_match": 0.013}}
    recorded |= {"right": dict(zip("123", right, strict=True)), "times_right": dict(zip(names, times, strict=True))}
    small.put(compare.SEEDS, json.dumps(recorded))
    small.put(record.DETAIL, '{"computed_from":{"test":"t"}}')


def test_recorded_trainings_are_judged_in_pairs_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.start(tmp_path, monkeypatch)
    put_seeds(["1" * 90 + "0" * 10, "1" * 88 + "0" * 12, "0" * 4 + "1" * 85 + "0" * 11])
    assert calibration.read(history.working_tree())[1].sum(axis=1).tolist() == [90, 88, 85]
    ran = CliRunner().invoke(calibration.main, ["--times=2"])
    assert ran.exit_code == 0, ran.output
    found = strict_json.read(tmp_path / calibration.OUT)
    assert (found["seeds"], found["recorded"]["n"], found["recorded"]["worse"]) == (3, 6, 0)
    assert (found["measured"], found["computed_from"]) == (0.013, {"test": "t"})
    assert {one["common"] for one in found["simulated"]} == {0.0, 0.01, 0.013, 0.02}
    assert len(found["simulated"]) == 4 * 3 * 2
    assert found["recorded"]["alone_worse"] == found["recorded"]["alone_better"]
    assert "| 0.013 | 0.05 | 3 |" in "\n".join(page.calibration(found))


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        (compare.SEEDS, '"right"', '"left"', "no answers by seed"),
        (compare.SEEDS, '"r99"', '"s"', "are of different test rows"),
        ("gate.yaml", "exact_match", "json_valid", "or no rule for it"),
    ],
)
def test_what_seeds_cannot_be_calibrated_by_is_named(
    file: str, old: str, new: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.start(tmp_path, monkeypatch)
    put_seeds(["1" * 90 + "0" * 10, "1" * 100, "0" + "1" * 99])
    small.edit(file, old, new)
    ran = CliRunner().invoke(calibration.main, ["--times=2"])
    assert (ran.exit_code, reason in ran.output) == (1, True)


@pytest.mark.parametrize("right", [["1" * 100] * 3, None])
def test_without_noise_it_is_refused(right: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.start(tmp_path, monkeypatch)
    if right:
        put_seeds(right)
    ran = CliRunner().invoke(calibration.main, ["--times=2"])
    assert (ran.exit_code, ran.stderr.count("\n")) == (1, 1)
