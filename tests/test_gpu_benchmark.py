"""The benchmark for a card runs as a whole on a CPU: on paid hardware no line of it runs for the first time."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from conftest import configure, write_rows
from taught import PREFIX

from benchmarks import gpu, train_cpu
from planning import memory
from stages.data import writing
from stages.model import loading


@pytest.fixture
def built(here: Path, base: Path) -> Path:
    """A base model and chat rows, as the end-to-end part finds them."""
    (here / "models").mkdir()
    (here / "models/base").symlink_to(base)
    chat = here / "data/chat"
    for name in ("train", "valid", "test", "replay"):
        rows = [
            {"id": f"{name}{n}", "prompt": [{"role": "user", "content": f"buy {n}"}], "answer": "{}"} for n in range(4)
        ]
        write_rows(chat / f"{name}.jsonl", rows)
    writing.write_json(chat / "prefix/tuned.json", PREFIX)
    configure(here, train={"epochs": 1.0}, predict={"max_new_tokens": 4})
    return here


def test_every_side_and_stage_runs_and_is_recorded(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(gpu.__file__).parent.parent))
    ran = CliRunner().invoke(gpu.main, ["--shape=tiny", "--out=gpu.json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    found = json.loads((built / "gpu.json").read_text(encoding="utf-8"))
    assert list(found["training"]) == ["cpu-bf16", "cpu-fp32"]
    for sides in found["training"].values():
        assert set(sides) == set(gpu.SIDES)
        for figures in sides.values():
            assert figures.get("error") is None
            assert figures["tokens_per_second"] > 0
            assert figures["peak_memory_bytes"] > 0
            assert figures["micro_batch_size"] == 8
    shape = memory.shape_of(gpu.SHAPES["tiny"].config, "tiny")
    planned = memory.parts(shape, gpu.run_of(gpu.SHAPES["tiny"], "cpu-fp32", 8))
    assert found["training"]["cpu-fp32"]["lockstep"]["planned_bytes"] == round(sum(planned.values()))
    assert list(found["end_to_end"]) == ["merge", "predict", "train"]
    assert not [stage for stage in found["end_to_end"].values() if "error" in stage]
    assert found["end_to_end"]["train"]["tokens_per_second"] > 0
    assert set(found["versions"]) == set(gpu.LIBRARIES)


def test_a_side_that_fails_leaves_its_error_and_the_others_figures(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError("CUDA out of memory\nby far")

    monkeypatch.setattr(gpu, "SIDES", {"peft": full})
    monkeypatch.setattr(loading, "DEVICES", {"cpu-fp32": loading.DEVICES["cpu-fp32"]})
    monkeypatch.setattr(loading, "device", lambda: ("cpu-fp32", loading.DEVICES["cpu-fp32"]))
    ran = CliRunner().invoke(gpu.main, ["--shape=tiny", "--out=gpu.json"], catch_exceptions=False)
    assert ran.exit_code == 0
    found = json.loads((here / "gpu.json").read_text(encoding="utf-8"))
    assert found["training"] == {"cpu-fp32": {"peft": {"error": "MemoryError: CUDA out of memory"}}}


def test_a_card_gets_the_largest_micro_batch_that_the_plan_allows(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, counted = gpu.SHAPES["8b"], memory.shape_of(gpu.SHAPES["8b"].config, "8b")
    assert counted.parameters == 8_030_261_248  # Llama 3 8B
    for rows in (1, 2, 8):
        needed = memory.needed(counted, gpu.run_of(shape, "cuda-bf16", rows))
        monkeypatch.setattr(memory, "available", lambda device, needed=needed: needed)
        assert gpu.settings(shape, "cuda-bf16").micro_batch_size == rows


def test_the_ratio_is_ours_over_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter((2.0, 6.0))

    def ran(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(stdout=json.dumps({"tokens_per_cpu_second": next(speeds)}))

    monkeypatch.setattr(subprocess, "run", ran)
    monkeypatch.setattr(train_cpu, "machine", lambda _: {})
    assert json.loads(CliRunner().invoke(train_cpu.main, []).stdout)["ratio"] == 3.0
