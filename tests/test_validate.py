"""The whole stage on small folders: rows in = kept + refused, and each defect ends under its own check."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
from click.testing import Result
from conftest import ROOT, SCHEMA, SHIPPED, configure, invoke, write_rows

from stages import validate
from stages.checklist import correct, suites
from stages.core import strict_json
from stages.data import contract, writing
from stages.data.rows import Row, content_id

RULES = ROOT / "data" / "rules.yaml"


def answer(**change: Any) -> str:
    return json.dumps({"action": "create", "title": "Buy milk", "priority": "medium", "due_date": None} | change)


TRAIN = [
    {"id": "r1", "instruction": "buy milk", "output": answer()},
    {"id": "r2", "instruction": "call the bank", "output": answer(title="Call bank")},
]
LEAK = {"instruction": "water the plants", "output": answer(title="Water plants")}
RENT = {"instruction": "pay the rent", "output": answer(title="Pay rent")}
TEST = [LEAK | {"id": "t1"}]


def run(folder: Path, train: list[Any], test: list[Any], **paths: Path) -> Result:
    write_rows(folder / "raw" / "rows.jsonl", train)
    write_rows(folder / "test" / "rows.jsonl", test)
    names: dict[str, Any] = {"raw": "raw", "test": "test", "out": "out", "docs": "docs"}
    names |= {"metrics": "metrics.json", "detail": "detail.json"}
    names |= {"schema": SCHEMA, "rules": RULES, "suites": ROOT / "expectations"} | paths
    return invoke(validate.main, **names)


def refused(folder: Path) -> list[dict[str, Any]]:
    return list(strict_json.read_jsonl(folder / "out" / "refused.jsonl"))


def test_sound_rows_pass_and_their_answers_become_compact(here: Path) -> None:
    result = run(here, [*TRAIN, RENT], TEST)
    assert result.exit_code == 0, result.output
    kept = list(strict_json.read_jsonl(here / "out" / "train.jsonl"))
    assert [row["id"] for row in kept] == ["r1", "r2", content_id(kept[2]["turns"])]
    assert (
        kept[0]["turns"][1]["content"] == '{"action":"create","title":"Buy milk","priority":"medium","due_date":null}'
    )
    assert "rows.jsonl" not in result.output
    counts = {"train_rows": 3, "train_refused": 0, "test_rows": 1, "test_refused": 0}
    assert strict_json.read(here / "metrics.json") == counts


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (None, "raw: no such folder"),
        ({".hidden": "{}"}, "raw: no rows"),
        ({"a.jsonl": "{}", "b.jsonl": "", "c.jsonl": "\n"}, "raw/b.jsonl, raw/c.jsonl: no rows"),
        ({"a.jsonl": "{}", "more.json": "{}"}, "raw/more.json: only"),
        ({"a.jsonl": "{}", "big.jsonl.dvc": "{}"}, "raw/big.jsonl.dvc: the rows that it points at"),
    ],
)
def test_a_folder_is_read_in_full_or_not_at_all(
    here: Path, files: dict[str, str] | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Path.iterdir  # a file system may list in any order
    monkeypatch.setattr(Path, "iterdir", lambda folder: sorted(listed(folder), reverse=True))
    if files is not None:
        (here / "raw").mkdir()
    for name, content in (files or {}).items():
        (here / "raw" / name).write_text(content, encoding="utf-8")
    with pytest.raises(click.ClickException, match=f"^{reason}"):
        validate.read_folder(Path("raw"))


def test_a_name_that_is_no_utf_8_is_refused(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    (here / "raw").mkdir()
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([folder / "caf\udce9.jsonl"]))  # not every disk takes it
    with pytest.raises(click.ClickException, match="a file's name must be UTF-8"):
        validate.read_folder(Path("raw"))


DEFECTS: list[tuple[str, dict[str, Any], str]] = [
    ("well_formed", {"instruction": "pay rent"}, "'output' is missing"),
    ("contract", {"instruction": "pay rent", "output": answer(priority="urgent")}, "answer: priority: 'urgent'"),
    ("duplicate", {"id": "r1", "instruction": "pay rent", "output": answer(title="Pay rent")}, "raw/rows.jsonl:1"),
    ("leak", LEAK, "same request as the test row test/rows.jsonl:1"),
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
    assert f'class="critical" id="train-{check}"' in (here / "docs/index.html").read_text(encoding="utf-8")
    assert "raw/rows.jsonl:3" in result.output
    assert f"`mostly` of `{check}` in {ROOT / 'expectations' / 'train.json'}" in result.output
    kept = f"rows refused by {check} are left out; with validate.flag_only" in result.output
    assert kept is (check == "leak")
    figures = strict_json.read(here / "detail.json")
    assert figures["train"]["rows"] == figures["train"]["kept"] + figures["train"]["refused"] == 6
    assert strict_json.read(here / "metrics.json")["train_refused"] == 1
    failed = [
        (name, scopes["train"])
        for group in figures["checklist"].values()
        for name, scopes in group.items()
        if scopes.get("train", {}).get("verdict") == "critical"
    ]
    example = f"raw/rows.jsonl:3: {found['checks'][check]}"
    limit = 0.05 if check == "duplicate" else 0.0
    expected = {"verdict": "critical", "value": pytest.approx(1 / 6), "limit": limit, "found": 1, "example": example}
    assert failed == [(check, expected)]


def asks(request: str, title: str, **more: str) -> dict[str, Any]:
    return {"instruction": request, "output": answer(title=title), **more}


def turned(request: str, title: str) -> dict[str, Any]:
    """The keys of the answer in the other order."""
    return {"instruction": request, "output": json.dumps(dict(reversed(json.loads(answer(title=title)).items())))}


def deleting_later(request: str, title: str) -> dict[str, Any]:
    said = [request, answer(title=title), "delete it", json.dumps({"action": "delete", "title": title})]
    roles = ["user", "assistant"] * 2
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]}


REFUSED: dict[str, tuple[list[dict[str, Any]], dict[int, str]]] = {  # further rows; the check of each line refused
    "an answer of its own in other words": ([asks("BUY MILK", "Milk")], {1: "conflict", 3: "conflict"}),
    "upper case in a copied title is no conflict": ([asks("BUY MILK", "BUY MILK")], {3: "duplicate"}),
    "another order of keys is no conflict": ([turned("buy milk", "Buy milk")], {3: "duplicate"}),
    "a refused row is no side of a conflict": ([asks("Buy milk!", "buy milk")], {3: "labels"}),
    "a refused row makes no other row a duplicate": (
        [asks("pay rent", "Pay rent", id="r1"), asks("pay rent", "Pay rent", id="r9")],
        {3: "duplicate"},
    ),
    "a system prompt hides no leak": ([asks("water the plants", "Water plants", system="be brief")], {3: "leak"}),
    "another system prompt makes another request": ([asks("buy milk", "Milk", system="be brief")], {}),
    "another turn before makes another request": (
        [deleting_later("paint the shed", "Paint shed"), deleting_later("mow the lawn", "Mow lawn")],
        {},
    ),
    "a known request that goes on is no duplicate": ([deleting_later("buy milk", "Buy milk")], {}),
    "an answer of a conversation makes a duplicate": (
        [deleting_later("paint the shed", "Paint shed"), asks("paint the shed", "Paint shed")],
        {4: "duplicate"},
    ),
}


@pytest.mark.parametrize("rows", REFUSED)
def test_which_rows_are_refused(here: Path, rows: str) -> None:
    more, expected = REFUSED[rows]
    run(here, [*TRAIN, *more], TEST)
    assert [(row["line"], list(row["checks"])) for row in refused(here)] == [(n, [c]) for n, c in expected.items()]


@pytest.mark.parametrize("pair", [("-5", "5"), ("C#", "C"), ("3*4", "3/4"), ("1-5", "1.5"), ("15%", "15")])
def test_a_sign_is_part_of_the_request(pair: tuple[str, str]) -> None:
    first, second = (correct.example([{"role": "user", "content": text}], {}, "").prompt for text in pair)
    assert first != second


def test_a_request_is_the_last_turn_of_the_user() -> None:
    said = [("system", "be brief"), ("user", "Buy milk"), ("assistant", "{}"), ("user", "Drop it!")]
    found = correct.example([{"role": role, "content": text} for role, text in said], {}, "")
    assert (found.request, found.user) == ("drop it", "Buy milk\nDrop it!\n")


@pytest.mark.parametrize(
    ("said", "meant"),
    [("{'action': 'list'}", "single quotes"), ("```json\n{}\n```", "code fence"), ('{"a":1,}', "comma before")],
)
def test_what_was_meant_is_hinted_at(said: str, meant: str) -> None:
    turns = ({"role": "user", "content": "x"}, {"role": "assistant", "content": said})
    checked = correct.check_row(Row("f", 1, "", turns, "", ""), contract.load(SCHEMA))
    assert meant in checked.reasons["contract"]


@pytest.mark.parametrize(("mostly", "status"), [(0.75, 0), (0.76, 1)])
def test_a_limit_that_allows_the_share_lets_the_rest_through(here: Path, mostly: float, status: int) -> None:
    shutil.copytree(ROOT / "expectations", here / "expectations")
    stored = strict_json.read(here / "expectations" / "train.json")
    (leak,) = [each for each in stored["expectations"] if each["kwargs"]["column"] == "leak"]
    leak["kwargs"]["mostly"] = mostly
    writing.write_json(here / "expectations" / "train.json", stored)
    assert run(here, [*TRAIN, RENT, LEAK], TEST, suites=here / "expectations").exit_code == status
    assert [row["line"] for row in refused(here)] == [4]


NULL = {"type": "expect_column_values_to_be_null", "kwargs": {"column": "leak"}, "meta": {"group": "g"}}
VACUOUS = {
    "no expectations": [],
    "no such column": [NULL | {"kwargs": {"column": "elsewhere"}}],
    "two on a column": [NULL, NULL],
    "only nulls": [NULL | {"type": "expect_column_values_to_be_between", "kwargs": {"column": "leak", "max_value": 1}}],
    "unknown argument": [NULL | {"kwargs": {"column": "leak", "mostly": 2}}],
    "unknown type": [NULL | {"type": "expect_nothing"}],
    "no group": [{"type": "expect_column_values_to_be_null", "kwargs": {"column": "leak"}}],
    "no list": None,
}


def judged(folder: Path, expectations: Any, *reasons: str | None) -> list[suites.Outcome]:
    writing.write_json(folder / "suite.json", {"name": "suite", "expectations": expectations})
    places = [f"f:{number}" for number, _ in enumerate(reasons, 1)]
    frame = pd.DataFrame({"where": places, "leak": list(reasons)}, dtype=object)
    return suites.run(folder / "suite.json", frame, ("leak",))


@pytest.mark.parametrize("expectations", VACUOUS.values(), ids=VACUOUS)
def test_a_suite_that_judges_nothing_is_an_error(tmp_path: Path, expectations: Any) -> None:
    with pytest.raises(click.ClickException, match=r"suite\.json"):
        judged(tmp_path, expectations, None, None)


def test_no_row_judged_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="nothing to judge"):
        judged(tmp_path, [NULL])


def test_a_blank_reason_is_a_reason(tmp_path: Path) -> None:
    (outcome,) = judged(tmp_path, [NULL], "", None)
    assert (outcome.holds, outcome.unexpected, outcome.judged) == (False, [("f:1", "")], 2)
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


@pytest.mark.parametrize(("mostly", "holds"), [(0.96, True), (0.97, False)])
def test_a_share_exactly_at_the_limit_holds(tmp_path: Path, mostly: float, holds: bool) -> None:
    (outcome,) = judged(tmp_path, [NULL | {"kwargs": {"column": "leak", "mostly": mostly}}], "bad", *[None] * 24)
    assert (outcome.holds, outcome.bound, outcome.limit) == (holds, "mostly", mostly)


def test_a_flagged_row_stays_and_is_listed(here: Path) -> None:
    run(here, [*TRAIN, turned("pay rent", "Pay rent") | {"id": "r3"}], TEST)
    flagged, kept = (list(strict_json.read_jsonl(here / f"out/{name}.jsonl")) for name in ("flagged", "train"))
    assert [(row["line"], list(row["checks"])) for row in flagged] == [(3, ["order"])]
    assert (refused(here), [row["id"] for row in kept]) == ([], ["r1", "r2", "r3"])


def test_a_refused_test_row_is_listed_as_it_was_given(here: Path) -> None:
    bad = {"instruction": "pay the rent"}
    told = run(here, TRAIN, [*TEST, bad]).output
    assert "test/rows.jsonl:2: well_formed: 'output' is missing\n" in told
    assert [(row["split"], row["line"], json.loads(row["row"])) for row in refused(here)] == [("test", 2, bad)]
    assert [row["id"] for row in strict_json.read_jsonl(here / "out" / "test.jsonl")] == ["t1"]
    assert strict_json.read(here / "metrics.json")["test_refused"] == 1


def test_of_many_refused_rows_twenty_are_named(here: Path) -> None:
    write_rows(here / "raw" / "a\x1b.jsonl", [{"instruction": "a"}])
    told = run(here, [*TRAIN, *[{"instruction": "a"}] * 21], TEST).output
    assert "raw/rows.jsonl:21: well_formed: 'output' is missing\n... and 2 more, all of them in refused.jsonl\n" in told
    assert ("raw/a\\x1b.jsonl:1: well_formed" in told, "\x1b" in told) == (True, False)


@pytest.mark.parametrize(
    ("stop_at", "train", "status"),
    [("warning", TRAIN, 1), ("critical", TRAIN, 0), ("critical", [*TRAIN, LEAK], 1), ("never", [*TRAIN, LEAK], 0)],
)
def test_what_stops_the_pipeline_is_a_setting(here: Path, stop_at: str, train: list[Any], status: int) -> None:
    configure(here, validate={"stop_at": stop_at})
    result = run(here, train, TEST)
    assert (result.exit_code, "`min_value` of `train` in " in result.output) == (status, True)
    assert "complete: train: coverage 0, limit " in result.output


def test_fields_that_are_not_read_are_told(here: Path) -> None:
    thought = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer(), "reasoning": "b"}]
    more = [{"messages": thought}, deleting_later("paint the shed", "Paint shed")]
    result = run(here, [TRAIN[0] | {"context": "x", "a": 1}, TRAIN[1] | {"context": "y"}, *more], TEST)
    named = {"a": 1, "context": 2, "reasoning of a turn": 1}
    assert f"fields that are not read, and rows that have them: {named}\n" in result.output
    counts = {"rows": 4, "kept": 3, "refused": 1, "examples": 4, "multi_turn": 1, "kinds": {"create": 3, "delete": 1}}
    assert strict_json.read(here / "detail.json")["train"] == counts | {"ignored_fields": {"a": 1, "context": 2}}


def test_settings_reach_the_figures(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.checklist.clean.SAMPLE", 1)  # of many requests, a share is compared with all
    configure(here, validate={"templated": 0.1, "usage": "elsewhere"}, contract={"discriminator": "title"})
    result = run(here, TRAIN, TEST)
    assert strict_json.read(here / "detail.json")["train"]["kinds"] == {"Buy milk": 1, "Call bank": 1}
    assert strict_json.read(here / "detail.json")["checklist"]["clean"]["templated"]["both"]["value"] == 1.0
    assert "(no requests in elsewhere)" in result.output


@SHIPPED
def test_without_rules_a_title_may_look_as_it_likes(here: Path) -> None:
    rows = [*TRAIN, RENT | {"output": answer(title="pay the rent")}]
    assert run(here, rows, TEST, rules=here / "none.yaml").exit_code == 0
    assert run(here, rows, TEST).exit_code == 1
    assert [list(row["checks"]) for row in refused(here)] == [["labels"]]


@pytest.mark.parametrize(("named", "found"), [("title", [["grounded"]]), ("new_title", [])])
def test_a_field_that_the_rules_call_copied_is_one_however_much_is_invented(here: Path, named: str, found: Any) -> None:
    (here / "own.yaml").write_text(f"labelling: {{copied_fields: [{named}]}}\n", encoding="utf-8")
    run(here, [*TRAIN, asks("feed the cat", "Feed giraffe")], TEST, rules=here / "own.yaml")
    assert [list(row["checks"]) for row in refused(here)] == found


def test_a_schema_that_lists_nothing_has_nothing_to_cover(here: Path) -> None:
    (here / "own.json").write_text('{"properties": {"due_date": {"format": "date-time"}}}', encoding="utf-8")
    result = run(here, TRAIN, TEST, schema=here / "own.json")
    assert (result.exit_code, "coverage" in result.output) == (0, False), result.output
    assert "formats that answers are not held to: date-time\n" in result.output


def test_an_allowed_word_is_not_flagged(here: Path) -> None:
    (here / "own.yaml").write_text("labelling: {allowed_words: [Kill]}\n", encoding="utf-8")
    run(here, [*TRAIN, asks("kill the process", "Kill process")], TEST, rules=here / "own.yaml")
    assert list(strict_json.read_jsonl(here / "out" / "flagged.jsonl")) == []


def recorded(folder: Path) -> list[bytes]:
    """The bytes of everything that the stage writes for DVC and Git."""
    files = [*folder.glob("out/*"), *folder.glob("docs/*"), folder / "metrics.json", folder / "detail.json"]
    return [file.read_bytes() for file in sorted(files)]


def test_without_usage_it_is_not_measured(here: Path) -> None:
    result = run(here, TRAIN, TEST)
    assert "not measured: representative: usage (no requests in data/usage)" in result.output
    verdicts = strict_json.read(here / "detail.json")["checklist"]["representative"]
    assert {verdicts[name]["usage"]["verdict"] for name in ("far_from_train", "openings")} == {"not measured"}
    assert not (here / "data").exists()
    configure(here, validate={"usage": ""})
    (here / "notes.txt").write_text("not a request\n", encoding="utf-8")
    assert "not measured: representative: usage" in run(here, TRAIN, TEST).output


@pytest.mark.parametrize(
    "asked",
    [
        {"instruction": "call the bank"},
        {"prompt": "call the bank"},
        {"instruction": "call the bank", "output": ""},
        {"messages": [{"role": "user", "content": "call the bank"}]},
        {"conversations": [{"from": "human", "value": "call the bank"}]},
    ],
)
def test_usage_is_judged_and_recorded_nowhere(here: Path, asked: dict[str, Any]) -> None:
    run(here, TRAIN, TEST)
    before = recorded(here)
    folder = here / "data" / "usage"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("no requests\n", encoding="utf-8")
    (folder / "log.txt").write_text("Buy milk!\n\nsing an aria\n", encoding="utf-8")
    (folder / "more.jsonl").write_text(f"{json.dumps(asked)}\n{json.dumps(TRAIN[1])}", encoding="utf-8")
    result = run(here, TRAIN, TEST)
    assert result.exit_code == 0
    assert "warning: representative: usage: far_from_test 1, limit 0.6" in result.output
    assert "held: representative: usage: far_from_train 0.25, limit 0.35 (sing an aria)" in result.output
    assert recorded(here) == before
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "log.txt", "more.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("log.txt", b"caf\xe9\n", "log.txt: not UTF-8 at byte 3"),
        ("log.jsonl", b'{"text": "a"}\n', "log.jsonl:1: no 'instruction'"),
        ("log.jsonl", b'{"prompt": "caf\xe9"}\n', "log.jsonl:1: not UTF-8 at byte 15"),
        ("log.jsonl", b"{'a'}\n", "log.jsonl:1: not JSON"),
        ("log.jsonl", b"\xfe\xff" + '{"prompt": "a"}\n'.encode("utf-16-be"), "log.jsonl:1: the file is UTF-16"),
    ],
)
def test_usage_that_cannot_be_read_is_named(here: Path, name: str, content: bytes, reason: str) -> None:
    (here / "data" / "usage").mkdir(parents=True)
    (here / "data" / "usage" / name).write_bytes(content)
    result = run(here, TRAIN, TEST)
    assert (result.exit_code, reason in result.output) == (1, True)


@pytest.mark.parametrize("key", ["AKIAIOSFODNN7EXAMPLE", "212-456-7890", "lena@example.org"])
def test_a_secret_is_never_repeated(here: Path, key: str) -> None:
    wrong = [
        {"instruction": f"rotate {key}", "output": text} for text in (answer(priority=key), answer(title=f"the {key}"))
    ]
    for row in [*wrong, {"id": [key], "instruction": "rotate it", "output": answer()}]:
        result = run(here, [*TRAIN, row], TEST)
        assert (result.exit_code, key not in result.output) == (1, True)
        assert all(key not in (here / name).read_text(encoding="utf-8") for name in ("detail.json", "docs/index.html"))
