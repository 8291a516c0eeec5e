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
from pathlib import Path
from typing import Any

import click

LLAMA: dict[str, Any] = {"model_type": "llama", "tie_word_embeddings": True}
QWEN: dict[str, Any] = {"model_type": "qwen2", "tie_word_embeddings": False}


def config(kind: dict[str, Any], *numbers: int) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return kind | dict(zip((*names, "vocab_size"), numbers, strict=True))


# name: (config, rows in a micro batch, tokens of a row, scored tokens of a row)
SHAPES = {
    "the default model, its rows": (config(LLAMA, 576, 30, 9, 3, 1536, 49152), 8, 64, 24),
    "the default model, long rows": (config(LLAMA, 576, 30, 9, 3, 1536, 49152), 8, 128, 24),
    "wide, few layers": (config(LLAMA, 2048, 4, 32, 8, 8192, 32000), 8, 192, 32),
    "Qwen2, large vocabulary": (config(QWEN, 896, 8, 14, 2, 4864, 151936), 4, 256, 32),
}
STEPS = 3


def save_model(facts: dict[str, Any], folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    known = AutoConfig.for_model(**facts)
    AutoModelForCausalLM.from_config(known, dtype=torch.bfloat16).save_pretrained(folder)


def tokenizer() -> Any:
    """Rows come as token ids: the trainer only asks for the padding token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>")  # noqa: S106
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="<eos>")  # noqa: S106


def measure(name: str, wanted: str) -> dict[str, Any]:
    """Train one shape in this process; predicted and measured bytes."""
    from dataclasses import replace

    import bitsandbytes  # noqa: F401  all that training imports is resident before the count begins
    import psutil
    import torch
    from datasets import Dataset
    from trl import SFTTrainer  # noqa: F401

    from planning import memory
    from stages import train
    from stages.core import params
    from stages.model import loading, prefix_sharing, quantised, results
    from tools import plan

    facts, count, length, scored = SHAPES[name]
    train.bound_caches()
    device = loading.device(wanted)[1]
    settings = replace(params.load("train", train.Params), epochs=1.0, batch_size=count, micro_batch_size=count)
    answer, given = list(range(3, 3 + scored)), length - scored
    prompts = [[number + 3] + [5] * (given - 1) for number in range(count * STEPS)]  # that share nothing
    labels = [prefix_sharing.IGNORED] * given + answer
    rows = Dataset.from_list([{"input_ids": prompt + answer, "labels": labels} for prompt in prompts])
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        subprocess.run([sys.executable, "-m", "benchmarks.memory", "--save", name, "--out", scratch], check=True)
        args = train.arguments(settings, device, base / "scratch")
        args.eval_strategy = "no"
        before = psutil.Process().memory_info().rss if device.name == "cpu" else 0
        model = quantised.for_training(base, device)
        loaded = results.peak_memory(device) - before
        trainer = train.make_trainer(model, tokenizer(), settings, args, rows, rows)
        train.run(trainer)
    shape, run = memory.shape_of(facts, name), plan.next_run(settings, device, list(rows))
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


@click.command(help=__doc__)
@click.option("--device", default="auto", show_default=True, help="row of the device table")
@click.option("--shape", "name", type=click.Choice(list(SHAPES)), help="measure one shape only")
@click.option("--save", type=click.Choice(list(SHAPES)), hidden=True)
@click.option("--out", type=click.Path(path_type=Path), hidden=True)
def main(device: str, name: str | None, save: str | None, out: Path | None) -> None:
    if save and out:
        save_model(SHAPES[save][0], out)
        return
    if name:
        click.echo(json.dumps(measure(name, device)))
        return
    found = {}
    for shape in SHAPES:
        command = [sys.executable, "-m", "benchmarks.memory", "--device", device, "--shape", shape]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[shape] = json.loads(ran.stdout.strip().split("\n")[-1])
    from benchmarks.train_cpu import machine

    worst = max(abs(shape["error"]) for shape in found.values())
    click.echo(json.dumps({"shapes": found, "largest_error": worst, **machine(device)}, indent=2))


if __name__ == "__main__":
    main()
