"""What the model copied: answers of its training rows that it can continue word for word from their first half.

In: training and test rows, the tuned system's prefix, the base model, the adapter. Out: metrics/memorisation.json with
the share of answers that were copied, of each split and in two ways, and `held` or `copied`.

Extractable memorisation (Carlini et al. 2023), for answers: the model gets the first half of an answer's tokens and
goes on greedily. `answer_alone` withholds the request, so that only memory can help; `with_request` is the full prompt.
Much of a JSON answer can be guessed, which is why the same is asked of test rows: the difference is what was copied.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from stages.shared import chat, cli, hashes, model, params, predictions, stats, strict_json, writing

LIBRARIES = ("bitsandbytes", "numpy", "peft", "scipy", "torch", "transformers")
WAYS = ("answer_alone", "with_request")
LISTED = 20
Example = dict[str, Any]


@dataclass(frozen=True)
class Params:
    sample: params.Count
    seed: int
    tolerated: params.Share


def place(example: Example, seed: int) -> bytes:
    """A place in the queue for the sample that no other row moves."""
    return hashlib.sha256(f"{seed} {example['id']}".encode()).digest()


def sample(examples: list[Example], other: list[Example], settings: Params) -> list[Example]:
    """Rows by the hash of their id, each answer and each conversation once, without answers of the other split.

    `{"action":"list","filter":"all"}` is no secret: what both splits say was not copied from either. The answers of one
    conversation are alike, and the interval takes them as independent.
    """
    seen = {example["answer"] for example in other}
    chosen: dict[str, Example] = {}
    for example in sorted(examples, key=lambda e: place(e, settings.seed)):
        if example["answer"] not in seen and example["group"] not in chosen:
            chosen[example["group"]] = example
            seen.add(example["answer"])
    return list(chosen.values())[: settings.sample]


def left_out(examples: list[Example], other: list[Example]) -> dict[str, int]:
    """How many rows there are, and how many have an answer that the other split has as well."""
    known = {example["answer"] for example in other}
    return {"rows": len(examples), "in_both": sum(example["answer"] in known for example in examples)}


def halves(tokenizer: Any, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of an answer without EOS; the first half is the longer one."""
    ids = chat.answer_ids(tokenizer, answer)[:-1]
    middle = (len(ids) + 1) // 2
    return ids[:middle], ids[middle:]


def copied(
    network: Any, tokenizer: Any, prompts: list[list[int]], answers: Sequence[str], settings: params.Predict
) -> list[bool]:
    """Whether each answer is continued to its end, and ended there, after the prompt and its first half."""
    cut = [halves(tokenizer, answer) for answer in answers]
    room = replace(settings, max_new_tokens=max(len(rest) for _, rest in cut) + 1)
    begun = [prompt + half for prompt, (half, _) in zip(prompts, cut, strict=True)]
    said = predictions.answers(network, tokenizer, room, begun)
    rests = [tokenizer.decode(rest, skip_special_tokens=False, clean_up_tokenization_spaces=False) for _, rest in cut]
    return [not new.truncated and new.text == rest for new, rest in zip(said, rests, strict=True)]


def request(way: str, example: Example) -> list[chat.Turn]:
    """The turns of a prompt after the prefix; without the request the user says nothing."""
    return [{"role": "user", "content": ""}] if way == "answer_alone" else example["prompt"]


def recited(
    network: Any,
    tokenizer: Any,
    prefix: list[chat.Turn],
    drawn: dict[str, list[Example]],
    way: str,
    settings: params.Predict,
) -> dict[str, list[bool]]:
    """Which answers of each split were copied."""
    found = {}
    for name, examples in drawn.items():
        prompts = [chat.prompt_ids(tokenizer, chat.with_prefix(prefix, request(way, e))) for e in examples]
        found[name] = copied(network, tokenizer, prompts, [e["answer"] for e in examples], settings)
    return found


def figures(drawn: dict[str, list[Example]], hits: dict[str, list[bool]]) -> dict[str, Any]:
    """One way: the share of each split, and the difference of the two with its interval."""
    train, test = hits["train"], hits["test"]
    low, high = stats.difference(train, test)
    ids = [example["id"] for example, hit in zip(drawn["train"], train, strict=True) if hit]
    return {
        **{name: {"n": len(found), **stats.rate("copied", found)} for name, found in hits.items()},
        "difference": {"copied": sum(train) / len(train) - sum(test) / len(test), "low": low, "high": high},
        "copied_ids": ids[:LISTED],
    }


def verdict(way: dict[str, Any], settings: Params) -> str:
    """Copied when the whole interval of the difference lies beyond what is tolerated."""
    return "copied" if way["difference"]["low"] > settings.tolerated else "held"


def origin(train: Path, test: Path, prefix: Path, adapter: Path) -> dict[str, Any]:
    made_from = strict_json.read(adapter / "made_from.json")
    return {
        "train": hashes.of_file(train),
        "test": hashes.of_file(test),
        "prefix": hashes.of_file(prefix),
        "adapter": made_from["adapter"],
        "base": made_from["base"],
        "versions": {name: version(name) for name in LIBRARIES},
    }


@click.command(help=__doc__)
@cli.path_option("--train", "chat rows that were trained on")
@cli.path_option("--test", "chat rows that were not")
@cli.path_option("--prefix", "turns before each prompt")
@cli.path_option("--base", "base model")
@cli.path_option("--adapter", "LoRA adapter")
@cli.path_option("--metrics", "metrics file")
def main(train: Path, test: Path, prefix: Path, base: Path, adapter: Path, metrics: Path) -> None:
    settings, generation = params.load("memorisation", Params), params.load("predict", params.Predict)
    rows = {name: list(strict_json.read_jsonl(file)) for name, file in (("train", train), ("test", test))}
    drawn = {
        "train": sample(rows["train"], rows["test"], settings),
        "test": sample(rows["test"], rows["train"], settings),
    }
    for name, examples in drawn.items():
        if not examples:
            raise cli.InputError(f"every {name} answer occurs in the other split too: nothing to compare")
    key, device = model.device(generation.device)
    tokenizer = model.load_tokenizer(base)
    network = model.load_for_generation(base, adapter, device)
    turns = strict_json.read(prefix)
    ways = {way: figures(drawn, recited(network, tokenizer, turns, drawn, way, generation)) for way in WAYS}
    found = verdict(ways["answer_alone"], settings)
    writing.write_json(
        metrics,
        {
            "verdict": found,
            "limits": {"tolerated": settings.tolerated},
            **ways,
            "left_out": {
                name: left_out(rows[name], rows[other]) for name, other in (("train", "test"), ("test", "train"))
            },
            "device": key,
            "computed_from": origin(train, test, prefix, adapter),
        },
    )
    alone = ways["answer_alone"]
    shares = ", ".join(f"{alone[name]['copied']:.3f} of {alone[name]['n']} {name} answers" for name in drawn)
    click.echo(f"memorisation: {found}; continued without the request: {shares}", err=True)


if __name__ == "__main__":
    main()
