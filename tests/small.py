"""A small repository whose record is sound: one stage, 100 test rows, real Git, and a dvc.lock without DVC."""

import atexit
import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA, write_rows

from versions import history

RIGHT, WRONG = '{"action":"list","filter":"all"}', '{"action":"list","filter":"overdue"}'
EVALUATE, OUTCOMES = "metrics/evaluate.json", "metrics/outcomes.jsonl"
OUTS = [EVALUATE, OUTCOMES]
GATE = """\
confidence: 0.95
min_shared: 30
allow_removed_test_rows: false
minimum_functionality: 0.9
tolerated_retention_drop: 0.02
rules:
  - {system: tuned, metric: exact_match, tolerated_drop: 0.02, floor: 0.5}
"""


def git(*words: str) -> str:
    own = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/"]
    ran = subprocess.run(["git", *own, *words], capture_output=True, check=True)  # noqa: S607
    return os.fsdecode(ran.stdout).strip()


def start(folder: Path, patch: pytest.MonkeyPatch) -> str:
    """A repository as the working folder, with one run in it, 80 of 100 answers right. Its commit."""
    patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    patch.chdir(folder)
    shutil.copytree(_template(), folder, dirs_exist_ok=True)
    return git("rev-parse", "HEAD")


@cache
def _template() -> Path:
    """Made once: `start` copies it."""
    folder, before = Path(tempfile.mkdtemp()), Path.cwd()
    atexit.register(shutil.rmtree, folder)
    os.chdir(folder)
    git("init", "-q", "-b", "main")
    put("gate.yaml", GATE)
    put("params.yaml", "train:\n  epochs: 3\n")
    put("data/schema.json", SCHEMA.read_text(encoding="utf-8"))
    write_rows(Path("data/raw/rows.jsonl"), [row(number) for number in range(20)])
    measure([True] * 80 + [False] * 20)
    record()
    os.chdir(before)
    return folder


def put(path: str, text: str | bytes) -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def edit(path: str, old: str, new: str) -> None:
    text = Path(path).read_text(encoding="utf-8")
    assert old in text
    put(path, text.replace(old, new, 1))


def row(number: int, answer: str = RIGHT, **more: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "instruction": f"request {number}", "output": answer, **more}


def outcome(number: int, right: bool, **more: Any) -> dict[str, Any]:
    name = f"r{number}"
    verdict = {"verdict": "exact"} if right else {"verdict": "wrong", "answer": WRONG}
    asked = {"id": name, "group": name, "kind": "list", "slice": "", "request": f"request {number}", "expected": RIGHT}
    return asked | {"tuned": verdict} | more


def measure(right: list[bool], first: int = 0) -> None:
    """Test rows, outcomes and rates of a run."""
    answers([outcome(first + number, hit) for number, hit in enumerate(right)])
    write_rows(Path("data/test/rows.jsonl"), [row(first + number) for number in range(len(right))])


def answers(lines: list[dict[str, Any]]) -> None:
    """Outcomes, and the rates of their systems."""
    write_rows(Path(OUTCOMES), lines)
    rates: dict[str, Any] = {}
    for system in [name for name, value in lines[0].items() if isinstance(value, dict)]:
        exact = sum(line[system]["verdict"] == "exact" for line in lines) / len(lines)
        rates[system] = {"exact_match": exact, "exact_match_normalised": exact, "schema_valid": 1.0, "json_valid": 1.0}
    put(EVALUATE, json.dumps(rates))


def record(message: str = "a run") -> str:
    """Commit the working folder with a dvc.lock of it: one stage wrote all metrics. Its commit."""
    tree = history.working_tree()
    outs = sorted(path for path in history.files(tree, "metrics") if not path.startswith("metrics/experiments"))
    deps = ["data/raw", "data/test"]
    declared: dict[str, Any] = {"cmd": "true", "deps": deps, "params": ["train"]}
    declared |= {"metrics": [{path: {"cache": False}} for path in outs]}
    put("dvc.yaml", json.dumps({"stages": {"evaluate": declared}}))
    params = {"train": history.parse_yaml(Path("params.yaml").read_bytes(), "params.yaml")["train"]}
    ran: dict[str, Any] = {"cmd": "true", "params": {"params.yaml": params}}
    for key, paths in (("deps", deps), ("outs", outs)):
        ran[key] = [{"path": path, "hash": "md5", "md5": history.content_hash(tree, path)} for path in paths]
    put("dvc.lock", json.dumps({"schema": "2.0", "stages": {"evaluate": ran}}))
    return commit(message)


def commit(message: str = "a change") -> str:
    git("add", "--all")
    git("commit", "-q", "--allow-empty", "-m", message)
    return git("rev-parse", "HEAD")
