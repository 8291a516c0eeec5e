"""Generate answers with one system: the base model (stage `baseline`) or the base with its adapter (stage `predict`).

In: chat rows, a prompt prefix, the base model, optionally an adapter. Out: for each --rows file a --out file with
`id`, `answer`, `prompt_tokens`, `answer_tokens`, `truncated`; a timing file. Nothing is scored here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stages.shared import chat, generate, model, params, strict_json


@dataclass(frozen=True)
class Params:
    device: str
    batch_size: int
    max_new_tokens: int


def answers(network: Any, tokenizer: Any, settings: Params, prompts: list[list[int]]) -> list[generate.Answer]:
    """One answer per prompt, in the order of the prompts, with progress."""
    from tqdm import tqdm

    found: dict[int, generate.Answer] = {}
    with tqdm(total=len(prompts), desc="predict", unit=" answers") as bar:
        for index, answer in generate.greedy(network, tokenizer, prompts, settings.max_new_tokens, settings.batch_size):
            found[index] = answer
            bar.update()
    return [found[index] for index in range(len(prompts))]


def outputs(rows: list[dict[str, Any]], found: list[generate.Answer]) -> list[dict[str, Any]]:
    return [
        {
            "id": row["id"],
            "answer": answer.text,
            "prompt_tokens": answer.prompt_tokens,
            "answer_tokens": answer.answer_tokens,
            "truncated": answer.truncated,
        }
        for row, answer in zip(rows, found, strict=True)
    ]


def path_option(name: str, help_text: str, **options: Any) -> Callable[[Any], Any]:
    return click.option(name, type=click.Path(path_type=Path), help=help_text, **options)


@click.command(help=__doc__)
@path_option("--base", "base model", required=True)
@path_option("--adapter", "LoRA adapter; without it the base model answers")
@path_option("--prefix", "turns before each prompt", required=True)
@path_option("--rows", "chat rows; may be repeated", required=True, multiple=True)
@path_option("--out", "predictions, one file for each --rows", required=True, multiple=True)
@path_option("--timing", "timing file", required=True)
def main(
    base: Path, adapter: Path | None, prefix: Path, rows: tuple[Path, ...], out: tuple[Path, ...], timing: Path
) -> None:
    settings = params.load("predict", Params)
    if len(rows) != len(out):
        raise click.UsageError("give one --out for each --rows")
    key, device = model.device(settings.device)
    tokenizer = model.load_tokenizer(base)
    network = model.load_for_generation(base, adapter, device)
    turns = strict_json.parse(prefix.read_text(encoding="utf-8"))
    started, count, tokens = time.monotonic(), 0, 0
    for source, target in zip(rows, out, strict=True):
        examples = list(strict_json.read_jsonl(source))
        prompts = [chat.prompt_ids(tokenizer, chat.with_prefix(turns, e["prompt"])) for e in examples]
        found = answers(network, tokenizer, settings, prompts)
        strict_json.write_jsonl(target, outputs(examples, found))
        count, tokens = count + len(found), tokens + sum(answer.answer_tokens for answer in found)
    seconds = time.monotonic() - started
    strict_json.write_json(
        timing,
        {
            "answers": count,
            "answer_tokens": tokens,
            "seconds": round(seconds, 2),
            "answers_per_second": round(count / seconds, 3),
            "device": key,
        },
    )
    click.echo(f"predict: {count} answers in {seconds:.0f} s on {key}", err=True)


if __name__ == "__main__":
    main()
