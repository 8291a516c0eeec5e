"""The real pipeline, run by DVC in a fresh clone, on a tiny model: every stage, every file, and nothing twice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SCHEMA, write_rows
from ruamel.yaml import YAML

BIN = Path(sys.executable).parent
SYSTEMS = ("zero_shot", "few_shot", "tuned", "constrained")
SMALL = {
    "fetch": {"source": "path"},
    "train": {"epochs": 1.0, "device": "cpu-fp32"},
    "predict": {"device": "cpu-fp32", "max_new_tokens": 60},
    "retention": {"device": "cpu-fp32"},
    "memorisation": {"sample": 8},
}


def row(number: int) -> dict[str, Any]:
    """One request, or a conversation of two for every fifth number."""
    title = f"Errand {number}"
    answer = {"action": "create", "title": title, "priority": "medium", "due_date": None}
    turns = [{"role": "user", "content": f"do errand {number}"}, {"role": "assistant", "content": json.dumps(answer)}]
    if number % 5:
        return {"instruction": turns[0]["content"], "output": turns[1]["content"]}
    gone = json.dumps({"action": "delete", "title": title})
    return {"messages": [*turns, {"role": "user", "content": "drop it"}, {"role": "assistant", "content": gone}]}


def run(clone: Path, *command: str) -> str:
    env = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}
    ran = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{command}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A clone of the working tree with fewer rows and a tiny model, its pipeline run once."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in listed:
        if name and name != "dvc.lock" and not name.startswith("metrics/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    shutil.rmtree(folder / "data")
    (folder / "data").mkdir()
    shutil.copy(SCHEMA, folder / "data" / "schema.json")
    write_rows(folder / "data" / "raw" / "rows.jsonl", [row(number) for number in range(70)])
    write_rows(folder / "data" / "test" / "rows.jsonl", [row(number) for number in range(100, 120)])
    item = {"kind": "fact", "question": "Is it?", "options": ["No", "Yes"], "answer": 1}
    write_rows(folder / "data" / "general" / "items.jsonl", [item | {"id": f"q{number}"} for number in range(4)])
    write_rows(
        folder / "data" / "general" / "text.jsonl",
        [{"id": f"d{number}", "text": "So it is, and so it was."} for number in "12"],
    )
    yaml = YAML()
    params = yaml.load((folder / "params.yaml").read_text(encoding="utf-8"))
    for section, change in SMALL.items():
        params[section].update(change)
    params["fetch"]["path"] = str(base)
    params["chat"]["max_length"] = 2000  # the tiny tokenizer needs more tokens for the same text
    with (folder / "params.yaml").open("w", encoding="utf-8") as handle:
        yaml.dump(params, handle)
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", ".")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "start")
    run(folder, "dvc", "repro")
    return folder


def test_all_systems_are_measured_on_the_same_rows(clone: Path) -> None:
    metrics = json.loads((clone / "metrics" / "evaluate.json").read_text(encoding="utf-8"))
    built = json.loads((clone / "metrics" / "build.json").read_text(encoding="utf-8"))
    sizes = {metrics[system]["n"] for system in SYSTEMS}
    assert sizes == {built["test"]["examples"]}
    assert built["test"]["examples"] > 20
    outcomes = (clone / "metrics" / "outcomes.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(outcomes) == built["test"]["examples"]


def test_what_was_kept_and_copied_is_of_the_model_that_was_scored(clone: Path) -> None:
    scored, kept, copied = (
        json.loads((clone / "metrics" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("evaluate", "retention", "memorisation")
    )
    assert {part["computed_from"]["adapter"] for part in (kept, copied)} == {scored["computed_from"]["adapter"]}
    assert {part["computed_from"]["base"] for part in (kept, copied)} == {scored["computed_from"]["base"]}
    assert {kept[name]["n"] for name in ("base", "adapter_off", "tuned")} == {4}
    assert copied["answer_alone"]["train"]["n"] == copied["with_request"]["test"]["n"] == 8
    assert len((clone / "metrics" / "retention.jsonl").read_text(encoding="utf-8").split("\n")[:-1]) == 4


def test_rows_in_are_rows_kept_and_refused(clone: Path) -> None:
    figures = json.loads((clone / "metrics" / "validate.json").read_text(encoding="utf-8"))
    for split, folder in (("train", "raw"), ("test", "test")):
        lines = sum(len(file.read_bytes().split(b"\n")) - 1 for file in (clone / "data" / folder).glob("*.jsonl"))
        assert lines == figures[split]["rows"] == figures[split]["kept"] + figures[split]["refused"]


def test_a_second_run_does_nothing(clone: Path) -> None:
    before = (clone / "dvc.lock").read_bytes()
    assert "Running stage" not in run(clone, "dvc", "repro")
    assert (clone / "dvc.lock").read_bytes() == before


def test_the_table_names_every_system(clone: Path) -> None:
    printed = run(clone, sys.executable, "-m", "tools.table")
    assert all(f"| {system} |" in printed for system in SYSTEMS)
    assert "p = " in printed


def test_dvc_reads_metrics_and_plots(clone: Path) -> None:
    shown = json.loads(run(clone, "dvc", "metrics", "show", "--json"))
    assert "metrics/evaluate.json" in shown[""]["data"]
    run(clone, "dvc", "metrics", "diff")
    run(clone, "dvc", "plots", "show")
    page = (clone / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    for name in ("train_loss", "valid_loss", "confusion", "by_action"):
        assert name in page


def test_editing_the_scorer_runs_the_scorer_only(clone: Path) -> None:
    scorer = clone / "stages" / "evaluate.py"
    scorer.write_text(scorer.read_text(encoding="utf-8") + "\n# a remark\n", encoding="utf-8")
    (clone / "tools" / "ask.py").write_text("# gone\n", encoding="utf-8")
    before = (clone / "metrics" / "evaluate.json").read_bytes()
    ran = run(clone, "dvc", "repro")
    assert [line for line in ran.split("\n") if line.startswith("Running stage")] == ["Running stage 'evaluate':"]
    assert (clone / "metrics" / "evaluate.json").read_bytes() == before


def test_switching_the_fourth_system_off_leaves_the_others_alone(clone: Path) -> None:
    before = json.loads((clone / "metrics" / "evaluate.json").read_text(encoding="utf-8"))
    text = (clone / "params.yaml").read_text(encoding="utf-8")
    assert "  enabled: true " in text
    (clone / "params.yaml").write_text(text.replace("  enabled: true ", "  enabled: false "), encoding="utf-8")
    lines = run(clone, "dvc", "repro").split("\n")
    ran = [line for line in lines if line.startswith("Running stage")]
    (clone / "params.yaml").write_text(text, encoding="utf-8")
    after = json.loads((clone / "metrics" / "evaluate.json").read_text(encoding="utf-8"))
    run(clone, "dvc", "repro")
    assert ran == ["Running stage 'constrained':", "Running stage 'evaluate':"]
    assert set(before) - set(after) == {"constrained", "constrained_over_tuned"}
    assert all(before[system] == after[system] for system in SYSTEMS[:3])


def test_rows_that_dvc_holds_are_read_beside_those_in_git(clone: Path) -> None:
    big = clone / "data" / "raw" / "big.jsonl"
    write_rows(big, [row(number) for number in range(201, 210)])
    run(clone, "dvc", "add", "data/raw/big.jsonl")
    run(clone, "dvc", "repro", "--single-item", "validate")
    figures = json.loads((clone / "metrics" / "validate.json").read_text(encoding="utf-8"))
    assert figures["train"]["kept"] == 79
    big.unlink()
    (clone / "data" / "raw" / "big.jsonl.dvc").unlink()


def test_a_bad_row_stops_the_pipeline_and_is_named(clone: Path) -> None:
    rows = clone / "data" / "raw" / "broken.jsonl"
    rows.write_text('{"instruction": "buy milk", "output": "{\'action\': \'list\'}"}\n', encoding="utf-8")
    env = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(["dvc", "repro"], cwd=clone, env=env, capture_output=True, text=True, check=False)  # noqa: S607
    rows.unlink()
    assert ran.returncode != 0
    assert "data/raw/broken.jsonl:1: contract" in ran.stderr
