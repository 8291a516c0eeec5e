"""Predicted against measured peak memory of the train stage, on models initialised at random from a config.

    python -m benchmarks.memory

Each shape is trained for a few steps by the functions of stages/train.py, in a fresh process. On a CPU the measured
figure is the highest resident memory after the imports, less what was resident before the model was loaded; on a GPU it
is torch.cuda.max_memory_allocated. Prints JSON (memory.json). `--device cuda-bf16` measures the same shapes on a GPU.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks import train_cpu
from planning import memory
from stages import merge, train
from stages.core import cli, params
from stages.model import loading, prefix_sharing, quantised, results
from tools import plan

LLAMA: dict[str, Any] = {"model_type": "llama", "tie_word_embeddings": True}
QWEN: dict[str, Any] = {"model_type": "qwen2", "tie_word_embeddings": False}


def config(kind: dict[str, Any], *numbers: int) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return kind | dict(zip((*names, "vocab_size"), numbers, strict=True))


@dataclass(frozen=True)
class Shape:
    """A model's config; tokens of a row, those with a label; steps; rows of each, 8 as in TRL and transformers."""

    config: dict[str, Any]
    length: int
    scored: int
    steps: int = 3
    rows: int = 8


SHAPES = {
    "the default model, its rows": Shape(config(LLAMA, 576, 30, 9, 3, 1536, 49152), 64, 24),
    "the default model, long rows": Shape(config(LLAMA, 576, 30, 9, 3, 1536, 49152), 128, 24),
    "wide, few layers": Shape(config(LLAMA, 2048, 4, 32, 8, 8192, 32000), 192, 32),
    "Qwen2, large vocabulary": Shape(config(QWEN, 896, 8, 14, 2, 4864, 151936), 256, 32, rows=4),
}


def save_base(shape: Shape, device: str, folder: Path) -> None:
    """A random model as a folder in bfloat16; the host holds one of its files."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**shape.config)
    with torch.device("meta"):
        sizes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()}

    def draw(name: str) -> Any:
        empty = torch.empty(sizes[name], dtype=torch.bfloat16, device=device)
        return empty.normal_(std=0.02) if empty.ndim > 1 else empty.fill_(1)

    torch.manual_seed(0)
    merge.save(config, "bfloat16", folder, draw)


def rows_of(shape: Shape) -> Any:
    """Rows that share nothing at the start: no prefix is computed once."""
    from datasets import Dataset

    given, answer = shape.length - shape.scored, list(range(3, 3 + shape.scored))
    labels = [prefix_sharing.IGNORED] * given + answer
    numbers = range(shape.rows * shape.steps)
    return Dataset.from_list([{"input_ids": [3 + n] + [5] * (given - 1) + answer, "labels": labels} for n in numbers])


def tokenizer() -> Any:
    """Rows come as token ids: the trainer only asks for the padding token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>")  # noqa: S106
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="<eos>")  # noqa: S106


def measure(name: str, wanted: str) -> dict[str, Any]:
    """Train one shape in this process; predicted and measured bytes."""
    import bitsandbytes  # noqa: F401  all that training imports is resident before the count begins
    import psutil
    import torch
    from trl import SFTTrainer  # noqa: F401

    chosen = SHAPES[name]
    train.bound_caches()
    device, known, count = loading.device(wanted)[1], params.load("train", train.Params), chosen.rows
    settings = replace(known, epochs=1.0, batch_size=count, micro_batch_size=count)
    rows = rows_of(chosen)
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        subprocess.run([sys.executable, "-m", "benchmarks.memory", "--shape", name, "--save", scratch], check=True)
        args = train_cpu.arguments(settings, device, base / "scratch")
        before = psutil.Process().memory_info().rss if device.name == "cpu" else 0
        model = quantised.for_training(base, device)
        loaded = results.peak_memory(device) - before
        train.run(train.make_trainer(model, tokenizer(), settings, args, rows, rows))
    shape, run = memory.shape_of(chosen.config, name), plan.next_run(settings, device, list(rows))
    parts = memory.parts(shape, run)
    predicted, measured = sum(parts.values()), results.peak_memory(device) - before
    return {
        "parameters": shape.parameters,
        "tokens": run.tokens,
        "loss_tokens": run.loss_tokens,
        "predicted_bytes": round(predicted),
        "measured_bytes": measured,
        "error": round(predicted / measured - 1, 3),
        "loading_bytes": loaded,
        "parts": {part: round(size) for part, size in parts.items()},
        "torch": torch.__version__,
    }


@click.command(cls=cli.Command, help=__doc__)
@click.option("--device", default="auto", show_default=True, help="row of the device table")
@click.option("--shape", "name", type=click.Choice(list(SHAPES)), help="measure one shape only")
@click.option("--save", type=click.Path(path_type=Path), hidden=True)
def main(device: str, name: str | None, save: Path | None) -> None:
    if name and save:
        save_base(SHAPES[name], "cpu", save)
        return
    if name:
        click.echo(json.dumps(measure(name, device)))
        return
    found = {shape: train_cpu.in_process("memory", device=device, shape=shape) for shape in SHAPES}
    worst = max(abs(shape["error"]) for shape in found.values())
    click.echo(json.dumps({"shapes": found, "largest_error": worst, **train_cpu.machine(device)}, indent=2))


if __name__ == "__main__":
    main()
