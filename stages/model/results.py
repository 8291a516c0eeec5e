"""What a training leaves: the adapter, the loss curves, what it took.

Files are written here and not by stages/data/writing.py: how a JSON file is indented must not train again.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from stages.core import hashes, strict_json
from stages.model import launching, loading


def curve(history: list[dict[str, float]], name: str) -> list[dict[str, float]]:
    """What the Trainer logged under that name: `loss` of the training rows, `eval_loss` of those held out."""
    return [
        {"step": entry["step"], "epoch": round(entry["epoch"], 4), "loss": float(entry[name])}
        for entry in history
        if name in entry
    ]


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="\n")


def write_json(file: Path, value: Any) -> None:
    write(file, json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_curve(file: Path, entries: list[dict[str, float]]) -> None:
    """CSV, for `dvc plots`."""
    write(file, "step,epoch,loss\n" + "".join(f"{e['step']},{e['epoch']},{e['loss']}\n" for e in entries))


def speed(tokens: float, wall: float, cpu: float, device: loading.Device) -> dict[str, Any]:
    """What the timing file holds. `tokens`: all that were trained on, padding not counted."""
    import torch

    return {
        "seconds": round(wall, 1),
        "tokens_per_second": round(tokens / wall, 1),
        "tokens_per_cpu_second": round(tokens / cpu, 1),
        "peak_memory_bytes": peak_memory(device),
        "threads": torch.get_num_threads(),
    }


def publish(trainer: Any, out: Path, origin: dict[str, Any]) -> None:
    """Write adapter_model.safetensors, adapter_config.json and made_from.json; no pickle, the same bytes every time.

    Every process calls it, since each may hold a part of the adapter, and one writes.
    """
    weights = trainer.accelerator.get_state_dict(trainer.model) if launching.sharded() else None
    if not trainer.accelerator.is_main_process:
        return
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    trainer.model.save_pretrained(part, safe_serialization=True, state_dict=weights)
    (part / "README.md").unlink(missing_ok=True)  # an empty model card
    config = strict_json.read(part / "adapter_config.json")
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order changes from run to run
    write_json(part / "adapter_config.json", config)
    adapter = hashes.of_file(part / "adapter_model.safetensors")
    write_json(part / "made_from.json", {**origin, "adapter": adapter})
    if out.exists():
        shutil.rmtree(out)
    part.rename(out)


def peak_memory(device: loading.Device) -> int:
    """Peak bytes: allocated on the GPU, or resident on the CPU."""
    import torch

    if device.name == "cuda":
        return int(torch.cuda.max_memory_allocated())
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
