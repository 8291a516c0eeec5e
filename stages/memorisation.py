"""What the model memorised: training answers that it can continue, word for word, from their first half.

In: training and test examples, the merged model. Out: metrics/memorisation.json with the share of answers extracted
from each split; metrics/detail/memorisation.json with both ways of asking, and whether the limit of params.yaml holds.

Extractable memorisation (Carlini et al. 2023), for answers: the model gets the first half of an answer's tokens and
would go on greedily. `without_request` withholds the request, so that only memory can help; `with_request` is the full
prompt. Much of a JSON answer can be guessed, which is why as many test answers of the same shape, never seen, are asked
for as well: the difference is memorised.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stages.answers import loglikelihood
from stages.core import cli, params, strict_json
from stages.data import records, writing
from stages.data.examples import Example
from stages.model import chat, loading
from stages.scores import provenance, stats
from stages.scores.limits import Limit

WAYS = ("without_request", "with_request")
LISTED = 20
NOTHING = "nothing to compare: no answer that only training rows have is like one that only test rows have"


@dataclass(frozen=True)
class Params:
    sample: params.Count
    tolerated: params.Share


def draw(examples: Sequence[Example], known: set[str]) -> list[Example]:
    """Rows by the hash of their id, each answer and each conversation once, without the answers in `known`.

    `{"action":"list","filter":"all"}` is no secret: an answer of both splits was memorised from neither. The answers of
    one conversation are alike, and the interval takes them as independent. A new row moves no other row's hash.
    """
    seen, groups, sample = set(known), set(), []
    for example in sorted(examples, key=lambda e: hashlib.sha256(e.id.encode()).digest()):
        if example.answer not in seen and example.group not in groups:
            sample.append(example)
            seen.add(example.answer)
            groups.add(example.group)
    return sample


def alike(train: Sequence[Example], test: Sequence[Example], size: int) -> list[list[Example]]:
    """As many rows of both, and as many of each shape: the values of an answer that both splits use.

    A title before `"priority":"medium","due_date":null` is easier to go on from than one before a rare date. A split
    with more of them would seem memorised.
    """
    used = [{example.id: fields(example) for example in part} for part in (train, test)]
    both = set.intersection(*(set().union(*part.values()) for part in used))
    shapes = [{name: frozenset(own & both) for name, own in part.items()} for part in used]
    room, samples = Counter(shapes[0].values()), []
    for part, shape in ((test, shapes[1]), (train, shapes[0])):
        sample: list[Example] = []
        for example in part:
            if len(sample) < size and room[shape[example.id]]:
                room[shape[example.id]] -= 1
                sample.append(example)
        samples.append(sample)
        room = Counter(shape[example.id] for example in sample)
    return samples[::-1]


def fields(example: Example) -> set[str]:
    """`"name":value` of each field of the answer."""
    return {f'"{name}":{strict_json.compact(value)}' for name, value in strict_json.parse(example.answer).items()}


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


def figures(train: list[bool], test: list[bool], sample: Sequence[Example]) -> dict[str, Any]:
    """One way of asking: which answers were extracted, by split; `sample`: the training examples."""
    low, high = stats.difference(train, test)
    return {
        "train": {"n": len(train), **stats.rate("extracted", train)},
        "test": {"n": len(test), **stats.rate("extracted", test)},
        "difference": {"extracted": sum(train) / len(train) - sum(test) / len(test), "low": low, "high": high},
        "extracted_ids": [example.id for example, hit in zip(sample, train, strict=True) if hit][:LISTED],
    }


def judge(way: dict[str, Any], settings: Params) -> Limit:
    """The limit of params.yaml, on answers extracted without their request."""
    what, difference = "answers extracted without their request, training minus test", way["difference"]
    interval = (difference["extracted"], difference["low"], difference["high"])
    return Limit(what, *interval, settings.tolerated, way["train"]["n"])


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--train", "chat rows that were trained on")
@cli.path_option("--test", "chat rows that were not")
@cli.path_option("--merged", "tuned model")
@cli.path_option("--metrics", "metrics file")
@cli.path_option("--detail", "all figures, and the limit")
def main(train: Path, test: Path, merged: Path, metrics: Path, detail: Path) -> None:
    cli.end_with_caller()
    settings = params.load("memorisation", Params)
    libraries = ("numpy", "scipy", "torch", "transformers")
    origin = provenance.computed_from(merged / "made_from.json", libraries, train=train, test=test)
    rows = {name: records.read(path, Example) for name, path in (("train", train), ("test", test))}
    both = set.intersection(*({example.answer for example in part} for part in rows.values()))
    drawn = {name: draw(part, both) for name, part in rows.items()}
    left_out = {name: {"rows": len(r), "in_both": sum(e.answer in both for e in r)} for name, r in rows.items()}
    samples = dict(zip(drawn, alike(drawn["train"], drawn["test"], settings.sample), strict=True))
    if not samples["train"]:  # a task of few answers, such as classification; one of both splits is in neither sample
        writing.write_json(metrics, {})
        writing.write_json(detail, {"limits": [], "left_out": left_out, "computed_from": origin})
        return click.echo(f"memorisation: {NOTHING}", err=True)
    key, device = loading.device(params.load("compute", loading.Params).device)
    tokenizer = loading.load_tokenizer(merged)
    model = loading.load_model(merged, device.generate_dtype, device.name)
    ways = {}
    for way in WAYS:
        hits = {name: extract(model, tokenizer, way, sample) for name, sample in samples.items()}
        ways[way] = figures(**hits, sample=samples["train"])
    alone = ways["without_request"]
    judged = judge(alone, settings)
    writing.write_json(metrics, {f"extracted_{part}": alone[part]["extracted"] for part in (*rows, "difference")})
    every = {"limits": [judged.entry()], **ways, "left_out": left_out, "device": key, "computed_from": origin}
    writing.write_json(detail, every)
    return click.echo(f"memorisation: {judged}", err=True)


if __name__ == "__main__":
    main()
