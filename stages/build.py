"""Build the chat data: one example per assistant turn, a stable held-out split, and each system's prompt.

In: data/validated/{train,test}.jsonl, the behaviour tests, the contract, the base model's tokenizer. Out:
data/chat/{train,valid,test,behaviour}.jsonl, a line per example (stages/data/examples.py); data/chat/refused.jsonl
with rows longer than chat.max_length; data/chat/prefix/<system>.json with the turns that a system puts before each
request; a metrics file.
"""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import click

from stages.answers import generate, work
from stages.core import cli, params, strict_json, text
from stages.data import behaviours, contract, examples, records, writing
from stages.data.examples import Example
from stages.model import chat, encoding, loading


@dataclass(frozen=True)
class Params:
    valid_share: params.Share
    train_rows: params.Count | None
    max_refused: params.Share
    few_shot_examples: params.Count
    zero_shot_instructions: str
    few_shot_instructions: str


@dataclass(frozen=True)
class Conversation:
    """A row as `validate` wrote it. `source`: its file and line."""

    id: str
    source: str
    turns: list[chat.Turn]


def position(turns: list[chat.Turn]) -> float:
    """A number in [0, 1) from the first request's words: rows keep their place when others come or go."""
    first = next(turn["content"] for turn in turns if turn["role"] == "user")
    digest = hashlib.sha256(text.normalise(first).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split(rows: list[Conversation], share: float) -> tuple[list[Conversation], list[Conversation]]:
    """Training rows and held-out rows; a conversation is never divided."""
    held_out = [position(row.turns) < share for row in rows]
    train = [row for row, held in zip(rows, held_out, strict=True) if not held]
    return train, [row for row, held in zip(rows, held_out, strict=True) if held]


def subset(rows: list[Conversation], count: int | None, rules: contract.Contract) -> list[Conversation]:
    """`count` rows, each kind with its share of them; all for None. A smaller subset is part of every larger one.

    Within a kind the order is that of the hash, as for few_shot, whose examples are in all but the smallest subsets.
    Raises InputError when there are fewer rows.
    """
    if count is None:
        return rows
    if count > len(rows):
        raise cli.InputError(f"build.train_rows = {count}, and there are {len(rows)} training rows; lower it, or null")
    by_kind: dict[str, list[Conversation]] = {}
    for row in sorted(rows, key=lambda row: (position(row.turns), row.id)):
        first = next(turn["content"] for turn in row.turns if turn["role"] == "assistant")
        by_kind.setdefault(rules.kind(strict_json.parse(first)), []).append(row)
    # The middle of row k of m is at (k + 1/2) / m of its kind: sorted by it, all kinds advance at the same pace.
    places = {row.id: ((k + 0.5) / len(part), kind) for kind, part in by_kind.items() for k, row in enumerate(part)}
    chosen = set(sorted(places, key=lambda name: places[name])[:count])
    return [row for row in rows if row.id in chosen]


def few_shot(train: list[Example], kinds: tuple[str, ...], count: int) -> list[Example]:
    """`count` first-turn examples, taken from each kind in turn, within a kind in the order of their hash."""
    first = (example for example in train if example.turn() == "first")
    queues: dict[str, list[Example]] = {kind: [] for kind in kinds}
    for example in sorted(first, key=lambda example: (position(example.prompt), example.id)):
        queues.setdefault(example.kind, []).append(example)
    in_turn = chain.from_iterable(zip_longest(*queues.values()))
    return [example for example in in_turn if example][:count]


def prefixes(settings: Params, system: str, schema: Any, shots: list[Example]) -> dict[str, list[chat.Turn]]:
    """What each system puts before a request. Shown examples lose a system turn of their own: templates allow one."""
    shown = [turn for e in shots for turn in [e.prompt[-1], {"role": "assistant", "content": e.answer}]]

    def told(words: str) -> list[chat.Turn]:
        return [{"role": "system", "content": words.replace("{schema}", strict_json.compact(schema))}]

    return {
        "zero_shot": told(settings.zero_shot_instructions),
        "few_shot": told(settings.few_shot_instructions) + shown,
        "tuned": told(system),
    }


def sized(tokenizer: Any, prefix: list[chat.Turn], rows: list[Example]) -> list[tuple[Example, int]]:
    """Each example with its tokens, prompt and answer, as training will see them."""
    from tqdm import tqdm

    bar = tqdm(rows, desc="build: counting tokens", unit=" rows", delay=2)
    return [(example, len(encoding.encode(tokenizer, prefix, vars(example))["input_ids"])) for example in bar]


def check_result(splits: dict[str, list[Example]], shots: list[Example], refused: int, max_refused: float) -> None:
    """Stop on a result that would train or measure something else than it says. Raises InputError."""
    held = len(splits["train"]) + len(splits["valid"])
    if refused > round(max_refused * (held + refused), 9):  # 0.29 of 100 is a little less than 29
        raise cli.InputError(
            f"{refused} of {held + refused} training examples are too long, more than build.max_refused = "
            f"{max_refused} allows; raise chat.max_length, or the limit, in params.yaml"
        )
    empty = [name for name, rows in splits.items() if not rows]
    if empty or not shots:
        more = "; there are few rows: raise build.valid_share in params.yaml" if empty == ["valid"] else ""
        raise cli.InputError(f"no examples for {', '.join(empty or ['few_shot'])}{more}")
    ids = Counter(example.id for rows in splits.values() for example in rows)
    if twice := [name for name, count in ids.items() if count > 1]:
        where = " and ".join(name for name, rows in splits.items() if twice[0] in {example.id for example in rows})
        more = "ids differ over all files, or are left out; those that end in #1, #2 ... are made for conversations"
        raise cli.InputError(f"id {twice[0]!r} occurs twice, in {where}; {more}")


def check_answerable(
    splits: dict[str, list[Example]], prefix: dict[str, list[chat.Turn]], base: Path, tokenizer: Any, schema: Path
) -> None:
    """Refuse now what `predict` would refuse only after the training. Raises InputError."""
    most, room = params.load("predict", generate.Params).max_new_tokens, work.context(base)
    asked = {name: [vars(example) for example in splits[name]] for name in ("valid", "test", "behaviour")}
    for name, rows in asked.items():
        work.check_answers_fit(name, rows, tokenizer, most)
    for system, turns in prefix.items():
        for name, rows in asked.items():
            if name == "test" or system == "tuned":
                prompts = [chat.prompt_ids(tokenizer, chat.with_prefix(turns, row["prompt"])) for row in rows]
                work.check_prompts_fit(f"{name}, {system}", rows, prompts, room - most)
    if params.load("constrained", work.Constrained).enabled:
        work.load_grammar(schema, tokenizer, asked["test"], quiet=False)


def figures(kept: list[tuple[Example, int]]) -> dict[str, Any]:
    """Counts of examples, each given with its tokens."""
    tokens = [count for _, count in kept]
    return {
        "examples": len(kept),
        "groups": len({example.group for example, _ in kept}),
        "kinds": dict(Counter(example.kind for example, _ in kept if example.kind)),
        "tokens": sum(tokens),
        "tokens_longest": max(tokens, default=0),
    }


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--train", "validated training rows")
@cli.path_option("--test", "validated test rows")
@cli.path_option("--behaviour", "folder of behaviour tests")
@cli.path_option("--schema", "JSON Schema of an answer")
@cli.path_option("--base", "base model, for its tokenizer")
@cli.path_option("--out", "folder to write")
@cli.path_option("--metrics", "file of counts")
def main(train: Path, test: Path, behaviour: Path, schema: Path, base: Path, out: Path, metrics: Path) -> None:
    settings, chat_settings = params.load("build", Params), params.load("chat", chat.Params)
    rules = contract.load(schema, params.load("contract", contract.Params).discriminator)
    cases = behaviours.read(behaviour, rules)
    tokenizer = loading.load_tokenizer(base)
    shown = strict_json.read(schema)  # as it is written, for the prompts
    if not chat_settings.system:
        raise cli.InputError("params.yaml: chat.system is empty; every prompt begins with it")
    prefix = prefixes(settings, chat_settings.system, shown, [])["tuned"]
    every, test_rows = (
        [replace(row, turns=chat.without(prefix[0]["content"], row.turns)) for row in records.read(file, Conversation)]
        for file in (train, test)
    )
    train_rows, valid_rows = split(every, settings.valid_share)
    parts = {"train": subset(train_rows, settings.train_rows, rules), "valid": valid_rows, "test": test_rows}
    splits, counts, refused = {}, {}, []
    for name, rows in parts.items():
        # Test rows are sliced by the file that they stand in, and none of them is too long.
        slices = {row.id: Path(row.source.rpartition(":")[0]).stem if name == "test" else "" for row in rows}
        limit = chat_settings.max_length if name != "test" else math.inf
        made = [e for row in rows for e in examples.of_turns(row.id, row.turns, rules, slices[row.id])]
        measured = sized(tokenizer, prefix, made)
        kept = [(example, tokens) for example, tokens in measured if tokens <= limit]
        splits[name], counts[name] = [example for example, _ in kept], figures(kept)
        sources = {row.id: row.source for row in rows}
        for example, tokens in measured:
            if tokens > limit:
                why = f"{tokens} tokens, more than chat.max_length = {limit}"
                refused.append({"id": example.id, "source": sources[example.group], "tokens": tokens, "reason": why})
    shots = few_shot(splits["train"], rules.kinds, settings.few_shot_examples)
    written = splits | {"behaviour": [example for case in cases for example in case.examples]}
    every_prefix = prefixes(settings, chat_settings.system, shown, shots)
    check_answerable(written, every_prefix, base, tokenizer, schema)
    for name, made in written.items():
        writing.write_jsonl(out / f"{name}.jsonl", [example.line() for example in made])
    writing.write_jsonl(out / "refused.jsonl", refused)
    for system, turns in every_prefix.items():
        writing.write_json(out / "prefix" / f"{system}.json", turns)
    writing.write_json(metrics, {**counts, "refused": len(refused), "few_shot_ids": [e.id for e in shots]})
    for row in refused[:20]:
        click.echo(f"{row['source']}: {row['reason']}", err=True)
    counted = {name: len(rows) for name, rows in splits.items()} | ({"too long": len(refused)} if refused else {})
    click.echo(f"build: {', '.join(f'{count} {name}' for name, count in counted.items())}", err=True)
    check_result(splits, shots, len(refused), settings.max_refused)


if __name__ == "__main__":
    main()
