"""Two processes train to the losses of one; accelerate understands the files that start them."""

import os
import signal
import socket
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, configure, read_json, write_rows
from test_checkpoints import NEVER, inputs, said, start
from test_train import example

from stages.model import checkpoints, launching

FOLDER = ROOT / "stages" / "launch"
# With the first column that is a loss: which share of an epoch a step ends is counted in batches of one process.
LOSSES = {"train_loss.csv": 2, "valid_loss.csv": 2, "row_losses.csv": 1}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_accelerates_launcher_takes_the_command_and_its_file(kind: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    command = launching.command(kind, FOLDER, ["--train", "rows.jsonl"])
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    given = launch_command_parser().parse_args(command[3:])
    assert (given.module, given.training_script) == (True, "stages.train")
    assert given.training_script_args == ["--train", "rows.jsonl"]
    config = load_config_from_file(given.config_file)
    assert config.distributed_type == {"ddp": "MULTI_GPU", "fsdp": "FSDP"}[kind]
    assert config.num_processes > 1
    assert config.mixed_precision == {"ddp": "no", "fsdp": "bf16"}[kind]


def test_the_sharding_is_that_which_qlora_needs() -> None:
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.commands.config.config_args import load_config_from_file

    settings: dict[str, Any] = load_config_from_file(str(FOLDER / "fsdp.yaml")).fsdp_config
    known = {f"fsdp_{field.name.removeprefix('fsdp_')}" for field in fields(FullyShardedDataParallelPlugin)}
    renamed = {"fsdp_offload_params": "fsdp_cpu_offload"}
    assert {renamed.get(name, name) for name in settings} <= known
    assert (settings["fsdp_version"], settings["fsdp_state_dict_type"]) == (2, "FULL_STATE_DICT")
    on = [name for name, value in settings.items() if value is True]
    assert on == ["fsdp_reshard_after_forward", "fsdp_cpu_ram_efficient_loading"]


@pytest.mark.parametrize(("kind", "started"), [("single", {}), ("ddp", {"RANK": "1"})])
def test_a_launched_process_launches_no_other(kind: str, started: dict[str, str], monkeypatch: Any) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _program, words: ran.append(words))
    monkeypatch.delenv("RANK", raising=False)
    launching.launch("ddp", FOLDER)
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    launching.launch(kind, FOLDER)
    assert ran == [launching.command("ddp", FOLDER, sys.argv[1:])]


def start_two(folder: Path, base: Path, minutes: float) -> list[Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return [start(folder, base, minutes, "said" + rank["RANK"], **shared, **rank) for rank in ranks]


def everything(folder: Path, processes: list[Any]) -> dict[str, bytes]:
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)
    names = [*LOSSES, "adapter/adapter_model.safetensors", "metrics.json"]
    return {name: (folder / name).read_bytes() for name in names}


def numbers(text: bytes, first: int) -> list[float]:
    return [float(cell) for line in text.decode().split("\n")[1:-1] for cell in line.split(",")[first:]]


def test_two_processes_train_to_the_losses_of_one(tmp_path: Path, base: Path) -> None:
    """21 rows by 2: the last step of an epoch has a batch that is not full for one process, and none for the other."""
    configure(inputs(tmp_path), train={"epochs": 2, "micro_batch_size": 2, "lora_dropout": 0.0})
    write_rows(tmp_path / "train.jsonl", [example(number) for number in range(21)])
    write_rows(tmp_path / "valid.jsonl", [example(number) for number in range(100, 105)])
    one = everything(tmp_path, [start(tmp_path, base, NEVER)])
    two = everything(tmp_path, start_two(tmp_path, base, NEVER))
    for name, first in LOSSES.items():
        assert numbers(two[name], first) == pytest.approx(numbers(one[name], first), rel=1e-4)
    assert read_json(tmp_path / "adapter/made_from.json")["processes"] == 2
    assert "21 rows and 0 replayed, 6 steps" in (tmp_path / "said0").read_text("utf-8")
    assert "21 rows" not in (tmp_path / "said1").read_text("utf-8")

    killed = start_two(tmp_path, base, 0.0)
    while not list((tmp_path / "kept").glob(f"*/checkpoint-4/{checkpoints.SEAL}")):
        assert all(process.exitcode is None for process in killed), said(tmp_path)
        time.sleep(0.005)
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert everything(tmp_path, start_two(tmp_path, base, NEVER)) == two
    assert "going on from kept/" in (tmp_path / "said0").read_text("utf-8")
