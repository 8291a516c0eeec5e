"""Scores and rates worked out by hand."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import SCHEMA, configure, invoke, read_json, read_rows, write_rows

from stages import evaluate
from stages.core import hashes, text
from stages.core.cli import InputError
from stages.data import contract
from stages.data.examples import Example
from stages.scores import provenance, scoring, stats
from stages.scores.scoring import Prediction, Score

RULES = contract.load(SCHEMA)
EXPECTED = {"action": "create", "title": "Review the report", "priority": "medium", "due_date": None}
LIST = {"action": "list", "filter": "all"}


def example(name: str = "t1", group: str = "", part: str = "", answer: dict[str, Any] = EXPECTED) -> Example:
    prompt = [{"role": "user", "content": f"review the report {name}"}]
    return Example(name, group or name, str(answer["action"]), prompt, json.dumps(answer), part)


def score(answer: str | dict[str, Any], asked: Example | None = None) -> Score:
    said = answer if isinstance(answer, str) else json.dumps(answer)
    return scoring.score(asked or example(), Prediction("t1", said, answer == "oops"), RULES)


@pytest.mark.parametrize(
    ("answer", "verdict", "matched"),
    [
        (EXPECTED, "exact", 4),
        (dict(reversed(EXPECTED.items())), "exact", 4),
        (EXPECTED | {"title": "review report!"}, "normalised", 3),
        (EXPECTED | {"priority": "high"}, "wrong", 3),
        (EXPECTED | {"priority": "Medium!"}, "off_contract", 3),
        (LIST, "wrong", 0),
        (EXPECTED | {"priority": "urgent"}, "off_contract", 3),
        (EXPECTED | {"extra": 1}, "off_contract", 4),
        ("```json\n" + json.dumps(EXPECTED) + "\n```", "not_json", 0),
        (json.dumps(EXPECTED) + " I hope this helps.", "not_json", 0),
        (json.dumps(EXPECTED)[:-1] + ', "title": "Review the report"}', "not_json", 0),
        ("", "not_json", 0),
        ("[" * 5000, "not_json", 0),
    ],
)
def test_verdicts(answer: str | dict[str, Any], verdict: str, matched: int) -> None:
    found = score(answer)
    assert (found.verdict, found.matched_fields, found.expected_fields) == (verdict, matched, 4)
    assert (found.predicted_kind, found.predicted_fields > 0) == (
        ("(invalid)", False) if verdict == "not_json" else (json.loads(str(found.prediction.answer))["action"], True)
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("The Budget-Review,  of a\u200bCAFE\u0301!", "budget review of café"),
        ("5€ 😀", "5€ 😀"),
        ("ＴＨＥ ﬁrst Straße", "first strasse"),  # noqa: RUF001
        ("?!", "?!"),
        ("-5.00", "-5.00"),
        (["An item", 1, None], ["item", 1, None]),
        ({"The key": {"b": "the B"}}, {"The key": {"b": "b"}}),
    ],
)
def test_loose_values_are_their_words_without_articles(value: Any, words: Any) -> None:
    text._SPACES.clear()  # filled as characters are met
    assert scoring.loose(value) == words


def test_fields_are_leaves_with_their_path() -> None:
    value = {"a": {"b": [1, True]}, "c": {}, "d": None}
    assert scoring.fields(value) == {("/a/b/0", "1"), ("/a/b/1", "true"), ("/c", "{}"), ("/d", "null")}


ANSWERS: list[str | dict[str, Any]] = [
    EXPECTED,
    EXPECTED | {"title": "Review report"},
    EXPECTED | {"priority": "high"},
    LIST,
    "oops",
]


def test_figures_by_hand() -> None:
    found = scoring.figures([score(answer, example(f"t{n}", part="head")) for n, answer in enumerate(ANSWERS)])
    assert found["n"] == 5
    assert found["json_valid"] == found["schema_valid"] == 0.8
    assert [scoring.counts("off_contract", metric) for metric in scoring.METRICS] == [False, False, False, True]
    assert found["exact_match"] == 0.2
    assert found["exact_match_normalised"] == 0.4
    assert found["action_accuracy"] == 0.6
    assert found["truncated"] == 0.2
    assert found["field_f1"] == pytest.approx(2 * (4 + 3 + 3 + 0 + 0) / (5 * 4 + 4 + 4 + 4 + 2 + 0))
    assert (found["exact_match_low"], found["exact_match_high"]) == stats.wilson(1, 5)
    slices = {name: list(part) for name, part in found["slices"].items()}
    assert slices == {"kind": ["create"], "turn": ["first"], "slice": ["head"]}
    assert found["slices"]["slice"]["head"] == scoring.rates([score(a, example(str(a))) for a in ANSWERS])


def test_without_a_discriminator_and_slices_there_are_no_such_figures(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}', "utf-8")
    asked = Example("a", "a", "", [{"role": "user", "content": "x"}], '{"x":[1]}', "")
    scores = [scoring.score(asked, Prediction("a", '{"x": [1]}', False), contract.load(tmp_path / "schema.json"))]
    found = scoring.figures(scores)
    assert (found["exact_match"], "action_accuracy" in found, list(found["slices"]["turn"])) == (1.0, False, ["first"])
    assert found["slices"]["kind"] == found["slices"]["slice"] == {}
    assert scoring.rates([*scores, score(EXPECTED)])["action_accuracy"] == 1.0  # where one row has a kind
    assert "action_accuracy" not in evaluate.headline({evaluate.TUNED: found}, found)


def test_intervals_know_of_conversations() -> None:
    """Answers of one conversation rise and fall together: half as many groups, a wider interval."""
    answers = [EXPECTED if n % 4 < 2 else LIST for n in range(80)]
    apart = [score(answer, example(str(n))) for n, answer in enumerate(answers)]
    paired = [score(answer, example(str(n), group=str(n // 2))) for n, answer in enumerate(answers)]
    f1 = [found["field_f1_high"] - found["field_f1_low"] for found in map(scoring.field_f1, (apart, paired))]
    gains = [evaluate.gain([score("no", each.example) for each in after], after) for after in (apart, paired)]
    assert f1[1] > 1.3 * f1[0]
    assert gains[1].high - gains[1].low > 1.3 * (gains[0].high - gains[0].low)


def test_where_all_is_right_no_interval_claims_certainty() -> None:
    right = [score(EXPECTED, example(str(n))) for n in range(20)]
    twice = [score(EXPECTED, example(str(n), group=str(n // 2))) for n in range(40)]
    none = [score("no", example(str(n))) for n in range(20)]
    for found, rate in ((right, 1.0), (twice, 1.0), (none, 0.0)):
        interval = stats.wilson(int(rate) * 20, 20)
        assert tuple(scoring.field_f1(found).values()) == (rate, *interval)
    same = evaluate.gain(right, right)
    bound = stats.wilson(0, 20)[1]
    assert (same.difference, same.low, same.high) == pytest.approx((0.0, -bound, bound))


def predictions(path: str, answers: dict[str, Any]) -> Path:
    lines = [{"id": name, "answer": json.dumps(answer), "truncated": False} for name, answer in answers.items()]
    return write_rows(Path(path), [line | {"prompt_tokens": 3, "answer_tokens": 4} for line in lines])


def run(**systems: dict[str, Any]) -> Result:
    """The stage on four test rows and three held-out rows, of which `tuned` answers one right."""
    rows = [example(f"t{n}", f"g{n}", "head" if n else "tail") for n in range(4)]
    held_out = [example(f"v{n}", answer=LIST) for n in range(3)]
    for name, answers in systems.items():
        predictions(f"predictions/{name}.jsonl", answers)
    Path("made_from.json").write_text(
        '{"adapter": "a", "base": "b", "versions": {"torch": "1", "numpy": "0"}}', "utf-8"
    )
    write_rows(Path("test.jsonl"), [row.line() for row in rows])
    write_rows(Path("valid.jsonl"), [row.line() for row in held_out])
    predictions("held_out.jsonl", {"v0": LIST, "v1": EXPECTED, "v2": EXPECTED})
    files = {name: f"{name}.jsonl" for name in ("test", "valid", "held_out", "outcomes")}
    files |= {"made_from": "made_from.json", "detail": "detail.json", "metrics": "headline.json"}
    files |= {"rates": "evaluate.json", "predictions": "predictions", "plots": "."}
    return invoke(evaluate.main, schema=SCHEMA, **files)


ONE_WRONG = {"t3": EXPECTED, "t1": EXPECTED, "t2": EXPECTED, "t0": LIST}
ALL_RIGHT = dict.fromkeys(ONE_WRONG, EXPECTED)
NO_JSON = dict.fromkeys(ONE_WRONG, "no")


def test_headline_figures(here: Path) -> None:
    ran = run(tuned=ONE_WRONG, few_shot=NO_JSON)
    assert (ran.exit_code, ran.stderr) == (0, "evaluate: tuned exact match 0.750 of 4 test rows\n")
    rates, detail = read_json(here / "evaluate.json"), read_json(here / "detail.json")
    gain, tuned = rates.pop("gain_over_few_shot"), detail["systems"]["tuned"]
    assert rates == {s: {name: part[name] for name in evaluate.RATES} for s, part in detail["systems"].items()}
    named = {"n", "exact_match", "exact_match_low", "exact_match_high", "json_valid", "schema_valid"}
    assert set(rates["tuned"]) == named | {"exact_match_normalised", "action_accuracy", "field_f1"}
    headline = read_json(here / "headline.json")
    others = {"exact_match_few_shot": 0, "exact_match_held_out": 1 / 3}
    assert headline == others | {name: tuned[name] for name in evaluate.RATES if name not in ("json_valid", "field_f1")}
    assert gain == {"exact_match": 0.75} | {name: detail["gain_over_few_shot"][name] for name in gain if name[0] != "e"}
    assert set(gain) == {"exact_match", "low", "high", "p_value"}


def test_held_out_figures_are_those_of_the_held_out_rows(here: Path) -> None:
    run(tuned=ONE_WRONG, constrained={})  # a system that is switched off
    assert set(read_json(here / "evaluate.json")) == {"tuned"}
    detail = read_json(here / "detail.json")
    assert set(detail) == {"systems", "held_out", "computed_from"}
    assert detail["systems"]["tuned"]["slices"]["slice"]["head"]["exact_match"] == 1.0
    held_out = detail["held_out"]["tuned"]
    assert (held_out["n"], held_out["exact_match"], list(held_out["slices"]["kind"])) == (3, 1 / 3, ["list"])
    assert set(detail["computed_from"]) == {"test", "schema", "adapter", "base", "versions"}
    known = {"test": hashes.of_file(here / "test.jsonl"), "schema": hashes.of_file(SCHEMA), "adapter": "a", "base": "b"}
    assert known.items() <= detail["computed_from"].items()
    measured = {name: version(name) for name in ("jsonschema", "llguidance", "numpy", "scipy")}
    assert detail["computed_from"]["versions"] == {"torch": "1"} | measured


def test_the_contract_of_the_params_tells_the_kinds(here: Path) -> None:
    configure(here, contract={"discriminator": "priority"})
    run(tuned=ONE_WRONG)
    assert (here / "confusion.csv").read_text("utf-8").startswith("expected,given\ncreate,(none)\ncreate,medium\n")


def test_an_answer_of_no_kind_is_of_the_kind_that_was_expected(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPECTED, "action", "")
    run(tuned=ALL_RIGHT)
    assert (here / "confusion.csv").read_text("utf-8") == "expected,given\n" + "(none),(none)\n" * 4


def test_outcomes_hold_all_that_a_reader_needs(here: Path) -> None:
    run(tuned=ONE_WRONG)
    wrong, right = read_rows(here / "outcomes.jsonl")[:2]
    known = {"id": "t0", "group": "g0", "kind": "create", "slice": "tail", "request": "review the report t0"}
    known |= {"expected": json.dumps(EXPECTED)}
    assert wrong == known | {"tuned": {"verdict": "wrong", "answer": json.dumps(LIST)}}
    assert right["tuned"] == {"verdict": "exact"}


def test_plots(here: Path) -> None:
    run(tuned=ONE_WRONG, few_shot=NO_JSON)
    low, high = stats.wilson(3, 4)
    assert (here / "systems.csv").read_text("utf-8").split("\n")[2] == f"tuned,0.75,{low},{high},4"
    assert (here / "by_kind.csv").read_text("utf-8") == f"kind,exact_match,low,high,n\ncreate,0.75,{low},{high},4\n"
    assert (here / "confusion.csv").read_text("utf-8").startswith("expected,given\ncreate,list\ncreate,create\n")


def test_a_further_system_changes_no_figure_of_the_others(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: sorted(glob(folder, pattern), reverse=True))
    run(tuned=ONE_WRONG, few_shot=NO_JSON)
    before = read_json(here / "evaluate.json")
    assert run(constrained=ALL_RIGHT, another=NO_JSON).exit_code == 0
    after, detail = read_json(here / "evaluate.json"), read_json(here / "detail.json")
    assert {name: after[name] for name in before} == before
    assert after["constrained"]["exact_match"] == 1.0
    assert set(after) == {*before, "constrained", "another"}
    assert detail["constrained_over_tuned"]["difference"] == 0.25
    assert [name for name in read_rows(here / "outcomes.jsonl")[0] if name not in evaluate.OUTCOME] == sorted(
        ["another", "constrained", "few_shot", "tuned"]
    )


@pytest.mark.parametrize(
    ("systems", "problem"),
    [
        ({"tuned": {"t1": EXPECTED}}, "predictions/tuned.jsonl: it answers other rows"),
        ({"few_shot": NO_JSON}, "tuned.jsonl is needed"),
        *(
            ({"tuned": ONE_WRONG, name: ONE_WRONG}, f"no system may be called {name}")
            for name in (
                "kind",
                "normalised",
                "held_out",
                "gain_over_few_shot",
                "constrained_over_tuned",
                "low",
                "high",
            )
        ),
    ],
)
def test_a_folder_that_can_not_be_scored_is_refused(here: Path, systems: dict[str, Any], problem: str) -> None:
    result = run(**systems)
    assert (result.exit_code, problem in result.output) == (1, True)


@pytest.mark.parametrize(
    "origin",
    [["adapter", "base", "versions"], {"adapter": "a", "versions": {}}, {"adapter": "a", "base": "b", "versions": []}],
)
def test_another_file_than_made_from_is_named(here: Path, origin: Any) -> None:
    (here / "made_from.json").write_text(json.dumps(origin), "utf-8")
    with pytest.raises(InputError, match=r"^made_from.json: an object with adapter, base, versions is expected$"):
        provenance.computed_from(Path("made_from.json"), ())


def test_a_file_that_predict_did_not_write_is_named(here: Path) -> None:
    write_rows(here / "predictions/other.jsonl", [{"id": "t0", "answer": 1, "truncated": False}])
    result = run(tuned=ONE_WRONG)
    assert (result.exit_code, result.output.startswith("Error: predictions/other.jsonl:1: ")) == (1, True)
