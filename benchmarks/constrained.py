"""What the grammar costs: the same batches generated without and with it in turns, so that both meet the same machine.

    python -m benchmarks.constrained --rows 128 --out benchmarks/constrained.json

Wall and CPU seconds of each, the share of the mask in the latter, and the time to prepare the grammar.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class Timed:
    """A mask that adds up its own seconds."""

    def __init__(self, mask: Any) -> None:
        self.mask, self.seconds, self.steps = mask, 0.0, 0

    def __call__(self, ids: Any, scores: Any) -> Any:
        begun = time.perf_counter()
        found = self.mask(ids, scores)
        self.seconds, self.steps = self.seconds + time.perf_counter() - begun, self.steps + 1
        return found


def clocked(work: Callable[[], list[Any]]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and answer tokens of one batch."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = sum(answer.answer_tokens for _, answer in work())
    return time.perf_counter() - wall, time.process_time() - cpu, tokens


@click.command(help=__doc__)
@click.option("--base", type=click.Path(path_type=Path, exists=True), default="models/base", show_default=True)
@click.option("--adapter", type=click.Path(path_type=Path, exists=True), default="models/adapter", show_default=True)
@click.option("--rows", type=int, default=128, show_default=True, help="validation rows to answer")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file for the figures")
def main(base: Path, adapter: Path, rows: int, out: Path) -> None:
    from stages.shared import chat, generate, grammar, model, params, strict_json

    settings = params.load("predict", params.Predict)
    key, device = model.device(settings.device)
    tokenizer = model.load_tokenizer(base)
    begun = time.perf_counter()
    rules = grammar.load(Path("data/schema.json"), tokenizer)
    prepared = time.perf_counter() - begun
    network = model.load_for_generation(base, adapter, device)
    prefix = strict_json.parse((adapter / "made_from.json").read_text(encoding="utf-8"))["prefix"]
    examples = list(strict_json.read_jsonl(Path("data/chat/valid.jsonl")))[:rows]
    prompts = [chat.prompt_ids(tokenizer, chat.with_prefix(prefix, e["prompt"])) for e in examples]
    prompts.sort(key=len)

    masks: list[Timed] = []

    def watched(count: int) -> Timed:
        masks.append(Timed(rules.mask(count)))
        return masks[-1]

    def answers(batch: list[list[int]], mask: Callable[[int], Any] | None) -> list[Any]:
        room, together = settings.max_new_tokens, settings.batch_size
        return list(generate.greedy(network, tokenizer, batch, room, together, mask))

    answers(prompts[: settings.batch_size], None)  # to warm up
    totals = {"free": [0.0, 0.0, 0], "constrained": [0.0, 0.0, 0]}
    for turn, first in enumerate(range(0, len(prompts), settings.batch_size)):
        batch = prompts[first : first + settings.batch_size]
        pair: list[tuple[str, Callable[[int], Any] | None]] = [("free", None), ("constrained", watched)]
        for name, mask in pair if turn % 2 else reversed(pair):
            measured = clocked(lambda batch=batch, mask=mask: answers(batch, mask))  # type: ignore[misc]
            totals[name] = [old + new for old, new in zip(totals[name], measured, strict=True)]
        click.echo(f"{first + len(batch)} of {len(prompts)} {totals}", err=True)
    columns = ("seconds", "cpu_seconds", "answer_tokens")
    result: dict[str, Any] = {
        name: {column: round(value, 2) for column, value in zip(columns, total, strict=True)}
        for name, total in totals.items()
    }
    steps = sum(mask.steps for mask in masks)
    spent = sum(mask.seconds for mask in masks)
    result["mask"] = {
        "seconds": round(spent, 2),
        "steps": steps,
        "ms_per_step": round(1000 * spent / steps, 2),
        "prepare_seconds": round(prepared, 2),
    }
    strict_json.write_json(out, result | {"answers": len(prompts), "batch_size": settings.batch_size, "device": key})


if __name__ == "__main__":
    main()
