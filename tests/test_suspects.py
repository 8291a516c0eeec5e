"""Rows whose label surprises are ranked first, rows like a request are found, and nothing is read of other rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import ROOT, SCHEMA, write_rows

from stages.core import yaml12
from stages.data.examples import Example
from tools import suspects

DONE = '{"action":"complete","title":"Boiler"}'
GONE = '{"action":"delete","title":"Boiler"}'


def row(name: str, request: str, answer: str) -> dict[str, Any]:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": request}]
    return {"id": name, "group": name, "kind": "complete", "prompt": said, "answer": answer}


ROWS = [
    row("early", "cross the plumber off", DONE),
    row("wrong", "boiler is fixed | tick it", GONE),
    row("plain", "buy two lemons", DONE),
    row("learnt", "boiler \x1b[31m done", DONE),
]
LOSSES = "id,epoch_1,epoch_2,epoch_3\nearly,3.0,0.1,0.1\nwrong,1.5,1.25,0.01\nplain,0.1,0.1,0.0\nlearnt,0.5,2.0,0.0\n"


@pytest.fixture
def pipeline(here: Path) -> Path:
    """A folder where training and prediction have run."""
    write_rows(here / suspects.TRAIN, ROWS)
    suspects.LOSSES.parent.mkdir(parents=True)
    suspects.LOSSES.write_text(LOSSES, encoding="utf-8")
    (here / "data/schema.json").write_bytes(SCHEMA.read_bytes())
    for which, (rows, answers) in suspects.ANSWERED.items():
        write_rows(here / rows, [row(f"{which}1", "boiler fixed", DONE), row(f"{which}2", "lemons bought", DONE)])
        given = [{"id": f"{which}{n}", "answer": answer, "truncated": False} for n, answer in ((1, GONE), (2, DONE))]
        write_rows(here / answers, given)
    return here


def run(*words: str) -> Result:
    return CliRunner().invoke(suspects.main, list(words))


def test_a_label_that_surprises_twice_comes_before_one_that_an_untrained_model_met(pipeline: Path) -> None:
    found = json.loads(run("--json").stdout)
    assert [one["id"] for one in found] == ["wrong", "learnt", "early", "plain"]
    assert (found[0]["suspicion"], found[0]["losses"], found[0]["answer"]) == (1.25, [1.5, 1.25, 0.01], GONE)
    assert [one["id"] for one in json.loads(run("--json", "--top=1").stdout)] == ["wrong"]


def test_one_epoch_is_enough_and_an_epoch_that_was_not_finished_has_no_loss(pipeline: Path) -> None:
    suspects.LOSSES.write_text("id,epoch_1,epoch_2\nplain,4,\nlearnt,,\nwrong,2,1\nearly,0.5,\n", encoding="utf-8")
    assert [one["id"] for one in json.loads(run("--json").stdout)] == ["plain", "wrong", "early", "learnt"]


@pytest.mark.parametrize("which", suspects.ANSWERED)
def test_each_wrong_answer_has_the_rows_like_it(which: str, pipeline: Path) -> None:
    (found,) = json.loads(run("--json", f"--wrong={which}").stdout)
    assert (found["id"], found["expected"], found["given"]) == (f"{which}1", DONE, GONE)
    assert {near["row"]["id"] for near in found["nearest"][:2]} == {"wrong", "learnt"}
    likeness = [near["likeness"] for near in found["nearest"]]
    assert likeness == sorted(likeness, reverse=True)
    assert 0 <= likeness[-1] < likeness[0] < 1


def test_a_request_finds_its_own_row(pipeline: Path) -> None:
    (found,) = json.loads(run("--json", "--request", "buy two lemons", "--top=1").stdout)
    assert [(near["row"]["id"], round(near["likeness"], 6)) for near in found["nearest"]] == [("plain", 1)]


def test_fewer_are_shown_of_each_request_than_of_all_rows(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "SUSPECTS", 3)
    monkeypatch.setattr(suspects, "NEAREST", 2)
    (found,) = json.loads(run("--json", "--request=boiler").stdout)
    assert (len(json.loads(run("--json").stdout)), len(found["nearest"])) == (3, 2)


def test_a_request_is_all_that_was_said_but_the_system_s_words() -> None:
    said = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    assert suspects.request(Example("a", "a", "", said, DONE)) == "user ⏎ assistant ⏎ user"


@pytest.mark.parametrize("words", [[], ["--wrong=test"], ["--request=boiler"]])
def test_text_in_the_table_neither_steers_a_terminal_nor_breaks_a_cell(words: list[str], pipeline: Path) -> None:
    ran = run(*words)
    assert (ran.exit_code, "\x1b" not in ran.stdout) == (0, True)
    assert "boiler is fixed \\| tick it" in ran.stdout
    assert "Be brief" not in ran.stdout


def test_the_files_are_those_that_the_stages_write() -> None:
    stages = yaml12.parse((ROOT / "dvc.yaml").read_text(encoding="utf-8"), "dvc.yaml")["stages"]
    for which, name in (("held-out", "valid"), ("test", "test")):
        rows, answers = suspects.ANSWERED[which]
        assert (rows.stem, f"--rows {rows} --out {answers}" in stages["predict"]["cmd"]) == (name, True)
    assert f"--row-losses {suspects.LOSSES}" in stages["train"]["cmd"]
    assert f"--train {suspects.TRAIN} " in stages["train"]["cmd"]


def test_no_wrong_answer_is_said(pipeline: Path) -> None:
    write_rows(pipeline / suspects.ANSWERED["test"][0], [row("test1", "a", GONE), row("test2", "b", DONE)])
    assert run("--wrong=test").stdout == "No answer is wrong.\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LOSSES.replace("plain", "other"), "other rows than data/chat/train.jsonl"),
        (LOSSES.replace("3.0", "nan"), "finite losses"),
        (LOSSES.replace("3.0", "much"), "could not convert"),
        (LOSSES.replace("id,", "name,"), "an id and finite losses"),
        ("", "the stage train writes it"),
    ],
)
def test_losses_of_other_rows_or_none_are_refused(text: str, reason: str, pipeline: Path) -> None:
    suspects.LOSSES.write_text(text, encoding="utf-8")
    ran = run()
    assert (ran.exit_code, reason in ran.output) == (1, True)
    assert run("--wrong=test", "--request=a").exit_code == 2
