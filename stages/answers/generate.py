"""Greedy generation in batches, the part of the prompt that all rows share computed once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

from stages.answers import prefix_cache
from stages.core.params import Count
from stages.model import prefix_sharing

DROP = 0.75  # rows that have stopped leave the batch when no more than this share goes on: leaving copies the others


@dataclass(frozen=True)
class Params:
    """The section `predict` of params.yaml."""

    batch_size: Count
    max_new_tokens: Count


@dataclass(frozen=True)
class Answer:
    """What the model wrote for one prompt. `truncated`: it had not stopped by itself after max_new_tokens."""

    text: str
    prompt_tokens: int
    answer_tokens: int
    truncated: bool


class Mask(Protocol):
    """Masks the scores (rows, vocabulary) of the next token; `last` has the token before it, None at the start."""

    def __call__(self, last: list[int] | None, scores: Any, /) -> Any: ...

    def keep(self, rows: list[int]) -> None:
        """Forget all other rows."""


Masks = Callable[[list[int]], Mask]  # the mask of a batch, given the numbers of its prompts: of a grammar, say


def batches(prompts: list[list[int]], size: int) -> list[list[int]]:
    """The numbers of the prompts that are answered together, rows of similar length."""
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), prompts[index]))
    return [order[first : first + size] for first in range(0, len(order), size)]


def greedy(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    batch_size: int,
    masks: Masks | None = None,
    chosen: list[list[int]] | None = None,
) -> Iterator[tuple[int, Answer]]:
    """Yield (index into `prompts`, answer), batch by batch, rows of similar length together.

    `prompts` are token ids. What all of them begin with is computed once. Without `masks` nothing stands between the
    model and its words. `chosen`: some of `batches`, the only ones to answer.
    """
    import torch

    start = _shared_length(prompts)
    stops = stop_ids(model, tokenizer)
    with torch.inference_mode(), prefix_sharing.attention(model, "prefix_cache", prefix_cache.attend):
        shared = _prefill(model, prompts[0][:start]) if start else []
        for batch in batches(prompts, batch_size) if chosen is None else chosen:
            own = [prompts[index][start:] for index in batch]
            written = _batch(model, own, start, shared, stops, max_new_tokens, masks(batch) if masks else None)
            for index, tokens in zip(batch, written, strict=True):
                yield index, _answer(tokenizer, prompts[index], tokens, stops)


def answers(
    model: Any, tokenizer: Any, settings: Params, prompts: list[list[int]], masks: Masks | None = None
) -> list[Answer]:
    """One answer per prompt, in the order of the prompts, with progress."""
    from tqdm import tqdm

    found: dict[int, Answer] = {}
    with tqdm(total=len(prompts), desc="predict", unit=" answers") as bar:
        for index, answer in greedy(model, tokenizer, prompts, settings.max_new_tokens, settings.batch_size, masks):
            found[index] = answer
            bar.update()
    return [found[index] for index in range(len(prompts))]


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's EOS first, then what the model names beside it (Gemma, Phi)."""
    named = model.generation_config.eos_token_id
    extra = named if isinstance(named, list) else [named]
    return list(dict.fromkeys([tokenizer.eos_token_id, *(token for token in extra if token is not None)]))


def _shared_length(prompts: list[list[int]]) -> int:
    """Length of the longest common start that leaves every prompt at least one token of its own."""
    first, last = min(prompts, default=[]), max(prompts, default=[])  # by their tokens: the others share what these do
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return min(same, min(map(len, prompts), default=1) - 1)


def _prefill(model: Any, ids: list[int]) -> list[tuple[Any, Any]]:
    """Keys and values of the tokens that all prompts begin with."""
    import torch

    cache = prefix_cache.Cache([], torch.ones(1, len(ids), dtype=torch.bool, device=model.device))
    tokens = torch.tensor([ids], device=model.device)
    prefix_cache.forward(model, tokens, cache, torch.arange(len(ids), device=model.device)[None])
    return cache.as_shared()


def _batch(
    model: Any,
    own: list[list[int]],
    start: int,
    shared: list[tuple[Any, Any]],
    stops: list[int],
    max_new_tokens: int,
    mask: Mask | None,
) -> list[list[int]]:
    """The tokens written for each row, the stop included; `own` are the tokens after the `start` shared ones."""
    import torch

    width = max(map(len, own))
    padded = [[stops[0]] * (width - len(row)) + row for row in own]
    pads = torch.tensor([width - len(row) for row in own], device=model.device)[:, None]
    columns = torch.arange(width + max_new_tokens, device=model.device)
    cache = prefix_cache.Cache(shared, columns[None] >= pads)
    positions = start + (columns[None, :width] - pads).clamp(min=0)
    scores = prefix_cache.forward(model, torch.tensor(padded, device=model.device), cache, positions)
    written: list[list[int]] = [[] for _ in own]
    rows, position = list(range(len(own))), positions[:, -1:]
    for step in range(max_new_tokens):
        if mask:
            scores = mask([written[row][-1] for row in rows] if step else None, scores)
        tokens = scores.argmax(-1)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if not written[row] or written[row][-1] not in stops:
                written[row].append(token)
        going = [number for number, row in enumerate(rows) if written[row][-1] not in stops]
        if not going or step + 1 == max_new_tokens:
            break
        if len(going) <= DROP * len(rows):
            rows, tokens, position = [rows[number] for number in going], tokens[going], position[going]
            cache.keep(going)
            if mask:
                mask.keep(going)
        position = position + 1
        scores = prefix_cache.forward(model, tokens[:, None], cache, position)
    return written


def config(stops: list[int], max_new_tokens: int) -> Any:
    """transformers' settings for greedy answers, here and in the folder that is shipped."""
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=stops[0])


def _answer(tokenizer: Any, prompt: list[int], new: list[int], stops: list[int]) -> Answer:
    end = next((number for number, token in enumerate(new) if token in stops), len(new))
    text = tokenizer.decode(new[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return Answer(text, len(prompt), end, end == len(new))
