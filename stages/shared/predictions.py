"""From chat rows to a predictions file, the same for every system that is measured.

A predictions file has `id`, `answer`, `prompt_tokens`, `answer_tokens`, `truncated` for each row. Nothing is scored
here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.shared import chat, cli, generate, params, strict_json


def predict(
    network: Any,
    tokenizer: Any,
    prefix: Path,
    source: Path,
    target: Path,
    settings: params.Predict,
    mask: Callable[[int], Any] | None = None,
) -> list[generate.Answer]:
    """Answer the rows of `source` after the turns of `prefix`, write them to `target`; `mask` as in generate.greedy."""
    turns = strict_json.parse(prefix.read_text(encoding="utf-8"))
    examples = list(strict_json.read_jsonl(source))
    check_room(source, examples, tokenizer, settings.max_new_tokens)
    prompts = [chat.prompt_ids(tokenizer, chat.with_prefix(turns, e["prompt"])) for e in examples]
    found = answers(network, tokenizer, settings, prompts, mask)
    strict_json.write_jsonl(target, outputs(examples, found))
    return found


def answers(
    network: Any,
    tokenizer: Any,
    settings: params.Predict,
    prompts: list[list[int]],
    mask: Callable[[int], Any] | None = None,
) -> list[generate.Answer]:
    """One answer per prompt, in the order of the prompts, with progress."""
    from tqdm import tqdm

    found: dict[int, generate.Answer] = {}
    room, together = settings.max_new_tokens, settings.batch_size
    with tqdm(total=len(prompts), desc="predict", unit=" answers") as bar:
        for index, answer in generate.greedy(network, tokenizer, prompts, room, together, mask):
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


def write_timing(path: Path, found: list[generate.Answer], seconds: float, device: str) -> None:
    """Write how long generating took; all zero where no answer was asked for."""
    timing = {
        "answers": len(found),
        "answer_tokens": sum(answer.answer_tokens for answer in found),
        "seconds": round(seconds, 2),
        "answers_per_second": round(len(found) / seconds, 3) if seconds else 0.0,
        "device": device,
    }
    strict_json.write_json(path, timing)
