"""Models and tokenizers: from local files, without code of their own, in the precision that was asked for."""

import ast
import copy
import os
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from stages.answers import work
from stages.core.cli import InputError
from stages.model import loading, quantised

FP32 = loading.DEVICES["cpu-fp32"]
OFFLINE = {"trust_remote_code": False, "local_files_only": True}


@pytest.mark.parametrize("key", ["cpu-fp32", "cpu-bf16"])
def test_every_linear_layer_is_nf4_with_double_quantisation(base: Path, key: str) -> None:
    import bitsandbytes as bnb

    model = quantised.load(base, loading.DEVICES[key])
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 2 * 7
    assert {layer.weight.quant_type for layer in layers} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in layers)
    assert {str(layer.compute_dtype) for layer in layers} == {f"torch.{loading.DEVICES[key].train_dtype}"}


def test_evaluation_leaves_the_quantised_weights_as_they_are(base: Path) -> None:
    import torch

    model = quantised.load(base, FP32).eval()
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.data.clone()
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    assert torch.equal(before, weight.data)


def test_dequantised_weights_are_what_the_adapter_was_trained_on(base: Path) -> None:
    import torch

    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = quantised.load(base, FP32)(ids).logits
        again = quantised.dequantised(base, FP32)(ids).logits
        plain = loading.load_model(base, "float32", "cpu")(ids).logits
    assert torch.allclose(expected, again, atol=1e-4)
    assert not torch.allclose(expected, plain, atol=1e-3)


def test_libraries_ask_no_hub_and_idle_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    expected |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
    for name in expected:
        monkeypatch.delenv(name)
    runpy.run_path(str(loading.__file__))
    assert expected.items() <= os.environ.items()


def test_no_loader_of_a_folder_trusts_its_code() -> None:
    """stages/fetch.py loads a GGUF file, with the same options."""
    calls = [
        {word.arg: ast.unparse(word.value) for word in node.keywords}
        for file in (ROOT / "stages").rglob("*.py")
        if file.name != "fetch.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.fullmatch(r"Auto\w+\.from_pretrained", ast.unparse(node.func))
    ]
    assert len(calls) >= 4
    assert all({name: call.get(name) for name in OFFLINE} == {n: str(v) for n, v in OFFLINE.items()} for call in calls)
    assert [call["use_safetensors"] for call in calls if "use_safetensors" in call] == ["True"]
    assert '"trust_remote_code": False' in (ROOT / "stages/fetch.py").read_text(encoding="utf-8")


def test_all_that_answers_or_rates_has_the_type_for_it() -> None:
    files = [file for folder in ("stages", "tools", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    calls = [c for file in files for c in re.findall(r"loading\.load_model\(([^()]*)\)", file.read_text("utf-8"))]
    assert len(calls) >= 8
    assert [c for c in calls if not re.search(r"device\.generate_dtype, (job\.)?device\.name$", c)] == []


@pytest.mark.parametrize(
    ("amx", "avx512", "cpuinfo", "expected"),
    [
        (True, True, "vendor_id\t: GenuineIntel\n", "cpu-bf16"),
        (False, True, "vendor_id\t: GenuineIntel\n", "cpu-fp32"),
        (False, True, "vendor_id\t: AuthenticAMD\n", "cpu-bf16"),
        (False, True, None, "cpu-bf16"),
        (False, False, "vendor_id\t: AuthenticAMD\n", "cpu-fp32"),
    ],
)
def test_a_cpu_is_told_by_its_instructions_and_its_maker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, amx: bool, avx512: bool, cpuinfo: str | None, expected: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(loading, "CPUINFO", tmp_path / "cpuinfo")
    if cpuinfo:
        (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    assert loading.device() == (expected, loading.DEVICES[expected])


@pytest.mark.parametrize(("bf16", "expected"), [(False, "cuda-fp16"), (True, "cuda-bf16")])
def test_a_gpu_is_told_by_its_bfloat16(monkeypatch: pytest.MonkeyPatch, bf16: bool, expected: str) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
    assert loading.device()[0] == expected


def test_a_device_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [loading.device(key)[0] for key in loading.DEVICES] == list(loading.DEVICES)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading.device("cpu-bf16")[0] == "cpu-bf16"
    with pytest.raises(InputError, match=r"compute\.device is cuda-fp16, and torch finds no GPU here"):
        loading.device("cuda-fp16")
    with pytest.raises(ValueError, match="abacus"):
        loading.device("abacus")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "no chat template"),
        ("{{ messages }}", "no EOS token"),
        ("{{ raise_exception('no system role') }}", "refuses a system prompt"),
    ],
)
def test_a_tokenizer_that_can_not_chat_is_refused(
    base: Path, tmp_path: Path, tokenizer: Any, template: str | None, problem: str
) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template, bare.eos_token = template, None if "EOS" in problem else tokenizer.eos_token
    bare.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    with pytest.raises(ValueError, match=problem):
        loading.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b""),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": 7}'),
        ("config.json", b'{"model_type": "of the future"}'),
        ("tokenizer.json", b'{"version": '),
        ("tokenizer_config.json", b"\xff"),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 64),
        ("model.safetensors", "half"),
        ("model.safetensors", "fewer"),
        ("config.json", None),
        ("model.safetensors", None),
    ],
)
def test_a_broken_folder_is_named_in_a_line(base: Path, tmp_path: Path, name: str, content: bytes | str | None) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    elif content == "half":
        (folder / name).write_bytes((base / name).read_bytes()[:-1000])
    elif content == "fewer":
        weights = load_file(base / name)
        weights.pop("model.norm.weight")
        save_file(weights, folder / name, {"format": "pt"})
    else:
        (folder / name).unlink()
    loads: list[Callable[[], Any]] = [
        lambda: loading.load_tokenizer(folder),
        lambda: loading.load_model(folder, "float32", "cpu"),
        lambda: quantised.load(folder, FP32),
        *([lambda: work.context(folder)] if name == "config.json" and content else []),
    ]
    for load in loads[:1] if name.startswith("tokenizer") else loads[1:]:
        with pytest.raises(InputError, match=re.escape(str(folder))) as caught:
            load()
        assert "\n" not in caught.value.message
