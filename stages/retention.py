"""What the model kept: general questions and plain text, before and after training.

In: questions with options, paragraphs of prose, the base model, the adapter, the merged model. Out:
metrics/retention.json (accuracy of base and tuned model, ratio of their perplexities), metrics/detail/retention.json
(all figures, and whether the limits of params.yaml hold) and metrics/retention.jsonl (what each model chose).

Three models answer the same rows: `base` as fetched, which is what prompting uses; `adapter_off`, the quantised base
that the adapter sits on, which shows what quantisation alone costs; `tuned`, the merged model that is shipped. An
option is scored by its likelihood as the assistant's answer, per byte, so that long ones have the same chance
(`acc_bytes` of lm-evaluation-harness).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import click
from annotated_types import Ge, MinLen

from stages.shared import chat, cli, limits, loading, params, provenance, quantised, records, stats, writing
from stages.shared.loglikelihood import Query, Rating, rate

LIBRARIES = ("bitsandbytes", "numpy", "peft", "scipy", "torch", "transformers")
CONTEXT = 8  # tokens of a paragraph that are given and not scored: what begins a text for a chat model is a turn
PROOF = 40  # rows that show that an adapter which is off changes nothing
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
        if self.answer >= len(self.options):
            raise ValueError(f"answer {self.answer} is none of the {len(self.options)} options, which count from 0")
        if len(set(self.options)) < len(self.options):
            raise ValueError("two options are equal")


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

    @property
    def names(self) -> list[str]:
        return [item.id for item in self.items] + [row.id for row in self.documents]

    @property
    def tokens(self) -> list[int]:
        """Scored tokens of each document."""
        return [len(query.continuations[0]) for query in self.queries[len(self.items) :]]


@dataclass(frozen=True)
class Result:
    """What one model made of the rows: the option chosen and whether it is right, and nats per document."""

    chosen: list[int]
    right: list[bool]
    nats: list[float]


def read(items: Path, text: Path, tokenizer: Any) -> Rows:
    asked, documents = records.read(items, Item), records.read(text, Document)
    queries = [*(question(tokenizer, item) for item in asked), *(document(tokenizer, row) for row in documents)]
    return Rows(asked, documents, queries)


def question(tokenizer: Any, item: Item) -> Query:
    """One user turn, without this project's system prompt, and each option as the answer.

    EOS doesn't count: where an answer ends is what fine-tuning teaches anew, not what the model knows.
    """
    context = chat.prompt_ids(tokenizer, [{"role": "user", "content": item.question}])
    return Query(context, [chat.answer_ids(tokenizer, option)[:-1] for option in item.options])


def document(tokenizer: Any, row: Document) -> Query:
    """Plain text without chat template, after BOS (EOS where there is none), scored from its ninth token on.

    Raises InputError for a text that is shorter.
    """
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = chat.answer_ids(tokenizer, row.text)[:-1]
    if len(ids) <= CONTEXT:
        raise cli.InputError(f"{row.id}: {len(ids)} tokens; a paragraph needs more than {CONTEXT}")
    return Query([start, *ids[:CONTEXT]], [ids[CONTEXT:]])


def check_length(rows: Rows, longest: int) -> None:
    """Beyond the model's context a likelihood means nothing. Raises InputError naming the row."""
    for name, query in zip(rows.names, rows.queries, strict=True):
        tokens = len(query.context) + max(map(len, query.continuations))
        if tokens > longest:
            raise cli.InputError(f"{name}: {tokens} tokens, and the model reads {longest}; cut the row in pieces")


def ask_all(base: Path, adapter: Path, merged: Path, device: loading.Device, rows: Rows) -> dict[str, Result]:
    """What each model makes of the rows, all in the type that answers are generated in.

    On a CPU that is float32. On a card the quantised base stays quantised: in float32 an 8B would need 33 GB.
    """
    plain = loading.load_model(base, device.generate_dtype, device.name)
    check_length(rows, plain.config.max_position_embeddings)
    results = {"base": result(rows, rate(plain, rows.queries, "retention: base"))}
    del plain
    bare = (quantised.dequantised if device.generate_dtype == "float32" else quantised.load)(base, device).eval()
    results["adapter_off"] = result(rows, rate(bare, rows.queries, "retention: adapter off"))
    check_off(bare, adapter, rows)
    del bare
    tuned = loading.load_model(merged, device.generate_dtype, device.name)
    return results | {"tuned": result(rows, rate(tuned, rows.queries, "retention: tuned"))}


def check_off(bare: Any, adapter: Path, rows: Rows) -> None:
    """With the adapter attached and switched off, a sample of the rows must be rated as without it, bit for bit.

    Attaches the adapter to `bare`. Raises InputError naming the first row that differs.
    """
    from peft import PeftModel

    step = max(1, len(rows.queries) // PROOF)
    names, sample = rows.names[::step], rows.queries[::step]
    before = rate(bare, sample, "retention: without the adapter")
    attached = PeftModel.from_pretrained(bare, adapter).eval()
    with attached.disable_adapter():
        after = rate(attached, sample, "retention: with the adapter, off")
    differ = [name for name, old, new in zip(names, before, after, strict=True) if old != new]
    if differ:
        raise cli.InputError(
            f"the adapter can't be switched off: {len(differ)} of {len(names)} rows are rated otherwise than by the "
            f"same base without it, {differ[0]} the first"
        )


def result(rows: Rows, ratings: Sequence[Sequence[Rating]]) -> Result:
    chosen = []
    for item, rated in zip(rows.items, ratings, strict=False):
        per_byte = [rating.nats / len(option.encode()) for rating, option in zip(rated, item.options, strict=True)]
        chosen.append(per_byte.index(max(per_byte)))
    right = [choice == item.answer for choice, item in zip(chosen, rows.items, strict=True)]
    return Result(chosen, right, [-rating.nats for (rating,) in ratings[len(rows.items) :]])


def figures(rows: Rows, found: Result, size: int) -> dict[str, Any]:
    """All figures of one model; `size`: bytes of the scored text."""
    kinds: dict[str, list[bool]] = {}
    for item, right in zip(rows.items, found.right, strict=True):
        kinds.setdefault(item.kind, []).append(right)
    nats = sum(found.nats)
    return {
        "n": len(rows.items),
        **stats.rate("accuracy", found.right),
        "kinds": {kind: {"n": len(hits), **stats.rate("accuracy", hits)} for kind, hits in kinds.items()},
        "perplexity": math.exp(nats / sum(rows.tokens)),
        "bits_per_byte": nats / math.log(2) / size,
    }


@dataclass(frozen=True)
class Change:
    """One model against another on the same rows; `ratio`: of their perplexities, with its interval by document."""

    accuracy: stats.Comparison
    documents: int
    ratio: float
    ratio_low: float
    ratio_high: float


def change(rows: Rows, before: Result, after: Result) -> Change:
    accuracy = stats.compare(before.right, after.right, [item.id for item in rows.items])
    nats = [new - old for old, new in zip(before.nats, after.nats, strict=True)]
    tokens = [float(count) for count in rows.tokens]
    low, high = stats.bootstrap_ratio(nats, tokens, [row.id for row in rows.documents])
    return Change(accuracy, len(nats), math.exp(sum(nats) / sum(tokens)), math.exp(low), math.exp(high))


def judge(changed: Change, settings: Params) -> list[limits.Limit]:
    """The limits of params.yaml against what training changed."""
    accuracy = changed.accuracy
    return [
        limits.Limit(
            what="accuracy lost on general questions, base minus tuned",
            value=0 - accuracy.difference,
            low=0 - accuracy.high,
            high=0 - accuracy.low,
            limit=settings.tolerated_drop,
            n=accuracy.n,
        ),
        limits.Limit(
            what="perplexity of plain text, tuned over base",
            value=changed.ratio,
            low=changed.ratio_low,
            high=changed.ratio_high,
            limit=settings.tolerated_ratio,
            n=changed.documents,
        ),
    ]


def choices(items: Sequence[Item], found: dict[str, Result]) -> Iterator[dict[str, Any]]:
    """A line per question: what each model chose."""
    for number, item in enumerate(items):
        by_model = {name: {"chosen": r.chosen[number], "right": r.right[number]} for name, r in found.items()}
        yield {"id": item.id, "kind": item.kind, "answer": item.answer, **by_model}


@click.command(help=__doc__)
@cli.path_option("--items", "questions with options")
@cli.path_option("--text", "paragraphs of plain text")
@cli.path_option("--base", "base model")
@cli.path_option("--adapter", "LoRA adapter")
@cli.path_option("--merged", "tuned model")
@cli.path_option("--metrics", "metrics file")
@cli.path_option("--detail", "all figures, and the limits")
@cli.path_option("--outcomes", "choice per question and model")
def main(
    items: Path, text: Path, base: Path, adapter: Path, merged: Path, metrics: Path, detail: Path, outcomes: Path
) -> None:
    cli.end_with_caller()
    settings = params.load("retention", Params)
    origin = provenance.computed_from(merged / "made_from.json", LIBRARIES, items=items, text=text)
    key, device = loading.device(params.load("compute", loading.Params).device)
    tokenizer = loading.load_tokenizer(base)
    rows = read(items, text, tokenizer)
    found = ask_all(base, adapter, merged, device, rows)
    scored = [query.continuations[0] for query in rows.queries[len(rows.items) :]]
    size = sum(len(tokenizer.decode(ids).encode()) for ids in scored)
    over_base = change(rows, found["base"], found["tuned"])
    judged = judge(over_base, settings)
    writing.write_json(
        metrics,
        {
            "accuracy_base": over_base.accuracy.before,
            "accuracy_tuned": over_base.accuracy.after,
            "accuracy_change": over_base.accuracy.difference,
            "perplexity_ratio": over_base.ratio,
        },
    )
    writing.write_json(
        detail,
        {
            "limits": [limit.entry() for limit in judged],
            **{name: figures(rows, outcome, size) for name, outcome in found.items()},
            "tuned_over_base": asdict(over_base),
            "tuned_over_adapter_off": asdict(change(rows, found["adapter_off"], found["tuned"])),
            "text": {"documents": len(rows.documents), "tokens": sum(rows.tokens), "bytes": size},
            "device": key,
            "computed_from": origin,
        },
    )
    writing.write_jsonl(outcomes, choices(rows.items, found))
    for limit in judged:
        click.echo(f"retention: {limit}", err=True)


if __name__ == "__main__":
    main()
