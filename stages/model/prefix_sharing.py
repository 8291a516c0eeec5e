"""Rows as one sequence without padding: what they share at the start stands once, and attention goes row by row.

The rows of a task begin with the same system prompt, the options of a question with the question. Such tokens see
only each other, so they come out equal in every row, and their gradient is the sum over the rows: computing them once
gives the same loss and gradient. Training does so with a micro batch, `retention` with the options of a question.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from stages.core.cli import InputError

IGNORED = -100  # the label that the loss skips
# Token ids, labels, a number where the row has to be known again, and a part where only rows of the same begin alike.
Row = dict[str, Any]


def shared(rows: Sequence[Row]) -> int:
    """How many tokens all rows begin with.

    Each row keeps its last unlabelled token to itself, so that every label is predicted from the row's own part.
    """
    first = rows[0]["input_ids"]
    bound = min(next((i for i, label in enumerate(row["labels"]) if label != IGNORED), 1) for row in rows) - 1
    count = 0
    while count < bound and all(row["input_ids"][count] == first[count] for row in rows):
        count += 1
    return count if len(rows) > 1 else 0


def collate(rows: Sequence[Row]) -> dict[str, Any]:
    """Tensors of T tokens, for B rows of at most L.

    `input_ids`, `labels`, `position_ids` (1, T): row by row, without what an earlier row of the same part brought.
    `row_tokens` (B, L): where in the sequence each row's tokens stand, the shared ones included; short rows repeat
    their last token, which no token before it sees. `token_places` (T,): where in `row_tokens` each token of the
    sequence is read back. `rows` (B, 2), where rows have a number `row`: that, and how many labels the row has.
    """
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    parts = [row.get("part", 0) for row in rows]
    starts = {part: shared([row for row, of in zip(rows, parts, strict=True) if of == part]) for part in parts}
    sequence: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    grid: list[list[int]] = []
    shared_at: dict[int, range] = {}
    for number, (row, part) in enumerate(zip(rows, parts, strict=True)):
        length, start = len(row["input_ids"]), shared_at.get(part, range(0))
        own = range(len(sequence), len(sequence) + length - len(start))
        shared_at.setdefault(part, own[: starts[part]])  # the first row of a part brings what the others share
        grid.append([*start, *own, *[own[-1]] * (width - length)])
        places += range(number * width + len(start), number * width + length)
        sequence += row["input_ids"][len(start) :]
        labels += row["labels"][len(start) :]
        positions += range(len(start), length)
    numbers = {}
    if "row" in rows[0]:
        numbers["rows"] = torch.tensor([[row["row"], sum(n != IGNORED for n in row["labels"])] for row in rows])
    return numbers | {
        "input_ids": torch.tensor([sequence]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
        "row_tokens": torch.tensor(grid),
        "token_places": torch.tensor(places),
    }


def first_rows(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """The batch with the labels of its first `count` rows only."""
    rows, labels = batch["rows"].clone(), batch["labels"].clone()
    rows[count:, 1] = 0
    labels[0, (labels[0] != IGNORED).nonzero()[rows[:, 1].sum() :, 0]] = IGNORED
    return batch | {"rows": rows, "labels": labels}


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: None,
    row_tokens: Any,
    token_places: Any,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Causal attention within each row; a function of transformers' AttentionInterface.

    query (1, heads, T, width), key and value (1, key heads, T, width); returns (1, T, heads, width). In float32 on a
    CPU: on rows this short torch's kernel takes half the time that it takes in bfloat16.
    """
    import torch
    from torch.nn.functional import embedding
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    check(row_tokens.shape[1], kwargs)
    on_cpu = value.device.type == "cpu"
    dtype = torch.promote_types(value.dtype, torch.float32) if on_cpu else value.dtype

    def by_row(states: Any) -> Any:
        _, heads, tokens, width = states.shape
        flat = states.transpose(1, 2).reshape(tokens, heads * width).to(dtype)
        return embedding(row_tokens, flat).view(*row_tokens.shape, heads, width).transpose(1, 2)

    with torch.autocast(value.device.type, enabled=False):
        found, _ = sdpa_attention_forward(module, *map(by_row, (query, key, value)), attention_mask, **kwargs)
    heads, width = found.shape[2:]
    flat = embedding(token_places, found.reshape(-1, heads * width)).to(value.dtype)
    return flat.view(1, -1, heads, width), None


def check(length: int, settings: dict[str, Any]) -> None:
    """Raises InputError for a model whose attention is not plain softmax over all that comes before."""
    window = settings.get("sliding_window")
    found = [name for name in ("position_bias", "s_aux", "softcap") if settings.get(name) is not None]
    if window is not None and window < length:
        found.append(f"sliding_window = {window} for a row of {length} tokens")
    if found:
        raise InputError(f"the base model's attention has {', '.join(found)}, which sharing a prefix ignores")


@contextmanager
def attention(model: Any, name: str = "prefix_sharing", function: Callable[..., Any] | None = None) -> Iterator[None]:
    """Within it a transformers model, with or without adapter, attends by rows: it takes what `collate` returns.

    Or by another function of transformers' AttentionInterface, which is then known under `name`.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(name, function or attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
