"""What fits is let through, and what can't is refused with the knob that helps."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import KNOBS, ROOT, configure, write_rows

from planning import memory
from stages import train
from stages.core import yaml12
from stages.model import loading
from tools import plan

MODELS = yaml12.parse((ROOT / "catalogue.yaml").read_text(encoding="utf-8"), "catalogue.yaml")
ROWS = [{"input_ids": [1] * length, "labels": [-100] * (length - 5) + [1] * 5} for length in (200, 100, 60, 20)]
SETTINGS = train.Params(1, 1.0, 1e-3, 0.0, 4, 4, 0.0, 16, 32, 0.0, "single")
DEVICE = loading.DEVICES["cpu-fp32"]


def call(monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(plan.main, list(options), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", MODELS)
def test_each_model_of_the_catalogue_prints_a_line_that_fetch_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = call(monkeypatch, "--model", name, "--card", "80GB")
    (line,) = re.findall(r"^dvc exp run (.*)$", printed, re.MULTILINE)
    knobs = dict(word.split("=", 1) for word in line.split() if "=" in word)
    known = yaml12.parse(KNOBS.read_text(encoding="utf-8"), "params.yaml")
    assert all(knob.split(".")[1] in known[knob.split(".")[0]] for knob in knobs)
    unknown = ("Qwen3-4B-Instruct-2507", "gemma-3-1b-it", "Phi-4-mini-instruct")
    assert ("memory is not known" in printed) == (name in unknown)
    assert float(knobs["train.learning_rate"]) == float(MODELS[name]["learning_rate"])
    assert knobs["train.micro_batch_size"] == (re.findall(r"micro batches of (\d+)", printed) or ["1"])[0]
    assert f"{MODELS[name]['licence']}; commercial use: {MODELS[name]['commercial']}" in printed
    assert (knobs["fetch.source"] == "wheel") == (name == plan.DEFAULT)
    if name != plan.DEFAULT:
        assert (knobs["fetch.source"], knobs["fetch.hub_id"]) == ("hub", MODELS[name]["id"])
        pinned = re.fullmatch(r"[0-9a-f]{40}", knobs["fetch.hub_revision"])
        assert (pinned is None) == ("pin it: no commit" in printed) == (not MODELS[name]["revision"])


def test_what_does_not_fit_prints_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.CARDS, "T4", 8)
    output = call(monkeypatch, "--model", "Qwen2.5-14B-Instruct", "--card", "T4")
    assert "does not fit" in output
    assert "cards that can train it: 16GB" in output
    assert "dvc exp run" not in output


def test_every_stage_of_an_8b_fits_a_card_that_trains_it(monkeypatch: pytest.MonkeyPatch) -> None:
    output = call(monkeypatch, "--model", "Llama-3.1-8B-Instruct", "--card", "24GB")
    sizes = dict(re.findall(r"^([a-z, ]+): ([\d.]+ GB.*)$", output, re.MULTILINE))
    assert set(sizes) == {"train", "merge", "predict", "retention, memorisation", "gguf"}
    assert not [stage for stage, size in sizes.items() if "more than there is" in size]
    assert "5.0 GB on the host" in sizes["merge"]
    assert sizes["gguf"] == "3.2 GB on the host"
    # The merged folder in 16 bits is 16.1 GB: what answers with it can't run where less is there.
    monkeypatch.setitem(plan.CARDS, "24GB", 19)  # and not a tenth more
    output = call(monkeypatch, "--model", "Llama-3.1-8B-Instruct", "--card", "24GB")
    refused = re.findall(r"^(.*): .* more than there is$", output, re.MULTILINE)
    assert refused == ["predict", "retention, memorisation"]


def test_an_unknown_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(plan.main, ["--model", "GPT-9"])
    assert (result.exit_code, "GPT-9" in result.output, plan.DEFAULT in result.output) == (1, True, True)


@pytest.mark.parametrize("option", ["--card=24GB", "--model=Qwen2.5-0.5B-Instruct"])
def test_the_check_is_of_this_machine_alone(option: str) -> None:
    result = CliRunner().invoke(plan.main, ["--check", option])
    assert (result.exit_code, "no --model or --card" in result.output) == (2, True)


def test_the_largest_micro_batch_divides_the_batch(here: Path) -> None:
    settings, facts = replace(SETTINGS, batch_size=6), MODELS[plan.DEFAULT]["config"]
    shape, device = memory.shape_of(facts, plan.DEFAULT), loading.DEVICES["cuda-bf16"]
    sizes = {
        rows: memory.needed(shape, plan.run_of(settings, device, 256 * rows, 256 * rows, 64 * rows)) for rows in (3, 6)
    }
    assert plan.largest(shape, settings, device, sizes[6])[0] == 6
    assert plan.largest(shape, settings, device, sizes[6] - 1)[0] == 3
    assert plan.largest(shape, settings, device, 1)[0] == 0
    configure(here, predict={"batch_size": 3, "max_new_tokens": 5}, chat={"max_length": 70})
    assert plan.asked() == memory.Asked(3, 70, 5)
    configure(here, predict={"max_new_tokens": 90})  # no answer is longer than its row
    assert plan.largest(shape, settings, device, 1)[1] == plan.run_of(settings, device, 70, 70, 70)
    assert [plan.on_card(card)[0].train_dtype for card in ("T4", "16GB")] == ["float16", "bfloat16"]


def test_without_a_card_the_plan_is_for_the_device_of_params(here: Path) -> None:
    (here / "catalogue.yaml").symlink_to(ROOT / "catalogue.yaml")
    printed = []
    for device in ("cpu-fp32", "cpu-bf16"):
        configure(here, compute={"device": device})
        printed.append(next(line for line in plan.report(plan.DEFAULT, None) if line.startswith("GB: ")))
    assert printed[0] != printed[1]
    configure(here, compute={"device": "cuda-bf16"})  # as on the machine that has the card
    assert any(line.startswith("24GB, ") for line in plan.report(plan.DEFAULT, "24GB"))


def test_the_next_run_takes_the_longest_rows_together() -> None:
    run = plan.next_run(replace(SETTINGS, micro_batch_size=2), DEVICE, ROWS)
    # 14 tokens of all four prompts are the same
    assert run == memory.Run(286, 400, 10, 16, bytes_per_value=4, checkpointing=False, on_cpu=True)
    replayed = {"input_ids": [9] * 50, "labels": [-100] * 45 + [1] * 5, "part": 1}
    assert plan.next_run(replace(SETTINGS, micro_batch_size=2), DEVICE, [*ROWS, replayed]).tokens == 286
    on_t4 = plan.run_of(SETTINGS, loading.DEVICES["cuda-fp16"], 206, 400, 10)
    assert on_t4 == memory.Run(206, 400, 10, 16, bytes_per_value=2, checkpointing=True, on_cpu=False)


def test_what_the_longest_rows_alone_share_is_not_counted_on() -> None:
    """Two answers of one conversation and a row of its own: the first with the last takes more than the first two."""
    talk, own = [*range(1, 200)], [*range(1, 21), *range(900, 1030)]
    rows = [{"input_ids": ids, "labels": [-100] * (len(ids) - 1) + [5]} for ids in ([*talk, 7], talk[:190], own)]
    assert plan.next_run(replace(SETTINGS, micro_batch_size=2), DEVICE, rows).tokens == 200 + 190 - 20


def test_the_longest_answers_count_whichever_rows_they_are_of() -> None:
    short = {"input_ids": [1] * 30, "labels": [-100] * 10 + [1] * 20}
    assert plan.next_run(replace(SETTINGS, micro_batch_size=2), DEVICE, [*ROWS, short]).loss_tokens == 20 + 5


SHAPE = memory.shape_of(MODELS[plan.DEFAULT]["config"], plan.DEFAULT)


def needed(**changes: Any) -> int:
    return int(memory.needed(SHAPE, plan.next_run(replace(SETTINGS, **changes), DEVICE, ROWS))) + 1


@pytest.mark.parametrize(
    ("free", "message"),
    [
        (needed(micro_batch_size=2), r"; it fits with train.micro_batch_size=2$"),
        (needed(micro_batch_size=1), r"; it fits with train.micro_batch_size=1$"),
        (needed(micro_batch_size=1, lora_rank=8), r"; it fits with train.micro_batch_size=1, train.lora_rank=8$"),
        (10**6, r"and 0.0 GB are free; choose a smaller model"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_helps(free: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: free)
    with pytest.raises(click.ClickException, match=message):
        plan.check(SHAPE, SETTINGS, DEVICE, ROWS)


def test_what_fits_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: needed())
    assert "needs up to" in plan.check(SHAPE, SETTINGS, DEVICE, ROWS)


@pytest.fixture
def built(here: Path, base: Path) -> Path:
    """A working folder after `dvc repro build`, as far as the plan reads it."""
    (here / "models").mkdir()
    (here / "models" / "base").symlink_to(base)
    (here / "data/chat/prefix").mkdir(parents=True)
    (here / "data/chat/prefix/tuned.json").write_text('[{"role":"system","content":"JSON."}]', encoding="utf-8")
    rows = [
        {"id": f"r{n}", "prompt": [{"role": "user", "content": "buy eggs " * n}], "answer": "{}"} for n in range(1, 20)
    ]
    write_rows(here / "data/chat/train.jsonl", rows)
    return here


@pytest.mark.parametrize("file", ["models/base", "data/chat/train.jsonl", "data/chat/prefix/tuned.json"])
def test_what_is_not_built_is_not_checked(file: str, built: Path) -> None:
    (built / file).unlink()
    result = CliRunner().invoke(plan.main, ["--check"])
    assert (result.exit_code, f"not checked: {file}" in result.output) == (0, True)


def test_the_check_reads_the_rows_that_come_next(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 10**6)
    result = CliRunner().invoke(plan.main, ["--check"])
    assert result.exit_code == 1
    configure(built, train={"launch": "fsdp"})
    result = CliRunner().invoke(plan.main, ["--check"])
    assert (result.exit_code, "not checked" in result.output) == (0, True)
    configure(built, train={"launch": "single"})
    monkeypatch.setattr(memory, "available", lambda device: 10**10)
    result = CliRunner().invoke(plan.main, ["--check"])
    assert (result.exit_code, result.output[:10]) == (0, "plan: trai")
    configure(built, compute={"device": "tpu"})
    result = CliRunner().invoke(plan.main, ["--check"])
    assert (result.exit_code, "'tpu'" in result.output) == (1, True)
    lengths = [len(row["input_ids"]) for row in plan.encoded()]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 10
    long = {"id": "p", "prompt": [{"role": "user", "content": "Tell me " * 40}], "answer": "Once", "truncated": True}
    write_rows(built / "data/chat/replay.jsonl", [long])
    assert [row["part"] for row in plan.encoded()] == [1] + [0] * len(lengths)
    prompt = f'[{{"role":"system","content":"{"JSON. " * 50}"}}]'
    (built / "data/chat/prefix/tuned.json").write_text(prompt, encoding="utf-8")
    assert max(len(row["input_ids"]) for row in plan.encoded() if not row["part"]) > lengths[0]


def test_another_architecture_is_not_checked(built: Path, tmp_path: Path) -> None:
    (built / "models" / "base").unlink()
    (built / "models" / "base").mkdir()
    (built / "models" / "base" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    result = CliRunner().invoke(plan.main, ["--check"])
    assert (result.exit_code, "not checked" in result.output, "gpt2" in result.output) == (0, True, True)
