"""Training speed on this CPU: TRL's defaults against this project's settings, same model, same rows, one run.

    python -m benchmarks.train_cpu --rows 96

Both sides train a 4-bit LoRA of the base model in models/base on the first rows of data/chat/train.jsonl, one after the
other in fresh processes. Tokens are those of the rows: padding is no work done. Prints JSON; wall times are the
machine's, so trust the ratio. A CPU without bfloat16 instructions is imitated on one that has them by

    ONEDNN_MAX_CPU_ISA=AVX512_CORE python -m benchmarks.train_cpu --rows 32 --device cpu-fp32
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click

from stages import train
from stages.core import cli, params, strict_json
from stages.model import encoding, loading, quantised

BASE, CHAT = Path("models/base"), Path("data/chat")


def defaults_trainer(rows: list[dict[str, Any]], scratch: Path, _: str) -> Any:
    """SFTTrainer as its documentation shows it: a 4-bit model, rows, a LoRA; nothing else is set."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(BASE, quantization_config=quantisation)
    # use_cpu: without it SFTConfig's default bf16 is refused on a machine without a GPU.
    config = SFTConfig(output_dir=str(scratch), num_train_epochs=1, use_cpu=True, save_strategy="no", report_to="none")
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    data, tokenizer = Dataset.from_list(rows), loading.load_tokenizer(BASE)
    return SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, peft_config=lora)


def arguments(settings: train.Params, device: loading.Device, scratch: Path) -> Any:
    """Those of stages/train.py, without an evaluation."""
    args = train.arguments(settings, device, scratch)
    args.eval_strategy = "no"
    return args


def lockstep_trainer(rows: list[dict[str, Any]], scratch: Path, wanted: str) -> Any:
    """What stages/train.py does, with the settings of params.yaml and one epoch."""
    from datasets import Dataset

    settings, device = replace(params.load("train", train.Params), epochs=1.0), loading.device(wanted)[1]
    args, data = arguments(settings, device, scratch), Dataset.from_list(rows)
    model, tokenizer = quantised.for_training(BASE, device), loading.load_tokenizer(BASE)
    return train.make_trainer(model, tokenizer, settings, args, data, data)


SIDES = {"trl_defaults": defaults_trainer, "lockstep": lockstep_trainer}


def measure(side: str, count: int, wanted: str) -> dict[str, Any]:
    """Train one side on the first `count` rows, encoded once for both."""
    tokenizer, prefix = loading.load_tokenizer(BASE), strict_json.read(CHAT / "prefix/tuned.json")
    examples = islice(strict_json.read_jsonl(CHAT / "train.jsonl"), count)
    rows = [encoding.encode(tokenizer, prefix, example) for example in examples]
    tokens = sum(len(row["input_ids"]) for row in rows)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SIDES[side](rows, Path(scratch), wanted)
        clock = train.Clock()
        train.run(trainer) if side == "lockstep" else trainer.train()
        wall, cpu = clock.read().values()
    return {
        "rows": len(rows),
        "tokens": tokens,
        "seconds": round(wall, 1),
        "tokens_per_second": round(tokens / wall, 1),
        "tokens_per_cpu_second": round(tokens / cpu, 1),
        "bf16": bool(trainer.args.bf16),
    }


def machine(wanted: str) -> dict[str, Any]:
    from importlib.metadata import version

    import torch

    names = ("torch", "transformers", "trl", "peft", "bitsandbytes")
    return {
        "device": loading.device(wanted)[0],
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in names},
    }


def in_process(name: str, **options: Any) -> Any:
    """What a benchmark with these options prints last, run in a fresh process."""
    words = [f"--{option}={value}" for option, value in options.items()]
    command = [sys.executable, "-m", f"benchmarks.{name}", *words]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.strip().split("\n")[-1])


@click.command(cls=cli.Command, help=__doc__)
@click.option("--rows", default=96, show_default=True)
@click.option("--device", default="auto", show_default=True, help="row of the device table for our side")
@click.option("--side", type=click.Choice(list(SIDES)), help="measure one side only")
def main(rows: int, device: str, side: str | None) -> None:
    if side:
        click.echo(json.dumps(measure(side, rows, device)))
        return
    found = {name: in_process("train_cpu", rows=rows, device=device, side=name) for name in SIDES}
    ratio = found["lockstep"]["tokens_per_cpu_second"] / found["trl_defaults"]["tokens_per_cpu_second"]
    click.echo(json.dumps({**found, "ratio": round(ratio, 2), **machine(device)}, indent=2))


if __name__ == "__main__":
    main()
