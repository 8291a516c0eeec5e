"""Greedy generation in batches, the part of the prompt that all rows share computed once."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from stages.shared.params import Count


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


def greedy(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    batch_size: int,
    mask: Callable[[int], Any] | None = None,
) -> Iterator[tuple[int, Answer]]:
    """Yield (index into `prompts`, answer), batch by batch, rows of similar length together.

    `prompts` are token ids. Rows are padded between the shared start and their own part, so that the keys and values
    of the start are the same for all and are computed once. `mask` makes the logits processor for a batch of so many
    rows; without it nothing stands between the model and its words.
    """
    import torch

    shared = _shared_length(prompts)
    stops = stop_ids(model, tokenizer)
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), prompts[index]))
    with torch.inference_mode():
        start = _prefill(model, prompts[0][:shared]) if shared else None
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            rows = [prompts[index] for index in batch]
            masks = [mask(len(rows))] if mask else None
            answers = _batch(model, tokenizer, rows, shared, start, stops, max_new_tokens, masks)
            yield from zip(batch, answers, strict=True)


def answers(
    model: Any,
    tokenizer: Any,
    settings: Params,
    prompts: list[list[int]],
    mask: Callable[[int], Any] | None = None,
) -> list[Answer]:
    """One answer per prompt, in the order of the prompts, with progress."""
    from tqdm import tqdm

    found: dict[int, Answer] = {}
    with tqdm(total=len(prompts), desc="predict", unit=" answers") as bar:
        for index, answer in greedy(model, tokenizer, prompts, settings.max_new_tokens, settings.batch_size, mask):
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
    if not prompts:
        return 0
    first, last = min(prompts), max(prompts)  # in lexicographic order, all others share what these two share
    longest = min(map(len, prompts)) - 1
    return next((number for number in range(longest) if first[number] != last[number]), longest)


def _prefill(model: Any, ids: list[int]) -> Any:
    import torch

    return model(torch.tensor([ids], device=model.device), use_cache=True, logits_to_keep=1).past_key_values


def _batch(
    model: Any,
    tokenizer: Any,
    rows: list[list[int]],
    shared: int,
    start: Any,
    stops: list[int],
    max_new_tokens: int,
    masks: list[Any] | None,
) -> list[Answer]:
    """Generate for rows that all begin with the same `shared` tokens, whose keys and values are `start`."""
    import torch

    width = max(map(len, rows))
    pads = [width - len(row) for row in rows]
    ids = torch.tensor([row[:shared] + [stops[0]] * pad + row[shared:] for row, pad in zip(rows, pads, strict=True)])
    mask = torch.ones_like(ids)
    for number, pad in enumerate(pads):
        mask[number, shared : shared + pad] = 0
    cache = None
    if start is not None:
        cache = copy.deepcopy(start)
        cache.batch_repeat_interleave(len(rows))
    # No generation_config from the base model: its sampling settings must not leak in.
    out = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        past_key_values=cache,
        generation_config=config(stops, max_new_tokens),
        logits_processor=masks,
    )
    return [_answer(tokenizer, row, new, stops) for row, new in zip(rows, out[:, width:].tolist(), strict=True)]


def config(stops: list[int], max_new_tokens: int) -> Any:
    """transformers' settings for greedy answers, here and in the folder that is shipped."""
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=stops[0])


def _answer(tokenizer: Any, prompt: list[int], new: list[int], stops: list[int]) -> Answer:
    end = next((number for number, token in enumerate(new) if token in stops), len(new))
    text = tokenizer.decode(new[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return Answer(text, len(prompt), end, end == len(new))
