"""Rate given texts with a model: their log-likelihood, and whether greedy decoding would have written them.

lm-evaluation-harness calls these two the same. Nothing is generated: one forward pass rates the continuations of many
contexts, packed into one sequence in which every common beginning stands once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stages.model import prefix_sharing

MAX_TOKENS = 1024  # of one forward pass; larger ones were slower on a CPU, and need memory for their logits


@dataclass(frozen=True)
class Query:
    """Token ids: a context, and the continuations that are rated after it, each on its own."""

    context: list[int]
    continuations: list[list[int]]

    def tokens(self) -> int:
        return len(self.context) + sum(map(len, self.continuations))


@dataclass(frozen=True)
class Rating:
    """Of one continuation: its log-likelihood in nats; `greedy`: whether each of its tokens is the likeliest."""

    nats: float
    greedy: bool


def rate(model: Any, queries: Sequence[Query], label: str) -> list[list[Rating]]:
    """The rating of each continuation of each query, with progress."""
    import torch
    from tqdm import tqdm

    # In this order neighbours have the most in common.
    order = sorted(range(len(queries)), key=lambda index: queries[index].context)
    ratings: list[list[Rating]] = []
    with torch.inference_mode(), prefix_sharing.attention(model), tqdm(total=len(queries), desc=label) as bar:
        for batch in batches([queries[index] for index in order]):
            ratings += _rate(model, batch)
            bar.update(len(batch))
    by_index = dict(zip(order, ratings, strict=True))
    return [by_index[index] for index in range(len(queries))]


def batches(queries: Sequence[Query]) -> Iterator[list[Query]]:
    """Neighbours together, up to MAX_TOKENS before sharing; a longer query is a batch of its own."""
    batch: list[Query] = []
    for query in queries:
        if batch and sum(other.tokens() for other in batch) + query.tokens() > MAX_TOKENS:
            yield batch
            batch = []
        batch.append(query)
    if batch:
        yield batch


def pack(queries: Sequence[Query]) -> tuple[dict[str, Any], list[int], list[int]]:
    """All continuations in one sequence: the model's inputs, and of each rated token its id and the place before it.

    The last token of each continuation is left out, for nothing is asked of what follows.
    """
    import torch

    sequence: dict[tuple[int, int], int] = {}  # (place of the token before, token) -> place
    read_at: list[tuple[int, int]] = []  # for each place, a row and the offset in it
    rows: list[list[int]] = []
    targets: list[int] = []
    predicted_at: list[int] = []
    for query in queries:
        for continuation in query.continuations:
            row: list[int] = []
            for offset, token in enumerate([*query.context, *continuation[:-1]]):
                row.append(sequence.setdefault((row[-1] if row else -1, token), len(sequence)))
                if row[-1] == len(read_at):
                    read_at.append((len(rows), offset))
            rows.append(row)
            targets += continuation
            predicted_at += row[len(query.context) - 1 :]
    width = max(map(len, rows))
    inputs = {  # as `prefix_sharing.collate` makes them
        "input_ids": torch.tensor([[token for _, token in sequence]]),
        "position_ids": torch.tensor([[offset for _, offset in read_at]]),
        "row_tokens": torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows]),
        "token_places": torch.tensor([row * width + offset for row, offset in read_at]),
    }
    return inputs, targets, predicted_at


def _rate(model: Any, queries: Sequence[Query]) -> list[list[Rating]]:
    import torch

    inputs, *rated = pack(queries)
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    targets, places = (torch.tensor(part, device=model.device) for part in rated)
    kept, back = torch.unique(places, return_inverse=True)
    logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits[0].float()
    likeliest = (logits.argmax(-1)[back] == targets).cpu()
    nats = (logits[back, targets] - logits.logsumexp(-1)[back]).to("cpu", torch.float64)
    lengths = [len(continuation) for query in queries for continuation in query.continuations]
    pairs = zip(nats.split(lengths), likeliest.split(lengths), strict=True)
    ratings = iter([Rating(float(values.sum()), bool(hits.all())) for values, hits in pairs])
    return [[next(ratings) for _ in query.continuations] for query in queries]
