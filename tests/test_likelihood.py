"""The likelihood of expected answers is what the model gives them, prompted as in training."""

from pathlib import Path
from typing import Any

import pytest
from conftest import invoke, read_json, read_rows, write_rows
from taught import ANSWER, PREFIX, REQUEST

from stages import likelihood
from stages.core import hashes
from stages.likelihood import Rated
from stages.model import chat, loading


def row(name: str, request: str, answer: str) -> dict[str, Any]:
    prompt = [{"role": "user", "content": request}]
    return {"id": name, "group": name[0], "kind": "", "prompt": prompt, "answer": answer}


ROWS = [row("a#1", REQUEST, ANSWER), row("a#2", REQUEST, '{"action":"list"}'), row("b", "hello", "{}")]


def by_hand(model: Any, tokenizer: Any, example: dict[str, Any]) -> float:
    """Summed cross-entropy of the answer and EOS after the training prompt, in one plain forward pass."""
    import torch

    prompt = chat.prompt_ids(tokenizer, chat.with_prefix(PREFIX, example["prompt"]))
    answer = [*tokenizer.encode(example["answer"]), tokenizer.eos_token_id]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))


def test_each_row_has_the_nats_of_its_answer_and_files_say_of_which_model(here: Path, merged: Path, base: Path) -> None:
    test, valid = write_rows(here / "test.jsonl", ROWS), write_rows(here / "valid.jsonl", ROWS[:1])
    ran = invoke(likelihood.main, test=test, valid=valid, merged=merged, rows="rows.jsonl", detail="detail.json")
    assert ran.exit_code == 0, ran.output
    rated, detail = read_rows(here / "rows.jsonl"), read_json(here / "detail.json")
    assert [(line["id"], line["group"]) for line in rated] == [("a#1", "a"), ("a#2", "a"), ("b", "b")]
    tokenizer, model = loading.load_tokenizer(base), loading.load_model(merged, "float32", "cpu")
    assert [line["nats"] for line in rated] == pytest.approx([by_hand(model, tokenizer, e) for e in ROWS], rel=1e-3)
    assert rated[0]["nats"] < 1 < rated[1]["nats"]
    assert [line["tokens"] for line in rated] == [len(chat.answer_ids(tokenizer, e["answer"])) for e in ROWS]
    assert detail["test"]["nats"] == pytest.approx(sum(line["nats"] for line in rated) / 3)
    assert (detail["test"]["n"], detail["held_out"]["n"]) == (3, 1)
    assert detail["held_out"]["nats"] == rated[0]["nats"]
    read = {"test": hashes.of_file(test), "valid": hashes.of_file(valid)}
    assert read.items() <= detail["computed_from"].items()


def test_the_interval_draws_whole_conversations() -> None:
    alone = [Rated(str(n), str(n), float(n % 2), 4) for n in range(40)]
    together = [Rated(str(n), str(n % 2), float(n % 2), 4) for n in range(40)]
    narrow, wide = likelihood.figures(alone), likelihood.figures(together)
    assert narrow["nats"] == wide["nats"] == 0.5
    assert 0.3 < narrow["nats_low"] < 0.5 < narrow["nats_high"] < 0.7
    assert (wide["nats_low"], wide["nats_high"]) == (0.0, 1.0)
    assert narrow["nats_per_token"] == 0.125
