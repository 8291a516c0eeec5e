"""Answer the rows of several files: by batches that processes share, from where a killed run left off."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stages.answers import generate, grammar, grounding, processes
from stages.answers.kept import Kept
from stages.core import cli
from stages.model import chat, loading


@dataclass(frozen=True)
class Part:
    """The rows of one file, their prompts in tokens, and the answers so far."""

    rows: list[dict[str, Any]]
    prompts: list[list[int]]
    kept: Kept


@dataclass(frozen=True)
class Job:
    """What a process needs to answer its share."""

    folder: Path
    device: loading.Device
    settings: generate.Params
    tokenizer: Any
    schema: Path | None
    fields: tuple[str, ...]
    parts: list[Part]


@dataclass(frozen=True)
class Constrained:
    """The section `constrained` of params.yaml."""

    enabled: bool


def check_answers_fit(source: str, examples: list[dict[str, Any]], tokenizer: Any, most: int) -> None:
    """An expected answer that could not be written in full would count as a failure of every system."""
    for example in examples:
        needed = len(chat.answer_ids(tokenizer, example["answer"]))
        if needed > most:
            told = f"{source}: {example['id']}: the expected answer has {needed} tokens"
            raise cli.InputError(f"{told}, more than predict.max_new_tokens = {most}; raise it in params.yaml")


def check_prompts_fit(source: str, rows: list[dict[str, Any]], prompts: list[list[int]], room: int) -> None:
    """Beyond its context a model's answer means nothing, and a baseline would look worse than it is."""
    for row, prompt in zip(rows, prompts, strict=True):
        if len(prompt) > room:
            told = f"{source}: {row['id']}: the prompt has {len(prompt)} tokens, and the model has room for {room}"
            raise cli.InputError(f"{told} before the answer; shorten the row, or what `build` tells this system")


def context(folder: Path) -> int:
    """The most tokens that the model reads."""
    from transformers import AutoConfig

    with loading.reading(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return int(getattr(config.get_text_config(), "max_position_embeddings", sys.maxsize))  # some models have no limit


def load_grammar(schema: Path, tokenizer: Any, rows: list[dict[str, Any]], quiet: bool) -> grammar.Grammar:
    """The grammar of the contract; says on stderr where it and the task differ."""
    rules = grammar.load(schema, tokenizer)
    if quiet:
        return rules
    for part in rules.left_out:
        click.echo(f"{schema}: the answers are not held to all of it: {part}", err=True)
    barred = [row["id"] for row in rows if not rules.spells(chat.answer_ids(tokenizer, row["answer"]))]
    if barred:
        told = f"{len(barred)} of {len(rows)} expected answers can't be written under the grammar"
        click.echo(f"{told}, {barred[0]} the first; do their keys stand in the order of {schema}?", err=True)
    return rules


def answer(process: int, count: int, job: Job, todo: list[list[list[int]]]) -> None:
    """In one of `count` processes: of the batches that each part has to do, every so many-th."""
    from tqdm import tqdm

    rows = [row for part in job.parts for row in part.rows]
    rules = load_grammar(job.schema, job.tokenizer, rows, quiet=process > 0) if job.schema else None
    model = loading.load_model(job.folder, job.device.generate_dtype, job.device.name)
    size, most = job.settings.batch_size, job.settings.max_new_tokens
    shares = [batches[process::count] for batches in todo]
    total = sum(len(batch) for share in shares for batch in share)
    with tqdm(total=total, desc="predict", unit=" answers", disable=process > 0) as bar:
        for part, share in zip(job.parts, shares, strict=True):
            masks: generate.Masks | None = rules.masks if rules else None
            if rules and job.fields:  # the fields that copy are held to the user's words as well
                masks = grounding.Masks(rules, [row["prompt"] for row in part.rows], job.fields)
            started = time.monotonic()
            for row, found in generate.greedy(model, job.tokenizer, part.prompts, most, size, masks, share):
                part.kept.add(process, row, time.monotonic() - started, found)
                started = time.monotonic()
                bar.update()


def answer_all(job: Job, count: int) -> None:
    """Answer what is not answered yet, in so many processes."""
    batches = sum(len(part.kept.batches) for part in job.parts)
    while any(todo := [part.kept.todo() for part in job.parts]):
        left = sum(map(len, todo))
        if left < batches:
            click.echo(f"predict: going on after {batches - left} of {batches} batches", err=True)
        processes.run(answer, min(count, left), job, todo)
