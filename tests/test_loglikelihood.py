"""Packed ratings are those of each continuation on its own."""

from typing import Any

import pytest

from stages.answers import loglikelihood
from stages.answers.loglikelihood import Query

QUERIES = [
    Query([5, 6, 7, 8], [[9, 10, 11], [9, 12], [13]]),
    Query([40, 41], [[42] * 30]),
    Query([5, 6, 7], [[8, 14], [15]]),
    Query([5], [[6, 7, 8]]),
    Query([5, 6, 7, 8], [[9, 10, 11, 16]]),
]


def by_hand(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One sequence at a time, nothing padded and nothing shared."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
    spread = logits.log_softmax(-1)
    nats = sum(float(spread[step, token]) for step, token in enumerate(continuation))
    return nats, logits.argmax(-1).tolist() == continuation


@pytest.mark.parametrize("most", [1, 20, 1000])
def test_ratings_are_those_of_each_continuation_alone(model: Any, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(loglikelihood, "MAX_TOKENS", most)
    found = loglikelihood.rate(model, QUERIES, "test")
    for query, ratings in zip(QUERIES, found, strict=True):
        for continuation, rating in zip(query.continuations, ratings, strict=True):
            nats, greedy = by_hand(model, query.context, continuation)
            assert rating.nats == pytest.approx(nats, abs=1e-4)
            assert rating.greedy == greedy


def test_greedy_is_what_greedy_decoding_writes(model: Any) -> None:
    import torch

    written = model.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=6, eos_token_id=None)
    ids = written[0, 3:].tolist()
    others = [[*ids[:place], ids[place] + 1, *ids[place + 1 :]] for place in (0, 3, 5)]
    (found,) = loglikelihood.rate(model, [Query([5, 6, 7], [ids, *others])], "test")
    assert [rating.greedy for rating in found] == [True, False, False, False]


def test_a_common_beginning_is_computed_once() -> None:
    inputs, targets, predicted_at = loglikelihood.pack(
        [Query([1, 2, 3], [[4, 5], [4, 6], [7]]), Query([1, 2, 9], [[4]])]
    )
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 4, 9]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 2]]
    assert (targets, predicted_at) == ([4, 5, 4, 6, 7, 4], [2, 3, 2, 3, 2, 4])


def test_a_batch_is_as_large_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loglikelihood, "MAX_TOKENS", 12)
    sizes = [[query.tokens() for query in batch] for batch in loglikelihood.batches(QUERIES)]
    assert sizes == [[10], [32], [6, 4], [8]]
