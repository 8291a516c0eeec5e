"""The whole stage on small folders: rows in = kept + refused, and each defect ends under its own check."""

import json
import shutil
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from conftest import ROOT, SCHEMA, write_rows

from stages import validate
from stages.checklist import suites
from stages.shared import strict_json, writing


def answer(**change: Any) -> str:
    return json.dumps({"action": "create", "title": "Buy milk", "priority": "medium", "due_date": None} | change)


TRAIN = [
    {"id": "r1", "instruction": "buy milk", "output": answer()},
    {"id": "r2", "instruction": "call the bank", "output": answer(title="Call bank")},
]
TEST = [{"id": "t1", "instruction": "water the plants", "output": answer(title="Water plants")}]


def run(
    folder: Path,
    train: list[Any],
    test: list[Any],
    schema: Path = SCHEMA,
    suites_folder: Path = ROOT / "expectations",
) -> Result:
    write_rows(folder / "raw" / "rows.jsonl", train)
    write_rows(folder / "test" / "rows.jsonl", test)
    names = {"raw": "raw", "test": "test", "out": "out", "docs": "docs", "metrics": "metrics.json"}
    options = [part for name, value in names.items() for part in (f"--{name}", value)]
    return CliRunner().invoke(validate.main, [*options, "--schema", str(schema), "--suites", str(suites_folder)])


def refused(folder: Path) -> list[dict[str, Any]]:
    return list(strict_json.read_jsonl(folder / "out" / "refused.jsonl"))


def test_sound_rows_pass_and_their_answers_become_compact(here: Path) -> None:
    result = run(here, TRAIN, TEST)
    assert result.exit_code == 0, result.output
    kept = list(strict_json.read_jsonl(here / "out" / "train.jsonl"))
    assert [row["id"] for row in kept] == ["r1", "r2"]
    assert (
        kept[0]["turns"][1]["content"] == '{"action":"create","title":"Buy milk","priority":"medium","due_date":null}'
    )
    assert "rows.jsonl" not in result.output
    assert (here / "docs" / "index.html").is_file()


def test_a_leak_behind_a_system_prompt_is_a_leak(here: Path) -> None:
    hidden = {"system": "be brief", "instruction": "water the plants", "output": answer(title="Water plants")}
    run(here, [*TRAIN, hidden], TEST)
    assert [list(row["checks"]) for row in refused(here)] == [["leak"]]


def test_another_order_of_keys_is_no_conflict(here: Path) -> None:
    turned = json.dumps(dict(reversed(json.loads(answer()).items())))
    run(here, [*TRAIN, {"instruction": "buy milk", "output": turned}], TEST)
    assert [list(row["checks"]) for row in refused(here)] == [["duplicate"]]


def test_a_refused_row_makes_no_other_row_a_duplicate(here: Path) -> None:
    first = {"id": "r1", "instruction": "pay rent", "output": answer(title="Pay rent")}
    run(here, [*TRAIN, first, first | {"id": "r9"}], TEST)
    assert [row["line"] for row in refused(here)] == [3]


def test_files_that_would_be_ignored_are_named(here: Path) -> None:
    (here / "raw").mkdir()
    (here / "raw" / "more.json").write_text("{}", encoding="utf-8")
    result = run(here, TRAIN, TEST)
    assert result.exit_code == 1
    assert "raw/more.json" in result.output


DEFECTS: list[tuple[str, dict[str, Any], str]] = [
    ("well_formed", {"instruction": "pay rent"}, "'output' is missing"),
    ("contract", {"instruction": "pay rent", "output": answer(priority="urgent")}, "urgent"),
    ("contract", {"instruction": "pay rent", "output": "{'action': 'list'}"}, "single quotes"),
    ("contract", {"instruction": "pay rent", "output": "```json\n{}\n```"}, "code fence"),
    ("duplicate", {"instruction": "Buy milk!", "output": answer()}, "raw/rows.jsonl:1"),
    ("duplicate", {"id": "r1", "instruction": "pay rent", "output": answer(title="Pay rent")}, "raw/rows.jsonl:1"),
    ("leak", {"instruction": "Water the plants", "output": answer(title="Water plants")}, "test/rows.jsonl:1"),
]


@pytest.mark.parametrize(("check", "row", "reason"), DEFECTS)
def test_one_defect_fails_one_check_and_is_named(here: Path, check: str, row: dict[str, Any], reason: str) -> None:
    many = [{"instruction": f"do errand {n}", "output": answer(title=f"Errand {n}")} for n in range(3)]
    result = run(here, [*TRAIN, row, *many], TEST)
    assert result.exit_code == 1
    (found,) = refused(here)
    assert (found["split"], found["file"], found["line"]) == ("train", "raw/rows.jsonl", 3)
    assert list(found["checks"]) == [check]
    assert reason in found["checks"][check]
    assert "raw/rows.jsonl:3" in result.output
    assert f"validate.limits.{check}" in result.output
    figures = json.loads((here / "metrics.json").read_text(encoding="utf-8"))
    assert figures["train"]["rows"] == figures["train"]["kept"] + figures["train"]["refused"] == 6
    failed = [
        (name, scopes["train"]["example"])
        for group in figures["checklist"].values()
        for name, scopes in group.items()
        if scopes.get("train", {}).get("verdict") == "critical"
    ]
    assert failed == [(check, f"raw/rows.jsonl:3: {found['checks'][check]}")]


def test_conflicting_rows_are_all_refused(here: Path) -> None:
    result = run(here, [*TRAIN, {"instruction": "BUY MILK", "output": answer(title="Milk")}], TEST)
    assert result.exit_code == 1
    assert [(row["line"], list(row["checks"])) for row in refused(here)] == [(1, ["conflict"]), (3, ["conflict"])]


def test_upper_case_in_a_copied_title_is_no_conflict(here: Path) -> None:
    run(here, [*TRAIN, {"instruction": "BUY MILK", "output": answer(title="BUY MILK")}], TEST)
    assert [list(row["checks"]) for row in refused(here)] == [["duplicate"]]


def test_the_same_words_after_another_turn_are_another_request(here: Path) -> None:
    def talk(first: str, title: str) -> dict[str, Any]:
        return {
            "conversations": [
                {"role": "user", "content": first},
                {"role": "assistant", "content": answer(title=title)},
                {"role": "user", "content": "delete it"},
                {"role": "assistant", "content": json.dumps({"action": "delete", "title": title})},
            ]
        }

    result = run(here, [talk("paint the shed", "Paint shed"), talk("mow the lawn", "Mow lawn")], TEST)
    assert result.exit_code == 0, result.output


def test_a_limit_that_allows_the_share_lets_the_rest_through(here: Path) -> None:
    text = (here / "params.yaml").read_text(encoding="utf-8")
    (here / "params.yaml").write_text(text.replace("leak: 0.0", "leak: 0.5"), encoding="utf-8")
    result = run(here, [*TRAIN, {"instruction": "water the plants", "output": answer(title="Water plants")}], TEST)
    assert result.exit_code == 0, result.output
    assert len(refused(here)) == 1


@pytest.mark.parametrize(("train", "test"), [([], TEST), (TRAIN, [])])
def test_no_rows_is_not_a_pass(here: Path, train: list[Any], test: list[Any]) -> None:
    result = run(here, train, test)
    assert result.exit_code == 1
    assert "no rows" in result.output


def test_ids_of_rows_without_one_follow_the_content(here: Path) -> None:
    plain = [{"instruction": row["instruction"], "output": row["output"]} for row in TRAIN]
    run(here, plain, TEST)
    first = [row["id"] for row in strict_json.read_jsonl(here / "out" / "train.jsonl")]
    run(here, plain[::-1], TEST)
    assert [row["id"] for row in strict_json.read_jsonl(here / "out" / "train.jsonl")] == first[::-1]


NULL = {"type": "expect_column_values_to_be_null", "kwargs": {"column": "leak"}, "meta": {"group": "g"}}
VACUOUS = {
    "no expectations": [],
    "no such column": [NULL | {"kwargs": {"column": "elsewhere"}}],
    "only nulls": [NULL | {"type": "expect_column_values_to_be_between", "kwargs": {"column": "leak", "max_value": 1}}],
    "unknown argument": [NULL | {"kwargs": {"column": "leak", "mostly": 2}}],
    "unknown type": [NULL | {"type": "expect_nothing"}],
    "no group": [{"type": "expect_column_values_to_be_null", "kwargs": {"column": "leak"}}],
    "no such parameter": [NULL | {"kwargs": {"column": "leak", "mostly": {"$PARAMETER": "unheard_of"}}}],
}


@pytest.mark.parametrize("expectations", VACUOUS.values(), ids=VACUOUS)
def test_a_suite_that_judges_nothing_is_an_error(here: Path, expectations: list[Any]) -> None:
    writing.write_json(here / "suite.json", {"name": "suite", "expectations": expectations})
    frame = pd.DataFrame({"leak": [None, None]}, dtype=object)
    with pytest.raises(click.ClickException, match=r"suite\.json"):
        suites.run(suites.context(here / "docs"), here / "suite.json", frame, ["leak"], {})


def test_no_row_judged_is_an_error(here: Path) -> None:
    writing.write_json(here / "suite.json", {"name": "suite", "expectations": [NULL]})
    frame = pd.DataFrame({"leak": []}, dtype=object)
    with pytest.raises(click.ClickException, match="nothing to judge"):
        suites.run(suites.context(here / "docs"), here / "suite.json", frame, ["leak"], {})


def test_a_blank_reason_is_a_reason(here: Path) -> None:
    writing.write_json(here / "suite.json", {"name": "suite", "expectations": [NULL]})
    frame = pd.DataFrame({"leak": ["", None]}, dtype=object)
    (outcome,) = suites.run(suites.context(here / "docs"), here / "suite.json", frame, ["leak"], {})
    assert (outcome.success, outcome.found, outcome.judged) == (False, 1, 2)


def test_a_flagged_row_stays_and_is_listed(here: Path) -> None:
    turned = json.dumps(dict(reversed(json.loads(answer(title="Pay rent")).items())))
    run(here, [*TRAIN, {"id": "r3", "instruction": "pay rent", "output": turned}], TEST)
    flagged = list(strict_json.read_jsonl(here / "out" / "flagged.jsonl"))
    assert [(row["line"], list(row["checks"])) for row in flagged] == [(3, ["order"])]
    assert refused(here) == []
    assert "r3" in [row["id"] for row in strict_json.read_jsonl(here / "out" / "train.jsonl")]


def test_warnings_stop_the_pipeline_where_they_are_told_to(here: Path) -> None:
    assert run(here, TRAIN, TEST).exit_code == 0
    text = (here / "params.yaml").read_text(encoding="utf-8")
    (here / "params.yaml").write_text(text.replace("stop_at: critical", "stop_at: warning "), encoding="utf-8")
    result = run(here, TRAIN, TEST)
    assert result.exit_code == 1
    assert "validate.covered.train" in result.output


def test_a_pointer_without_its_rows_is_named(here: Path) -> None:
    (here / "raw").mkdir()
    (here / "raw" / "big.jsonl.dvc").write_text("outs: []", encoding="utf-8")
    result = run(here, TRAIN, TEST)
    assert result.exit_code == 1
    assert "raw/big.jsonl.dvc" in result.output


def test_a_suite_that_leaves_a_check_out_is_an_error(here: Path) -> None:
    shutil.copytree(ROOT / "expectations", here / "expectations")
    stored = strict_json.read(here / "expectations" / "train.json")
    stored["expectations"] = [each for each in stored["expectations"] if each["kwargs"]["column"] != "secret"]
    writing.write_json(here / "expectations" / "train.json", stored)
    result = run(here, TRAIN, TEST, suites_folder=here / "expectations")
    assert result.exit_code == 1
    assert "secret" in result.output


def test_a_secret_is_never_repeated(here: Path) -> None:
    key = "AKIAIOSFODNN7EXAMPLE"
    run(here, [*TRAIN, {"instruction": f"rotate {key}", "output": answer(priority=key)}], TEST)
    assert run(here, [*TRAIN, {"instruction": f"rotate {key}", "output": answer(title=f"the {key}")}], TEST).exit_code
    shown = [here / "metrics.json", *here.glob("docs/**/*.html")]
    assert all(key not in file.read_text(encoding="utf-8") for file in shown)


def test_a_refused_row_is_no_side_of_a_conflict(here: Path) -> None:
    run(here, [*TRAIN, {"instruction": "Buy milk!", "output": answer(title="buy milk")}], TEST)
    assert [(row["line"], list(row["checks"])) for row in refused(here)] == [(3, ["labels"])]


@pytest.mark.parametrize("pair", [("set freezer to -5", "set freezer to 5"), ("learn C", "learn C#"), ("3*4", "3/4")])
def test_requests_that_differ_in_a_sign_are_no_conflict(here: Path, pair: tuple[str, str]) -> None:
    rows = [{"instruction": ask, "output": answer(title=ask.capitalize(), priority="medium")} for ask in pair]
    run(here, [*TRAIN, rows[0], rows[1] | {"output": answer(title=pair[1].capitalize())}], TEST)
    assert not [row for row in refused(here) if "conflict" in row["checks"]]


@pytest.mark.parametrize("folder", ["raw", "test"])
def test_a_missing_folder_is_named(here: Path, folder: str) -> None:
    run(here, TRAIN, TEST)
    shutil.rmtree(here / folder)
    with pytest.raises(click.ClickException, match=f"{folder}: no such folder"):
        validate.read_folder(Path(folder))
