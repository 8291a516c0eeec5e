"""QLoRA of an 8B on one card: tokens per second and peak memory of this project, of TRL's defaults and of plain PEFT.

\b
    python -m benchmarks.gpu --out benchmarks/gpu.json      # minutes on an H100; 16 GB of disk, 5 GB of host memory
    python -m benchmarks.gpu --shape tiny                   # the same, line for line, in seconds on a CPU

No weights are needed: a base of Llama 3's shape is drawn at random, file by file. Each side trains the same rows, all
of one length, 8 a step: this project by the functions of stages/train.py with the largest micro batch that the plan
allows, the others with their own defaults. The first step is not timed. A side that fails is recorded with its error,
and the file is written after each. Where models/base and data/chat are built, their train, merge and predict run too.
"""

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from benchmarks import latency, train_cpu
from benchmarks import memory as shapes
from benchmarks.memory import Shape
from planning import memory
from stages import train
from stages.core import cli, params
from stages.data import writing
from stages.model import loading, quantised, results
from stages.model.loading import Device
from tools import plan

LIBRARIES = (*train.LIBRARIES, "safetensors")
BASE, CHAT = Path("models/base"), Path("data/chat")
LLAMA_8B = shapes.config(shapes.LLAMA, 4096, 32, 32, 8, 14336, 128256)
LLAMA_8B |= {"tie_word_embeddings": False, "max_position_embeddings": 8192}
SHAPES = {
    "8b": Shape(LLAMA_8B, 2048, 512, steps=6),
    "tiny": Shape(shapes.config(shapes.LLAMA, 64, 2, 2, 1, 128, 600), 32, 8),
}


def defaults(device: Device, scratch: Path) -> dict[str, Any]:
    """What the other sides are told: where to run, in which type, and to leave no files."""
    return {
        "output_dir": str(scratch),
        "num_train_epochs": 1,
        "use_cpu": device.name == "cpu",
        "bf16": device.train_dtype == "bfloat16",
        "fp16": device.train_dtype == "float16",
        "save_strategy": "no",
        "report_to": "none",
    }


def lora() -> Any:
    from peft import LoraConfig

    known = params.load("train", train.Params)
    return LoraConfig(
        r=known.lora_rank, lora_alpha=known.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def lockstep(shape: Shape, key: str, base: Path, scratch: Path) -> Any:
    """The stage's trainer, with the largest micro batch that the plan allows on the empty card."""
    device, known, rows = loading.DEVICES[key], settings(shape, key), shapes.rows_of(shape)
    args = train_cpu.arguments(known, device, scratch)
    return train.make_trainer(quantised.for_training(base, device), shapes.tokenizer(), known, args, rows, rows)


def trl_defaults(shape: Shape, key: str, base: Path, scratch: Path) -> Any:
    """SFTTrainer as its documentation shows it; only max_length, which would cut the rows, is switched off."""
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(max_length=None, **defaults(loading.DEVICES[key], scratch))
    model, rows = quantised.load(base, loading.DEVICES[key]), shapes.rows_of(shape)
    return SFTTrainer(model, config, train_dataset=rows, processing_class=shapes.tokenizer(), peft_config=lora())


def peft_plain(shape: Shape, key: str, base: Path, scratch: Path) -> Any:
    """transformers' Trainer on PEFT's recipe for quantised models."""
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import Trainer, TrainingArguments, default_data_collator

    model = quantised.load(base, loading.DEVICES[key])
    adapted = get_peft_model(prepare_model_for_kbit_training(model), lora())
    args = TrainingArguments(**defaults(loading.DEVICES[key], scratch))
    return Trainer(adapted, args, default_data_collator, shapes.rows_of(shape))


SIDES = {"lockstep": lockstep, "trl_defaults": trl_defaults, "peft": peft_plain}


def run_of(shape: Shape, key: str, rows: int) -> memory.Run:
    known, device = params.load("train", train.Params), loading.DEVICES[key]
    return plan.run_of(known, device, rows * shape.length, rows * shape.length, rows * shape.scored)


def settings(shape: Shape, key: str) -> train.Params:
    """params.yaml, one epoch, and the largest micro batch that fits by plan, else one row."""
    counted, free = memory.shape_of(shape.config, "shape"), memory.available(loading.DEVICES[key].name)
    micro = [n for n in range(shape.rows, 0, -1) if shape.rows % n == 0]
    fits = (n for n in micro if memory.needed(counted, run_of(shape, key, n)) <= free)
    known = params.load("train", train.Params)
    return replace(known, epochs=1.0, batch_size=shape.rows, micro_batch_size=next(fits, 1))


def clock(device: Device) -> Any:
    """A callback that notes when each step ended."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        ends: tuple[float, ...] = ()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device.name == "cuda":
                torch.cuda.synchronize()
            self.ends = (*self.ends, time.perf_counter())

    return Clock()


def measure(side: str, shape: Shape, key: str, base: Path) -> dict[str, Any]:
    """Train one side; tokens per second after the first step, and the peak of what torch allocated."""
    import torch

    device = loading.DEVICES[key]
    gc.collect()  # what the side before has left
    if device.name == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SIDES[side](shape, key, base, Path(scratch))
        timer = clock(device)
        trainer.add_callback(timer)
        if side == "lockstep":
            train.run(trainer)
        else:
            trainer.train()
    if len(timer.ends) != shape.steps:
        raise cli.InputError(f"{len(timer.ends)} steps instead of {shape.steps}")
    tokens = shape.rows * shape.length * (shape.steps - 1)
    figures = {
        "tokens_per_second": round(tokens / (timer.ends[-1] - timer.ends[0]), 1),
        "peak_memory_bytes": results.peak_memory(device),
        "micro_batch_size": trainer.args.per_device_train_batch_size,
        "checkpointing": bool(trainer.args.gradient_checkpointing),
    }
    if side != "lockstep":
        return figures
    parts = memory.parts(memory.shape_of(shape.config, side), run_of(shape, key, figures["micro_batch_size"]))
    return figures | {"planned_bytes": round(sum(parts.values()))}


def attempt(side: str, shape: Shape, key: str, base: Path) -> dict[str, Any]:
    """The figures, or the error: one side out of memory must not cost the others' figures."""
    try:
        return measure(side, shape, key, base)
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def end_to_end(scratch: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """train, merge and predict of models/base on data/chat, as processes; seconds, and what the stage itself timed."""
    adapter, merged = scratch / "adapter", scratch / "merged"
    written = ("metrics", "train-loss", "valid-loss", "row-losses", "checkpoint-folder")
    given = {
        "train": {name: CHAT / f"{name}.jsonl" for name in ("train", "valid", "replay")}
        | {"prefix": CHAT / "prefix/tuned.json", "base": BASE, "out": adapter, "launch": Path("stages/launch")}
        | {name: scratch / name for name in written},
        "merge": {"base": BASE, "adapter": adapter, "out": merged},
        "predict": {"model": merged, "rows": CHAT / "test.jsonl"}
        | {name: scratch / name for name in ("out", "answered")},
    }
    for stage, options in given.items():
        timing, started = scratch / f"{stage}.json", time.monotonic()
        if stage != "merge":
            options["timings"] = timing
        words = [f"--{name}={path}" for name, path in options.items()]
        ran = subprocess.run([sys.executable, "-m", f"stages.{stage}", *words], stderr=subprocess.PIPE)
        if ran.returncode:
            yield stage, {"error": ran.stderr.decode(errors="replace")[-2000:]}
            return
        own = json.loads(timing.read_text(encoding="utf-8")) if "timings" in options else {}
        yield stage, {"process_seconds": round(time.monotonic() - started, 1), **own}


def machine(key: str) -> dict[str, Any]:
    from importlib.metadata import version

    import torch

    return {
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "device": latency.machine(key)
        | {"cuda": torch.version.cuda, "free_bytes": memory.available(key.split("-")[0])},
        "versions": {name: version(name) for name in LIBRARIES},
    }


@click.command(cls=cli.Command, help=__doc__)
@click.option("--shape", "name", type=click.Choice(list(SHAPES)), default="8b", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="file for the figures; without it they are printed")
def main(name: str, out: Path | None) -> None:
    train.bound_caches()
    key, device = loading.device()
    shape = SHAPES[name]
    if name == "8b" and device.name == "cpu":
        raise cli.InputError("an 8B takes hours on a CPU; try --shape tiny")
    keys = [each for each, row in loading.DEVICES.items() if row.name == device.name]
    keys = [each for each in keys if each != "cuda-bf16" or key == "cuda-bf16"]
    found: dict[str, Any] = machine(key) | {"shape": asdict(shape), "training": {}, "end_to_end": {}}

    def keep() -> None:
        if out:
            writing.write_json(out, found)

    with tempfile.TemporaryDirectory() as scratch:
        shapes.save_base(shape, device.name, Path(scratch) / "base")
        for each in keys:
            found["training"][each] = {}
            for side in SIDES:
                click.echo(f"gpu: {each}, {side}", err=True)
                found["training"][each][side] = attempt(side, shape, each, Path(scratch) / "base")
                keep()
    if BASE.is_dir() and CHAT.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            for stage, figures in end_to_end(Path(folder)):
                found["end_to_end"][stage] = figures
                keep()
    click.echo(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
