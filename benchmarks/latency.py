"""What an answer of each system takes on this machine: tokens, latency of single requests, throughput of batches.

    python -m benchmarks.latency --out benchmarks/latency.json

In: models/base, models/merged, the test rows and prompts in data/chat. Run it where the model will serve, on a quiet
machine. What a system puts before every request is computed once, as a server with a prefix cache does: the best case
for prompting. `prefix_ms` is what each answer takes longer without such a cache.
"""

import random
import time
from pathlib import Path
from typing import Any

import click

from stages.answers import generate
from stages.core import cli, params, strict_json
from stages.data import writing
from stages.model import chat, loading
from stages.scores import provenance

BASE, MERGED, CHAT = Path("models/base"), Path("models/merged"), Path("data/chat")
SEED = 17  # which test rows


def sample(test: Path, count: int) -> list[list[chat.Turn]]:
    """The prompts of this many test rows, or of all where there are fewer."""
    rows = list(strict_json.read_jsonl(test))
    chosen = random.Random(SEED).sample(rows, min(count, len(rows)))  # noqa: S311
    return [row["prompt"] for row in chosen]


def alone(model: Any, tokenizer: Any, prompts: list[list[int]], limit: int) -> list[tuple[float, generate.Answer]]:
    """Seconds and answer of each prompt, one at a time, in the order of the prompts.

    The shortest prompt is asked once before all others and not timed: it pays for what only the first call has to do.
    """
    from tqdm import tqdm

    shortest = min(prompts, key=lambda ids: (len(ids), ids))
    answers = generate.greedy(model, tokenizer, [shortest, *prompts], limit, 1)
    timed, started = {}, time.perf_counter()
    for index, answer in tqdm(answers, total=len(prompts) + 1, unit=" answers"):
        timed[index] = time.perf_counter() - started, answer
        started = time.perf_counter()
    return [timed[index] for index in range(1, len(timed))]


def prefix_ms(model: Any, tokenizer: Any, prompts: list[list[int]], limit: int, warm: list[float]) -> float:
    """The median of the milliseconds that these prompts take longer without a prefix cache."""
    from statistics import median

    extra = []
    for prompt, seconds in zip(prompts, warm, strict=True):
        started = time.perf_counter()
        list(generate.greedy(model, tokenizer, [prompt], limit, 1))
        extra.append(1000 * (time.perf_counter() - started - seconds))
    return round(median(extra), 1)


def together(model: Any, tokenizer: Any, prompts: list[list[int]], limit: int, batch_size: int) -> float:
    """Answers per second in batches."""
    started = time.perf_counter()
    count = sum(1 for _ in generate.greedy(model, tokenizer, prompts, limit, batch_size))
    return round(count / (time.perf_counter() - started), 3)


def percentile(ms: list[float], share: float) -> tuple[float, float | None, float | None]:
    """A percentile and its 95% interval from order statistics; None where there are too few values for that end."""
    import math

    import numpy as np
    from scipy.stats import quantile_test

    ends: Any = quantile_test(ms, p=share).confidence_interval(0.95)
    low, high = (None if math.isnan(end) else round(float(end), 1) for end in ends)
    return round(float(np.quantile(ms, share)), 1), low, high


def figures(timed: list[tuple[float, generate.Answer]]) -> dict[str, Any]:
    """Percentiles with their intervals, and means per request."""
    ms, answers = [1000 * seconds for seconds, _ in timed], [answer for _, answer in timed]
    result: dict[str, Any] = {}
    for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95)):
        result[name], result[f"{name}_low"], result[f"{name}_high"] = percentile(ms, share)
    for name in ("prompt_tokens", "answer_tokens", "truncated"):
        result[name] = round(sum(getattr(answer, name) for answer in answers) / len(answers), 4)
    return result


def machine(key: str) -> dict[str, Any]:
    """The row of the device table, the processor's own name, and the threads."""
    import platform

    import torch

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").split("\n") if cpu.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = torch.cuda.get_device_name() if key.startswith("cuda") else (named or [platform.machine()])[0]
    return {"key": key, "name": name, "threads": torch.get_num_threads()}


def measure(requests: int, cold_requests: int, batch_size: int, limit: int, device: loading.Device) -> dict[str, Any]:
    """All systems, one after the other, on the same requests."""
    turns, systems = sample(CHAT / "test.jsonl", requests), {}
    for name, folder in (("zero_shot", BASE), ("few_shot", BASE), ("tuned", MERGED)):
        click.echo(f"latency: {name}", err=True)
        model = loading.load_model(folder, device.generate_dtype, device.name)
        tokenizer = loading.load_tokenizer(folder)
        prefix = strict_json.read(CHAT / "prefix" / f"{name}.json") if folder == BASE else []
        prompts = [chat.prompt_ids(tokenizer, chat.with_prefix(prefix, row)) for row in turns]
        timed = alone(model, tokenizer, prompts, limit)
        warm = [seconds for seconds, _ in timed[:cold_requests]]
        systems[name] = figures(timed) | {
            "prefix_ms": prefix_ms(model, tokenizer, prompts[:cold_requests], limit, warm),
            "answers_per_second": together(model, tokenizer, prompts, limit, batch_size),
        }
    return {"systems": systems, "requests": len(turns), "batch_size": batch_size, "max_new_tokens": limit, "seed": SEED}


def table(systems: dict[str, Any]) -> list[str]:
    lines = ["| system | prompt tokens | answer tokens | p50 | p95 | prefix | answers/s |", "|" + "---|" * 7]
    for name, s in systems.items():
        ends = ", ".join("?" if s[f"p95_ms_{end}"] is None else f"{s[f'p95_ms_{end}']:.0f}" for end in ("low", "high"))
        times = f"{s['p50_ms']:.0f} ms | {s['p95_ms']:.0f} ms [{ends}] | {s['prefix_ms']:+.0f} ms"
        tokens = f"{s['prompt_tokens']:.0f} | {s['answer_tokens']:.0f}"
        lines.append(f"| {name} | {tokens} | {times} | {s['answers_per_second']:.2f} |")
    return lines


@click.command(cls=cli.Command, help=__doc__)
@click.option("--requests", default=72, show_default=True, type=click.IntRange(2), help="fewer leave p95 unbounded")
@click.option("--cold-requests", default=4, show_default=True, type=click.IntRange(1), help="repeated without a cache")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="for the throughput")
@cli.path_option("--out", "file for the figures", required=False)
def main(requests: int, cold_requests: int, batch_size: int, out: Path | None) -> None:
    for path in (BASE, MERGED / "made_from.json", CHAT / "test.jsonl"):
        if not path.exists():
            raise cli.InputError(f"{path} is missing; run `make repro`")
    limit = params.load("predict", generate.Params).max_new_tokens
    key, device = loading.device(params.load("compute", loading.Params).device)
    result = measure(requests, cold_requests, batch_size, limit, device) | {"device": machine(key)}
    made = provenance.computed_from(MERGED / "made_from.json", ("torch", "transformers"), test=CHAT / "test.jsonl")
    if out:
        writing.write_json(out, result | {"computed_from": made})
    click.echo("\n".join(table(result["systems"])))


if __name__ == "__main__":
    main()
