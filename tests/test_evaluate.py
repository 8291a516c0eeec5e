"""Scores worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import SCHEMA, write_rows

from stages import evaluate
from stages.shared import contract

RULES = contract.load(SCHEMA)
EXPECTED = {"action": "create", "title": "Review the report", "priority": "medium", "due_date": None}


def example(name: str = "t1", **change: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": "review the report"}]
    found = {"id": name, "group": name, "kind": "create", "prompt": prompt, "answer": json.dumps(EXPECTED)}
    return found | change


def said(answer: str | dict[str, Any]) -> dict[str, Any]:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return {"id": "t1", "answer": text, "prompt_tokens": 3, "answer_tokens": 4, "truncated": False}


@pytest.mark.parametrize(
    ("answer", "verdict", "hits"),
    [
        (EXPECTED, "exact", 4),
        (dict(reversed(EXPECTED.items())), "exact", 4),
        (EXPECTED | {"title": "review report!"}, "normalised", 3),
        (EXPECTED | {"priority": "high"}, "wrong", 3),
        (EXPECTED | {"priority": "Medium!"}, "off_contract", 3),
        ({"action": "list", "filter": "all"}, "wrong", 0),
        (EXPECTED | {"priority": "urgent"}, "off_contract", 3),
        (EXPECTED | {"extra": 1}, "off_contract", 4),
        ("```json\n" + json.dumps(EXPECTED) + "\n```", "not_json", 0),
        (json.dumps(EXPECTED) + " I hope this helps.", "not_json", 0),
        (json.dumps(EXPECTED)[:-1] + ', "title": "Review the report"}', "not_json", 0),
        ("", "not_json", 0),
        ("[" * 5000, "not_json", 0),
    ],
)
def test_verdicts(answer: str | dict[str, Any], verdict: str, hits: int) -> None:
    scored = evaluate.score(example(), said(answer), RULES)
    assert (scored.verdict, scored.hits, scored.wanted) == (verdict, hits, 4)


def test_fields_are_leaves_with_their_path() -> None:
    value = {"a": {"b": [1, True]}, "c": {}, "d": None}
    assert evaluate.fields(value) == {("/a/b/0", "1"), ("/a/b/1", "true"), ("/c", "{}"), ("/d", "null")}


def test_figures_by_hand() -> None:
    wrong = EXPECTED | {"priority": "high"}
    answers: list[str | dict[str, Any]] = [
        EXPECTED,
        EXPECTED | {"title": "Review report"},
        wrong,
        {"action": "list", "filter": "all"},
        "oops",
    ]
    scored = [evaluate.score(example(f"t{n}"), said(answer), RULES) for n, answer in enumerate(answers)]
    found = evaluate.figures(scored, evaluate.Params(200, 1))
    assert found["n"] == 5
    assert found["json_valid"] == found["schema_valid"] == 0.8
    assert found["exact_match"] == 0.2
    assert found["exact_match_normalised"] == 0.4
    assert found["action_accuracy"] == 0.6
    assert found["field_f1"] == pytest.approx(2 * (4 + 3 + 3 + 0 + 0) / (5 * 4 + 4 + 4 + 4 + 2 + 0))
    assert found["slices"]["action"]["create"]["n"] == 5
    assert found["exact_match_low"] < 0.2 < found["exact_match_high"]


def test_gain_is_paired() -> None:
    before = [evaluate.score(example(f"t{n}"), said("no"), RULES) for n in range(40)]
    after = [evaluate.score(example(f"t{n}"), said(EXPECTED if n < 30 else "no"), RULES) for n in range(40)]
    found = evaluate.gain(before, after, evaluate.Params(500, 1))
    assert found["exact_match"] == 0.75
    assert 0.55 < found["low"] < 0.75 < found["high"] < 0.95
    assert found["p_value"] == pytest.approx(2 / 2**30)


def run(folder: Path, tuned: list[dict[str, Any]], constrained: list[dict[str, Any]] | None = None) -> Result:
    rows = [example(f"t{n}") for n in range(4)]
    write_rows(folder / "rows.jsonl", rows)
    weak = [said("no") | {"id": row["id"]} for row in rows]
    write_rows(folder / "weak.jsonl", weak)
    write_rows(folder / "tuned.jsonl", tuned)
    write_rows(folder / "constrained.jsonl", constrained or [])
    (folder / "made_from.json").write_text('{"adapter": "a", "base": "b", "versions": {"torch": "1"}}', "utf-8")
    files = {
        "test": "rows.jsonl",
        "valid": "rows.jsonl",
        "schema": str(SCHEMA),
        "zero-shot": "weak.jsonl",
        "few-shot": "weak.jsonl",
        "tuned": "tuned.jsonl",
        "constrained": "constrained.jsonl",
        "tuned-valid": "tuned.jsonl",
        "made-from": "made_from.json",
        "metrics": "evaluate.json",
        "outcomes": "outcomes.jsonl",
        "confusion": "confusion.csv",
        "by-action": "by_action.csv",
    }
    options = [part for name, value in files.items() for part in (f"--{name}", value)]
    return CliRunner().invoke(evaluate.main, options)


def test_the_stage_writes_metrics_outcomes_and_plots(here: Path) -> None:
    tuned = [said(EXPECTED) | {"id": f"t{n}"} for n in (3, 1, 2)] + [
        said({"action": "list", "filter": "all"}) | {"id": "t0"}
    ]
    assert run(here, tuned).exit_code == 0
    metrics = json.loads((here / "evaluate.json").read_text(encoding="utf-8"))
    assert metrics["gain_over_few_shot"]["exact_match"] == 0.75
    assert set(metrics["computed_from"]) == {"test", "schema", "adapter", "base", "versions"}
    outcomes = [json.loads(line) for line in (here / "outcomes.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["tuned"]["verdict"] for row in outcomes] == ["wrong", "exact", "exact", "exact"]
    assert outcomes[0]["tuned"]["answer"] == '{"action": "list", "filter": "all"}'
    assert "answer" not in outcomes[1]["tuned"]
    assert (here / "confusion.csv").read_text(encoding="utf-8").split("\n")[1] == "create,list"
    first = (here / "evaluate.json").read_bytes()
    run(here, tuned)
    assert (here / "evaluate.json").read_bytes() == first


def test_the_constrained_system_is_one_more_where_it_has_answers(here: Path) -> None:
    tuned = [said(EXPECTED if n else "oops") | {"id": f"t{n}"} for n in range(4)]
    run(here, tuned)
    without = json.loads((here / "evaluate.json").read_text(encoding="utf-8"))
    first = json.loads((here / "outcomes.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert run(here, tuned, [said(EXPECTED) | {"id": f"t{n}"} for n in range(4)]).exit_code == 0
    metrics = json.loads((here / "evaluate.json").read_text(encoding="utf-8"))
    assert set(metrics["constrained"]) == set(metrics["tuned"])
    assert metrics["constrained"]["exact_match"] == 1.0
    assert metrics["constrained_over_tuned"]["exact_match"] == 0.25
    assert "llguidance" in metrics["computed_from"]["versions"]
    assert {name: metrics[name] for name in without if name != "computed_from"} == {
        name: without[name] for name in without if name != "computed_from"
    }
    outcome = json.loads((here / "outcomes.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert outcome == first | {"constrained": {"verdict": "exact"}}
    assert {"constrained", "constrained_over_tuned"} & set(without) == set()


def test_answers_for_other_rows_are_refused(here: Path) -> None:
    result = run(here, [said(EXPECTED)])
    assert result.exit_code == 1
    assert "tuned.jsonl" in result.output
