"""Measure what an answer of each system takes on this machine: tokens, latency, throughput, and the price.

In: the base model, the adapter, the test rows and prefixes in data/chat, the prices in params.yaml (`advise`).
Out: metrics/timing/latency.json with the device, and a table. It is run by hand and is no stage: timings differ at
every run, and the figures that other people see in Git should be those of a quiet machine.

Latency is that of one request at a time, throughput that of `latency.batch_size` at once. What a system puts before
every request is computed once, as a server with a prefix cache does: the best case for prompting. `prefix_ms` is what
each answer takes longer where nothing is kept.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stages.shared import chat, cli, generate, hashes, model, params, strict_json, writing
from tools.advising import cost, evidence
from tools.advising.evidence import Latency, Own, Speed

SYSTEMS = ("zero_shot", "few_shot", "tuned")
HEADER = "| system | prompt tokens | answer tokens | p50 | p95 | prefix | answers/s | 1,000 by tokens | by machine |"


@dataclass(frozen=True)
class Settings:
    requests: params.Count
    cold_requests: params.Count
    batch_size: params.Count
    seed: int


def drawn(test: Path, settings: Settings) -> list[list[chat.Turn]]:
    """The prompts of `latency.requests` test rows, or of all where there are fewer."""
    rows = list(strict_json.read_jsonl(test))
    chosen = random.Random(settings.seed).sample(rows, min(settings.requests, len(rows)))  # noqa: S311
    return [row["prompt"] for row in chosen]


def alone(network: Any, tokenizer: Any, prompts: list[list[int]], room: int) -> list[tuple[float, generate.Answer]]:
    """Seconds and answer of each prompt, one at a time, in the order of the prompts.

    The shortest prompt comes first, and once more before that: what only the first call has to do is not counted.
    """
    from tqdm import tqdm

    shortest = min(prompts, key=lambda ids: (len(ids), ids))
    found = generate.greedy(network, tokenizer, [shortest, *prompts], room, 1)
    timed, started = {}, time.perf_counter()
    for index, answer in tqdm(found, total=len(prompts) + 1, unit=" answers"):
        timed[index] = time.perf_counter() - started, answer
        started = time.perf_counter()
    return [timed[index] for index in range(1, len(timed))]


def prefix_ms(network: Any, tokenizer: Any, prompts: list[list[int]], room: int, warm: list[float]) -> float:
    """Milliseconds, in the median, that these prompts take longer than their `warm` seconds with nothing kept."""
    from statistics import median

    extra = []
    for prompt, seconds in zip(prompts, warm, strict=True):
        started = time.perf_counter()
        list(generate.greedy(network, tokenizer, [prompt], room, 1))
        extra.append(1000 * (time.perf_counter() - started - seconds))
    return round(median(extra), 1)


def together(network: Any, tokenizer: Any, prompts: list[list[int]], room: int, batch_size: int) -> float:
    """Answers per second in batches."""
    from tqdm import tqdm

    started = time.perf_counter()
    for _ in tqdm(generate.greedy(network, tokenizer, prompts, room, batch_size), total=len(prompts), unit=" answers"):
        pass
    return len(prompts) / (time.perf_counter() - started)


def percentile(ms: list[float], share: float) -> tuple[float, float | None, float | None]:
    """A percentile and its 95% interval from order statistics; None where there are too few values for an edge."""
    import math

    import numpy as np
    from scipy.stats import quantile_test

    edges: Any = quantile_test(ms, p=share).confidence_interval(0.95)
    low, high = (None if math.isnan(edge) else round(float(edge), 1) for edge in edges)
    return round(float(np.quantile(ms, share)), 1), low, high


def system(network: Any, tokenizer: Any, prompts: list[list[int]], room: int, settings: Settings) -> dict[str, Any]:
    """What the file holds of one system."""
    timed = alone(network, tokenizer, prompts, room)
    few = settings.cold_requests
    return figures(timed) | {
        "prefix_ms": prefix_ms(network, tokenizer, prompts[:few], room, [seconds for seconds, _ in timed[:few]]),
        "answers_per_second": round(together(network, tokenizer, prompts, room, settings.batch_size), 3),
    }


def figures(timed: list[tuple[float, generate.Answer]]) -> dict[str, Any]:
    """Percentiles with their intervals, and means per request."""
    ms, count = [1000 * seconds for seconds, _ in timed], len(timed)
    found: dict[str, Any] = {}
    for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95)):
        found[name], found[f"{name}_low"], found[f"{name}_high"] = percentile(ms, share)
    return {
        **found,
        "prompt_tokens": round(sum(answer.prompt_tokens for _, answer in timed) / count, 1),
        "answer_tokens": round(sum(answer.answer_tokens for _, answer in timed) / count, 1),
        "truncated": round(sum(answer.truncated for _, answer in timed) / count, 4),
    }


def device(key: str) -> dict[str, Any]:
    """The row of the device table, the processor's own name, and the threads."""
    import platform

    import torch

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").split("\n") if cpu.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = torch.cuda.get_device_name() if key.startswith("cuda") else (named or [platform.machine()])[0]
    return {"key": key, "name": name, "threads": torch.get_num_threads()}


def measure(base: Path, adapter: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """All systems, one after the other, on the same prompts. The base model is loaded once for the prompting two."""
    predict = params.load("predict", params.Predict)
    key, chosen = model.device(predict.device)
    tokenizer, turns = model.load_tokenizer(base), drawn(folder / "test.jsonl", settings)
    systems: dict[str, Any] = {}
    for names, lora in ((SYSTEMS[:2], None), (SYSTEMS[2:], adapter)):
        network = model.load_for_generation(base, lora, chosen)
        for name in names:
            click.echo(f"latency: {name}", err=True)
            prefix = strict_json.read(folder / "prefix" / f"{name}.json")
            prompts = [chat.prompt_ids(tokenizer, chat.with_prefix(prefix, row)) for row in turns]
            systems[name] = system(network, tokenizer, prompts, predict.max_new_tokens, settings)
        del network
    return {
        "systems": systems,
        "device": device(key),
        "requests": len(turns),
        "batch_size": settings.batch_size,
        "max_new_tokens": predict.max_new_tokens,
        "seed": settings.seed,
        "computed_from": origin(adapter, folder / "test.jsonl"),
    }


def origin(adapter: Path, test: Path) -> dict[str, Any]:
    from importlib.metadata import version

    made_from = strict_json.read(adapter / "made_from.json")
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {"adapter": made_from["adapter"], "base": made_from["base"], "test": hashes.of_file(test)} | versions


def costs(systems: dict[str, Speed], own: Own) -> dict[str, Any]:
    """The price of 1,000 requests: by tokens to a hosted model, which a tuned one is not, and on a busy machine."""
    return {
        name: {
            "by_tokens": None if name == "tuned" else cost.by_tokens(own, speed),
            "by_machine": cost.by_machine(own, speed),
        }
        for name, speed in systems.items()
    }


def table(found: dict[str, Any], systems: dict[str, Speed]) -> list[str]:
    lines = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    for name, speed in systems.items():
        prices = ["-" if price is None else f"{price:.4f}" for price in found["cost_per_1000"][name].values()]
        tokens = f"{speed.prompt_tokens:.0f} | {speed.answer_tokens:.0f}"
        times = f"{speed.p50_ms:.0f} ms | {speed} | {speed.prefix_ms:+.0f} ms | {speed.answers_per_second:.2f}"
        lines.append(f"| {name} | {tokens} | {times} | {' | '.join(prices)} |")
    where = f"{found['device']['name']} ({found['device']['key']}, {found['device']['threads']} threads)"
    return [*lines, "", f"{found['requests']} requests alone, then in batches of {found['batch_size']}, on {where}."]


@click.command(help=__doc__)
@cli.path_option("--base", "base model", required=False, default=Path("models/base"), show_default=True)
@cli.path_option("--adapter", "LoRA adapter", required=False, default=Path("models/adapter"), show_default=True)
@cli.path_option("--chat", "built rows and prefixes", required=False, default=Path("data/chat"), show_default=True)
@cli.path_option("--out", "timing file", required=False, default=Path("metrics/timing/latency.json"), show_default=True)
@click.option("--reprice", is_flag=True, help="measure nothing: put the prices as they are now on the figures of --out")
def main(base: Path, adapter: Path, chat: Path, out: Path, reprice: bool) -> None:
    own = params.load("advise", Own)
    if not reprice:
        for path in (base, adapter / "made_from.json", chat / "test.jsonl"):
            if not path.exists():
                raise cli.InputError(f"{path} is missing; run `make repro`")
        writing.write_json(out, measure(base, adapter, chat, params.load("latency", Settings)))
    systems = vars(evidence.read(out, Latency, evidence.MEASURE).systems)
    found = strict_json.read(out) | {"cost_per_1000": costs(systems, own)}
    writing.write_json(out, found)
    click.echo("\n".join(table(found, systems)))


if __name__ == "__main__":
    main()
