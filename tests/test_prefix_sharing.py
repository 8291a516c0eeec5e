"""Rows that share a prefix are still those rows: the same tokens, loss and gradient as one row after another."""

from typing import Any

import pytest

from stages.core.cli import InputError
from stages.model import prefix_sharing

SYSTEM = [1, 2, 3, 4]


def row(prompt: list[int], answer: list[int]) -> prefix_sharing.Row:
    return {"input_ids": prompt + answer, "labels": [prefix_sharing.IGNORED] * len(prompt) + answer}


ROWS = [row([*SYSTEM, 9, 8, 7], [20, 21, 22]), row([*SYSTEM, 6, 5], [23, 22]), row([*SYSTEM, 9, 8, 7, 6, 5], [24])]
OTHERS = [row([28, 27, 9], [4]), row([28, 27, 8, 8], [4, 5])]
PARTS = [ROWS[0] | {"part": 0}, OTHERS[0] | {"part": 1}, ROWS[1] | {"part": 0}, OTHERS[1] | {"part": 1}]
BATCHES = {  # and how many tokens sharing saves
    "one system prompt": (ROWS, 8),
    "two parts": (PARTS, 6),
    "a part of one row": (PARTS[:3], 4),
    "one row": (ROWS[:1], 0),
    "nothing in common": ([ROWS[0], row([7, 7], [8])], 0),
    "the same prompt, another answer": ([row([1, 2, 3], [4, 5]), row([1, 2, 3], [4, 6])], 2),
    "the same row twice": ([ROWS[0], ROWS[0]], 6),
    "one prompt begins the other": ([row([1, 2], [3, 4]), row([1, 2, 3, 4], [5])], 1),
    "a row without labels": ([row([1, 2, 3], []), row([1, 2, 3], [4])], 0),
    "a prompt of one token": ([row([1], [2, 3]), row([1], [2, 4])], 0),
}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_labels_of_the_first_rows_only(count: int) -> None:
    numbered = [{**row, "row": 10 + number} for number, row in enumerate(ROWS)]
    batch = prefix_sharing.first_rows(prefix_sharing.collate(numbered), count)
    assert batch["rows"].tolist() == [[10, 3 * (count > 0)], [11, 2 * (count > 1)], [12, 1 * (count > 2)]]
    kept = [label for row in ROWS[:count] for label in row["labels"] if label != prefix_sharing.IGNORED]
    assert [label for label in batch["labels"][0].tolist() if label != prefix_sharing.IGNORED] == kept


def network() -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(3)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}  # shared by the queries, as in most models of today
    shape = {"vocab_size": 32, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    config = LlamaConfig(**shape, **heads, tie_word_embeddings=True, initializer_range=0.5)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa")


def trained(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Summed loss of the labels that follow a token, and the gradient of each parameter."""
    import torch

    labels = batch.pop("labels")
    logits = model(**batch).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", BATCHES)
def test_loss_and_gradient_are_those_of_the_rows_one_by_one(name: str) -> None:
    import torch

    rows, _ = BATCHES[name]
    model = network()
    apart = [trained(model, {key: torch.tensor([one[key]]) for key in ("input_ids", "labels")}) for one in rows]
    with prefix_sharing.attention(model):
        loss, gradients = trained(model, prefix_sharing.collate(rows))
    assert loss == pytest.approx(sum(one for one, _ in apart), rel=1e-9)
    for parameter, found in gradients.items():
        expected = torch.stack([one[parameter] for _, one in apart]).sum(0)
        assert (found - expected).norm() < 1e-6 * expected.norm(), parameter  # the norms of the model are float32


@pytest.mark.parametrize("name", BATCHES)
def test_what_all_rows_begin_with_stands_once(name: str) -> None:
    rows, saved = BATCHES[name]
    batch = prefix_sharing.collate(rows)
    tokens = sum(len(one["input_ids"]) for one in rows) - saved
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape == (1, tokens)
    for one, places in zip(rows, batch["row_tokens"].tolist(), strict=True):
        length = len(one["input_ids"])
        for key in ("input_ids", "labels"):
            assert batch[key][0][places[:length]].tolist() == one[key]
        assert batch["position_ids"][0][places[:length]].tolist() == list(range(length))
        assert {*places[length:]} <= {places[length - 1]}
    assert batch["row_tokens"].flatten()[batch["token_places"]].tolist() == list(range(tokens))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"position_bias": [0.1]}, "position_bias"),
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": [0.1], "softcap": 30.0}, "has s_aux, softcap, which"),
        ({"sliding_window": 4}, "sliding_window = 4 for a row of 5 tokens"),
    ],
)
def test_attention_of_another_kind_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        prefix_sharing.check(5, {"dropout": 0.0, "scaling": 0.1} | settings)


def test_a_window_that_no_row_reaches_passes() -> None:
    prefix_sharing.check(5, {"dropout": 0.0, "scaling": 0.1, "sliding_window": 5, "softcap": None})


def test_on_a_cpu_attention_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers.integrations import sdpa_attention

    seen: list[Any] = []
    real = sdpa_attention.sdpa_attention_forward

    def noted(*states: Any, **settings: Any) -> Any:
        found, weights = real(*states, **settings)
        seen.append((states[1].dtype, found.dtype, settings["scaling"]))
        return found, weights

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", noted)
    batch, layer = prefix_sharing.collate(ROWS), network().model.layers[0].self_attn
    query, key, value = (torch.ones(1, heads, batch["input_ids"].shape[1], 6).bfloat16() for heads in (4, 2, 2))
    places = {name: batch[name] for name in ("row_tokens", "token_places")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = prefix_sharing.attend(layer, query, key, value, None, **places, scaling=0.5)
    assert (seen, found.dtype) == ([(torch.float32, torch.float32, 0.5)], torch.bfloat16)
    assert found.transpose(1, 2).shape == query.shape
    with pytest.raises(InputError, match="for a row of 10 tokens"):
        prefix_sharing.attend(layer, query, key, value, None, **places, sliding_window=9)


def test_afterwards_the_model_attends_as_before() -> None:
    import torch

    model, ids = network(), torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    with prefix_sharing.attention(model), pytest.raises(TypeError, match="row_tokens"):
        model(ids)
    assert torch.equal(model(ids).logits, before)
