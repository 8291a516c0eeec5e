"""Batches, padding and the shared prefix change nothing about the answers."""

from pathlib import Path
from typing import Any

import pytest

from stages.shared import chat, generate, loading

REQUESTS = ["buy milk", "what is due this week?", "delete the note about the boiler and call the landlord", "hm"]


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return loading.load_model(base, "float32", "cpu")


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    prefix = [{"role": "system", "content": "Answer with one JSON object, please."}]
    return [chat.prompt_ids(tokenizer, [*prefix, {"role": "user", "content": text}]) for text in REQUESTS]


def one_by_one(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    import torch

    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
        )[0, len(prompt) :].tolist()
        eos = tokenizer.eos_token_id
        texts.append(tokenizer.decode(out[: out.index(eos)] if eos in out else out))
    return texts


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_equals_generating_one_by_one(model: Any, tokenizer: Any, prompts: list[list[int]], batch_size: int) -> None:
    answers = generate.answers(model, tokenizer, generate.Params(batch_size, 12), prompts)
    assert [answer.text for answer in answers] == one_by_one(model, tokenizer, prompts)


def test_prompts_without_a_common_start(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    different = [prompts[0][1:], prompts[1]]
    answers = generate.answers(model, tokenizer, generate.Params(2, 12), different)
    assert [answer.text for answer in answers] == one_by_one(model, tokenizer, different)


def test_equal_prompts_and_counts(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    first, second = generate.answers(model, tokenizer, generate.Params(2, 5), [prompts[0]] * 2)
    assert first == second
    assert first.prompt_tokens == len(prompts[0])
    assert first.truncated is (first.answer_tokens == 5)


def test_an_answer_ends_at_eos(tokenizer: Any) -> None:
    eos = tokenizer.eos_token_id
    ids = tokenizer.encode("{}", add_special_tokens=False)
    stopped = generate._answer(tokenizer, [1, 2], [*ids, eos, eos], [eos])
    assert (stopped.text, stopped.answer_tokens, stopped.truncated) == ("{}", len(ids), False)
    assert generate._answer(tokenizer, [1, 2], ids, [eos]).truncated is True


def test_a_model_s_further_stop_tokens_end_an_answer_too(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    settings = generate.Params(1, 12)
    (free,) = generate.answers(model, tokenizer, settings, prompts[:1])
    third = tokenizer.encode(free.text, add_special_tokens=False)[2]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [before, third]
    (stopped,) = generate.answers(model, tokenizer, settings, prompts[:1])
    model.generation_config.eos_token_id = before
    assert generate.stop_ids(model, tokenizer)[0] == tokenizer.eos_token_id
    assert (stopped.truncated, stopped.answer_tokens < 12) == (False, True)


def test_the_base_s_own_sampling_settings_stay_out(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    greedy = generate.answers(model, tokenizer, generate.Params(4, 12), prompts)
    model.generation_config.update(do_sample=True, temperature=5.0)
    sampled = generate.answers(model, tokenizer, generate.Params(4, 12), prompts)
    model.generation_config.update(do_sample=False, temperature=1.0)
    assert sampled == greedy


def test_nothing_to_generate(model: Any, tokenizer: Any) -> None:
    assert generate.answers(model, tokenizer, generate.Params(2, 12), []) == []
