"""A training that was killed ends with the bytes of one that was not; what it can't go on from is refused by name."""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import KNOBS, ROOT, configure, write_rows
from test_train import PREFIX, example

from stages import train
from stages.core import hashes
from stages.model import checkpoints

# One server imports torch once and forks a fresh process for each run, here and in test_kept.py.
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED = ["bitsandbytes", "peft", "trl", "transformers.models.auto.tokenization_auto"]
IMPORTED += ["transformers.models.llama.modeling_llama", "stages.predict", "stages.train"]
PROCESSES.set_forkserver_preload(IMPORTED)
STEPS = 6
NEVER = 1000.0  # minutes
OUTPUTS = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/made_from.json"]
OUTPUTS += ["metrics.json", "train_loss.csv", "valid_loss.csv", "row_losses.csv"]


def stage(folder: Path, words: list[str], said_in: str, environment: dict[str, str]) -> None:
    """In a process of its own: the command, in a folder, with what it says in a file."""
    os.chdir(folder)
    os.environ |= environment
    said = os.open(said_in, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 2)
    sys.stderr = os.fdopen(said, "w", buffering=1)
    train.main(words)


def start(folder: Path, base: Path, minutes: float, said_in: str = "said", **environment: str) -> Any:
    names = {"train": "train.jsonl", "valid": "valid.jsonl", "prefix": "prefix.json", "base": base, "out": "adapter"}
    names |= {"metrics": "metrics.json", "train-loss": "train_loss.csv", "valid-loss": "valid_loss.csv"}
    names |= {"replay": "replay.jsonl", "row-losses": "row_losses.csv", "launch": ROOT / "stages" / "launch"}
    names |= {"timings": "timings.json", "checkpoint-folder": "kept", "checkpoint-minutes": minutes}
    (folder / said_in).unlink(missing_ok=True)
    words = [word for name, value in names.items() for word in (f"--{name}", str(value))]
    process = PROCESSES.Process(target=stage, args=(folder, words, said_in, environment))
    process.start()
    return process


def said(folder: Path) -> str:
    return (folder / "said").read_text("utf-8") if (folder / "said").exists() else ""


def finish(folder: Path, base: Path) -> dict[str, bytes]:
    process = start(folder, base, NEVER)
    process.join()
    assert process.exitcode == 0, said(folder)
    assert not list((folder / "kept").glob("*/checkpoint-*")) or "of other inputs" in said(folder)
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def kill(folder: Path, base: Path, step: int, how: signal.Signals) -> None:
    """Start, and kill once so many steps are done: after the checkpoint of that step, or with none so far."""
    process = start(folder, base, 0.0 if how == signal.SIGKILL else NEVER)
    seal = f"*/checkpoint-{step}/{checkpoints.SEAL}"
    while not (list((folder / "kept").glob(seal)) if how == signal.SIGKILL else f" {step}/{STEPS} " in said(folder)):
        assert process.exitcode is None, said(folder)
        time.sleep(0.005)
    os.kill(process.pid, how)
    process.join()
    assert process.exitcode == {signal.SIGKILL: -9, signal.SIGTERM: 1}[how], said(folder)


def inputs(folder: Path) -> Path:
    """24 rows, 2 epochs of 3 steps of 2 micro batches, and dropout, which draws random numbers."""
    (folder / "params.yaml").write_bytes(KNOBS.read_bytes())
    configure(folder, compute={"device": "cpu-fp32"}, train={"epochs": 2, "micro_batch_size": 4, "lora_dropout": 0.1})
    (folder / "prefix.json").write_text(json.dumps(PREFIX), encoding="utf-8")
    write_rows(folder / "train.jsonl", [example(number) for number in range(24)])
    write_rows(folder / "valid.jsonl", [example(number) for number in range(100, 104)])
    write_rows(folder / "replay.jsonl", [])
    return folder


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return finish(inputs(tmp_path_factory.mktemp("whole")), base)


@pytest.mark.parametrize(
    ("step", "how"),
    [
        pytest.param(1, signal.SIGKILL, id="killed in the first epoch"),
        pytest.param(3, signal.SIGKILL, id="killed after the evaluation between epochs"),
        pytest.param(5, signal.SIGKILL, id="killed in the last step"),
        pytest.param(1, signal.SIGTERM, id="terminated in the first epoch"),
        pytest.param(2, signal.SIGTERM, id="terminated before the evaluation"),
        pytest.param(4, signal.SIGTERM, id="terminated in the last epoch"),
    ],
)
def test_a_killed_training_ends_with_the_same_bytes(
    tmp_path: Path, base: Path, whole: dict[str, bytes], step: int, how: signal.Signals
) -> None:
    kill(inputs(tmp_path), base, step, how)
    assert (how == signal.SIGTERM) == ("ended by SIGTERM at step" in said(tmp_path))
    assert finish(tmp_path, base) == whole
    assert "going on from kept/" in said(tmp_path)


def test_a_torn_checkpoint_is_refused_and_an_older_taken(tmp_path: Path, base: Path, whole: dict[str, bytes]) -> None:
    kill(inputs(tmp_path), base, 4, signal.SIGKILL)
    newest = max(path.parent for path in (tmp_path / "kept").glob(f"*/checkpoint-*/{checkpoints.SEAL}"))
    os.truncate(newest / "optimizer.pt", 100)
    assert finish(tmp_path, base) == whole
    assert f"{newest.relative_to(tmp_path)} is torn (optimizer.pt): removed" in said(tmp_path)
    assert f"going on from kept/{newest.parent.name}/checkpoint-" in said(tmp_path)


def test_a_checkpoint_of_other_inputs_is_refused(tmp_path: Path, base: Path, whole: dict[str, bytes]) -> None:
    write_rows(inputs(tmp_path) / "train.jsonl", [example(number) for number in range(1, 25)])
    kill(tmp_path, base, 2, signal.SIGKILL)
    write_rows(tmp_path / "train.jsonl", [example(number) for number in range(24)])
    assert finish(tmp_path, base) == whole
    assert "is of other inputs (train): starting anew" in said(tmp_path)
    assert "going on from" not in said(tmp_path)


def store(folder: Path, *steps: int, **other: Any) -> checkpoints.Store:
    """Sealed checkpoints of two files each."""
    made = checkpoints.Store(folder, {"rows": "a", "params": {"seed": 1, "rank": 4} | other})
    for step in steps:
        checkpoint = made.folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for name in ("adapter", "optimizer"):
            (checkpoint / name).write_text(f"{name} {step}", encoding="utf-8")
        made.seal(checkpoint)
    return made


def test_the_newest_checkpoint_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = store(tmp_path, 9, 10)
    assert made.latest() == made.folder / "checkpoint-10"
    assert capsys.readouterr().err == ""
    other = store(tmp_path, 1, seed=2)
    made.clear()
    assert (made.latest(), other.latest()) == (None, other.folder / "checkpoint-1")


def test_minutes_are_minutes_and_count_from_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, due = [1000.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    alone = SimpleNamespace(device="cpu", is_main_process=True, wait_for_everyone=lambda: None)
    alone.reduce = lambda votes, how: votes
    saver = checkpoints.callback(store(tmp_path, 3), 5.0, alone, dict)
    state = SimpleNamespace(global_step=3, max_steps=9)
    for seconds in (299, 2):
        now[0] += seconds
        due.append(saver.due(state))
    saver.on_save(None, state, None)
    assert (due, saver.due(state)) == ([False, True], False)
    saver.terminated = True
    assert [saver.due(SimpleNamespace(global_step=step, max_steps=9)) for step in (8, 9)] == [True, False]


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("optimizer", b"optimiz", "is torn (optimizer)"),
        ("optimizer", None, "is torn (not all of it was written)"),
        (checkpoints.SEAL, None, "is torn (not all of it was written)"),
        (checkpoints.SEAL, b'{"inputs": {', "is torn (not all of it was written)"),
        (checkpoints.SEAL, b"[]", "is torn (not all of it was written)"),
    ],
)
def test_a_torn_checkpoint_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: bytes | None, problem: str
) -> None:
    made = store(tmp_path, 2)
    torn = made.folder / "checkpoint-2"
    (torn / file).write_bytes(content) if content is not None else (torn / file).unlink()
    assert made.latest() is None
    assert capsys.readouterr().err == f"train: checkpoint {torn} {problem}: removed\n"
    assert not torn.exists()


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (PermissionError(13, "Permission denied", "a file"), "a file"),
        (OSError(5, "Input/output error"), "checkpoint-2"),
    ],
)
def test_a_checkpoint_that_can_not_be_read_is_named_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, named: str
) -> None:
    def refuse(path: Path) -> str:
        raise error

    made = store(tmp_path, 2)
    monkeypatch.setattr(hashes, "of_file", refuse)
    with pytest.raises(OSError, match=error.strerror) as caught:
        made.latest()
    assert caught.value.filename.endswith(named)
    assert (made.folder / "checkpoint-2/optimizer").is_file()
    assert checkpoints.Store(tmp_path, {"seed": 0}).latest() is None  # that of other inputs stops nobody


def test_code_is_also_what_is_loaded_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (checkpoints.FOLDER / "trainer.py").is_file()
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path / "model")
    launch = tmp_path / "launch/ddp.yaml"
    found = {checkpoints.code(launch)}
    for file in (launch, tmp_path / "model/trainer.py", tmp_path / "core/cli.py"):
        file.parent.mkdir()
        file.write_text("changed", encoding="utf-8")
        found.add(checkpoints.code(launch))
    assert len(found) == 4


def test_what_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = store(tmp_path, 1, 2, seed=2, rank=4)
    assert store(tmp_path).latest() is None
    left = other.folder / "checkpoint-2"
    assert capsys.readouterr().err == f"train: checkpoint {left} is of other inputs (params.seed): starting anew\n"
    assert other.latest() == left


def test_a_checkpoint_moved_to_other_inputs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = store(tmp_path)
    store(tmp_path, 2, seed=2).folder.rename(own.folder)
    assert own.latest() is None
    assert "is of other inputs (params.seed)" in capsys.readouterr().err
