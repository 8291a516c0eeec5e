"""The base model in 4 bits: what training attaches an adapter to, and what the adapter is merged into."""

from pathlib import Path
from typing import Any

from stages.model import launching, loading
from stages.model.loading import Device

IN_FULL = 2**30  # bytes that the weights of a model may take on a CPU to be kept dequantised


def load(base: Path, chosen: Device) -> Any:
    """The base model in NF4 with double quantisation (Dettmers et al. 2023, QLoRA), on the device."""
    import torch
    from transformers import BitsAndBytesConfig

    dtype = getattr(torch, chosen.train_dtype)
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # Only weights that are stored in a floating type can be sharded.
        bnb_4bit_quant_storage=dtype if launching.sharded() else torch.uint8,
    )
    device_map = {"": launching.gpu() if chosen.name == "cuda" else "cpu"}
    model = loading.network(base, quantization_config=quantisation, dtype=dtype, device_map=device_map)
    # On CPUs with AVX512_BF16, bitsandbytes repacks its weights at the first evaluation, which breaks training on.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def for_training(base: Path, chosen: Device) -> Any:
    """What an adapter is attached to: in 4 bits, but for a small model on a CPU, of the same values in full width.

    There bitsandbytes would dequantise each matrix twice a step (benchmarks/README.md has what it costs).
    """
    import torch

    model = load(base, chosen)
    dtype = getattr(torch, chosen.train_dtype)
    if chosen.name != "cpu" or model.num_parameters() * dtype.itemsize > IN_FULL:
        return model
    return model.dequantize(dtype=dtype)


def dequantised(base: Path, chosen: Device) -> Any:
    """What the adapter was trained on, in float32: it has learnt to correct the quantised weights, not the original."""
    import torch

    return load(base, chosen).dequantize(dtype=torch.float32).to(torch.float32)
