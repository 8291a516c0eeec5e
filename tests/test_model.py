"""Quantised, merged, and left in place by evaluation."""

from pathlib import Path
from typing import Any

import pytest

from stages.shared import model

FP32 = model.DEVICES["cpu-fp32"]


def test_every_linear_layer_is_nf4_with_double_quantisation(base: Path) -> None:
    import bitsandbytes as bnb

    network = model.load_quantised(base, FP32)
    layers = [module for module in network.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 2 * 7
    assert {layer.weight.quant_type for layer in layers} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in layers)


def test_evaluation_leaves_the_weights_as_they_are(base: Path) -> None:
    import torch

    network = model.load_quantised(base, FP32).eval()
    weight = network.model.layers[0].mlp.up_proj.weight
    before = weight.data.clone()
    with torch.no_grad():
        network(torch.tensor([[1, 2, 3]]))
    assert torch.equal(before, weight.data)


def test_the_adapter_is_merged_into_the_base_it_was_trained_on(base: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    trained = get_peft_model(model.load_quantised(base, FP32), LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    trained.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = trained.train()(ids).logits
        merged = model.load_for_generation(base, tmp_path, FP32)(ids).logits
        plain = model.load_for_generation(base, None, FP32)(ids).logits
    assert torch.allclose(expected, merged, atol=1e-3)
    assert not torch.allclose(expected, plain, atol=1e-2)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert model.device("cuda-fp16")[1].train_dtype == "float16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(model, "_cpu_has_bf16", lambda: False)
    assert model.device()[0] == "cpu-fp32"
    monkeypatch.setattr(model, "_cpu_has_bf16", lambda: True)
    assert model.device()[0] == "cpu-bf16"
    with pytest.raises(ValueError, match="abacus"):
        model.device("abacus")


def test_a_tokenizer_without_chat_template_is_refused(base: Path, tmp_path: Path, tokenizer: Any) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    with pytest.raises(ValueError, match="chat template"):
        model.load_tokenizer(tmp_path)
