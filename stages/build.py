"""Build the chat data: one example per assistant turn, a stable validation split, and each system's prompt prefix.

In: data/validated/{train,test}.jsonl, the contract, the base model's tokenizer. Out: data/chat/{train,valid,test}.jsonl
with rows of `id`, `group`, `kind`, `prompt` (turns) and `answer`; data/chat/refused.jsonl with rows longer than
chat.max_length; data/chat/prefix/<system>.json with the turns that a system puts before each prompt; a metrics file.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stages.shared import chat, cli, contract, loading, params, strict_json, text, writing

Example = dict[str, Any]
SAVED = ("id", "group", "kind", "prompt", "answer")  # not the line: moving a row must not train again


@dataclass(frozen=True)
class Params:
    valid_share: params.Share
    train_rows: params.Count | None
    max_refused: params.Share
    few_shot_examples: params.Count
    zero_shot_instructions: str
    few_shot_instructions: str


def examples_of(row: dict[str, Any], rules: contract.Contract) -> Iterator[Example]:
    """One example per assistant turn; the turns before it are its prompt. All of them share the row's group."""
    turns = row["turns"]
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    for count, number in enumerate(answers, start=1):
        answer = turns[number]["content"]
        yield {
            "id": row["id"] if len(answers) == 1 else f"{row['id']}#{count}",
            "group": row["id"],
            "source": row["source"],
            "kind": rules.kind(strict_json.parse(answer)),
            "prompt": turns[:number],
            "answer": answer,
        }


def position(turns: list[chat.Turn]) -> float:
    """A number in [0, 1) from the first request's words: rows keep their place when others come or go."""
    first = next(turn["content"] for turn in turns if turn["role"] == "user")
    digest = hashlib.sha256(text.normalise(first).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split(rows: list[dict[str, Any]], share: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training rows and validation rows; a conversation is never divided."""
    held_out = [position(row["turns"]) < share for row in rows]
    train = [row for row, held in zip(rows, held_out, strict=True) if not held]
    return train, [row for row, held in zip(rows, held_out, strict=True) if held]


def first_kind(row: dict[str, Any], rules: contract.Contract) -> str:
    return rules.kind(strict_json.parse(next(turn["content"] for turn in row["turns"] if turn["role"] == "assistant")))


def subset(rows: list[dict[str, Any]], count: int | None, rules: contract.Contract) -> list[dict[str, Any]]:
    """`count` rows, each kind with its share of them; all for None. A smaller subset is part of every larger one.

    Within a kind the order is that of the hash, as for few_shot, whose examples are in all but the smallest subsets.
    Raises InputError when there are fewer rows.
    """
    if count is None:
        return rows
    if count > len(rows):
        raise cli.InputError(f"build.train_rows = {count}, and there are {len(rows)} training rows; lower it, or null")
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (position(row["turns"]), row["id"])):
        by_kind.setdefault(first_kind(row, rules), []).append(row)
    # The middle of row k of m is at (k + 1/2) / m of its kind: sorted by it, all kinds advance at the same pace.
    places = {row["id"]: ((k + 0.5) / len(part), kind) for kind, part in by_kind.items() for k, row in enumerate(part)}
    chosen = set(sorted(places, key=lambda name: places[name])[:count])
    return [row for row in rows if row["id"] in chosen]


def few_shot(examples: list[Example], kinds: tuple[str, ...], count: int) -> list[Example]:
    """`count` first-turn examples, taken from each kind in turn, within a kind in the order of their hash."""
    first = [e for e in examples if sum(turn["role"] == "user" for turn in e["prompt"]) == 1]
    single = sorted(first, key=lambda e: (position(e["prompt"]), e["id"]))
    queues = {kind: [e for e in single if e["kind"] == kind] for kind in [*kinds, *(e["kind"] for e in single)]}
    chosen: list[Example] = []
    while len(chosen) < count and any(queues.values()):
        chosen += [queue.pop(0) for queue in queues.values() if queue]
    return chosen[:count]


def prefixes(settings: Params, system: str, schema: Any, shots: list[Example]) -> dict[str, list[chat.Turn]]:
    """What each system puts before a request."""
    shown = [
        turn for e in shots for turn in [e["prompt"][-1], {"role": "assistant", "content": e["answer"]}]
    ]  # without a system turn of their own: a template allows one, at the start
    told = {
        "zero_shot": settings.zero_shot_instructions,
        "few_shot": settings.few_shot_instructions,
        "tuned": system,
    }
    return {
        name: [
            {"role": "system", "content": words.replace("{schema}", strict_json.compact(schema))},
            *(shown if name == "few_shot" else []),
        ]
        for name, words in told.items()
    }


def lengths(tokenizer: Any, prefix: list[chat.Turn], examples: list[Example]) -> list[int]:
    """Tokens of prompt and answer, as training will see them."""
    from tqdm import tqdm

    return [
        len(chat.prompt_ids(tokenizer, chat.with_prefix(prefix, e["prompt"])))
        + len(chat.answer_ids(tokenizer, e["answer"]))
        for e in tqdm(examples, desc="build: counting tokens", unit=" rows", delay=2)
    ]


def too_long(example: Example, tokens: int, limit: int) -> dict[str, Any]:
    reason = f"{tokens} tokens, more than chat.max_length = {limit}"
    return {"id": example["id"], "source": example["source"], "tokens": tokens, "reason": reason}


def check_result(splits: dict[str, list[Example]], shots: list[Example], refused: int, max_refused: float) -> None:
    """Stop on a result that would train or measure something else than it says. Raises InputError."""
    held = len(splits["train"]) + len(splits["valid"])
    if refused > max_refused * (held + refused):
        raise cli.InputError(
            f"{refused} of {held + refused} training examples are too long, more than build.max_refused = "
            f"{max_refused} allows; raise chat.max_length, or the limit, in params.yaml"
        )
    empty = [name for name, examples in splits.items() if not examples]
    if empty or not shots:
        raise cli.InputError(f"no examples for {', '.join(empty or ['few_shot'])}")
    ids = Counter(example["id"] for examples in splits.values() for example in examples)
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        raise cli.InputError(f"id {twice[0]!r} occurs twice; ids ending in #1, #2 ... are made for conversations")


def figures(examples: list[Example], tokens: list[int]) -> dict[str, Any]:
    return {
        "examples": len(examples),
        "groups": len({e["group"] for e in examples}),
        "kinds": dict(Counter(e["kind"] for e in examples if e["kind"])),
        "tokens": sum(tokens),
        "tokens_longest": max(tokens, default=0),
    }


@click.command(help=__doc__)
@cli.path_option("--train", "validated training rows")
@cli.path_option("--test", "validated test rows")
@cli.path_option("--schema", "JSON Schema of an answer")
@cli.path_option("--base", "base model, for its tokenizer")
@cli.path_option("--out", "folder to write")
@cli.path_option("--metrics", "metrics file")
def main(train: Path, test: Path, schema: Path, base: Path, out: Path, metrics: Path) -> None:
    settings, chat_settings = params.load("build", Params), params.load("chat", chat.Params)
    rules = contract.load(schema, params.load("contract", contract.Params).discriminator)
    tokenizer = loading.load_tokenizer(base)
    train_rows, valid_rows = split(list(strict_json.read_jsonl(train)), settings.valid_share)
    train_rows = subset(train_rows, settings.train_rows, rules)
    splits = {
        name: [example for row in rows for example in examples_of(row, rules)]
        for name, rows in {"train": train_rows, "valid": valid_rows, "test": strict_json.read_jsonl(test)}.items()
    }
    prefix = prefixes(settings, chat_settings.system, rules.validator.schema, [])["tuned"]
    counted, refused = {}, []
    for name, examples in splits.items():
        tokens = lengths(tokenizer, prefix, examples)
        limit = chat_settings.max_length if name != "test" else max(tokens, default=0)
        both = list(zip(examples, tokens, strict=True))
        refused += [too_long(e, n, limit) for e, n in both if n > limit]
        splits[name] = [e for e, n in both if n <= limit]
        counted[name] = figures(splits[name], [n for _, n in both if n <= limit])
    shots = few_shot(splits["train"], rules.kinds, settings.few_shot_examples)
    for name, examples in splits.items():
        writing.write_jsonl(out / f"{name}.jsonl", [{k: e[k] for k in SAVED} for e in examples])
    writing.write_jsonl(out / "refused.jsonl", refused)
    for system, turns in prefixes(settings, chat_settings.system, rules.validator.schema, shots).items():
        writing.write_json(out / "prefix" / f"{system}.json", turns)
    writing.write_json(metrics, {**counted, "refused": len(refused), "few_shot_ids": [e["id"] for e in shots]})
    for row in refused[:20]:
        click.echo(f"{row['source']}: {row['reason']}", err=True)
    click.echo(f"build: {', '.join(f'{len(rows)} {name}' for name, rows in splits.items())}", err=True)
    check_result(splits, shots, len(refused), settings.max_refused)


if __name__ == "__main__":
    main()
