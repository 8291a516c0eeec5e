"""Generate answers with one system: the base model (stage `baseline`) or the base with its adapter (stage `predict`).

In: chat rows, a prompt prefix, the base model, optionally an adapter. Out: for each --rows file a --out file with
`id`, `answer`, `prompt_tokens`, `answer_tokens`, `truncated`; a timing file. Nothing is scored here.
"""

import time
from pathlib import Path
from typing import Any

import click

from stages.shared import chat, cli, generate, model, params, strict_json


def answers(network: Any, tokenizer: Any, settings: params.Predict, prompts: list[list[int]]) -> list[generate.Answer]:
    """One answer per prompt, in the order of the prompts, with progress."""
    from tqdm import tqdm

    found: dict[int, generate.Answer] = {}
    with tqdm(total=len(prompts), desc="predict", unit=" answers") as bar:
        for index, answer in generate.greedy(network, tokenizer, prompts, settings.max_new_tokens, settings.batch_size):
            found[index] = answer
            bar.update()
    return [found[index] for index in range(len(prompts))]


def check_room(source: Path, examples: list[dict[str, Any]], tokenizer: Any, room: int) -> None:
    """An expected answer that could not be written in full would count as a failure of every system."""
    for example in examples:
        needed = len(chat.answer_ids(tokenizer, example["answer"]))
        if needed > room:
            raise cli.InputError(
                f"{source}: {example['id']}: the expected answer has {needed} tokens, more than "
                f"predict.max_new_tokens = {room}; raise it in params.yaml"
            )


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


@click.command(help=__doc__)
@cli.path_option("--base", "base model")
@cli.path_option("--adapter", "LoRA adapter; without it the base model answers", required=False)
@cli.path_option("--prefix", "turns before each prompt")
@cli.path_option("--rows", "chat rows; may be repeated", multiple=True)
@cli.path_option("--out", "predictions, one file for each --rows", multiple=True)
@cli.path_option("--timing", "timing file")
def main(
    base: Path, adapter: Path | None, prefix: Path, rows: tuple[Path, ...], out: tuple[Path, ...], timing: Path
) -> None:
    settings = params.load("predict", params.Predict)
    if len(rows) != len(out):
        raise click.UsageError("give one --out for each --rows")
    key, device = model.device(settings.device)
    tokenizer = model.load_tokenizer(base)
    network = model.load_for_generation(base, adapter, device)
    turns = strict_json.parse(prefix.read_text(encoding="utf-8"))
    started, count, tokens = time.monotonic(), 0, 0
    for source, target in zip(rows, out, strict=True):
        examples = list(strict_json.read_jsonl(source))
        check_room(source, examples, tokenizer, settings.max_new_tokens)
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
