"""Batches, padding and the shared prefix change nothing about the answers."""

from pathlib import Path
from typing import Any

import pytest

from stages.shared import chat, generate, model

REQUESTS = ["buy milk", "what is due this week?", "delete the note about the boiler and call the landlord", "hm"]


@pytest.fixture(scope="module")
def network(base: Path) -> Any:
    return model.load_for_generation(base, None, model.DEVICES["cpu-fp32"])


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    prefix = [{"role": "system", "content": "Answer with one JSON object, please."}]
    return [chat.prompt_ids(tokenizer, [*prefix, {"role": "user", "content": text}]) for text in REQUESTS]


def one_by_one(network: Any, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    import torch

    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = network.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
        )[0, len(prompt) :].tolist()
        eos = tokenizer.eos_token_id
        texts.append(tokenizer.decode(out[: out.index(eos)] if eos in out else out))
    return texts


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_equals_generating_one_by_one(network: Any, tokenizer: Any, prompts: list[list[int]], batch_size: int) -> None:
    found = dict(generate.greedy(network, tokenizer, prompts, 12, batch_size))
    assert [found[index].text for index in range(len(prompts))] == one_by_one(network, tokenizer, prompts)


def test_prompts_without_a_common_start(network: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    different = [prompts[0][1:], prompts[1]]
    found = dict(generate.greedy(network, tokenizer, different, 12, 2))
    assert [found[index].text for index in range(2)] == one_by_one(network, tokenizer, different)


def test_equal_prompts_and_counts(network: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    found = dict(generate.greedy(network, tokenizer, [prompts[0]] * 2, 5, 2))
    assert found[0] == found[1]
    assert found[0].prompt_tokens == len(prompts[0])
    assert found[0].truncated is (found[0].answer_tokens == 5)


def test_an_answer_ends_at_eos(tokenizer: Any) -> None:
    eos = tokenizer.eos_token_id
    ids = tokenizer.encode("{}", add_special_tokens=False)
    stopped = generate._answer(tokenizer, [1, 2], [*ids, eos, eos], [eos])
    assert (stopped.text, stopped.answer_tokens, stopped.truncated) == ("{}", len(ids), False)
    assert generate._answer(tokenizer, [1, 2], ids, [eos]).truncated is True


def test_nothing_to_generate(network: Any, tokenizer: Any) -> None:
    assert list(generate.greedy(network, tokenizer, [], 12, 2)) == []
