"""The Data Docs: the same bytes for the same verdicts, text that stays text, nothing from the network."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import KNOBS, ROOT, SCHEMA, write_rows

from stages.checklist import page
from stages.checklist.verdicts import Verdict
from stages.core import strict_json

HOSTILE = "<script>document.title='owned'</script>\"'&<img src=//x.example/x>"


def failing(*examples: str) -> Verdict:
    return Verdict("consistent", "labels", "train", "critical", 0.5, 0.02, len(examples), examples, "a knob")


def written(folder: Path, *verdicts: Verdict) -> str:
    page.write(folder / "index.html", ["train: 2 rows"], verdicts)
    return (folder / "index.html").read_text(encoding="utf-8")


def test_a_verdict_is_shown_with_its_figures_and_all_its_rows(tmp_path: Path) -> None:
    shown = written(tmp_path, failing("raw/a.jsonl:7: no capital", "raw/a.jsonl:9: an article"))
    for cell in ("labels", "critical", "0.5", "0.02", "raw/a.jsonl:7: no capital"):
        assert f"<td>{cell}" in shown
    assert "raw/a.jsonl:9: an article" in shown


def test_text_of_a_row_stays_text(tmp_path: Path) -> None:
    shown = written(tmp_path, failing(HOSTILE, HOSTILE))
    assert html.unescape(shown).count(HOSTILE) == 2
    assert not re.search("<(script|img)", shown)


def test_the_page_asks_no_host_for_anything(tmp_path: Path) -> None:
    assert not re.search(r"(?:src|href|url)\b", written(tmp_path, failing("raw/a.jsonl:7: x")))


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    """In two folders, at two times, with other hash seeds: dvc.lock records a hash of what is written."""
    results = []
    for name in ("first", "second"):
        folder = tmp_path / name
        rows = [{"instruction": ask, "output": '{"action":"list","filter":"all"}'} for ask in ("show all", "list it")]
        write_rows(folder / "raw" / "a.jsonl", [*rows, rows[0], {"instruction": "odd"}])
        write_rows(folder / "test" / "a.jsonl", [rows[0] | {"instruction": "what is there"}])
        (folder / "params.yaml").write_bytes(KNOBS.read_bytes())
        given = {"schema": SCHEMA, "rules": ROOT / "data" / "rules.yaml", "suites": ROOT / "expectations"}
        paths = {"raw": "raw", "test": "test", "out": "out", "docs": "docs", "metrics": "m.json", "detail": "d.json"}
        options = [part for option, path in (paths | given).items() for part in (f"--{option}", str(path))]
        seed = {"PYTHONHASHSEED": str(len(name)), "PYTHONPATH": str(ROOT), "TZ": name[0].upper() + "ST5"}
        command = [sys.executable, "-m", "stages.validate", *options]
        ran = subprocess.run(command, cwd=folder, env=os.environ | seed, capture_output=True, check=False)
        assert ran.returncode == 1  # two rows are refused
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        results.append({str(file.relative_to(folder)): file.read_bytes() for file in files})
    assert results[0] == results[1]
    assert strict_json.parse(results[0]["m.json"].decode())["train_refused"] == 2
