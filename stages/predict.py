"""Generate answers with one system: the base model after a prompt prefix, or the tuned model, freely or by a grammar.

In: chat rows and a model's folder; for the base model the turns before each prompt, which the tuned one brings in its
chat template. With --schema the answers are held to the contract while they are written, with --grounded the fields
that copy from the request to the user's words as well; where `constrained.enabled` is false, or no field copies, no
answer is written, and `evaluate` leaves the system out. Out: for each --rows file an --out file with
`id`, `answer`, `prompt_tokens`, `answer_tokens`, `truncated`; a timing file. Nothing is scored here.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stages.answers import generate, grammar, grounding
from stages.core import cli, params, strict_json, timing, yaml12
from stages.data import records, writing
from stages.model import chat, loading


@dataclass(frozen=True)
class Asked:
    """What is read of a chat row."""

    id: str
    prompt: list[chat.Turn]
    answer: str


@dataclass(frozen=True)
class Constrained:
    """The section `constrained` of params.yaml."""

    enabled: bool


def check_answers_fit(source: Path, examples: list[dict[str, Any]], tokenizer: Any, most: int) -> None:
    """An expected answer that could not be written in full would count as a failure of every system."""
    for example in examples:
        needed = len(chat.answer_ids(tokenizer, example["answer"]))
        if needed > most:
            raise cli.InputError(
                f"{source}: {example['id']}: the expected answer has {needed} tokens, more than "
                f"predict.max_new_tokens = {most}; raise it in params.yaml"
            )


def load_grammar(schema: Path, tokenizer: Any, rows: list[dict[str, Any]]) -> grammar.Grammar:
    """The grammar of the contract; says on stderr where it and the task differ."""
    rules = grammar.load(schema, tokenizer)
    for part in rules.left_out:
        click.echo(f"predict: {schema}: the answers are not held to all of it: {part}", err=True)
    barred = [row["id"] for row in rows if not rules.spells(chat.answer_ids(tokenizer, row["answer"]))]
    if barred:
        click.echo(
            f"predict: {len(barred)} of {len(rows)} expected answers can't be written under the grammar, {barred[0]} "
            f"the first; do their keys stand in the order of {schema}?",
            err=True,
        )
    return rules


def copied_fields(file: Path) -> tuple[str, ...]:
    """The fields that are made of the user's words. Raises InputError."""
    fields = yaml12.parse(cli.read_text(file), str(file)).get("copied_fields") or []
    if not isinstance(fields, list) or not all(isinstance(name, str) for name in fields):
        raise cli.InputError(f"{file}: copied_fields must be a list of names")
    return tuple(fields)


def masks_of(
    rules: grammar.Grammar | None, prompts: list[list[chat.Turn]], fields: tuple[str, ...]
) -> generate.Masks | None:
    """What holds the answers to the contract, and the fields that copy to the user's words; None for nothing."""
    if rules is None:
        return None
    return grounding.Masks(rules, prompts, fields) if fields else rules.masks


def output(row: dict[str, Any], answer: generate.Answer) -> dict[str, Any]:
    return {
        "id": row["id"],
        "answer": answer.text,
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": answer.answer_tokens,
        "truncated": answer.truncated,
    }


def speed(found: list[generate.Answer], seconds: float, device: str) -> dict[str, Any]:
    """What the timing file holds."""
    return {
        "answers": len(found),
        "answer_tokens": sum(answer.answer_tokens for answer in found),
        "seconds": round(seconds, 2),
        "answers_per_second": round(len(found) / seconds, 3),
        "device": device,
    }


@click.command(cls=cli.Command, help=__doc__)
@click.option("--model", "folder", required=True, type=click.Path(path_type=Path), help="folder of the model")
@cli.path_option("--prefix", "turns before each prompt, unless the chat template brings them", required=False)
@cli.path_option("--schema", "JSON Schema that answers are held to while they are written", required=False)
@cli.path_option("--grounded", "rules.yaml whose copied_fields may only hold the user's words", required=False)
@cli.path_option("--rows", "chat rows; may be repeated", multiple=True)
@cli.path_option("--out", "predictions, one file for each --rows", multiple=True)
@cli.path_option("--timings", "timing file")
def main(
    folder: Path,
    prefix: Path | None,
    schema: Path | None,
    grounded: Path | None,
    rows: tuple[Path, ...],
    out: tuple[Path, ...],
    timings: Path,
) -> None:
    cli.end_with_caller()
    settings = params.load("predict", generate.Params)
    if len(rows) != len(out):
        raise click.UsageError("give one --out for each --rows")
    fields = copied_fields(grounded) if grounded else ()
    if (schema and not params.load("constrained", Constrained).enabled) or (grounded and not fields):
        for target in out:
            writing.write_jsonl(target, [])
        return click.echo("predict: switched off, or no field copies from the request: nothing is answered", err=True)
    key, device = loading.device(params.load("compute", loading.Params).device)
    tokenizer = loading.load_tokenizer(folder)
    examples = {source: [vars(row) for row in records.read(source, Asked, "ignore", least=0)] for source in rows}
    for source, part in examples.items():
        check_answers_fit(source, part, tokenizer, settings.max_new_tokens)
    rules = load_grammar(schema, tokenizer, [row for part in examples.values() for row in part]) if schema else None
    turns = strict_json.read(prefix) if prefix else []
    model = loading.load_model(folder, device.generate_dtype, device.name)
    started, found = time.monotonic(), []
    for part, target in zip(examples.values(), out, strict=True):
        prompts = [chat.prompt_ids(tokenizer, chat.with_prefix(turns, row["prompt"])) for row in part]
        masks = masks_of(rules, [row["prompt"] for row in part], fields)
        answers = generate.answers(model, tokenizer, settings, prompts, masks)
        writing.write_jsonl(target, [output(row, answer) for row, answer in zip(part, answers, strict=True)])
        found += answers
    seconds = time.monotonic() - started
    timing.record(timings, out[0], speed(found, seconds, key))
    return click.echo(f"predict: {len(found)} answers in {seconds:.0f} s on {key}", err=True)


if __name__ == "__main__":
    main()
