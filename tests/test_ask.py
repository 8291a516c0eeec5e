"""One object out, the verdict on stderr, the status in the exit code."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import ROOT, SCHEMA

from tools import ask

CREATE = '{"action":"create","title":"Buy milk","priority":"medium","due_date":"tomorrow"}'


def run(monkeypatch: pytest.MonkeyPatch, said: str, *options: str) -> Result:
    """The command with the model's words given; generation has its own tests."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ask, "answer", lambda request, base, adapter, schema: said)
    here = ["--base", "data", "--adapter", "data", "--schema", str(SCHEMA)]
    return CliRunner().invoke(ask.main, ["buy milk tomorrow", *here, *options])


def test_a_sound_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, CREATE)
    assert (result.exit_code, result.stdout, result.stderr) == (0, CREATE + "\n", "contract: ok\n")


@pytest.mark.parametrize("said", ["Sure!", CREATE.replace("medium", "soon"), "[]"])
def test_a_broken_answer_fails(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    result = run(monkeypatch, said)
    assert result.exit_code == 1
    assert result.stdout.strip() == said
    assert result.stderr.startswith("contract: ")
    assert "ok" not in result.stderr


def test_the_due_date_is_resolved_at_the_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    assert '"due_date":"2026-11-26"' in run(monkeypatch, CREATE, "--today", "2026-11-25").stdout


@pytest.mark.parametrize("value", [{"due_date": None}, {"due_date": "none"}, {"filter": "all"}])
def test_nothing_to_resolve(value: dict[str, Any]) -> None:
    assert ask.with_iso_date(value, date(2026, 11, 25)) == value


def test_an_untrained_clone_is_told_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(ask.main, ["buy milk"])
    assert result.exit_code == 2
    assert "models/base" in result.output
