"""The plan counts what autograd really saves, and train refuses what the plan says cannot fit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import ROOT

from benchmarks import memory as benchmark
from stages import train
from stages.shared import memory, model, packed

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "vocab_size": 600,
    "tie_word_embeddings": True,
}
TOKENS, GRID = 210, 240  # of the two rows of `batch`


def batch() -> dict[str, Any]:
    """Two rows of different length that share nothing: 210 tokens, 120 a row in the grid."""
    rows = [[number] + [5] * (length - 1) for number, length in ((1, 120), (2, 90))]
    return packed.collate([{"input_ids": row, "labels": [packed.IGNORED, *row[1:]]} for row in rows])


def saved_bytes(kind: str, method: str, autocast: bool, checkpointing: bool) -> int:
    """Bytes that autograd holds after the forward pass of the blocks, parameters not counted."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.helpers import disable_input_dtype_casting
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**(TINY | {"model_type": kind}))
    base_type = torch.bfloat16 if autocast and method == "lora" else torch.float32
    network = AutoModelForCausalLM.from_config(config, dtype=base_type, attn_implementation="sdpa").train()
    if checkpointing:
        network.gradient_checkpointing_enable()
    if method == "lora":
        network = get_peft_model(network, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    shapes = {tuple(p.shape) for p in network.parameters()} | {tuple(p.t().shape) for p in network.parameters()}
    saved: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        # Autocast's copies of weights are of the weights' part, not of the activations; those of the logits neither.
        logits = tensor.shape[-1:] == (TINY["vocab_size"],)
        if tensor.untyped_storage().data_ptr() not in own and tuple(tensor.shape) not in shapes and not logits:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    as_is = disable_input_dtype_casting(network, active=method == "lora" and autocast)
    with as_is, hooks, packed.attention(network), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        train.labelled_loss(network, batch(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(("method", "element"), [("lora", 2), ("lora", 4), ("full", 2)])
def test_activations_are_what_autograd_saves(kind: str, method: Any, element: int) -> None:
    shape = memory.shape_of(TINY | {"model_type": kind}, "tiny")
    run = memory.Run(method, TOKENS, GRID, TOKENS - 2, 16, element, False, True)
    found = saved_bytes(kind, method, autocast=element == 2, checkpointing=False)
    assert memory.activations(shape, run) == pytest.approx(found, rel=0.04)


def test_checkpointing_saves_the_input_of_each_block_only() -> None:
    shape = memory.shape_of(TINY, "tiny")
    run = memory.Run("lora", TOKENS, GRID, TOKENS - 2, 16, 2, True, True)
    inputs = memory.activations(shape, run) - memory.layer_activations(shape, run)
    found = saved_bytes("llama", "lora", autocast=True, checkpointing=True)
    outer = TOKENS * shape.hidden * 4  # the last norm
    assert inputs + outer == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_parameters_are_counted_exactly(kind: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(TINY | {"model_type": kind})))
    shape = memory.shape_of(TINY | {"model_type": kind}, "tiny")
    assert shape.parameters == sum(parameter.numel() for parameter in network.parameters())
    adapted = get_peft_model(network, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert shape.adapter(8) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_nf4_bytes_are_what_bitsandbytes_stores(base: Path) -> None:
    import bitsandbytes as bnb

    network = model.load_quantised(base, model.DEVICES["cpu-fp32"])
    layers = [module.weight for module in network.modules() if isinstance(module, bnb.nn.Linear4bit)]
    stored = sum(weight.numel() + weight.quant_state.absmax.numel() for weight in layers)  # bytes, both
    assert memory.NF4 * memory.read_shape(base).linear == pytest.approx(stored, rel=0.01)


def test_the_committed_comparison_is_this_plans_and_a_tenth_off_at_most() -> None:
    measured = json.loads((ROOT / "benchmarks" / "memory.json").read_text(encoding="utf-8"))["shapes"]
    assert set(measured) == set(benchmark.SHAPES)
    for name, (facts, count, length, labelled) in benchmark.SHAPES.items():
        run = memory.Run("qlora", count * length, count * length, count * labelled, 16, 2, False, True)
        total = memory.peak(memory.shape_of(facts, name), run).total
        assert measured[name]["predicted_bytes"] == round(total), f"{name}: run python -m benchmarks.memory"
        assert total / measured[name]["measured_bytes"] == pytest.approx(1, abs=0.1), name


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(click.ClickException, match=r"config.json.*gpt2"):
        memory.shape_of({"model_type": "gpt2"}, "config.json")


ROWS = [{"input_ids": [1] * length, "labels": [-100] * (length - 5) + [1] * 5} for length in (20, 200, 60, 100)]
SETTINGS = train.Params("auto", 1, 1.0, 1e-3, 0.0, 4, 4, 0.0, 16, 32, 0.0, True)
DEVICE = model.DEVICES["cpu-fp32"]


def need(base: Path, settings: train.Params) -> float:
    return memory.MARGIN * memory.peak(memory.read_shape(base), train.planned(settings, DEVICE, ROWS)).total


def test_the_plan_takes_the_longest_rows_together() -> None:
    run = train.planned(replace(SETTINGS, micro_batch_size=2), DEVICE, ROWS)
    assert (run.tokens, run.attended, run.labelled) == (206, 400, 10)  # 94 tokens of both prompts are the same


def test_what_fits_is_started(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: int(need(base, SETTINGS)) + 1)
    train.refuse_what_cannot_fit(base, SETTINGS, DEVICE, ROWS)


def test_what_cannot_fit_is_refused_with_the_knob_that_helps(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = int(need(base, replace(SETTINGS, micro_batch_size=2))) + 1
    monkeypatch.setattr(memory, "available", lambda device: room)
    with pytest.raises(click.ClickException, match=r"fits with train\.micro_batch_size=2;"):
        train.refuse_what_cannot_fit(base, SETTINGS, DEVICE, ROWS)


def test_what_no_knob_helps_says_so(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 10**6)
    with pytest.raises(click.ClickException, match="smaller model"):
        train.refuse_what_cannot_fit(base, SETTINGS, DEVICE, ROWS)


def test_it_can_be_told_to_go_on(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 10**6)
    train.refuse_what_cannot_fit(base, replace(SETTINGS, check_memory=False), DEVICE, ROWS)


def test_memory_that_is_free_is_a_number_of_bytes() -> None:
    assert 10**8 < memory.available("cpu") < 10**14
