"""The Data Docs in a real browser, without a network: from the checklist to the row that failed."""

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from stages.checklist import page, suites, verdicts
from stages.checklist.row import Checked
from stages.shared import writing
from stages.shared.rows import Row

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")
HOSTILE = "<script>document.title='owned'</script>"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


def dump(url: str, profile: Path) -> str:
    """The page as Chromium holds it after running its scripts; no host name resolves."""
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", *QUIET, "--disable-component-update"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--dump-dom", url),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Docs of two rows, of which the second fails its only check."""
    docs = tmp_path / "docs"
    null = {"type": "expect_column_values_to_be_null", "kwargs": {"column": "labels"}, "meta": {"group": "consistent"}}
    writing.write_json(tmp_path / "train.json", {"name": "train", "expectations": [null]})
    frame = pd.DataFrame(
        {"file": ["raw/a.jsonl"] * 2, "line": [6, 7], "labels": [None, "title: no capital"]}, dtype=object
    )
    made = suites.context(docs)
    suites.run(made, tmp_path / "train.json", frame, ["file", "line"], {})
    made.build_data_docs()
    failed = {"group": "consistent", "check": "labels", "suite": "train", "scope": "train", "verdict": "critical"}
    page.write(docs, ["train: 2 rows"], [failed | {"numbers": "found 1", "example": f"raw/a.jsonl:7: {HOSTILE}"}])
    return docs


def test_the_front_page_leads_from_a_failed_expectation_to_its_rows(docs: Path, tmp_path: Path) -> None:
    front = dump((docs / "index.html").as_uri(), tmp_path / "profile")
    (link,) = re.findall(r'<tr class="critical">.*?<a href="([^"]+)">labels</a>', front, re.DOTALL)
    rows = dump((docs / link).as_uri(), tmp_path / "profile")
    assert "title: no capital" in rows
    assert "raw/a.jsonl" in rows
    assert re.search(r"'line': 7\b", rows)
    assert not re.search(r"'line': 6\b", rows)


def test_text_of_a_row_stays_text_on_the_pages_of_great_expectations(tmp_path: Path) -> None:
    row = Row("raw/a.jsonl", 7, HOSTILE, (), "", "")
    reasons = {check: f"{check}: {HOSTILE}" for check in verdicts.CHECKS["train"]}
    null = {"type": "expect_column_values_to_be_null", "kwargs": {"column": "labels"}, "meta": {"group": "g"}}
    writing.write_json(tmp_path / "train.json", {"name": "train", "expectations": [null]})
    frame = verdicts.row_frame([Checked(row, reasons)], "train")
    made = suites.context(tmp_path / "docs")
    suites.run(made, tmp_path / "train.json", frame, ["file", "id"], {})
    made.build_data_docs()
    page.write(tmp_path / "docs", [], [])
    (rows,) = (tmp_path / "docs" / "validations").rglob("*.html")
    shown = dump(rows.as_uri(), tmp_path / "profile")
    assert "<title>owned" not in shown
    assert "&lt;script&gt;document.title" in shown


def test_text_of_a_row_stays_text(docs: Path, tmp_path: Path) -> None:
    front = dump((docs / "index.html").as_uri(), tmp_path / "profile")
    assert "<title>Data checklist</title>" in front
    assert "&lt;script&gt;document.title" in front


def test_no_page_asks_another_host_for_anything(docs: Path) -> None:
    for file in docs.rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//", text), file
