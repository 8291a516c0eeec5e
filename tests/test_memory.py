"""The plan counts what autograd, bitsandbytes and a real training hold."""

import json
from dataclasses import replace
from itertools import accumulate
from typing import Any

import click
import pytest
from conftest import ROOT

from benchmarks import memory as benchmark
from planning import memory
from stages import merge
from stages.answers import generate, loglikelihood
from stages.model import loading, prefix_sharing, quantised

TINY: dict[str, Any] = {"model_type": "llama", "hidden_size": 160, "intermediate_size": 448, "num_hidden_layers": 3}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48}
TINY |= {"vocab_size": 600, "tie_word_embeddings": True}
TOKENS, GRID = 210, 240  # of the two rows of `batch`


def batch() -> dict[str, Any]:
    """Two rows of different length that share nothing: 210 tokens, 120 a row in the grid."""
    rows = [[number] + [5] * (length - 1) for number, length in ((1, 120), (2, 90))]
    ignored = prefix_sharing.IGNORED
    return prefix_sharing.collate([{"input_ids": row, "labels": [ignored, *row[1:]]} for row in rows])


def saved_bytes(kind: str, autocast: bool, checkpointing: bool) -> int:
    """Bytes that autograd holds after the forward pass of the blocks, parameters not counted."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.helpers import disable_input_dtype_casting
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**(TINY | {"model_type": kind}))
    dtype = torch.bfloat16 if autocast else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.t().shape) for p in model.parameters()}
    saved: dict[int, Any] = {}

    from stages.model.trainer import labelled_loss

    def keep(tensor: Any) -> Any:
        # Autocast's copies of weights count as weights, not as activations; logits are a part of their own.
        logits = tensor.shape[-1:] == (TINY["vocab_size"],)
        if tensor.untyped_storage().data_ptr() not in own and tuple(tensor.shape) not in shapes and not logits:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    as_is = disable_input_dtype_casting(model, active=autocast)
    with as_is, hooks, prefix_sharing.attention(model), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        labelled_loss(model, batch(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def run(size: int, checkpointing: bool = False) -> memory.Run:
    return memory.Run(TOKENS, GRID, TOKENS - 2, 16, size, checkpointing, True)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("size", [2, 4])
def test_activations_are_what_autograd_saves(kind: str, size: int) -> None:
    shape = memory.shape_of(TINY | {"model_type": kind}, "tiny")
    saved = saved_bytes(kind, autocast=size == 2, checkpointing=False)
    assert memory.activations(shape, run(size)) == pytest.approx(saved, rel=0.04)


def test_checkpointing_saves_the_input_of_each_block_only() -> None:
    shape = memory.shape_of(TINY, "tiny")
    one_block = memory.activations(shape, run(2)) / shape.layers
    inputs = memory.activations(shape, run(2, checkpointing=True)) - one_block
    last_norm = TOKENS * shape.hidden * 4
    assert inputs + last_norm == pytest.approx(saved_bytes("llama", autocast=True, checkpointing=True), rel=0.05)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_parameters_are_counted_exactly(kind: str, tied: bool) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    facts = TINY | {"model_type": kind, "tie_word_embeddings": tied}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**facts))
    shape = memory.shape_of(facts, "tiny")
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert shape.adapter(8) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_nf4_bytes_are_what_bitsandbytes_stores(base: Any) -> None:
    import bitsandbytes as bnb

    model = quantised.load(base, loading.DEVICES["cpu-fp32"])
    layers = [module.weight for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    stored = sum(weight.numel() + weight.quant_state.absmax.numel() for weight in layers)  # bytes, both
    shape = memory.shape_of(json.loads((base / "config.json").read_text(encoding="utf-8")), "base")
    assert memory.NF4 * shape.linear == pytest.approx(stored, rel=0.01)


@pytest.mark.parametrize("name", benchmark.SHAPES)
def test_the_committed_prediction_is_this_plans_and_a_tenth_off_at_most(name: str) -> None:
    committed = json.loads((ROOT / "benchmarks" / "memory.json").read_text(encoding="utf-8"))["shapes"][name]
    shape = benchmark.SHAPES[name]
    tokens, scored = shape.rows * shape.length, shape.rows * shape.scored
    planned = memory.Run(tokens, tokens, scored, 16, 2, False, True)
    parts = memory.parts(memory.shape_of(shape.config, name), planned)
    assert {part: round(size) for part, size in parts.items()} == committed["parts"], "run: python -m benchmarks.memory"
    assert sum(parts.values()) / committed["measured_bytes"] == pytest.approx(1, abs=0.1)


def test_a_gpu_holds_a_tile_of_the_logits_and_no_mapped_file() -> None:
    shape = memory.shape_of(TINY | {"vocab_size": 10**6}, "tiny")
    on_gpu = memory.Run(TOKENS, GRID, 100, 16, 2, False, False)
    parts = memory.parts(shape, on_gpu)
    assert parts["logits"] == 2 * 100 * 32768 + 4 * 100 * 160
    assert parts["weights"] == 2 * shape.unquantised + memory.NF4 * shape.linear
    assert memory.logits(shape, replace(on_gpu, loss_tokens=5000)) == 2 * 4096 * 32768 + 4 * 5000 * 160
    assert parts["overhead"] == 0
    in_float32 = memory.activations(shape, replace(on_gpu, on_cpu=True))
    assert in_float32 - parts["activations"] == 3 * GRID * 2 * 2 * (4 * 48 + 2 * 48)  # q, k, v and what comes of them
    assert memory.needed(shape, on_gpu) == pytest.approx(1.1 * sum(parts.values()))


def test_a_large_base_stays_in_4_bits_on_a_cpu() -> None:
    large = memory.shape_of(TINY | {"vocab_size": 3_400_000}, "large")  # just above 1 GiB in 16 bits
    assert memory.trained(large, run(2)) == memory.quantised(large, run(2))


def peak(call: Any) -> int:
    """The most bytes that torch held at once during the call, beyond what it held before."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(int(event.nbytes()) for event in sorted(changes, key=lambda event: event.start_ns())))


def planned(stage: str, prompt: int = 0, packed: int = 0) -> float:
    """Bytes of a stage on a CPU beside the weights; six rows of `prompt` tokens get eight more."""
    shape, asked = memory.shape_of(TINY, "tiny"), memory.Asked(6, prompt, 8)
    return memory.stages(shape, run(4), asked, 0, packed)[stage][0] - 6 * shape.parameters


@pytest.mark.parametrize("prompt", [100, 500])  # the MLP takes more than attention, and less
def test_a_batch_of_answers_takes_what_is_planned(prompt: int, tokenizer: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY)).eval()
    prompts = [[number] + [5] * (prompt - 1) for number in range(1, 7)]
    assert planned("predict", prompt=prompt) == pytest.approx(
        peak(lambda: list(generate.greedy(model, tokenizer, prompts, 8, 6))), rel=0.15
    )


def test_rating_takes_the_logits_of_one_pass() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(TINY | {"vocab_size": 50_000}))).eval()
    queries = [loglikelihood.Query([number], [[5] * 199]) for number in range(3)]
    shape = memory.shape_of(TINY | {"vocab_size": 50_000}, "tiny")
    rated = memory.stages(shape, run(4), memory.Asked(1, 1, 1), 0, 597)["retention, memorisation"][0]
    held = peak(lambda: loglikelihood.rate(model, queries, ""))
    assert rated - 6 * shape.parameters == pytest.approx(held, rel=0.15)
    one, other = (memory.stages(shape, run(size), memory.Asked(6, 100, 8), 0, 597) for size in (2, 4))
    assert one["gguf"] == (6 * 50_000 * 160, 0)
    assert one["predict"] == other["predict"]  # a CPU answers in float32, whatever it trains in
    assert one["retention, memorisation"] == other["retention, memorisation"] == (rated, 0)


def test_merging_takes_one_matrix_and_what_is_added_to_it(base: Any) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(quantised.load(base, loading.DEVICES["cpu-bf16"]), lora).get_base_model()
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    shape, asked = memory.shape_of(config, "base"), memory.Asked(1, 1, 1)
    nothing_beside = memory.Run(1, 1, 1, 2, 2, False, False)
    merging = memory.stages(shape, nothing_beside, asked, 0, 1)["merge"][0]
    held = memory.quantised(shape, nothing_beside) + 4 * shape.adapter(2)
    assert merging - held == pytest.approx(
        peak(lambda: merge.weight(model, "model.layers.0.mlp.up_proj.weight")), rel=0.1
    )
    table, here = 2 * shape.vocab * shape.hidden, replace(nothing_beside, on_cpu=True)
    files = [memory.stages(shape, nothing_beside, asked, largest, 1)["merge"][1] for largest in (0, 10**12)]
    assert files == [table, 2 * shape.parameters]
    quantised_here = memory.quantised(shape, here) - memory.quantised(shape, nothing_beside)
    on_cpu, on_host = memory.stages(shape, here, asked, 0, 1)["merge"]
    assert on_cpu == pytest.approx(merging + quantised_here + table)
    assert on_host == 0


@pytest.mark.parametrize(
    ("config", "named"),
    [({"model_type": "gpt2"}, "gpt2"), ({"model_type": "llama"}, "hidden_size")]
    + [(TINY | wrong, "size") for wrong in ({"hidden_size": "x"}, {"num_attention_heads": 0})],
)
def test_what_cannot_be_planned_is_named(config: dict[str, Any], named: str) -> None:
    with pytest.raises(click.ClickException, match=rf"config.json.*{named}"):
        memory.shape_of({key: value for key, value in config.items() if key != "head_dim"}, "config.json")


@pytest.mark.parametrize(("limit", "free"), [("max", 9000), ("4000", 3000), ("100000", 9000)])
def test_a_containers_limit_counts(limit: str, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    files = {"memory.max": f"{limit}\n", "memory.stat": "anon 1000\nfile 9\n"}
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, encoding: files[path.name])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 9000}))
    assert memory.available("cpu") == free
