"""The gate on known truths: planted counts, changes that do nothing, rows that vanish, noise that was recorded."""

import json
from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import small
from conftest import ROOT, write_rows

from review import compare, kept
from review.changes import Listing
from review.compare import Check, Gate, Noise, Outcome, Rule
from stages.core.cli import InputError
from versions import history, record
from versions.record import Problem

RULE = Rule("tuned", "exact_match", 0.0, 0.0)
GATE = Gate(0.95, 30, False, 0.9, 0.02, (RULE,))


def rows(right: list[bool], groups: list[str] | None = None, **more: str) -> dict[str, Outcome]:
    names = [f"r{number}" for number in range(len(right))]
    texts = {"kind": "", "slice": "", "request": "", "expected": ""} | more
    return {
        name: Outcome(name, group, **texts, verdicts={"tuned": "exact" if hit else "wrong"}, answers={})
        for name, group, hit in zip(names, groups or names, right, strict=True)
    }


def holds(
    before: dict[str, Outcome], after: dict[str, Outcome], gate: Gate = GATE, known: Noise | None = None
) -> list[bool]:
    """Drop and floor of each rule."""
    checks = compare.judged(compare.paired(before, after), before, after, gate, known)
    return [check.holds for check in checks]


def gate(**changed: Any) -> Gate:
    return replace(GATE, rules=(replace(RULE, **changed),))


# Rules


def test_a_drop_fails_only_when_its_whole_interval_lies_beyond_the_tolerance() -> None:
    before = rows([True] * 300)
    assert holds(before, rows([False] * 40 + [True] * 260)) == [False, True]
    assert holds(before, rows([False] * 40 + [True] * 260), gate(tolerated_drop=0.15)) == [True, True]
    assert holds(before, rows([False] * 4 + [True] * 296), gate(tolerated_drop=0.02)) == [True, True]
    assert holds(before, rows([False] + [True] * 299)) == [True, True]  # its interval ends at 0


def test_a_floor_fails_only_when_its_whole_interval_lies_below() -> None:
    near, far = rows([True] * 232 + [False] * 68), rows([True] * 200 + [False] * 100)
    assert holds(near, near, gate(floor=0.8)) == [True, True]
    assert holds(far, far, gate(floor=0.8)) == [True, False]
    sound = rows([True] * 50)
    assert holds(sound, sound, gate(floor=1.0)) == [True, True]
    edge = rows([True] * 84 + [False] * 16)  # below 0.9 at 95%, not at the level of each look
    assert holds(edge, edge, gate(floor=0.9)) == [True, True]


def test_answers_of_one_conversation_are_one_piece_of_evidence() -> None:
    after = [False] * 12 + [True] * 188
    alone, together = (rows([True] * 200, groups) for groups in (None, [str(n // 12) for n in range(200)]))
    assert holds(alone, rows(after)) == [False, True]
    assert holds(together, rows(after, [str(n // 12) for n in range(200)])) == [True, True]


def test_each_rule_judges_its_own_system_and_metric() -> None:
    before = rows([True] * 200)
    after = {name: replace(row, verdicts={"tuned": "normalised", "few_shot": "exact"}) for name, row in before.items()}
    before = {name: replace(row, verdicts={"tuned": "exact", "few_shot": "exact"}) for name, row in before.items()}
    loose, other = replace(RULE, metric="exact_match_normalised"), replace(RULE, system="few_shot")
    judged = holds(before, after, replace(GATE, rules=(RULE, loose, other)))
    assert judged == [False, True, True, True, True, True]


@pytest.mark.parametrize(
    ("rules", "confidence", "level"), [(1, 0.95, 1 - 0.1 / 4), (2, 0.95, 1 - 0.1 / 6), (1, 0.9, 1 - 0.2 / 4)]
)
def test_more_looks_need_wider_intervals(rules: int, confidence: float, level: float) -> None:
    assert replace(GATE, rules=(RULE,) * rules, confidence=confidence).level == pytest.approx(level)


def failures(gate: Gate, fixed: float, regressed: float, times: int) -> int:
    """How many simulated changes fail. Systems are right on about 80% of 300 rows."""
    import numpy as np

    rng, count = np.random.default_rng(2026), 0
    for _ in range(times):
        kinds = rng.choice(4, size=300, p=[fixed, regressed, 0.8 - regressed, 0.2 - fixed])
        before, after = rows([kind in (1, 2) for kind in kinds]), rows([kind in (0, 2) for kind in kinds])
        count += not all(holds(before, after, gate))
    return count


def test_of_changes_that_do_nothing_at_most_one_in_twenty_fails_even_at_the_floor() -> None:
    assert failures(gate(floor=0.8), 0.1, 0.1, 200) <= 10


def test_most_drops_of_ten_points_are_caught() -> None:
    assert failures(gate(tolerated_drop=0.02), 0.05, 0.15, 60) >= 40


# Test rows that changed


@pytest.mark.parametrize("rewritten", [{}, rows([True] * 200, expected="b")])
def test_neither_deleting_nor_rewriting_failing_rows_lifts_a_model_over_a_floor(rewritten: dict[str, Outcome]) -> None:
    before = rows([True] * 100 + [False] * 100, expected="a")
    after = rewritten | {name: row for name, row in before.items() if row.verdicts["tuned"] == "exact"}
    assert holds(before, after, gate(floor=0.8)) == [True, False]


@pytest.mark.parametrize(
    "texts", [({"request": "a"}, {"request": "b"}), ({}, {"expected": "b"}), ({}, {"expected": ""})]
)
def test_a_row_with_another_text_or_none_is_another_row(texts: tuple[dict[str, str], dict[str, str]]) -> None:
    before, after = (rows([True], None, **{"expected": "x"} | each) for each in texts)
    found = compare.paired(before, after)
    assert (found.both, found.edited) == ([], ["r0"])


def test_rows_of_old_files_are_known_by_their_id() -> None:
    before, after = rows([True] * 3), rows([True] * 2, expected="x")
    after["new"] = replace(after["r0"], id="new")
    found = compare.paired(before, after)
    ids = [old.id for old, _ in found.both]
    assert (ids, found.removed, found.added, found.edited) == (["r0", "r1"], ["r2"], ["new"], [])


# Retraining noise


NOISE = Noise(8, date(2026, 11, 20), {"exact_match": 0.02})


def measured(before: list[bool], after: list[bool], known: Noise | None, **changed: Any) -> compare.Metric:
    pairs = list(zip(rows(before).values(), rows(after).values(), strict=True))
    return compare.measured(pairs, replace(RULE, **changed), 0.95, known)


def test_the_interval_of_a_retraining_is_that_of_the_larger_noise() -> None:
    from scipy.stats import norm, t

    before, after = [True] * 300, [True] * 280 + [False] * 20
    wide = measured(before, after, NOISE)
    half = t.ppf(0.975, 7) * (2 * 0.02**2) ** 0.5
    assert (wide.result.low, wide.result.high) == pytest.approx((-1 / 15 - half, -1 / 15 + half))
    assert wide.result.detectable == pytest.approx(half + norm.ppf(0.8) * (2 * 0.02**2) ** 0.5)
    assert wide.result.p_value == pytest.approx(2 * t.sf(1 / 15 / (2 * 0.02**2) ** 0.5, 7))
    quiet = measured(before, after, replace(NOISE, spread={"exact_match": 0.0001})).result
    by_row = (20 / 300 * 280 / 300 / 300) ** 0.5
    assert quiet.high - quiet.low == pytest.approx(2 * t.ppf(0.975, 7) * by_row)
    fewer = measured(before, after, replace(NOISE, n=1200)).result
    assert fewer.high - fewer.low == pytest.approx(4 * half)
    talks = (rows(side, [str(number // 2) for number in range(300)]) for side in (before, after))
    pairs = list(zip(*(side.values() for side in talks), strict=True))
    twos = compare.measured(pairs, RULE, 0.95, replace(NOISE, spread={"exact_match": 0.0001})).result
    assert twos.high - twos.low == pytest.approx(2 * t.ppf(0.975, 7) * 2**0.5 * by_row)


def test_noise_of_nothing_claims_no_certainty() -> None:
    still = measured([True] * 300, [True] * 300, replace(NOISE, spread={"exact_match": 0.0})).result
    assert still == measured([True] * 300, [True] * 300, None).result
    assert still.high > 0 < still.detectable


def test_better_and_worse_are_about_the_retraining_and_the_two_models_stand_beside() -> None:
    before, after = [True] * 300, [True] * 280 + [False] * 20
    assert measured(before, after, None).result.evidence == "worse"
    wider = replace(NOISE, spread={"exact_match": 0.03})
    wide = measured(before, after, wider)
    assert wide.result.evidence == "no evidence"
    assert wide.alone is not None and wide.alone[1] < 0
    quiet = replace(NOISE, spread={"exact_match": 0.015})
    assert measured(before, after, quiet).result.evidence == "worse"
    assert measured(after, before, quiet).result.evidence == "better"
    edge = replace(NOISE, spread={"exact_match": 0.017})  # worse at 95%, not at the level of each look
    drops = [holds(rows(before), rows(after), known=known)[0] for known in (None, wider, quiet, edge)]
    assert drops == [False, True, False, True]


@pytest.mark.parametrize("changed", [{"metric": "json_valid"}, {"system": "few_shot"}])
def test_noise_counts_for_what_it_was_measured_on(changed: dict[str, Any]) -> None:
    row = replace(rows([True])["r0"], verdicts={"tuned": "exact", "few_shot": "exact"})
    assert compare.measured([(row, row)] * 3, replace(RULE, **changed), 0.95, NOISE).alone is None


RIGHT: dict[str, tuple[bool, ...]] = {"r0": (True, True), "r1": (True, False), "r2": (False, False), "r3": (True, True)}


def averaged(known: Noise | None, own: Noise | None, **changed: Any) -> compare.Metric | None:
    sides = rows([True, True, False, True]), rows([True, True, True, True])
    pairs = list(zip(*(side.values() for side in sides), strict=True))
    return compare.averaged(pairs, replace(RULE, **changed), 0.95, known, own)


def test_the_trainings_that_a_side_recorded_of_itself_count_as_their_mean() -> None:
    quiet = replace(NOISE, n=4, spread={"exact_match": 0.2}, seeds=2)
    own = replace(quiet, right=RIGHT)
    one, both = averaged(own, None), averaged(own, own)
    assert one is not None and both is not None
    assert (one.part, both.part) == ("mean of 2 and 1 trainings", "mean of 2 and 2 trainings")
    assert (one.result.before, one.result.after, both.result.difference) == (0.625, 1.0, 0)
    assert (one.result.fixed, one.result.regressed, one.result.detectable) == (1, 0, 1.0)
    assert both.result.high == pytest.approx(12.706 * 0.2, rel=1e-3)
    assert one.result.high == pytest.approx(0.375 + 12.706 * 0.2 * 1.5**0.5, rel=1e-3)
    alone = measured([True] * 4, [True] * 4, quiet).result
    assert alone.high == pytest.approx(12.706 * 0.2 * 2**0.5, rel=1e-3)
    assert averaged(own, None, metric="json_valid") == one, "trainings record what was exact"


def test_without_trainings_of_its_own_no_mean_is_told() -> None:
    listed = replace(NOISE, right=RIGHT)
    assert averaged(NOISE, None) is None
    assert averaged(None, listed) is None, "a change is not believed about noise"
    assert averaged(replace(NOISE, right={"r0": (True, True)}), None) is None
    assert averaged(listed, None, system="few_shot") is None


# Read from Git


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return small.start(tmp_path, monkeypatch)


def tree(path: str, text: str | bytes | None) -> str:
    """The working folder with one file changed, or removed, as a tree."""
    if text is None:
        Path(path).unlink()
    else:
        small.put(path, text)
    return history.working_tree()


def test_a_version_has_its_own_gate(base: str) -> None:
    found = compare.gate_of(tree("gate.yaml", small.GATE.replace("floor: 0.5", "floor: 0.25")))
    assert found == Gate(0.95, 30, False, 0.9, 0.02, (Rule("tuned", "exact_match", 0.02, 0.25),))
    shipped = (ROOT / "gate.yaml").read_bytes()
    assert compare.gate_of(tree("gate.yaml", shipped)).rules


def test_a_version_without_rules_is_judged_by_todays(base: str) -> None:
    without = tree("gate.yaml", None)
    small.put("gate.yaml", small.GATE.replace("min_shared: 30", "min_shared: 7"))
    assert compare.gate_of(without).min_shared == 7


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("metric: exact_match", "metric: field_f1"),
        ("metric: exact_match", "metric: exact_match, note: x"),
        ("confidence: 0.95", "confidence: 1"),
        ("confidence: 0.95", "confidence: '0.95'"),
        ("floor: 0.5", "floor: '0.5'"),
        ("min_shared: 30", "min_shared: 0"),
        ("  - {system", "  #- {system"),
        ("min_shared: 30", "min_shared: 30\nextra: 1"),
        ("floor: 0.5", "floor: .nan"),
        ("rules:", "rules: &a [*a]\nother:"),
        *((f"{knob}: 0", f"{knob}: 50") for knob in ("tolerated_drop", "floor", "minimum_functionality")),
        ("tolerated_retention_drop: 0", "tolerated_retention_drop: 50"),
    ],
)
def test_a_gate_that_can_not_be_read_is_refused(base: str, old: str, new: str) -> None:
    assert old in small.GATE
    with pytest.raises(InputError, match=r"^the gate of [0-9a-f]{7}: "):
        compare.gate_of(tree("gate.yaml", small.GATE.replace(old, new)))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id":"a","tuned":{"verdict":"good"}}', ":2: .*good"),
        ('{"id":"a","tuned":{"verdict":["exact"]}}', ":2: "),
        ('{"id":"a"}', "a has no verdict of tuned"),
        ('{"id":"a","few_shot":{"verdict":"exact"}}', "a has no verdict of tuned"),
        ('{"tuned":{"verdict":"exact"}}', ":2: 'id'"),
        ('{"id":"b","tuned":{"verdict":"exact"}}', ":2: id 'b' occurs twice"),
        ('{"id":"a","tuned":{"verdict":NaN}}', ":2: NaN"),
        ('["a"]', ":2: "),
        ("\n", ":2: "),
        (None, "missing or empty"),
    ],
)
def test_outcomes_that_evaluate_would_not_write_are_refused(base: str, line: str | None, reason: str) -> None:
    text = line and '{"id":"b","tuned":{"verdict":"exact"}}\n' + line + "\n"
    with pytest.raises(InputError, match=f"^{small.OUTCOMES}{'' if reason.startswith(':') else ': '}{reason}"):
        compare.outcomes(tree(small.OUTCOMES, text), ["tuned"])


def test_a_request_of_several_turns_is_one_text(base: str) -> None:
    line = small.outcome(1, False, request=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    del line["group"]  # which old files lack
    found = compare.outcomes(tree(small.OUTCOMES, json.dumps(line)), ["tuned"])["r1"]
    assert (found.request, found.expected, found.answers) == ("a ⏎ b", small.RIGHT, {"tuned": small.WRONG})
    assert (found.group, found.kind, found.slice) == ("r1", "list", "")


RECORDED = {"seeds": 8, "date": "2026-11-20", "spread": {"exact_match": 0.02}}
RECORDED |= {"computed_from": {"test": "t"}, "times_right": {"a": 0, "b": 8, "c": 7, "d": 1}}


@pytest.mark.parametrize(
    "changed",
    [
        {"seeds": 1},
        {"seeds": None},
        {"date": "yesterday"},
        {"spread": [1]},
        {"spread": {"exact_match": "x"}},
        {"spread": {"exact_match": "inf"}},
        {"computed_from": {"test": "other"}},
        {"computed_from": {}},
        {"times_right": {"a": "x"}},
    ],
)
def test_noise_that_is_not_of_these_test_rows_is_none(base: str, changed: dict[str, Any]) -> None:
    small.put(record.DETAIL, '{"computed_from":{"test":"t"}}')
    assert compare.noise(tree(compare.SEEDS, json.dumps(RECORDED))) == replace(NOISE, restless=frozenset("cd"), n=4)
    assert compare.noise(tree(compare.SEEDS, json.dumps(RECORDED | changed))) is None


@pytest.mark.parametrize(
    ("adapter", "digits", "listed"),
    [("a", ["01", "11"], True), ("b", ["01", "11"], False), ("a", ["01"], False), (None, ["01", "11"], False)],
)
def test_trainings_belong_to_their_version(base: str, adapter: str | None, digits: list[str], listed: bool) -> None:
    made_from = {"test": "t"} | ({"adapter": "a"} if adapter else {})
    small.put(record.DETAIL, json.dumps({"computed_from": made_from}))
    recorded = RECORDED | {"seeds": 2, "times_right": {"q": 1, "p": 2}, "right": dict(zip("56", digits, strict=False))}
    recorded["computed_from"] = {"test": "t", "adapter": adapter}
    found = compare.noise(tree(compare.SEEDS, json.dumps(recorded)))
    assert found is not None
    assert found.right == ({"p": (False, True), "q": (True, True)} if listed else {})


# What must not be lost


def kept_of(kind: type[Any], before: str, after: str, gate: Gate = GATE) -> list[Any]:
    return [found for found in kept.judged(before, after, gate) if isinstance(found, kind)]


def limit(**changed: Any) -> dict[str, Any]:
    return {"what": "lost", "value": 0.01, "low": 0.0, "high": 0.02, "limit": 0.05, "n": 100, "holds": True} | changed


def limits(*listed: dict[str, Any]) -> str:
    return tree(kept.LIMITS[0], json.dumps({"limits": listed}))


def test_the_stricter_limit_counts_and_the_stage_is_not_asked(base: str) -> None:
    before = limits(limit())
    beyond = limit(value=0.2, low=0.06, high=0.3)
    for head in (beyond, beyond | {"limit": 0.9}, limit(low=0.01, limit=0.005)):
        [check] = kept_of(Check, before, limits(head))
        assert not check.holds
    words = "0.010 [0.000, 0.020]", "0.100 [0.050, 0.300]", "at most 0.05"
    assert kept_of(Check, before, limits(limit(low=0.05, value=0.1, high=0.3))) == [Check("lost", *words, holds=True)]
    copied = tree("metrics/detail/memorisation.json", json.dumps({"limits": [beyond | {"what": "copied"}]}))
    assert [check.before for check in kept_of(Check, before, copied)][1:] == ["not measured"]


@pytest.mark.parametrize("before", [{"limits": [limit(low=0.3, value=0.4, high=0.5)]}, {"limits": 7}])
def test_what_the_base_lost_or_broke_does_not_fail_a_change_that_mends_it(base: str, before: dict[str, Any]) -> None:
    found = tree(kept.LIMITS[0], json.dumps(before)), limits(limit())
    assert kept_of(Problem, *found) == []
    assert [check.holds for check in kept_of(Check, *found)] == [True]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ([limit(n=99)], "lost: measured on 100 rows before, on 99 now"),
        ([], "on 0 now"),
        ([limit(what="another")], "on 0 now"),
        ([limit(low="0")], "limits: "),
    ],
)
def test_measuring_less_is_a_problem(base: str, head: list[Any], reason: str) -> None:
    before = limits(limit())
    assert [reason in problem.reason for problem in kept_of(Problem, before, limits(*head))] == [True]


def questions(right: list[bool]) -> str:
    lines = [{"id": str(number), "tuned": {"right": hit}} for number, hit in enumerate(right)]
    write_rows(Path(kept.QUESTIONS), lines)
    return history.working_tree()


def test_general_questions_are_judged_by_what_the_change_did_to_them(base: str) -> None:
    low, lower = questions([True] * 60 + [False] * 120), questions([True] * 40 + [False] * 140)
    assert [check.holds for after in (low, lower) for check in kept_of(Check, low, after)] == [True, False]
    edge = replace(GATE, tolerated_retention_drop=0.064)  # broken at 95%, not at the level of each look
    assert [check.holds for check in kept_of(Check, low, lower, edge)] == [True]


def test_a_question_that_was_rewritten_under_its_id_is_not_compared(base: str) -> None:
    sides = []
    for hard, right in (("Why?", 60), ("What is 1 + 1?", 60), ("What is 1 + 1?", 20)):
        write_rows(Path(kept.ITEMS), [{"id": str(n), "question": hard if n < 40 else "?"} for n in range(180)])
        lines = [{"id": str(n), "answer": 1, "tuned": {"right": n < right}} for n in range(180)]
        write_rows(Path(kept.QUESTIONS), lines)
        sides.append(history.working_tree())
    easy, drop = ([check.after[:5] for check in kept_of(Check, old, new)] for old, new in pairwise(sides))
    assert (easy, drop) == (["0.143"], ["0.111"])  # 20 of 140, 20 of 180


def test_questions_that_were_all_rewritten_are_not_measured_any_more(base: str) -> None:
    sides = []
    for question in ("Why?", "What is 1 + 1?"):
        write_rows(Path(kept.ITEMS), [{"id": str(n), "question": question} for n in range(60)])
        write_rows(Path(kept.QUESTIONS), [{"id": str(n), "answer": 1, "tuned": {"right": True}} for n in range(60)])
        sides.append(history.working_tree())
    before, after = sides
    assert kept_of(Problem, before, after) == [Problem(kept.QUESTIONS, "no question of the base is asked as it was")]
    assert kept_of(Problem, before, after, replace(GATE, allow_removed_test_rows=True)) == []
    write_rows(Path(kept.ITEMS), [{"question": "Why?", "id": str(n)} for n in range(60)])  # other keys first
    assert kept_of(Problem, before, history.working_tree()) == []


def test_questions_that_are_not_asked_any_more_are_a_problem(base: str) -> None:
    before, after = questions([True] * 60), questions([True] * 53)
    words = "7 rows that the base has are gone: 53, 54, 55, 56, 57, …"
    assert kept_of(Problem, before, after) == [Problem(kept.QUESTIONS, words)]
    assert kept_of(Problem, before, after, replace(GATE, allow_removed_test_rows=True)) == []


def behaviours(passed: list[Any], capability: str = "minimum-dates") -> str:
    lines = [
        {"id": str(number), "capability": capability, "passed": hit, "requests": ["first", f"ask {number}"]}
        | {"answers": ["", f"said {number}"], "expected": "x"}
        for number, hit in enumerate(passed)
    ]
    write_rows(Path(kept.BEHAVIOURS), lines)
    return history.working_tree()


def test_minimum_functionality_has_a_floor_and_lists_what_fails_now(base: str) -> None:
    before, after = behaviours([True] * 100), behaviours([False] * 25 + [True] * 75)
    assert [(check.what, check.holds) for check in kept_of(Check, before, after)] == [("minimum functionality", False)]
    assert [check.holds for check in kept_of(Check, before, after, replace(GATE, minimum_functionality=0.7))] == [True]
    regressed = kept_of(Listing, before, after)[0]
    assert (regressed.title, len(regressed.entries)) == ("Regressed behaviours", 25)
    texts = [(line.label, line.text) for line in regressed.entries[0]]
    assert texts == [("", "0 minimum-dates"), ("request", "first → ask 0"), ("expected", "x"), ("given", "said 0")]
    edge = behaviours([True] * 84 + [False] * 16)
    assert [check.holds for check in kept_of(Check, edge, edge)] == [True]


def test_behaviours_of_every_capability_are_missed(base: str) -> None:
    before, after = (behaviours([False] * n, "invariance-typo") for n in (50, 45))
    words = "5 rows that the base has are gone: 45, 46, 47, 48, 49"
    assert kept_of(Problem, before, after) == [Problem(kept.BEHAVIOURS, words)]


@pytest.mark.parametrize("left", [75, 0])
def test_behaviours_that_are_taken_away_are_a_problem_and_lift_no_model(base: str, left: int) -> None:
    failing, fewer = behaviours([True] * 75 + [False] * 25), behaviours([True] * left)
    [problem] = kept_of(Problem, failing, fewer)
    assert problem.file == kept.BEHAVIOURS
    assert problem.reason.startswith(f"{100 - left} rows that the base has are gone: ")
    allowed = replace(GATE, allow_removed_test_rows=True)
    assert kept_of(Problem, failing, fewer, allowed) == []
    assert [check.holds for check in kept_of(Check, failing, fewer, allowed)] == [False]


def test_minimum_functionality_that_is_rewritten_counts_as_it_came_out_before(base: str) -> None:
    failing = behaviours([True] * 75 + [False] * 25)
    behaviours([True] * 100)
    easier = Path(kept.BEHAVIOURS).read_text(encoding="utf-8").replace('"expected": "x"', '"expected": "y"')
    assert [check.holds for check in kept_of(Check, failing, tree(kept.BEHAVIOURS, easier))] == [False]


@pytest.mark.parametrize(
    ("passed", "capability", "holds"),
    [(True, "minimum-x", [True]), (False, "invariance-typo", [])]
    + [(odd, "minimum-x", [False]) for odd in (False, 1, "yes", None)],
)
def test_only_true_passes_and_others_have_no_floor(base: str, passed: Any, capability: str, holds: list[bool]) -> None:
    same = behaviours([passed] * 50, capability)
    assert [check.holds for check in kept_of(Check, same, same)] == holds


@pytest.mark.parametrize("line", [{"id": "a"}, {"id": "a", "capability": "minimum-x", "requests": []}, [], 7])
def test_lines_of_another_shape_are_a_problem(base: str, line: Any) -> None:
    assert len(kept_of(Problem, base, tree(kept.BEHAVIOURS, json.dumps(line)))) == 1
