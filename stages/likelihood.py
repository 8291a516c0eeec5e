"""How likely the model finds the expected answers: less noisy than whether it gives them, and paired in the report.

In: test and held-out examples, the merged model. Out: metrics/likelihood.jsonl with the negative log-likelihood of each
expected test answer; metrics/detail/likelihood.json with its mean on both kinds of rows.

Whether an answer is right says yes or no, and flips by chance where the model is torn. Its likelihood moves by as much
as the model did, so a change shows on fewer rows (Madaan et al. 2024). Like the training loss, it has no grammar and no
decoding in it: a model may get likelier answers and no more of them right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stages.answers import loglikelihood
from stages.core import cli, params
from stages.data import records, writing
from stages.data.examples import Example
from stages.model import chat, loading
from stages.scores import provenance, stats

LIBRARIES = ("numpy", "torch", "transformers")
DIGITS = 6  # of a line's nats: more than float32 has


@dataclass(frozen=True)
class Rated:
    """A line of metrics/likelihood.jsonl: negative log-likelihood of the expected answer, EOS included."""

    id: str
    group: str
    nats: float
    tokens: int


def rate(model: Any, tokenizer: Any, examples: Sequence[Example], label: str) -> list[Rated]:
    answers = [chat.answer_ids(tokenizer, example.answer) for example in examples]
    prompts = [chat.prompt_ids(tokenizer, example.prompt) for example in examples]
    queries = [loglikelihood.Query(prompt, [answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    ratings = loglikelihood.rate(model, queries, f"likelihood: {label}")
    return [
        Rated(example.id, example.group, round(0 - rating.nats, DIGITS), len(answer))
        for example, answer, (rating,) in zip(examples, answers, ratings, strict=True)
    ]


def figures(rated: Sequence[Rated]) -> dict[str, Any]:
    """Mean nats of an answer with its interval, conversations drawn whole; nats of a token, for other tokenizers."""
    nats, groups = [row.nats for row in rated], [row.group for row in rated]
    low, high = stats.bootstrap_ratio(nats, [1.0] * len(nats), groups)
    tokens = sum(row.tokens for row in rated)
    mean = sum(nats) / len(nats)
    return {"n": len(nats), "nats": mean, "nats_low": low, "nats_high": high, "nats_per_token": sum(nats) / tokens}


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--test", "test rows, as built")
@cli.path_option("--valid", "held-out rows, as built")
@cli.path_option("--merged", "tuned model")
@cli.path_option("--rows", "nats of each expected test answer")
@cli.path_option("--detail", "mean nats on test and held-out rows")
def main(test: Path, valid: Path, merged: Path, rows: Path, detail: Path) -> None:
    cli.end_with_caller()
    origin = provenance.computed_from(merged / "made_from.json", LIBRARIES, test=test, valid=valid)
    files = {"test": test, "held_out": valid}
    examples = {name: records.read(path, Example) for name, path in files.items()}
    key, device = loading.device(params.load("compute", loading.Params).device)
    tokenizer = loading.load_tokenizer(merged)
    model = loading.load_model(merged, device.generate_dtype, device.name)
    rated = {name: rate(model, tokenizer, part, name) for name, part in examples.items()}
    writing.write_jsonl(rows, map(vars, rated["test"]))
    found = {name: figures(part) for name, part in rated.items()}
    writing.write_json(detail, {**found, "device": key, "computed_from": origin})
    click.echo(f"likelihood: {found['test']['nats']:.3f} nats for an expected test answer", err=True)


if __name__ == "__main__":
    main()
