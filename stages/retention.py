"""What the model kept: general questions and plain text, before and after training.

In: questions with options, paragraphs of prose, the base model, the merged model. Out: metrics/retention.json (accuracy
of base and tuned model, ratio of their perplexities), metrics/detail/retention.json (all figures, and whether the
limits of params.yaml hold) and metrics/retention.jsonl (what each model chose).

Three models answer the same rows: `base` as fetched, which is what prompting uses; `adapter_off`, the quantised base
that the adapter sits on, which shows what quantisation alone costs; `tuned`, the merged model that is shipped. An
option is scored by its likelihood as the assistant's answer, per byte, so that long ones have the same chance
(`acc_bytes` of lm-evaluation-harness).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import click
from annotated_types import Ge, MinLen

from stages.answers import loglikelihood
from stages.answers.loglikelihood import Query
from stages.core import cli, params
from stages.data import records, writing
from stages.model import chat, loading, quantised
from stages.scores import provenance, stats
from stages.scores.limits import Limit

CONTEXT = 8  # tokens of a paragraph that are given and not scored: what begins a text for a chat model is a turn
HEADLINE = {"base": "before", "tuned": "after", "change": "difference"}
Text = Annotated[str, MinLen(1)]


@dataclass(frozen=True)
class Params:
    tolerated_drop: params.Share
    tolerated_ratio: Annotated[float, Ge(1)]


@dataclass(frozen=True)
class Item:
    """A question; `answer` is the index of the right option."""

    id: Text
    kind: Text
    question: Text
    options: Annotated[tuple[Text, ...], MinLen(2)]
    answer: Annotated[int, Ge(0)]

    def __post_init__(self) -> None:
        if not self.answer < len(self.options) == len(set(self.options)):
            raise ValueError("the index of one of the options, which count from 0 and have to differ, is expected")


@dataclass(frozen=True)
class Document:
    id: Text
    text: Text


@dataclass(frozen=True)
class Rows:
    """Everything that is asked; `queries` has the items first, then the documents."""

    items: Sequence[Item]
    documents: Sequence[Document]
    queries: Sequence[Query]

    def scored(self) -> list[list[int]]:
        """The scored tokens of each document."""
        return [query.continuations[0] for query in self.queries[len(self.items) :]]


@dataclass(frozen=True)
class Result:
    """Of each question the option chosen, and whether it is right; nats of each document."""

    chosen: list[int]
    right: list[bool]
    nats: list[float]


def question(tokenizer: Any, item: Item) -> Query:
    """One user turn, without this project's system prompt, and each option as the answer.

    EOS doesn't count: where an answer ends is what fine-tuning teaches anew, not what the model knows.
    """
    context = chat.prompt_ids(tokenizer, [{"role": "user", "content": item.question}])
    return Query(context, [chat.answer_ids(tokenizer, option)[:-1] for option in item.options])


def document(tokenizer: Any, row: Document) -> Query:
    """Plain text without chat template, after BOS (EOS where there is none). Raises InputError for a short one."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = chat.answer_ids(tokenizer, row.text)[:-1]
    if len(ids) <= CONTEXT:
        raise cli.InputError(f"{row.id}: {len(ids)} tokens; a paragraph needs more than {CONTEXT}")
    return Query([start, *ids[:CONTEXT]], [ids[CONTEXT:]])


def ask(rows: Rows, model: Any, name: str) -> Result:
    """Raises InputError for a row beyond the model's context, where a likelihood means nothing."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", math.inf)  # some have no limit
    asked: list[Item | Document] = [*rows.items, *rows.documents]
    for row, query in zip(asked, rows.queries, strict=True):
        if (tokens := len(query.context) + max(map(len, query.continuations))) > longest:
            raise cli.InputError(f"{row.id}: {tokens} tokens, and the model reads {longest}; cut the row in pieces")
    ratings = loglikelihood.rate(model, rows.queries, f"retention: {name}")
    chosen = []
    for item, rated in zip(rows.items, ratings, strict=False):
        per_byte = [rating.nats / len(option.encode()) for rating, option in zip(rated, item.options, strict=True)]
        chosen.append(per_byte.index(max(per_byte)))
    right = [choice == item.answer for choice, item in zip(chosen, rows.items, strict=True)]
    return Result(chosen, right, [-rating.nats for (rating,) in ratings[len(rows.items) :]])


def figures(rows: Rows, found: Result, size: int) -> dict[str, Any]:
    """All figures of one model; `size`: bytes of the scored text."""
    kinds: dict[str, list[bool]] = {item.kind: [] for item in rows.items}
    for item, right in zip(rows.items, found.right, strict=True):
        kinds[item.kind].append(right)
    nats = sum(found.nats)
    return {
        "n": len(rows.items),
        **stats.rate("accuracy", found.right),
        "kinds": {kind: {"n": len(hits), **stats.rate("accuracy", hits)} for kind, hits in kinds.items()},
        "perplexity": math.exp(nats / sum(map(len, rows.scored()))),
        "bits_per_byte": nats / math.log(2) / size,
    }


def change(rows: Rows, before: Result, after: Result) -> dict[str, Any]:
    """One model against another on the same rows; `ratio`: of their perplexities, with its interval by document."""
    nats = [new - old for old, new in zip(before.nats, after.nats, strict=True)]
    tokens = [float(len(ids)) for ids in rows.scored()]
    low, high = stats.bootstrap_ratio(nats, tokens, [row.id for row in rows.documents])
    ratios = {"ratio": math.exp(sum(nats) / sum(tokens)), "ratio_low": math.exp(low), "ratio_high": math.exp(high)}
    compared = stats.compare(before.right, after.right, [item.id for item in rows.items])
    return {"accuracy": asdict(compared), "documents": len(nats), **ratios}


def judge(changed: dict[str, Any], settings: Params) -> list[Limit]:
    """The limits of params.yaml against what training changed."""
    accuracy = changed["accuracy"]
    lost = (0 - accuracy["difference"], 0 - accuracy["high"], 0 - accuracy["low"])
    ratio = (changed["ratio"], changed["ratio_low"], changed["ratio_high"])
    return [
        Limit("accuracy lost on general questions, base minus tuned", *lost, settings.tolerated_drop, accuracy["n"]),
        Limit("perplexity of plain text, tuned over base", *ratio, settings.tolerated_ratio, changed["documents"]),
    ]


def models(base: Path, merged: Path, device: loading.Device) -> dict[str, Callable[[], Any]]:
    """What loads each model, for one at a time to be in memory; all in the type that answers are generated in.

    That is float32 on a CPU. On a card the quantised base stays quantised: in float32 an 8B would need 33 GB.
    """
    bare = quantised.dequantised if device.generate_dtype == "float32" else quantised.load
    return {
        "base": lambda: loading.load_model(base, device.generate_dtype, device.name),
        "adapter_off": lambda: bare(base, device).eval(),
        "tuned": lambda: loading.load_model(merged, device.generate_dtype, device.name),
    }


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--items", "questions with options")
@cli.path_option("--text", "paragraphs of plain text")
@cli.path_option("--base", "base model")
@cli.path_option("--merged", "tuned model")
@cli.path_option("--metrics", "metrics file")
@cli.path_option("--detail", "all figures, and the limits")
@cli.path_option("--outcomes", "choice per question and model")
def main(items: Path, text: Path, base: Path, merged: Path, metrics: Path, detail: Path, outcomes: Path) -> None:
    cli.end_with_caller()
    settings = params.load("retention", Params)
    libraries = ("bitsandbytes", "numpy", "peft", "scipy", "torch", "transformers")
    origin = provenance.computed_from(merged / "made_from.json", libraries, items=items, text=text)
    key, device = loading.device(params.load("compute", loading.Params).device)
    tokenizer = loading.load_tokenizer(base)
    asked, documents = records.read(items, Item), records.read(text, Document)
    queries = [*(question(tokenizer, item) for item in asked), *(document(tokenizer, row) for row in documents)]
    rows = Rows(asked, documents, queries)
    found = {name: ask(rows, load(), name) for name, load in models(base, merged, device).items()}
    size = sum(len(tokenizer.decode(ids).encode()) for ids in rows.scored())
    over_base = change(rows, found["base"], found["tuned"])
    judged, accuracy = judge(over_base, settings), over_base["accuracy"]
    headline = {f"accuracy_{name}": accuracy[part] for name, part in HEADLINE.items()}
    writing.write_json(metrics, headline | {"perplexity_ratio": over_base["ratio"]})
    every = {
        "limits": [limit.entry() for limit in judged],
        **{name: figures(rows, outcome, size) for name, outcome in found.items()},
        "tuned_over_base": over_base,
        "tuned_over_adapter_off": change(rows, found["adapter_off"], found["tuned"]),
        "text": {"documents": len(rows.documents), "tokens": sum(map(len, rows.scored())), "bytes": size},
        "device": key,
        "computed_from": origin,
    }
    writing.write_json(detail, every)
    lines = (
        {"id": item.id, "kind": item.kind, "answer": item.answer}
        | {name: {"chosen": r.chosen[number], "right": r.right[number]} for name, r in found.items()}
        for number, item in enumerate(asked)
    )
    writing.write_jsonl(outcomes, lines)
    click.echo("\n".join(f"retention: {limit}" for limit in judged), err=True)


if __name__ == "__main__":
    main()
