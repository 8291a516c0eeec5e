"""Each branch that only a card takes, reached without one. Every test names its branch; fakes stand where a card would.

What can't be reached so is the arithmetic of the card's own kernels: `python -m benchmarks.gpu` runs those.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_train import SETTINGS, dataset, run

from benchmarks import gpu, latency
from planning import memory
from stages import retention, train
from stages.answers import generate, prefix_cache, processes
from stages.core.cli import InputError
from stages.model import checkpoints, loading, prefix_sharing, quantised, results

CARDS = [key for key, row in loading.DEVICES.items() if row.name == "cuda"]
FP32 = loading.DEVICES["cpu-fp32"]
cards = pytest.mark.parametrize("key", CARDS)


def half(key: str) -> Any:
    import torch

    return getattr(torch, loading.DEVICES[key].train_dtype)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch, transformers and accelerate believe in one card with bfloat16."""
    import torch
    from accelerate.state import AcceleratorState, PartialState
    from transformers import training_args

    for name, value in (("is_available", True), ("device_count", 1), ("current_device", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True, raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@cards
def test_the_arguments_of_a_training_on_a_card(card: None, tmp_path: Path, key: str) -> None:
    """train.arguments: use_cpu off, the type, checkpointing and optimizer of the row, pinned memory."""
    row = loading.DEVICES[key]
    args = train.arguments(SETTINGS, row, tmp_path)
    assert (args.use_cpu, args.device.type, args.dataloader_pin_memory) == (False, "cuda", True)
    assert (args.bf16, args.fp16) == (key == "cuda-bf16", key == "cuda-fp16")
    assert (args.gradient_checkpointing, str(args.optim.value)) == (key == "cuda-fp16", "adamw_torch_fused")


@pytest.mark.parametrize(("key", "counts"), [("cpu-fp32", True), ("cuda-bf16", False)])
def test_threads_name_no_checkpoint_on_a_card(
    here: Path, base: Path, monkeypatch: pytest.MonkeyPatch, key: str, counts: bool
) -> None:
    """train.main: what a checkpoint's name is made of."""
    found: list[Any] = []

    def noted(folder: Path, inputs: dict[str, Any]) -> None:
        found.append(inputs["threads"])
        raise InputError("enough")

    monkeypatch.setattr(loading, "device", lambda wanted: (key, loading.DEVICES[key]))
    monkeypatch.setattr(checkpoints, "Store", noted)
    monkeypatch.setattr("torch.get_num_threads", lambda: 99)
    with pytest.raises(AssertionError, match="enough"):
        run(here, base, "adapter")
    assert found == [99 if counts else None]


@cards
def test_the_quantised_base_goes_to_the_card_of_its_process(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """quantised.load: device_map, and the type that FSDP shards."""
    import torch

    asked: dict[str, Any] = {}

    def noted(base: Path, **options: Any) -> Any:
        asked.update(options)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(loading, "network", noted)
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    quantised.load(Path("base"), loading.DEVICES[key])
    assert (asked["device_map"], asked["dtype"]) == ({"": 1}, half(key))
    assert asked["quantization_config"].bnb_4bit_compute_dtype == half(key)
    assert asked["quantization_config"].bnb_4bit_quant_storage == half(key)


def test_the_loss_on_a_card_is_trls_own_and_the_same(
    base: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer.compute_loss where the device is no CPU."""
    import torch

    from stages.model import trainer as module

    rows = dataset(tokenizer, range(4))
    args = train.arguments(SETTINGS, FP32, tmp_path)
    trainer = train.make_trainer(quantised.load(base, FP32), tokenizer, SETTINGS, args, rows, rows)
    inputs = prefix_sharing.collate(list(rows))
    with prefix_sharing.attention(trainer.model), torch.no_grad():
        here = trainer.compute_loss(trainer.model, dict(inputs))
        monkeypatch.setattr(type(args), "device", property(lambda self: torch.device("cuda")))
        monkeypatch.delattr(module, "labelled_loss")
        there = trainer.compute_loss(trainer.model, dict(inputs))
    assert there.item() == pytest.approx(here.item(), rel=1e-4)


@cards
def test_attention_on_a_card_stays_in_its_type(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """prefix_sharing.attend: no float32 where the device is no CPU. Meta tensors, forwards and backwards."""
    import torch

    monkeypatch.setattr(torch, "autocast", lambda device, enabled: nullcontext())  # knows no meta device
    rows = [{"input_ids": [1] * length, "labels": [-100] + [1] * (length - 1)} for length in (20, 12)]
    batch = {name: tensor.to("meta") for name, tensor in prefix_sharing.collate(rows).items()}
    tokens = batch["input_ids"].numel()
    query, keys, values = (
        torch.empty(1, heads, tokens, 32, dtype=half(key), device="meta", requires_grad=True) for heads in (4, 2, 2)
    )
    places: dict[str, Any] = {name: batch[name] for name in ("row_tokens", "token_places")}
    module = SimpleNamespace(is_causal=True, num_key_value_groups=2, training=True)
    found, _ = prefix_sharing.attend(module, query, keys, values, None, **places, dropout=0.0, scaling=1.0)
    found.sum().backward()
    assert (found.dtype, tuple(found.shape)) == (half(key), (1, tokens, 4, 32))
    assert {getattr(state.grad, "dtype", None) for state in (query, keys, values)} == {half(key)}


@cards
def test_a_model_that_answers_on_a_card_has_its_type(base: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """loading.load_model: 16 bits to the card; no float32 copy on the way."""
    import torch

    moved: list[Any] = []

    def noted(self: Any, *where: Any) -> Any:
        moved.append(where)
        return self

    monkeypatch.setattr(torch.nn.Module, "to", noted)
    model = loading.load_model(base, loading.DEVICES[key].generate_dtype, loading.DEVICES[key].name)
    assert moved == [("cuda",)]
    assert {parameter.dtype for parameter in model.parameters()} == {half(key)}


@cards
def test_answers_keep_a_cache_in_16_bits(base: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """generate.greedy with a card's generate_dtype, as `predict` has it: keys and values are not upcast."""
    kept: list[Any] = []
    append = prefix_cache.Cache.append

    def noted(self: Any, layer: int, key: Any, value: Any) -> Any:
        kept.extend((key.dtype, value.dtype))
        return append(self, layer, key, value)

    monkeypatch.setattr(prefix_cache.Cache, "append", noted)
    model = loading.load_model(base, loading.DEVICES[key].generate_dtype, "cpu")
    assert len(list(generate.greedy(model, tokenizer, [[5, 6, 7], [5, 6, 8, 9]], 3, 2))) == 2
    assert set(kept) == {half(key)}


@cards
def test_retention_upcasts_no_model_on_a_card(base: Path, key: str) -> None:
    """retention.models with a card's row, on a CPU: the 4-bit base stays so, all else is in generate_dtype."""
    import torch

    loaders = retention.models(base, base, replace(loading.DEVICES[key], name="cpu"))
    held = {name: {parameter.dtype for parameter in load().parameters()} for name, load in loaders.items()}
    assert held == {"base": {half(key)}, "adapter_off": {half(key), torch.uint8}, "tuned": {half(key)}}


def test_each_process_has_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """processes._begin: set_device."""
    import torch

    chosen: list[int] = []
    for name, value in (("is_available", True), ("device_count", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    processes._begin(3, lambda *_: None, 4)
    assert chosen == [1]


def test_what_the_card_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """results.peak_memory, memory.available, latency.machine; in benchmarks.gpu the clock and the start of a side."""
    import torch

    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: asked.append("waited"))
    assert results.peak_memory(loading.DEVICES["cuda-bf16"]) == 7
    assert memory.available("cuda") == 5
    assert latency.machine("cuda-bf16")["name"] == "a card"
    clock = gpu.clock(loading.DEVICES["cuda-bf16"])
    clock.on_step_end(None, None, None)
    assert (len(clock.ends), asked) == (1, ["waited"])
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: asked.append(name))
    monkeypatch.setitem(gpu.SIDES, "peft", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gpu.measure("peft", gpu.SHAPES["tiny"], "cuda-bf16", Path("base"))
    assert asked[1:] == ["empty_cache", "reset_peak_memory_stats"]
