"""Attention for a batch of prompts that begin alike: keys and values of the shared start are held and read once.

Each row attends to the shared start and to its own tokens. A usual cache repeats the start for every row and reads all
copies at every token; here the queries of all rows meet it in one matrix product (Hydragen, Juravsky et al. 2024). The
result is that of ordinary attention up to rounding.
"""

from typing import Any

from stages.model import prefix_sharing


class Cache:
    """Keys and values of one batch of B rows.

    `shared`: per layer (heads, P, width) of the start that all rows share, empty for none. `own`: per layer
    (B, heads, M, width) with room for M tokens of each row, of which `length` are filled; `visible` (B, M) is false for
    padding.
    """

    def __init__(self, shared: list[tuple[Any, Any]], visible: Any) -> None:
        self.shared, self.visible = shared, visible
        self.own: list[tuple[Any, Any]] = []
        self.length = 0

    def append(self, layer: int, key: Any, value: Any) -> tuple[Any, Any]:
        """Store keys and values (B, heads, T, width) of T new tokens; return those of all own tokens so far."""
        if layer == len(self.own):
            shape = (*key.shape[:2], self.visible.shape[1], key.shape[3])
            self.own.append((key.new_empty(shape), value.new_empty(shape)))
        end = self.length + key.shape[2]
        for store, new in zip(self.own[layer], (key, value), strict=True):
            store[:, :, self.length : end] = new
        keys, values = self.own[layer]
        return keys[:, :, :end], values[:, :, :end]

    def keep(self, rows: list[int]) -> None:
        """Forget all other rows."""
        self.visible = self.visible[rows]
        self.own = [(keys[rows], values[rows]) for keys, values in self.own]

    def as_shared(self) -> list[tuple[Any, Any]]:
        """The tokens of the only row, as the start that others share."""
        return [(keys[0, :, : self.length].clone(), values[0, :, : self.length].clone()) for keys, values in self.own]


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: None, cache: Cache, scaling: float, **kwargs: Any
) -> tuple[Any, None]:
    """Causal attention over the shared start and each row's own tokens; a function of transformers' AttentionInterface.

    query (B, query heads, T, width), key and value (B, heads, T, width); returns (B, T, query heads, width). Scores are
    computed in float32.
    """
    import torch

    rows, heads, new, width = query.shape
    kv_heads = key.shape[1]
    shared = cache.shared[module.layer_idx] if cache.shared else None
    total = cache.length + new + (shared[0].shape[1] if shared else 0)
    prefix_sharing.check(total, kwargs)
    keys, values = cache.append(module.layer_idx, key, value)
    grouped = (query * scaling).reshape(rows, kv_heads, -1, width)  # the query heads of a key head, token by token
    scores = grouped @ keys.transpose(-1, -2)
    scores = scores.view(rows, heads, new, -1).float() + _bias(cache, new, torch.finfo(torch.float32).min)
    if shared is None:
        weights = scores.softmax(-1).to(value.dtype).view(rows, kv_heads, grouped.shape[2], -1)
        return (weights @ values).view(rows, heads, new, width).transpose(1, 2), None
    at_once = grouped.transpose(0, 1).reshape(kv_heads, -1, width)  # the queries of all rows
    with_start = (at_once @ shared[0].transpose(-1, -2)).view(kv_heads, rows, -1, shared[0].shape[1]).transpose(0, 1)
    with_start = with_start.reshape(rows, heads, new, -1).float()
    weights = torch.cat([with_start, scores], dim=-1).softmax(-1).to(value.dtype)
    weights = weights.view(rows, kv_heads, grouped.shape[2], -1)
    of_start, of_own = torch.split(weights, [shared[0].shape[1], keys.shape[2]], dim=-1)
    from_start = of_start.transpose(0, 1).reshape(kv_heads, -1, shared[0].shape[1]) @ shared[1]
    mixed = from_start.view(kv_heads, rows, -1, width).transpose(0, 1) + of_own @ values
    return mixed.reshape(rows, heads, new, width).transpose(1, 2), None


def _bias(cache: Cache, new: int, lowest: float) -> Any:
    """(B, 1, T, tokens so far): 0 where a new token may look, `lowest` at padding and at what comes later."""
    import torch

    end = cache.length + new
    columns = torch.arange(end, device=cache.visible.device)
    allowed = cache.visible[:, None, :end] & (columns[None, :] <= columns[cache.length :, None])[None]
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, lowest)[:, None]


def forward(model: Any, ids: Any, cache: Cache, positions: Any) -> Any:
    """Run the model over new tokens `ids` (B, T) at `positions`; return the logits (B, vocabulary) of the last one."""
    logits = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1, cache=cache).logits
    cache.length += ids.shape[1]
    return logits[:, -1]
