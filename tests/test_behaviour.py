"""A test passes on the right answer only, and a bad row is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import SCHEMA, invoke, read_json, read_rows, write_rows

from stages import behaviour
from stages.core.cli import InputError
from stages.data import behaviours, contract
from stages.scores import stats

RULES = contract.load(SCHEMA)
HENS = {"action": "create", "title": "Feed hens", "priority": "medium", "due_date": None}
MINIMUM = {"id": "m1", "instruction": "Remind me to feed the hens", "output": json.dumps(HENS)}
INVARIANCE = {"id": "i1", "instruction": "Feed the hens", "variant": "feed the hens"}
DIRECTIONAL = INVARIANCE | {"id": "x1", "variant": "feed the hens, urgent", "changes": {"priority": "high"}}
FILES: dict[str, list[Any]] = {"minimum-create": [MINIMUM], "invariance-case": [INVARIANCE]}
FILES |= {"directional-urgent": [DIRECTIONAL]}


def write(files: dict[str, list[Any]]) -> Path:
    for name, rows in files.items():
        write_rows(Path("tests") / f"{name}.jsonl", rows)
    return Path("tests")


def case(here: Path, kind: str) -> behaviours.Case:
    return next(case for case in behaviours.read(write(FILES), RULES) if case.kind == kind)


def compact(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize(
    ("kind", "answers", "passed"),
    [
        ("minimum", [HENS], True),
        ("minimum", [dict(reversed(HENS.items()))], True),
        ("minimum", [HENS | {"title": "feed hens"}], False),
        ("minimum", ["no"], False),
        ("invariance", [HENS, HENS], True),
        ("invariance", [HENS, HENS | {"title": "feed hens"}], False),
        ("invariance", ["no", "no"], False),  # nothing was answered either time
        ("directional", [HENS, HENS | {"priority": "high"}], True),
        ("directional", [HENS, HENS], False),
        ("directional", [HENS, HENS | {"priority": "high", "due_date": "today"}], False),
        ("directional", ["no", HENS | {"priority": "high"}], False),
    ],
)
def test_what_passes(here: Path, kind: str, answers: list[Any], passed: bool) -> None:
    texts = [answer if isinstance(answer, str) else json.dumps(answer) for answer in answers]
    assert behaviour.judge(case(here, kind), texts).passed is passed


def test_an_outcome_shows_requests_answers_and_what_was_expected(here: Path) -> None:
    found = behaviour.judge(case(here, "directional"), [compact(HENS), "no"])
    assert (found.requests, found.answers) == (["Feed the hens", "feed the hens, urgent"], [compact(HENS), "no"])
    assert found.expected == compact(HENS | {"priority": "high"})


def test_each_answer_of_a_conversation_is_a_test(here: Path) -> None:
    turns = [{"role": "user", "content": "hens"}, {"role": "assistant", "content": compact(HENS)}]
    folder = write({"minimum-turns": [{"id": "m", "conversations": turns * 2}]})
    assert [example.id for case in behaviours.read(folder, RULES) for example in case.examples] == ["m#1", "m#2"]


def test_two_variants_of_a_request_need_no_ids(here: Path) -> None:
    pairs = [{"instruction": "Feed the hens", "variant": variant} for variant in ("feed the hens", "FEED THE HENS")]
    found = behaviours.read(write({"invariance-case": [*pairs, pairs[0] | {"id": 7}]}), RULES)
    assert len({case.id for case in found}) == 3
    assert [example.id for example in found[2].examples] == ["7", "7~variant"]


def test_tests_are_in_the_order_of_their_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: sorted(glob(folder, pattern), reverse=True))
    assert [case.capability for case in behaviours.read(write(FILES), RULES)] == sorted(FILES)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"minimum-a": [{"instruction": "a"}]}, "minimum-a.jsonl:1: 'output' is missing"),
        ({"minimum-a": [MINIMUM | {"output": '{"action":"fly"}'}]}, "minimum-a.jsonl:1: answer: "),
        ({"invariance-a": [{"instruction": "a"}]}, "invariance-a.jsonl:1: 'instruction' and 'variant'"),
        ({"invariance-a": [INVARIANCE | {"variant": " "}]}, "invariance-a.jsonl:1: 'instruction' and 'variant'"),
        ({"invariance-a": [DIRECTIONAL]}, "invariance-a.jsonl:1: 'changes' must be"),
        ({"invariance-a": [INVARIANCE | {"input": "x"}]}, "invariance-a.jsonl:1: field 'input' is not read"),
        ({"directional-a": [INVARIANCE]}, "directional-a.jsonl:1: 'changes' must be"),
        ({"directional-a": [DIRECTIONAL | {"changes": "high"}]}, "directional-a.jsonl:1: 'changes' must be"),
        ({"invariance-a": ["a"]}, "invariance-a.jsonl:1: an object is expected"),
        ({"invariance-a": ["a"] * 22}, "... and 2 more"),
        ({"invariance-a": ["a"]}, "Delete its *.jsonl files then, all of them"),
        ({"invariance-a": [INVARIANCE], "invariance-b": [INVARIANCE]}, "id 'i1' occurs 2 times"),
        ({"speed-a": [INVARIANCE]}, "speed-a.jsonl: a name that begins with minimum-"),
    ],
)
def test_a_bad_row_is_named(here: Path, files: dict[str, list[Any]], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        behaviours.read(write(files), RULES)
    assert problem in caught.value.message


def run(answers: dict[str, Any]) -> Result:
    lines = [{"id": name, "answer": json.dumps(answer), "truncated": False} for name, answer in answers.items()]
    Path("made_from.json").write_text('{"adapter": "a", "base": "b", "versions": {"torch": "1"}}', "utf-8")
    write_rows(Path("answers.jsonl"), lines)
    files = {name: f"{name}.json" for name in ("made_from", "metrics", "detail")}
    files |= {"answers": "answers.jsonl", "outcomes": "outcomes.jsonl"}
    return invoke(behaviour.main, tests="tests", schema=SCHEMA, **files)


def test_the_stage_writes_rates_by_kind_and_by_capability(here: Path) -> None:
    write(FILES | {"minimum-created": [MINIMUM | {"id": "m2"}]})
    answers = {"m1": HENS, "m2": "no", "i1": HENS, "i1~variant": HENS, "x1": HENS, "x1~variant": HENS}
    assert "minimum 0.500 of 2, invariance 1.000 of 1, " in run(answers).output
    low = stats.wilson(1, 2)[0]
    assert read_json(here / "metrics.json") == {
        **{"minimum": 0.5, "minimum_low": low, "minimum_n": 2},
        **{"invariance": 1.0, "invariance_low": stats.wilson(1, 1)[0], "invariance_n": 1},
        **{"directional": 0.0, "directional_low": 0.0, "directional_n": 1},
    }
    detail = read_json(here / "detail.json")
    assert {name: part["passed"] for name, part in detail["capabilities"].items()} == {
        **{"minimum-create": 1.0, "minimum-created": 0.0, "invariance-case": 1.0, "directional-urgent": 0.0}
    }
    assert detail["kinds"]["minimum"]["passed_high"] == stats.wilson(1, 2)[1]
    assert {row["id"]: row["passed"] for row in read_rows(here / "outcomes.jsonl")} == {
        **{"x1": False, "i1": True, "m1": True, "m2": False}
    }


@pytest.mark.parametrize("present", [True, False])
def test_without_tests_nothing_is_measured(here: Path, present: bool) -> None:
    if present:
        (here / "tests").mkdir()
    assert run({}).exit_code == 0
    assert read_json(here / "metrics.json") == {"minimum_n": 0, "invariance_n": 0, "directional_n": 0}
    assert read_rows(here / "outcomes.jsonl") == []


def test_answers_to_other_requests_are_refused(here: Path) -> None:
    write(FILES)
    every = dict.fromkeys(("m1", "i1", "i1~variant", "x1", "x1~variant"), HENS)
    for answers in ({"m1": HENS}, every | {"m2": HENS}):
        assert "answers.jsonl: it answers other requests" in run(answers).output
