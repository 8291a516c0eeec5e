"""Train a QLoRA adapter: NF4 base, LoRA on all linear layers, loss on the answer only (Dettmers et al. 2023).

In: data/chat/{train,valid,replay}.jsonl, the tuned system's prefix, the base model. Out: models/adapter with the
adapter and made_from.json (what it was made from), metrics, the loss curves, and a timing file. The rows of
replay.jsonl are the base model's own, without the prefix: trained on as well, they keep more of what it knew.
"""

import os
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from annotated_types import Ge, Lt

from stages.core import cli, hashes, params, strict_json, timing
from stages.model import chat, checkpoints, encoding, launching, loading, prefix_sharing, quantised, results
from stages.model.row_losses import table

LIBRARIES = ("accelerate", "bitsandbytes", "datasets", "peft", "torch", "transformers", "trl")


@dataclass(frozen=True)
class Params:
    seed: Annotated[int, Ge(0), Lt(2**32)]
    epochs: params.Positive
    learning_rate: params.Positive
    warmup_share: Annotated[float, Ge(0), Lt(1)]  # transformers takes 1.0 for one step
    batch_size: params.Count
    micro_batch_size: params.Count
    weight_decay: Annotated[float, Ge(0)]
    lora_rank: params.Count
    lora_alpha: params.Count
    lora_dropout: params.Share
    launch: Literal["single", "ddp", "fsdp"]


def arguments(settings: Params, device: loading.Device, scratch: Path) -> Any:
    """TRL's settings. Rows come in random order; those of a micro batch are packed, so none is padded."""
    from trl import SFTConfig

    at_once = settings.micro_batch_size * launching.processes()
    if settings.batch_size % at_once:
        by = f" times {launching.processes()} processes" if launching.processes() > 1 else ""
        raise params.ParamsError(f"params.yaml: train.batch_size must be a multiple of train.micro_batch_size{by}")
    return SFTConfig(
        output_dir=str(scratch),
        seed=settings.seed,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_share,
        weight_decay=settings.weight_decay,
        per_device_train_batch_size=settings.micro_batch_size,
        per_device_eval_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // at_once,
        ddp_find_unused_parameters=False,
        gradient_checkpointing=device.checkpointing,
        optim=device.optimizer,
        use_cpu=device.name == "cpu",
        bf16=device.train_dtype == "bfloat16",
        fp16=device.train_dtype == "float16",
        packing=False,
        max_length=None,
        remove_unused_columns=False,  # the number of a row
        eval_strategy="epoch",
        prediction_loss_only=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # stages/model/trainer.py refuses such a loss
        save_strategy="no",  # by time instead: stages/model/checkpoints.py
        save_total_limit=2,
        report_to="none",
        dataloader_num_workers=0,
        dataloader_pin_memory=device.name == "cuda",
    )


def make_trainer(model: Any, tokenizer: Any, settings: Params, args: Any, train: Any, valid: Any) -> Any:
    """A LoRA on every linear layer of the model, ready to train."""
    from peft import LoraConfig

    from stages.model.trainer import Trainer

    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return Trainer(model, tokenizer, args, lora, train, valid)


def bound_caches() -> None:
    """Before torch is imported: keep few of oneDNN's compiled matrix products.

    There is one for each number of tokens, and each micro batch has another: with the default of 1,024 (twice: oneDNN's
    cache and torch's own) they grow to gigabytes. The products are the same, so is the adapter.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")


class Clock:
    """Wall and CPU seconds of a training, with those of the part before a checkpoint."""

    def __init__(self, wall: float = 0.0, cpu: float = 0.0) -> None:
        self.wall, self.cpu = time.monotonic() - wall, time.process_time() - cpu

    def read(self) -> dict[str, float]:
        return {"wall": time.monotonic() - self.wall, "cpu": time.process_time() - self.cpu}


def run(trainer: Any, checkpoint: Path | None = None) -> None:
    """Train to the last step, from a checkpoint if there is one. Raises InputError when it stopped early."""
    from peft.helpers import disable_input_dtype_casting

    # On CPU, PEFT does not see that autocast is on, and copies every input to float32 for autocast to copy it back.
    as_is = disable_input_dtype_casting(trainer.model, active=trainer.args.bf16 or trainer.args.fp16)
    with as_is, prefix_sharing.attention(trainer.model):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < trainer.state.max_steps:
        raise cli.InputError(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}")


def run_or_resume(trainer: Any, store: checkpoints.Store, minutes: float) -> dict[str, float]:
    """Train, from the last checkpoint of these inputs if a run was killed. Returns wall and CPU seconds of it all."""
    from accelerate.utils import broadcast_object_list

    first = trainer.accelerator.is_main_process
    found = [store.latest() if first else None]  # looked for by one process: it removes what is torn
    checkpoint = broadcast_object_list(found)[0] if trainer.accelerator.num_processes > 1 else found[0]
    figures = checkpoints.so_far(checkpoint)
    clock = Clock(**figures.get("seconds", {}))
    if checkpoint:
        trainer.row_losses.restore(figures["row_losses"])
        click.echo(f"train: going on from {checkpoint}", err=True) if first else None

    def so_far() -> dict[str, Any]:
        return {"seconds": clock.read(), "row_losses": trainer.row_losses.of_all()}

    saver = checkpoints.callback(store, minutes, trainer.accelerator, so_far)
    trainer.add_callback(saver)
    with checkpoints.kept_on_sigterm(saver):
        run(trainer, checkpoint)
    return clock.read()


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--train", "chat rows to train on")
@cli.path_option("--valid", "chat rows held out")
@cli.path_option("--replay", "the base model's answers to general prompts, to train on as well")
@cli.path_option("--prefix", "turns before each prompt of the task")
@cli.path_option("--base", "base model")
@cli.path_option("--out", "folder for the adapter")
@cli.path_option("--metrics", "metrics file")
@cli.path_option("--train-loss", "plot: loss per step")
@cli.path_option("--valid-loss", "plot: loss per epoch on the held-out rows")
@cli.path_option("--row-losses", "loss of each training row by epoch")
@cli.path_option("--timings", "timing file")
@cli.path_option("--launch", "accelerate's settings for several processes")
@cli.path_option("--checkpoint-folder", "where a killed run left off")
@click.option("--checkpoint-minutes", default=5.0, show_default=True, envvar="CHECKPOINT_MINUTES", show_envvar=True)
def main(
    train: Path,
    valid: Path,
    replay: Path,
    prefix: Path,
    base: Path,
    out: Path,
    metrics: Path,
    train_loss: Path,
    valid_loss: Path,
    row_losses: Path,
    timings: Path,
    launch: Path,
    checkpoint_folder: Path,
    checkpoint_minutes: float,
) -> None:
    cli.end_with_caller()
    mark = "adapter_config.json"
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / mark).is_file()):  # before the training
        raise cli.InputError(f"{out} would be deleted, and has no {mark}: it is not this stage's; name another folder")
    settings, max_length = params.load("train", Params), params.load("chat", chat.Params).max_length
    launching.launch(settings.launch, launch)
    bound_caches()
    key, device = loading.device(params.load("compute", loading.Params).device)
    import torch
    from transformers import set_seed

    set_seed(settings.seed)
    tokenizer = loading.load_tokenizer(base)
    turns = chat.check_turns(str(prefix), strict_json.read(prefix))
    of_task, held_out = (encoding.rows(tokenizer, turns, file, max_length) for file in (train, valid))
    general = encoding.rows(tokenizer, [], replay, max_length) if replay.stat().st_size else []
    train_set, valid_set = encoding.dataset(of_task, general), encoding.dataset(held_out)
    origin = {
        "base": hashes.of_folder(base),
        "train": hashes.of_file(train),
        "valid": hashes.of_file(valid),
        "replay": hashes.of_file(replay),
        "prefix": turns,
        "params": asdict(settings),
        "versions": {name: version(name) for name in LIBRARIES},
        "device": key,
        "threads": torch.get_num_threads(),
        "processes": launching.processes(),
    }
    by_threads = origin["threads"] if device.name == "cpu" else None  # on a GPU they change nothing
    code = checkpoints.code(launch / f"{settings.launch}.yaml")  # "single" has none
    store = checkpoints.Store(checkpoint_folder, origin | {"threads": by_threads, "code": code})
    args = arguments(settings, device, store.folder)
    trainer = make_trainer(quantised.for_training(base, device), tokenizer, settings, args, train_set, valid_set)
    seconds = run_or_resume(trainer, store, checkpoint_minutes)
    tokens = sum(map(len, train_set["input_ids"]))
    results.publish(trainer, out, origin)
    losses = trainer.row_losses.of_all()
    trainer.end()
    if launching.rank():  # one process writes
        return
    ids = [row["id"] for row in strict_json.read_jsonl(train)]
    results.write(row_losses, table(ids, [of_epoch[: len(ids)] for of_epoch in losses]))
    trained, evaluated = (results.curve(trainer.state.log_history, name) for name in ("loss", "eval_loss"))
    results.write_curve(train_loss, trained)
    results.write_curve(valid_loss, evaluated)
    steps, took = trainer.state.global_step, results.speed(tokens * settings.epochs, **seconds, device=device)
    result = {
        "rows": len(of_task),
        "tokens_per_epoch": tokens,
        "steps": steps,
        "train_loss": trained[-1]["loss"],
        "valid_rows": len(valid_set),
        "valid_loss": evaluated[-1]["loss"],
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "device": key,
    }
    results.write_json(metrics, result)
    timing.record(timings, out / "adapter_model.safetensors", took)
    rows = f"{len(of_task)} rows and {len(general)} replayed"
    click.echo(f"train: {rows}, {steps} steps in {took['seconds']:.0f} s on {key}", err=True)
    store.clear()


if __name__ == "__main__":
    main()
