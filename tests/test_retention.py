"""What the model kept: figures by hand, and the limits."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import KNOBS, configure, invoke, read_json, read_rows, write_rows

from stages import retention
from stages.answers import loglikelihood
from stages.answers.loglikelihood import Query, Rating
from stages.core import hashes, params
from stages.core.cli import InputError
from stages.model import loading
from stages.retention import Document, Item, Result, Rows
from stages.scores.limits import Limit

ITEMS: list[dict[str, Any]] = [
    {"id": "q1", "kind": "fact", "question": "Where does milk come from?", "options": ["Cows", "A well"], "answer": 0},
    {"id": "q2", "kind": "arithmetic", "question": "What is 2 + 2?", "options": ["3", "44", "4", "5"], "answer": 2},
    {"id": "q3", "kind": "fact", "question": "Is snow cold?", "options": ["No", "Yes", "It is warm"], "answer": 1},
]
TEXT = [
    {"id": "d1", "text": "The boat came in late, and nobody was there to meet Zoë."},
    {"id": "d2", "text": "Bread needs flour, water, salt and time."},
]


def rows_of(items: int, tokens: list[int], kind: str = "fact") -> Rows:
    """Questions with two options, the first right; documents with so many scored tokens."""
    asked = [Item(f"q{number}", kind, "?", ("a", "b"), 0) for number in range(items)]
    documents = [Document(f"d{number}", "") for number in range(len(tokens))]
    queries = [Query([1], [[2], [3]]) for _ in asked] + [Query([1], [[2] * count]) for count in tokens]
    return Rows(asked, documents, queries)


def reading(tokens: int) -> Any:
    """A model with this context."""
    config = SimpleNamespace(max_position_embeddings=tokens)
    return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))


def test_a_question_is_one_user_turn_without_our_system_prompt(tokenizer: Any) -> None:
    query = retention.question(tokenizer, Item("q", "fact", "Is it?", ("Yes", "No"), 0))
    assert tokenizer.decode(query.context) == (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
        "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [tokenizer.decode(ids) for ids in query.continuations] == ["Yes", "No"]


def test_the_first_tokens_of_a_paragraph_are_given_and_not_scored(tokenizer: Any) -> None:
    query = retention.document(tokenizer, Document("d1", TEXT[0]["text"]))
    assert len(query.context) == 1 + 8
    assert query.context[0] == tokenizer.eos_token_id  # it has no BOS
    known = SimpleNamespace(encode=tokenizer.encode, eos_token_id=tokenizer.eos_token_id, bos_token_id=0)
    assert retention.document(known, Document("d1", TEXT[0]["text"])).context[0] == 0
    assert tokenizer.decode([*query.context[1:], *query.continuations[0]]) == TEXT[0]["text"]
    with pytest.raises(InputError, match=r"d9: \d tokens; a paragraph needs more than 8"):
        retention.document(tokenizer, Document("d9", "Oh."))


def test_the_highest_likelihood_per_byte_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item("q", "fact", "?", ("ab", "abcd", "éé"), 2), Item("r", "fact", "?", ("a", "b"), 1)]
    nats = [[-3.0, -4.0, -3.8], [-1.0, -1.0], [-7.0]]
    rated = [[Rating(value, False) for value in values] for values in nats]
    monkeypatch.setattr(loglikelihood, "rate", lambda *_: rated)
    found = retention.ask(Rows(items, [Document("d", "")], [Query([1], [[2], [3]])] * 3), reading(2), "base")
    assert (found.chosen, found.right, found.nats) == ([2, 0], [True, False], [7.0])


def test_a_row_longer_than_the_model_reads_is_named() -> None:
    with pytest.raises(InputError, match="d1: 11 tokens, and the model reads 10"):
        retention.ask(rows_of(0, [9, 10]), reading(10), "base")


def test_perplexity_is_per_token_and_bits_per_byte() -> None:
    rows = rows_of(2, [3, 1])
    rows = replace(rows, items=[rows.items[0], replace(rows.items[1], kind="format")])
    found = retention.figures(rows, Result([0, 1], [True, False], [6.0, 2.0]), 16)
    assert found["perplexity"] == pytest.approx(math.exp(2.0))
    assert found["bits_per_byte"] == pytest.approx(8.0 / math.log(2) / 16)
    kinds = {kind: (part["n"], part["accuracy"]) for kind, part in found["kinds"].items()}
    assert (found["accuracy"], kinds) == (0.5, {"fact": (1, 1), "format": (1, 0)})


def test_a_change_is_paired_by_row() -> None:
    before = Result([0] * 40, [True] * 40, [10.0, 20.0, 30.0])
    after = Result([0] * 40, [False] * 10 + [True] * 30, [20.0, 30.0, 40.0])
    found = retention.change(rows_of(40, [10, 10, 10]), before, after)
    accuracy = found["accuracy"]
    assert (accuracy["difference"], accuracy["regressed"], found["documents"]) == (-0.25, 10, 3)
    assert accuracy["p_value"] == pytest.approx(2 / 2**10)
    assert [found["ratio"], found["ratio_low"], found["ratio_high"]] == pytest.approx([math.e] * 3)


def test_documents_count_by_their_tokens() -> None:
    before, after = Result([0], [True], [0.0, 0.0]), Result([0], [True], [30.0, 0.0])
    found = retention.change(rows_of(1, [10, 30]), before, after)
    assert found["ratio"] == pytest.approx(math.exp(30 / 40))
    assert (found["ratio_low"], found["ratio_high"]) == pytest.approx((1.0, math.exp(3)))


def test_limits_are_on_what_was_lost() -> None:
    rows = rows_of(100, [10])
    before = Result([0] * 100, [True] * 60 + [False] * 40, [10.0])
    after = Result([0] * 100, [True] * 40 + [False] * 60, [40.0])
    accuracy, ratio = retention.judge(retention.change(rows, before, after), retention.Params(0.1, 25.0))
    assert [accuracy.value, ratio.value] == pytest.approx([0.2, math.exp(3)])
    assert (accuracy.limit, accuracy.n, accuracy.holds) == (0.1, 100, False)
    assert accuracy.low < 0.2 < accuracy.high
    assert (ratio.limit, ratio.n, ratio.holds) == (25.0, 1, True)


@pytest.mark.parametrize(("low", "holds"), [(0.05, True), (0.0501, False), (-0.2, True)])
def test_a_limit_is_broken_by_a_whole_interval(low: float, holds: bool) -> None:
    limit = Limit("drop", 0.3, low, 0.5, 0.05, 9)
    assert limit.entry() == {
        "what": "drop", "value": 0.3, "low": low, "high": 0.5, "limit": 0.05, "n": 9, "holds": holds,
    }  # fmt: skip
    assert str(limit) == f"drop: 0.300 [{low:.3f}, 0.500], limit 0.05: {'holds' if holds else 'broken'}"


def test_guessing_at_random_breaks_the_limits() -> None:
    knobs = params.load("retention", retention.Params, KNOBS)
    before = Result([0] * 180, [number % 12 < 5 for number in range(180)], [1.0])
    after = Result([0] * 180, [number % 4 == 0 for number in range(180)], [1.0])
    accuracy, _ = retention.judge(retention.change(rows_of(180, [1]), before, after), knobs)
    assert not accuracy.holds


@pytest.mark.parametrize("change", [{"answer": 2}, {"answer": -1}, {"options": ["Cows"]}, {"options": ["a", "a"]}])
def test_a_question_with_no_one_answer_is_refused(here: Path, base: Path, merged: Path, change: dict[str, Any]) -> None:
    assert run(base, merged, [ITEMS[0] | change]).output.startswith("Error: items.jsonl:1: ")


def run(base: Path, merged: Path, items: list[dict[str, Any]]) -> Any:
    asked, text = write_rows(Path("items.jsonl"), items), write_rows(Path("text.jsonl"), TEXT)
    files = {"metrics": "m.json", "detail": "d.json", "outcomes": "o.jsonl"}
    return invoke(retention.main, items=asked, text=text, base=base, merged=merged, **files)


def test_the_stage_asks_three_models_and_writes_answers(here: Path, base: Path, merged: Path, tokenizer: Any) -> None:
    configure(here, compute={"device": "cpu-fp32"}, retention={"tolerated_drop": 0.3, "tolerated_ratio": 7.0})
    ran = run(base, merged, ITEMS)
    assert ran.exit_code == 0, ran.output
    metrics, detail, lines = read_json(here / "m.json"), read_json(here / "d.json"), read_rows(here / "o.jsonl")
    assert [(line["id"], line["kind"], line["answer"]) for line in lines] == [
        (item["id"], item["kind"], item["answer"]) for item in ITEMS
    ]
    for model in ("base", "adapter_off", "tuned"):
        right = [line[model]["chosen"] == line["answer"] for line in lines]
        assert [line[model]["right"] for line in lines] == right
        assert detail[model]["accuracy"] == pytest.approx(sum(right) / 3)
    queries = [retention.document(tokenizer, Document(**row)) for row in TEXT]
    tokens = sum(len(query.continuations[0]) for query in queries)
    texts = [tokenizer.decode(query.continuations[0]) for query in queries]
    size = sum(len(text.encode()) for text in texts)
    assert detail["text"] == {"documents": 2, "tokens": tokens, "bytes": size}
    for model, folder in (("base", base), ("tuned", merged)):
        rated = loglikelihood.rate(loading.load_model(folder, "float32", "cpu"), queries, "by hand")
        nats = -sum(rating.nats for (rating,) in rated)
        assert detail[model]["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-3), model
    assert len({detail[model]["perplexity"] for model in ("base", "adapter_off", "tuned")}) == 3
    ratio = detail["tuned"]["perplexity"] / detail["base"]["perplexity"]
    assert metrics["perplexity_ratio"] == pytest.approx(ratio)
    assert metrics["accuracy_base"] == detail["base"]["accuracy"]
    assert metrics["accuracy_tuned"] == detail["tuned"]["accuracy"]
    assert metrics["accuracy_change"] == pytest.approx(metrics["accuracy_tuned"] - metrics["accuracy_base"])
    ratio_off = detail["tuned"]["perplexity"] / detail["adapter_off"]["perplexity"]
    assert detail["tuned_over_adapter_off"]["ratio"] == pytest.approx(ratio_off)
    assert [limit["limit"] for limit in detail["limits"]] == [0.3, 7.0]
    lost = metrics["accuracy_base"] - metrics["accuracy_tuned"]
    assert [limit["value"] for limit in detail["limits"]] == pytest.approx([lost, ratio])
    read = {name: hashes.of_file(here / f"{name}.jsonl") for name in ("items", "text")}
    assert read.items() <= detail["computed_from"].items()
