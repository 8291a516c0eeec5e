"""One object out, the verdict on stderr, the status in the exit code; all of it with a real, tiny model."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import SCHEMA, configure
from taught import ANSWER, REQUEST

from stages.data import contract
from tools import ask


def run(request: str, model: Path, *options: str) -> Result:
    return CliRunner().invoke(ask.main, [request, "--model", str(model), "--schema", str(SCHEMA), *options])


def test_the_answer_that_was_taught(here: Path, merged: Path) -> None:
    ran = run(REQUEST, merged)
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, ANSWER + "\n", "contract: ok\n")


def test_the_answer_is_as_long_as_the_params_allow(here: Path, merged: Path) -> None:
    configure(here, predict={"max_new_tokens": 2})
    ran = run(REQUEST, merged)
    assert (ran.exit_code, ANSWER.startswith(ran.stdout.strip()), len(ran.stdout) < len(ANSWER)) == (1, True, True)
    configure(here, compute={"device": "tpu"})
    ran = run(REQUEST, merged)
    assert (ran.exit_code, "'tpu'" in ran.stderr) == (2, True)


def test_an_answer_that_breaks_the_contract_fails_unless_it_is_held_to_it(here: Path, base: Path) -> None:
    ran = run("buy milk", base)
    assert (ran.exit_code, ran.stderr.startswith("contract: not strict JSON: ")) == (1, True)
    held = run("buy milk", base, "--constrained")
    assert held.stdout.startswith('{"action":"')
    assert held.stdout != ran.stdout


@pytest.mark.parametrize(
    ("said", "printed", "verdict"),
    [
        ('{"action": "list",  "filter":"all"}', '{"action":"list","filter":"all"}', ""),
        ("Sure!", "Sure!", "not strict JSON: not JSON"),
        ("\x1b[31m{", "\\x1b[31m{", "not strict JSON: not JSON"),
        ("[]", "[]", "not strict JSON: a JSON object is expected"),
        ('{"action":"list","filter":"none"}', '{"action":"list","filter":"none"}', "filter: "),
    ],
)
def test_the_verdict_is_the_contracts(said: str, printed: str, verdict: str) -> None:
    text, broken = ask.judge(said, contract.load(SCHEMA))
    assert text == printed
    assert broken.startswith(verdict)
    assert bool(broken) == bool(verdict)


@pytest.mark.parametrize(
    ("request_text", "model", "reason"),
    [
        (" \n", "merged", "the request is empty"),
        ("buy \udcff", "merged", "the request is not UTF-8"),
        ("buy milk", "nowhere", "nowhere is not a model; run `make repro`"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_status_2(here: Path, request_text: str, model: str, reason: str) -> None:
    (here / "merged").mkdir()
    (here / "merged" / "config.json").write_text("{}", encoding="utf-8")
    ran = run(request_text, here / model)
    assert (ran.exit_code, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert reason in ran.stderr


def test_a_contract_that_is_missing_is_status_2(here: Path, merged: Path) -> None:
    ran = CliRunner().invoke(ask.main, ["buy milk", "--model", str(merged), "--schema", "nowhere.json"])
    assert (ran.exit_code, ran.stderr.count("\n")) == (2, 1)
    assert "nowhere.json: No such file" in ran.stderr
    assert "models/merged is not a model" in CliRunner().invoke(ask.main, ["buy milk"]).stderr
