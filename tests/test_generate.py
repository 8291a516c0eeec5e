"""Batches, padding, the shared prefix and rows that leave early change nothing about the answers."""

from types import SimpleNamespace
from typing import Any

import pytest

from stages.answers import generate
from stages.model import chat

REQUESTS = ["buy milk", "what is due this week?", "delete the note about the boiler and call the landlord", "hm"]


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    prefix = [{"role": "system", "content": "Answer with one JSON object, please."}]
    return [chat.prompt_ids(tokenizer, [*prefix, {"role": "user", "content": text}]) for text in REQUESTS]


def one_by_one(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    """What transformers' own generate writes, a row at a time."""
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
    answers = dict(generate.greedy(model, tokenizer, prompts, 12, batch_size))
    assert [answers[index].text for index in range(len(prompts))] == one_by_one(model, tokenizer, prompts)
    listed = generate.answers(model, tokenizer, generate.Params(batch_size, 12), prompts)
    assert listed == [answers[index] for index in range(len(prompts))]


def test_prompts_without_a_common_start(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    different = [prompts[0][1:], prompts[1]]
    answers = dict(generate.greedy(model, tokenizer, different, 12, 2))
    assert [answers[index].text for index in range(2)] == one_by_one(model, tokenizer, different)


class StopsEarly:
    """A mask under which the first row of the batch must stop at once, the others after three tokens."""

    def __init__(self, eos: int, rows: int) -> None:
        self.eos, self.left, self.step = eos, list(range(rows)), 0

    def __call__(self, last: list[int] | None, scores: Any) -> Any:
        assert (last is None) == (self.step == 0)
        for number, row in enumerate(self.left):
            if row == 0 or self.step == 3:
                scores[number, self.eos] = 1e9
            else:
                scores[number, self.eos] = -1e9
        self.step += 1
        return scores

    def keep(self, rows: list[int]) -> None:
        self.left = [self.left[row] for row in rows]


def test_rows_that_stop_leave_the_others_as_they_are(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    made: list[StopsEarly] = []

    def masks(rows: list[int]) -> StopsEarly:
        made.append(StopsEarly(tokenizer.eos_token_id, len(rows)))
        return made[-1]

    pair = sorted(prompts[:2], key=lambda prompt: (len(prompt), prompt))
    together = dict(generate.greedy(model, tokenizer, pair, 12, 2, masks))
    alone = dict(generate.greedy(model, tokenizer, pair, 3, 1))
    assert (together[0].text, together[0].answer_tokens, together[0].truncated) == ("", 0, False)
    assert together[1].answer_tokens == 3
    assert together[1].text == alone[1].text
    assert made[0].left == [1]


def test_equal_prompts_and_counts(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    answers = dict(generate.greedy(model, tokenizer, [prompts[0]] * 2, 5, 2))
    assert answers[0] == answers[1]
    assert answers[0].prompt_tokens == len(prompts[0])
    assert answers[0].truncated is (answers[0].answer_tokens == 5)


def test_an_answer_ends_at_eos(tokenizer: Any) -> None:
    eos = tokenizer.eos_token_id
    ids = tokenizer.encode("{}", add_special_tokens=False)
    stopped = generate._answer(tokenizer, [1, 2], [*ids, eos, eos], [eos])
    assert (stopped.text, stopped.answer_tokens, stopped.truncated) == ("{}", len(ids), False)
    assert generate._answer(tokenizer, [1, 2], ids, [eos]).truncated is True
    named = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[5, eos]))
    assert generate.stop_ids(named, tokenizer) == [eos, 5]
    assert generate._answer(tokenizer, [1, 2], [*ids, 5, *ids], [eos, 5]).text == "{}"


def test_attention_is_put_back(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    before = model.config._attn_implementation
    list(generate.greedy(model, tokenizer, prompts[:1], 2, 1))
    assert model.config._attn_implementation == before


def test_nothing_to_generate(model: Any, tokenizer: Any) -> None:
    assert list(generate.greedy(model, tokenizer, [], 12, 2)) == []


def test_what_prompts_share_is_all_but_a_token_of_the_shortest_and_batches_go_by_length() -> None:
    assert generate._shared_length([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 4]]) == 2
    assert generate.batches([[1, 2, 3], [9], [2, 2], [1]], 2) == [[3, 1], [2, 0]]
