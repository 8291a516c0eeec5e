"""Load a tokenizer and a model from a local folder, and know what each device gets."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import strict_json
from stages.core.cli import InputError

# Everything is local once `fetch` has run. Without this, bitsandbytes and transformers may ask the hub for kernels.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Idle OpenMP threads sleep after a short spin: benchmarks/spinning.json has the speed of a training, alone and beside a
# busy process, by number of spins. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Params:
    """The section `compute` of params.yaml."""

    device: str


@dataclass(frozen=True)
class Device:
    """What depends on the machine. `train_dtype` is the compute type of the 4-bit layers and of autocast."""

    name: str
    train_dtype: str
    generate_dtype: str
    checkpointing: bool
    optimizer: str


DEVICES = {
    # A GPU with bfloat16 (Ampere and newer), one without (T4), a CPU where bfloat16 is faster, any other CPU.
    "cuda-bf16": Device("cuda", "bfloat16", "bfloat16", False, "adamw_torch_fused"),
    "cuda-fp16": Device("cuda", "float16", "float16", True, "adamw_torch_fused"),
    "cpu-bf16": Device("cpu", "bfloat16", "float32", False, "adamw_torch"),
    "cpu-fp32": Device("cpu", "float32", "float32", False, "adamw_torch"),
}


def device(wanted: str = "auto") -> tuple[str, Device]:
    """The row of DEVICES for this machine, or the one asked for.

    Raises InputError for one that isn't in the table, and for a GPU that isn't here.
    """
    import torch

    if wanted != "auto":
        if wanted not in DEVICES:
            raise InputError(f"device {wanted!r} is not one of auto, {', '.join(DEVICES)}")
        if DEVICES[wanted].name == "cuda" and not torch.cuda.is_available():
            raise InputError(f"compute.device is {wanted}, and torch finds no GPU here")
        return wanted, DEVICES[wanted]
    if torch.cuda.is_available():
        key = "cuda-bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "cuda-fp16"
    else:
        key = "cpu-bf16" if _cpu_has_bf16() else "cpu-fp32"
    return key, DEVICES[key]


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 faster than float32. Private names of torch: absent means no."""
    import torch

    amx, avx512 = (
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    # With AVX512_BF16 alone, bfloat16 is faster than float32 on AMD (Zen 4) and slower on Intel, whose fast bfloat16 is
    # AMX. Emulated, it is slower still.
    return bool(amx or (avx512 and not _is_intel()))


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


@contextmanager
def reading(folder: Path, config: str = "config.json") -> Iterator[None]:
    """While libraries read a model's folder: what they raise, of any type, becomes an InputError naming the folder."""
    if not isinstance(strict_json.read(folder / config), dict):
        raise InputError(f"{folder / config}: an object is expected")
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder} can't be loaded: {type(error).__name__}: {reason}") from error


def load_tokenizer(base: Path) -> Any:
    """The base's tokenizer. Raises InputError when it has no EOS, or can't render a system prompt and a chat."""
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    with reading(base):
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise InputError(f"{base}: the tokenizer has no chat template or no EOS token; choose an instruct model")
    probe = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    try:
        tokenizer.apply_chat_template(probe, tokenize=False)
    except TemplateError as error:
        raise InputError(f"{base}: the chat template refuses a system prompt or an earlier turn: {error}") from error
    return tokenizer


def load_model(folder: Path, dtype: str, device: str) -> Any:
    """The weights of a folder, ready to answer: `dtype` is a name of torch's, `device` "cuda" or "cpu"."""
    import torch

    return network(folder, dtype=getattr(torch, dtype)).to(device).eval()


def network(folder: Path, **options: Any) -> Any:
    """The network of a folder, from safetensors. Raises InputError where weights lack: transformers makes them up."""
    from transformers import AutoModelForCausalLM

    with reading(folder):
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if absent := sorted(found["missing_keys"]):
        raise InputError(f"{folder}: {len(absent)} weights are missing, {absent[0]} the first")
    return model
