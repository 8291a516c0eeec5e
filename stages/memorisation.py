"""What the model memorised: training answers that it can continue, word for word, from their first half.

In: training and test examples, the merged model. Out: metrics/memorisation.json with the share of answers extracted
from each split; metrics/detail/memorisation.json with both ways of asking, and whether the limit of params.yaml holds.

Extractable memorisation (Carlini et al. 2023), for answers: the model gets the first half of an answer's tokens and
would go on greedily. `without_request` withholds the request, so that only memory can help; `with_request` is the full
prompt. Much of a JSON answer can be guessed, which is why test answers, which it never saw, are asked for as well: the
difference is memorised.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stages.shared import chat, cli, limits, loading, loglikelihood, params, provenance, records, stats, writing

LIBRARIES = ("numpy", "scipy", "torch", "transformers")
WAYS = ("without_request", "with_request")
LISTED = 20


@dataclass(frozen=True)
class Params:
    sample: params.Count
    tolerated: params.Share


@dataclass(frozen=True)
class Example:
    """A line of data/chat; `group`: the conversation that it belongs to."""

    id: str
    group: str
    prompt: list[chat.Turn]
    answer: str


@dataclass(frozen=True)
class Split:
    """`sample`: the examples asked, of all `rows`; `in_both`: rows whose answer the other split has as well."""

    sample: Sequence[Example]
    rows: int
    in_both: int


@dataclass(frozen=True)
class Extracted:
    """One way of asking: whether each sampled answer was extracted, by split; train minus test with its interval."""

    train: list[bool]
    test: list[bool]
    difference: float
    low: float
    high: float


def draw(examples: Sequence[Example], other: Sequence[Example], size: int) -> Split:
    """Rows by the hash of their id, each answer and each conversation once, without answers of the other split.

    `{"action":"list","filter":"all"}` is no secret: an answer of both splits was memorised from neither. The answers of
    one conversation are alike, and the interval takes them as independent. A new row moves no other row's hash.
    """
    known = {example.answer for example in other}
    seen, groups, sample = set(known), set(), []
    for example in sorted(examples, key=lambda e: hashlib.sha256(e.id.encode()).digest()):
        if example.answer not in seen and example.group not in groups:
            sample.append(example)
            seen.add(example.answer)
            groups.add(example.group)
    return Split(sample[:size], len(examples), sum(example.answer in known for example in examples))


def query(tokenizer: Any, way: str, example: Example) -> loglikelihood.Query:
    """The prompt and the first half of the answer, which is the longer one; what is asked for is the rest and EOS."""
    turns = [{"role": "user", "content": ""}] if way == "without_request" else example.prompt
    answer = chat.answer_ids(tokenizer, example.answer)
    middle = len(answer) // 2
    return loglikelihood.Query(chat.prompt_ids(tokenizer, turns) + answer[:middle], [answer[middle:]])


def extract(model: Any, tokenizer: Any, way: str, examples: Sequence[Example]) -> list[bool]:
    """Whether greedy decoding would write the rest of each answer, and end it there."""
    ratings = loglikelihood.rate(model, [query(tokenizer, way, e) for e in examples], f"memorisation: {way}")
    return [rating.greedy for (rating,) in ratings]


def compare(train: list[bool], test: list[bool]) -> Extracted:
    difference = sum(train) / len(train) - sum(test) / len(test)
    return Extracted(train, test, difference, *stats.difference(train, test))


def judge(way: Extracted, settings: Params) -> limits.Limit:
    """The limit of params.yaml, on answers extracted without their request."""
    return limits.Limit(
        what="answers extracted without their request, training minus test",
        value=way.difference,
        low=way.low,
        high=way.high,
        limit=settings.tolerated,
        n=len(way.train),
    )


def figures(way: Extracted, sample: Sequence[Example]) -> dict[str, Any]:
    """One way of asking; `sample`: the training examples."""
    ids = [example.id for example, hit in zip(sample, way.train, strict=True) if hit]
    return {
        "train": {"n": len(way.train), **stats.rate("extracted", way.train)},
        "test": {"n": len(way.test), **stats.rate("extracted", way.test)},
        "difference": {"extracted": way.difference, "low": way.low, "high": way.high},
        "extracted_ids": ids[:LISTED],
    }


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--train", "chat rows that were trained on")
@cli.path_option("--test", "chat rows that were not")
@cli.path_option("--merged", "tuned model")
@cli.path_option("--metrics", "metrics file")
@cli.path_option("--detail", "all figures, and the limit")
def main(train: Path, test: Path, merged: Path, metrics: Path, detail: Path) -> None:
    cli.end_with_caller()
    settings = params.load("memorisation", Params)
    origin = provenance.computed_from(merged / "made_from.json", LIBRARIES, train=train, test=test)
    rows = {name: records.read(path, Example, extra="ignore") for name, path in (("train", train), ("test", test))}
    splits = {
        "train": draw(rows["train"], rows["test"], settings.sample),
        "test": draw(rows["test"], rows["train"], settings.sample),
    }
    for name, split in splits.items():
        if not split.sample:
            raise cli.InputError(f"every {name} answer occurs in the other split too: nothing to compare")
    key, device = loading.device(params.load("compute", loading.Params).device)
    tokenizer = loading.load_tokenizer(merged)
    model = loading.load_model(merged, device.generate_dtype, device.name)
    ways = {way: compare(*(extract(model, tokenizer, way, split.sample) for split in splits.values())) for way in WAYS}
    judged, alone = judge(ways["without_request"], settings), ways["without_request"]
    writing.write_json(
        metrics,
        {
            "extracted_train": sum(alone.train) / len(alone.train),
            "extracted_test": sum(alone.test) / len(alone.test),
            "extracted_difference": alone.difference,
        },
    )
    writing.write_json(
        detail,
        {
            "limits": [judged.entry()],
            **{name: figures(way, splits["train"].sample) for name, way in ways.items()},
            "left_out": {name: {"rows": split.rows, "in_both": split.in_both} for name, split in splits.items()},
            "device": key,
            "computed_from": origin,
        },
    )
    click.echo(f"memorisation: {judged}", err=True)


if __name__ == "__main__":
    main()
