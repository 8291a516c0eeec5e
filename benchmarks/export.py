"""Do the exports give the answers that were measured? Asked of each: test rows, against data/predictions/tuned.jsonl.

    python -m benchmarks.export --count 120 --out benchmarks/export.json

Four ways to the same answer: the merged folder and the GGUF file through transformers, the GGUF file through llama.cpp,
and `tools.serve` over HTTP with OpenAI's client. The last two get the messages only, so their prompt is the template's.
"""

import os
import platform
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from stages.shared import chat, contract, generate, model, params, stats, strict_json

MERGED, GGUF = Path("models/merged"), Path("models/gguf/model.gguf")
Prompts = list[list[chat.Turn]]


def by_transformers(folder: Path, gguf_file: str | None, prompts: Prompts) -> list[str]:
    """Answers of `predict`'s own generation; the prompt comes from the exported chat template."""
    import torch
    from transformers import AutoModelForCausalLM

    settings = params.load("predict", params.Predict)
    device = model.device(settings.device)[1]
    tokenizer = model.load_tokenizer(MERGED)
    dtype = getattr(torch, device.generate_dtype)
    network = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=dtype).to(device.name).eval()
    ids = [chat.prompt_ids(tokenizer, turns) for turns in prompts]
    found = dict(generate.greedy(network, tokenizer, ids, settings.max_new_tokens, settings.batch_size))
    return [found[number].text for number in range(len(prompts))]


def by_llama_cpp(file: Path, prompts: Prompts) -> list[str]:
    import xllamacpp

    limit = params.load("predict", params.Predict).max_new_tokens
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.verbosity = 2048, 1, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    server = xllamacpp.Server(settings)
    requests = ({"messages": turns, "max_tokens": limit, "temperature": 0} for turns in prompts)
    return [server.handle_chat_completions(request)["choices"][0]["message"]["content"] for request in requests]


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The address of `tools.serve`, started for the time being."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tools.serve", "--model", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()  # noqa: S310
                break
            except OSError:
                time.sleep(0.5)
        yield f"{address}/v1"
    finally:
        server.terminate()
        server.wait()


def by_http(folder: Path, prompts: Prompts) -> list[str]:
    from openai import OpenAI

    with running(folder) as url:
        client = OpenAI(base_url=url, api_key="none needed")
        asked = (client.chat.completions.create(model=str(folder), messages=turns) for turns in prompts)  # type: ignore[arg-type]
        return [said.choices[0].message.content or "" for said in asked]


def right(answer: str, expected: str) -> bool:
    try:
        return strict_json.same(contract.parse_answer(answer), contract.parse_answer(expected))
    except strict_json.JsonError:
        return False


def machine() -> dict[str, Any]:
    libraries = {name: version(name) for name in ("gguf", "torch", "transformers", "xllamacpp")}
    return {"device": model.device()[0], "machine": platform.machine(), "versions": libraries}


def agreement(answers: list[str], predicted: list[str], expected: list[str], seconds: float) -> dict[str, Any]:
    """How many answers are the predicted ones, letter by letter, with the 95% interval; how many of both are right."""
    n, same = len(answers), sum(one == other for one, other in zip(answers, predicted, strict=True))
    low, high = stats.wilson(same, n)
    return {
        "n": n,
        "same": same,
        "rate": round(same / n, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "right": sum(map(right, answers, expected)),
        "right_predicted": sum(map(right, predicted, expected)),
        "seconds": round(seconds, 1),
    }


WAYS: dict[str, Callable[[Prompts], list[str]]] = {
    "merged": lambda prompts: by_transformers(MERGED, None, prompts),
    "gguf_transformers": lambda prompts: by_transformers(GGUF.parent, GGUF.name, prompts),
    "gguf_llama_cpp": lambda prompts: by_llama_cpp(GGUF, prompts),
    "served": lambda prompts: by_http(MERGED, prompts),
}


def known_figures(out: Path, adapter: str) -> dict[str, Any]:
    """Figures of an earlier run with the same adapter, so that the ways can be measured one by one."""
    before = strict_json.parse(out.read_text(encoding="utf-8")) if out.is_file() else {}
    return before["agreement"] if before.get("adapter") == adapter else {}


@click.command(help=__doc__)
@click.option("--rows", type=click.Path(path_type=Path, exists=True), default="data/chat/test.jsonl", show_default=True)
@click.option(
    "--predictions", type=click.Path(path_type=Path), default="data/predictions/tuned.jsonl", show_default=True
)
@click.option("--count", type=click.IntRange(min=1), default=120, show_default=True, help="rows, spread evenly")
@click.option("--way", "ways", type=click.Choice(list(WAYS)), multiple=True, default=list(WAYS), help="may be repeated")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(rows: Path, predictions: Path, count: int, ways: tuple[str, ...], out: Path) -> None:
    examples = list(strict_json.read_jsonl(rows))
    predicted = {row["id"]: row["answer"] for row in strict_json.read_jsonl(predictions)}
    count = min(count, len(examples))
    chosen = [examples[number * len(examples) // count] for number in range(count)]
    origin = strict_json.parse((MERGED / "made_from.json").read_text(encoding="utf-8"))
    figures = known_figures(out, origin["adapter"])
    for name in ways:
        started = time.monotonic()
        answers = WAYS[name]([example["prompt"] for example in chosen])
        seconds = time.monotonic() - started
        given, expected = [predicted[e["id"]] for e in chosen], [e["answer"] for e in chosen]
        figures[name] = agreement(answers, given, expected, seconds)
        click.echo(f"{name}: {figures[name]}", err=True)
        strict_json.write_json(out, {"agreement": figures, "adapter": origin["adapter"], **machine()})


if __name__ == "__main__":
    main()
