"""The real pipeline, run by DVC in a fresh clone, on a tiny model: every stage, every file, and nothing twice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import KNOBS, ROOT, SCHEMA, configure, read_json, read_rows, write_rows

from stages.core import hashes

BIN = Path(sys.executable).parent
SYSTEMS = ("zero_shot", "few_shot", "tuned", "constrained", "grounded")
SMALL: dict[str, dict[str, Any]] = {
    "compute": {"device": "cpu-fp32"},
    "train": {"epochs": 1.0},
    "predict": {"max_new_tokens": 60},
    "memorisation": {"sample": 8},
    "chat": {"max_length": 2000},  # the tiny tokenizer needs more tokens for the same text
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


def make_clone(folder: Path, base: Path) -> Path:
    """A clone of the working tree with fewer rows and a tiny model, in its first commit."""
    for name in run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").split("\n"):
        if name and name != "dvc.lock" and not name.startswith(("metrics/", "data/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    data = folder / "data"
    write_rows(data / "raw" / "rows.jsonl", [row(number) for number in range(70)])
    for name, first in (("head", 100), ("tail", 110)):
        write_rows(data / "test" / f"{name}.jsonl", [row(number) for number in range(first, first + 10)])
    write_rows(data / "behaviour" / "minimum-errand.jsonl", [row(number) | {"id": f"m{number}"} for number in (1, 5)])
    same = {"id": "i1", "instruction": "Do errand 1", "variant": "do errand 1"}
    write_rows(data / "behaviour" / "invariance-case.jsonl", [same])
    item = {"kind": "fact", "question": "Is it?", "options": ["No", "Yes"], "answer": 1}
    write_rows(data / "general" / "items.jsonl", [item | {"id": f"q{number}"} for number in range(4)])
    text = {"text": "So it is, and so it was."}
    write_rows(data / "general" / "text.jsonl", [text | {"id": f"d{number}"} for number in "12"])
    write_rows(data / "general" / "prompts.jsonl", [{"id": "p", "prompt": "Say hello."}])
    shutil.copy(SCHEMA, data / "schema.json")
    (data / "rules.yaml").write_text("copied_fields: [title]\nlabelling: {}\n", encoding="utf-8")
    shutil.copy(KNOBS, folder / "params.yaml")
    configure(folder, **SMALL, fetch={"source": "path", "path": str(base)})
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", ".")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "start")
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    folder = make_clone(tmp_path_factory.mktemp("clone"), base)
    run(folder, "dvc", "repro")
    return folder


def test_the_record_is_a_function_of_inputs(clone: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Another folder, another time, nothing in the cache: the same dvc.lock and metrics; timings alone differ."""
    other = make_clone(tmp_path_factory.mktemp("other"), base)
    run(other, "dvc", "repro")
    files = [Path("dvc.lock"), *(file.relative_to(clone) for file in (clone / "metrics").rglob("*") if file.is_file())]
    files = [file for file in files if file.parent.name != "timing"]
    assert [str(file) for file in files if (clone / file).read_bytes() != (other / file).read_bytes()] == []


def test_all_systems_are_measured_on_the_same_rows(clone: Path) -> None:
    metrics, built = (read_json(clone / "metrics" / name) for name in ("evaluate.json", "detail/build.json"))
    assert {metrics[system]["n"] for system in SYSTEMS} == {built["test"]["examples"]}
    assert built["test"]["examples"] > 20
    assert len(read_rows(clone / "metrics" / "outcomes.jsonl")) == built["test"]["examples"]
    slices = read_json(clone / "metrics" / "detail" / "evaluate.json")["systems"]["tuned"]["slices"]["slice"]
    assert slices["head"]["n"] + slices["tail"]["n"] == built["test"]["examples"]


def test_behaviour_tests_are_answered_and_counted(clone: Path) -> None:
    metrics = read_json(clone / "metrics" / "behaviour.json")
    assert {name: value for name, value in metrics.items() if name.endswith("_n")} == {
        **{"minimum_n": 3, "invariance_n": 1, "directional_n": 0}
    }
    assert len(read_rows(clone / "metrics" / "behaviour.jsonl")) == 4


def test_all_figures_are_of_the_model_that_was_scored(clone: Path) -> None:
    """So the pull request's report never mixes two models."""
    names = ("evaluate", "likelihood", "behaviour", "retention", "memorisation")
    files = [clone / "metrics" / "detail" / f"{name}.json" for name in names]
    origins = [read_json(file)["computed_from"] for file in files]
    made_from = read_json(clone / "models" / "merged" / "made_from.json")
    assert {origin["adapter"] for origin in origins} == {made_from["adapter"]}
    assert {origin["base"] for origin in origins} == {made_from["base"]}
    rows = {name: hashes.of_file(clone / f"data/chat/{name}.jsonl") for name in ("train", "valid", "replay", "test")}
    assert set().union(*origins, made_from) > rows.keys()
    for origin in (made_from, *origins):
        assert {name: origin[name] for name in rows if name in origin}.items() <= rows.items()


def test_rows_in_are_rows_kept_and_refused(clone: Path) -> None:
    figures = read_json(clone / "metrics" / "detail" / "validate.json")
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
    assert "| minimum | 3 |" in printed


def test_dvc_shows_few_columns_and_the_plots(clone: Path) -> None:
    shown = json.loads(run(clone, "dvc", "metrics", "show", "--json"))[""]["data"]
    assert set(shown) == {
        f"metrics/{name}.json" for name in ("train", "headline", "behaviour", "retention", "memorisation")
    }
    files = (clone / f"metrics/plots/{name}_loss.csv" for name in ("train", "valid"))
    steps, epochs = (file.read_bytes().count(b"\n") for file in files)
    assert steps > epochs == 2, "a line for each step, and for each epoch; one of headings"
    run(clone, "dvc", "plots", "show")
    page = (clone / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("train_loss", "valid_loss", "systems", "by_kind", "confusion"))


def stages_run(clone: Path) -> list[str]:
    lines = run(clone, "dvc", "repro").split("\n")
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def test_editing_the_scorer_runs_the_scorer_only(clone: Path) -> None:
    scorer = clone / "stages" / "evaluate.py"
    scorer.write_text(scorer.read_text(encoding="utf-8") + "\n# a remark\n", encoding="utf-8")
    (clone / "tools" / "ask.py").write_text("# gone\n", encoding="utf-8")
    before = (clone / "metrics" / "evaluate.json").read_bytes()
    assert stages_run(clone) == ["evaluate"]
    assert (clone / "metrics" / "evaluate.json").read_bytes() == before


def test_a_corrected_behaviour_test_answers_no_test_row_again(clone: Path) -> None:
    same = {"id": "i1", "instruction": "Do errand 2", "variant": "do errand 2"}
    write_rows(clone / "data" / "behaviour" / "invariance-case.jsonl", [same])
    assert set(stages_run(clone)) == {"build", "predict_behaviour", "behaviour"}


def test_switching_the_grammar_off_leaves_the_other_systems_alone(clone: Path) -> None:
    before, params = read_json(clone / "metrics" / "evaluate.json"), (clone / "params.yaml").read_bytes()
    configure(clone, constrained={"enabled": False})
    run(clone, "dvc", "repro", "evaluate")
    after = read_json(clone / "metrics" / "evaluate.json")
    (clone / "params.yaml").write_bytes(params)
    run(clone, "dvc", "repro")
    assert after == {name: figures for name, figures in before.items() if name not in ("constrained", "grounded")}


def test_rows_that_dvc_holds_are_read_beside_those_in_git(clone: Path) -> None:
    big = clone / "data" / "raw" / "big.jsonl"
    write_rows(big, [row(number) for number in range(201, 210)])
    run(clone, "dvc", "add", "data/raw/big.jsonl")
    run(clone, "dvc", "repro", "--single-item", "validate")
    figures = read_json(clone / "metrics" / "detail" / "validate.json")
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
