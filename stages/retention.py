"""What the model kept: general questions and plain text, before and after training.

In: questions with options, paragraphs of prose, the base model, the adapter. Out: metrics/retention.json (accuracy,
perplexity, what training changed, `held` or `lost`) and metrics/retention.jsonl (what each model chose).

Three models answer the same rows: `base` as fetched, which is what prompting uses; `adapter_off`, the quantised base
that the adapter sits on, which shows what quantisation alone costs; `tuned`. An option is scored by its likelihood as
the assistant's answer, per byte, so that long ones have the same chance (`acc_norm` of the lm-evaluation-harness).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import click
from annotated_types import Ge, MinLen

from stages.shared import chat, cli, hashes, model, packed, params, stats, strict_json, writing

LIBRARIES = ("bitsandbytes", "numpy", "peft", "scipy", "torch", "transformers")
CONTEXT = 8  # tokens of a paragraph that are given and not scored: what begins a text for a chat model is a turn
Text = Annotated[str, MinLen(1)]
Row = TypeVar("Row", bound="Item | Document")


@dataclass(frozen=True)
class Params:
    device: str
    bootstrap_resamples: params.Count
    seed: int
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
class Query:
    """Token ids: a context, and the continuations whose likelihood after it is asked, each on its own."""

    context: list[int]
    continuations: list[list[int]]


@dataclass(frozen=True)
class Result:
    """What one model made of the rows: the option chosen and whether it is right, and nats per document."""

    chosen: list[int]
    right: list[bool]
    nats: list[float]


def read(path: Path, shape: type[Row]) -> list[Row]:
    """The rows of a file. Raises InputError naming file, line and reason; nothing is skipped."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.dataclasses import dataclass as checked

    strict: Any = TypeAdapter(checked(shape, frozen=True, config=ConfigDict(strict=True, extra="forbid")))
    found: dict[str, Row] = {}
    for line, value in enumerate(strict_json.read_jsonl(path), start=1):
        try:
            row: Row = strict.validate_json(strict_json.compact(value))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise cli.InputError(f"{path}:{line}: {name + ': ' if name else ''}{first['msg']}") from error
        if row.id in found:
            raise cli.InputError(f"{path}:{line}: id {row.id!r} occurs twice")
        found[row.id] = row
    if not found:
        raise cli.InputError(f"{path}: no rows")
    return list(found.values())


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


def check_length(names: Sequence[str], queries: Sequence[Query], longest: int) -> None:
    """Beyond the model's context a likelihood means nothing. Raises InputError naming the row."""
    for name, query in zip(names, queries, strict=True):
        tokens = len(query.context) + max(map(len, query.continuations))
        if tokens > longest:
            raise cli.InputError(f"{name}: {tokens} tokens, and the model reads {longest}; cut the row in pieces")


def likelihoods(network: Any, queries: Sequence[Query], label: str) -> list[list[float]]:
    """Log-likelihood in nats of each continuation of each query, with progress."""
    import torch
    from tqdm import tqdm

    with torch.inference_mode(), packed.attention(network):
        return [_likelihoods(network, query) for query in tqdm(queries, desc=f"retention: {label}", unit=" rows")]


def _likelihoods(network: Any, query: Query) -> list[float]:
    import torch

    given = [packed.IGNORED] * len(query.context)
    rows = [{"input_ids": query.context + part, "labels": given + part} for part in query.continuations]
    batch = {name: tensor.to(network.device) for name, tensor in packed.collate(rows).items()}
    labels = batch.pop("labels")[0, 1:]
    places = (labels != packed.IGNORED).nonzero()[:, 0]
    logits = network(**batch, use_cache=False, logits_to_keep=places).logits[0]
    told = logits.float().log_softmax(-1).gather(1, labels[places, None])[:, 0].to("cpu", torch.float64)
    return [float(part.sum()) for part in told.split([len(part) for part in query.continuations])]


def check_off(names: Sequence[str], before: list[list[float]], off: list[list[float]]) -> None:
    """Bit for bit, on every row: an adapter that is off must not be there. Raises InputError."""
    differ = [name for name, old, new in zip(names, before, off, strict=True) if old != new]
    if differ:
        raise cli.InputError(
            f"the adapter can't be switched off: {len(differ)} of {len(names)} rows are scored otherwise than by the "
            f"same base without it, {differ[0]} the first"
        )


def ask_all(
    base: Path, adapter: Path, device: model.Device, names: Sequence[str], queries: Sequence[Query]
) -> dict[str, list[list[float]]]:
    """Likelihoods by model. In float32 on every device: rounding must not pass for something lost."""
    import torch
    from peft import PeftModel

    plain = model.load_for_generation(base, None, replace(device, generate_dtype="float32"))
    check_length(names, queries, plain.config.max_position_embeddings)
    found = {"base": likelihoods(plain, queries, "base")}
    del plain
    quantised = model.load_quantised(base, device).dequantize(dtype=torch.float32).to(torch.float32).eval()
    bare = likelihoods(quantised, queries, "quantised base")
    attached = PeftModel.from_pretrained(quantised, adapter).eval()
    with attached.disable_adapter():
        found["adapter_off"] = likelihoods(attached, queries, "adapter off")
    check_off(names, bare, found["adapter_off"])
    return found | {"tuned": likelihoods(attached.merge_and_unload(), queries, "tuned")}


def result(items: Sequence[Item], scores: list[list[float]]) -> Result:
    """`scores` has the items' likelihoods first, then the documents'."""
    chosen = []
    for item, found in zip(items, scores, strict=False):
        per_byte = [score / len(option.encode()) for score, option in zip(found, item.options, strict=True)]
        chosen.append(per_byte.index(max(per_byte)))
    right = [choice == item.answer for choice, item in zip(chosen, items, strict=True)]
    return Result(chosen, right, [-score for (score,) in scores[len(items) :]])


def figures(items: Sequence[Item], found: Result, tokens: Sequence[int], size: int) -> dict[str, Any]:
    """All figures of one model; `tokens` of each document, `size` in bytes of all."""
    kinds: dict[str, list[bool]] = {}
    for item, right in zip(items, found.right, strict=True):
        kinds.setdefault(item.kind, []).append(right)
    nats = sum(found.nats)
    return {
        "n": len(items),
        **stats.rate("accuracy", found.right),
        "kinds": {kind: {"n": len(hits), **stats.rate("accuracy", hits)} for kind, hits in kinds.items()},
        "perplexity": math.exp(nats / sum(tokens)),
        "bits_per_byte": nats / math.log(2) / size,
    }


def change(
    items: Sequence[Item], before: Result, after: Result, tokens: Sequence[int], settings: Params
) -> dict[str, Any]:
    """`after` against `before` on the same rows: accuracy by question, the ratio of perplexities by document."""
    draws = settings.bootstrap_resamples, settings.seed
    steps = [float(new) - float(old) for old, new in zip(before.right, after.right, strict=True)]
    low, high = stats.bootstrap_mean(steps, [item.id for item in items], *draws)
    nats = [new - old for old, new in zip(before.nats, after.nats, strict=True)]
    documents = [str(number) for number in range(len(nats))]
    least, most = stats.bootstrap_ratio(nats, [float(count) for count in tokens], documents, *draws)
    return {
        "n": len(steps),
        "accuracy": sum(steps) / len(steps),
        "low": low,
        "high": high,
        "p_value": stats.mcnemar(before.right, after.right),
        "documents": len(nats),
        "perplexity_ratio": math.exp(sum(nats) / sum(tokens)),
        "perplexity_ratio_low": math.exp(least),
        "perplexity_ratio_high": math.exp(most),
    }


def lost(changed: dict[str, Any], settings: Params) -> list[str]:
    """What is lost: a figure counts when its whole interval lies beyond what is tolerated."""
    found = []
    if changed["high"] < -settings.tolerated_drop:
        found.append(f"accuracy changed by {changed['accuracy']:+.3f} [{changed['low']:+.3f}, {changed['high']:+.3f}]")
    if changed["perplexity_ratio_low"] > settings.tolerated_ratio:
        ends = f"[{changed['perplexity_ratio_low']:.2f}, {changed['perplexity_ratio_high']:.2f}]"
        found.append(f"perplexity is {changed['perplexity_ratio']:.2f} {ends} times the base's")
    return found


def choices(items: Sequence[Item], found: dict[str, Result]) -> Iterator[dict[str, Any]]:
    """A line per question: what each model chose."""
    for number, item in enumerate(items):
        by_model = {name: {"chosen": r.chosen[number], "right": r.right[number]} for name, r in found.items()}
        yield {"id": item.id, "kind": item.kind, "answer": item.answer, **by_model}


def origin(items: Path, text: Path, base: Path, adapter: Path) -> dict[str, Any]:
    made_from = strict_json.read(adapter / "made_from.json")
    return {
        "items": hashes.of_file(items),
        "text": hashes.of_file(text),
        "adapter": made_from["adapter"],
        "base": made_from["base"],
        "versions": {name: version(name) for name in LIBRARIES},
    }


@click.command(help=__doc__)
@cli.path_option("--items", "questions with options")
@cli.path_option("--text", "paragraphs of plain text")
@cli.path_option("--base", "base model")
@cli.path_option("--adapter", "LoRA adapter")
@cli.path_option("--metrics", "metrics file")
@cli.path_option("--outcomes", "choice per question and model")
def main(items: Path, text: Path, base: Path, adapter: Path, metrics: Path, outcomes: Path) -> None:
    settings = params.load("retention", Params)
    key, device = model.device(settings.device)
    tokenizer = model.load_tokenizer(base)
    asked, documents = read(items, Item), read(text, Document)
    queries = [*(question(tokenizer, item) for item in asked), *(document(tokenizer, row) for row in documents)]
    names = [*(item.id for item in asked), *(row.id for row in documents)]
    scores = ask_all(base, adapter, device, names, queries)
    found = {name: result(asked, part) for name, part in scores.items()}
    scored = [query.continuations[0] for query in queries[len(asked) :]]
    tokens, size = [len(ids) for ids in scored], sum(len(tokenizer.decode(ids).encode()) for ids in scored)
    over_base = change(asked, found["base"], found["tuned"], tokens, settings)
    beyond = lost(over_base, settings)
    writing.write_json(
        metrics,
        {
            "verdict": "lost" if beyond else "held",
            "limits": {"tolerated_drop": settings.tolerated_drop, "tolerated_ratio": settings.tolerated_ratio},
            **{name: figures(asked, part, tokens, size) for name, part in found.items()},
            "tuned_over_base": over_base,
            "tuned_over_adapter_off": change(asked, found["adapter_off"], found["tuned"], tokens, settings),
            "text": {"documents": len(documents), "tokens": sum(tokens), "bytes": size},
            "device": key,
            "computed_from": origin(items, text, base, adapter),
        },
    )
    writing.write_jsonl(outcomes, choices(asked, found))
    for words in beyond:
        click.echo(f"retention: lost: {words}, beyond what params.yaml tolerates", err=True)
    click.echo(f"retention: {'lost' if beyond else 'held'} on {len(asked)} questions on {key}", err=True)


if __name__ == "__main__":
    main()
