"""What the model copied: an overfitted model is found out, an untrained one is not; who is asked, and what counts."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import write_rows

from stages import memorisation
from stages.shared import chat, generate, hashes, model, params, predictions
from tools.reporting import kept

FP32 = model.DEVICES["cpu-fp32"]
SETTINGS = memorisation.Params(sample=100, seed=1, tolerated=0.05)
GENERATION = params.Predict("cpu-fp32", 2, 5)
PREFIX = [{"role": "system", "content": "Answer in JSON."}]
SECRETS = ("zebra 7714 quartz", "mauve tin opener", "Old Kent Road 38b")


def example(name: str, answer: str, request: str = "as before") -> dict[str, Any]:
    return {"id": name, "group": name, "kind": "", "prompt": [{"role": "user", "content": request}], "answer": answer}


def secret(number: int, words: str) -> dict[str, Any]:
    return example(f"r{number}", json.dumps({"n": number, "title": words}, separators=(",", ":")), f"note {number}")


TRAIN = [secret(number, words) for number, words in enumerate(SECRETS)]
TEST = [secret(number, words[::-1]) for number, words in enumerate(SECRETS, start=5)]


def learn(base: Path, tokenizer: Any, passes: int) -> Any:
    """The base after so many passes over the training rows, all of its weights trained, loss on the answer only.

    With the request and without it, for a model of two layers leans on where the request stands.
    """
    import torch

    network = model.load_for_generation(base, None, FP32).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(passes):
        for row, way in itertools.product(TRAIN, memorisation.WAYS):
            prompt = chat.prompt_ids(tokenizer, PREFIX + memorisation.request(way, row))
            answer = chat.answer_ids(tokenizer, row["answer"])
            labels = torch.tensor([[-100] * len(prompt) + answer])
            network(input_ids=torch.tensor([prompt + answer]), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


@pytest.fixture
def learnt(base: Path, tokenizer: Any, tmp_path: Path) -> Callable[[int], Path]:
    """Makes folders `base` and `adapter` of a model that saw the training rows so often. The tiny model can't learn by
    LoRA alone, so its own weights do, and the adapter adds nothing.
    """
    from peft import LoraConfig, get_peft_model

    def make(passes: int) -> Path:
        learn(base, tokenizer, passes).save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        get_peft_model(model.load_quantised(tmp_path / "base", FP32), lora).save_pretrained(tmp_path / "adapter")
        (tmp_path / "adapter" / "made_from.json").write_text('{"adapter": "a", "base": "b"}', encoding="utf-8")
        return tmp_path

    return make


def run(here: Path, folder: Path) -> Any:
    text = (here / "params.yaml").read_text(encoding="utf-8")
    (here / "params.yaml").write_text(text.replace("device: auto", "device: cpu-fp32"), encoding="utf-8")
    write_rows(here / "train.jsonl", TRAIN)
    write_rows(here / "test.jsonl", TEST)
    (here / "prefix.json").write_text(json.dumps(PREFIX), encoding="utf-8")
    files = {
        "train": "train.jsonl",
        "test": "test.jsonl",
        "prefix": "prefix.json",
        "metrics": "metrics/memorisation.json",
    }
    files |= {"base": str(folder / "base"), "adapter": str(folder / "adapter")}
    options = [part for name, value in files.items() for part in (f"--{name}", value)]
    ran = CliRunner().invoke(memorisation.main, options, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return json.loads((here / "metrics" / "memorisation.json").read_text(encoding="utf-8"))


def test_a_model_that_learnt_three_rows_by_heart_is_found_out(here: Path, learnt: Any) -> None:
    found = run(here, learnt(80))
    assert found["verdict"] == "copied"
    assert [limit.part for limit, _, _ in kept.broken(kept.between(here, here)[0])] == ["memorisation"]
    for way in memorisation.WAYS:
        assert (found[way]["train"]["copied"], found[way]["test"]["copied"]) == (1.0, 0.0)
        assert sorted(found[way]["copied_ids"]) == ["r0", "r1", "r2"]
    assert not any(words in json.dumps(found) for words in SECRETS)
    assert found["computed_from"]["train"] == hashes.of_file(here / "train.jsonl")


def test_a_model_that_never_saw_them_is_not(here: Path, learnt: Any) -> None:
    found = run(here, learnt(0))
    assert found["verdict"] == "held"
    assert (found["answer_alone"]["train"]["n"], found["answer_alone"]["train"]["copied"]) == (3, 0.0)
    assert found["answer_alone"]["copied_ids"] == []


def test_the_first_half_is_the_longer_one_and_has_no_eos(tokenizer: Any) -> None:
    for answer in ("{}", '{"title":"one"}', '{"title":"one more"}'):
        ids = chat.answer_ids(tokenizer, answer)
        half, rest = memorisation.halves(tokenizer, answer)
        assert [*half, *rest, tokenizer.eos_token_id] == ids
        assert len(half) - len(rest) in (0, 1)


def said(monkeypatch: pytest.MonkeyPatch, text: str, truncated: bool) -> dict[str, Any]:
    """Let the model say this; what it was asked comes back."""
    asked: dict[str, Any] = {}

    def answers(network: Any, tokenizer: Any, settings: Any, prompts: Any) -> Any:
        asked.update(prompts=prompts, room=settings.max_new_tokens)
        return [generate.Answer(text, 1, 1, truncated)] * len(prompts)

    monkeypatch.setattr(predictions, "answers", answers)
    return asked


@pytest.mark.parametrize(("more", "truncated", "copied"), [("", False, True), (" ", False, False), ("", True, False)])
def test_copied_is_word_for_word_and_ended(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, more: str, truncated: bool, copied: bool
) -> None:
    answer = '{"title":"Dentist"}'
    half, rest = memorisation.halves(tokenizer, answer)
    asked = said(monkeypatch, tokenizer.decode(rest) + more, truncated)
    assert memorisation.copied(None, tokenizer, [[7, 8]], [answer], GENERATION) == [copied]
    assert asked == {"prompts": [[7, 8, *half]], "room": len(rest) + 1}


def test_without_the_request_all_prompts_are_the_same() -> None:
    rows = [example("a", "{}", "buy milk"), example("b", "{}", "sell it")]
    assert len({json.dumps(memorisation.request("answer_alone", row)) for row in rows}) == 1
    assert [memorisation.request("with_request", row) for row in rows] == [row["prompt"] for row in rows]


def test_answers_of_both_splits_are_left_out_and_each_counts_once() -> None:
    train = [example("a", "1"), example("b", "2"), example("c", "2"), example("d", "3")]
    test = [example("e", "3"), example("f", "4")]
    talk = [example("g#1", "5") | {"group": "g"}, example("g#2", "6") | {"group": "g"}]
    assert len(memorisation.sample(talk, test, SETTINGS)) == 1
    assert sorted(e["answer"] for e in memorisation.sample(train, test, SETTINGS)) == ["1", "2"]
    assert [e["id"] for e in memorisation.sample(test, train, SETTINGS)] == ["f"]
    assert memorisation.left_out(train, test) == {"rows": 4, "in_both": 1}


def test_more_rows_move_the_sample_only_by_those_that_come_in() -> None:
    rows = [example(f"r{number}", str(number)) for number in range(60)]
    few = replace(SETTINGS, sample=20)
    before = [e["id"] for e in memorisation.sample(rows[:50], [], few)]
    after = [e["id"] for e in memorisation.sample(rows, [], few)]
    assert [name for name in after if int(name[1:]) < 50] == before[: len(before) - len(set(after) - set(before))]
    assert before != [e["id"] for e in memorisation.sample(rows[:50], [], replace(few, seed=2))]


@pytest.mark.parametrize(("low", "word"), [(0.05, "held"), (0.0501, "copied"), (-0.2, "held")])
def test_copied_is_a_whole_interval_beyond_what_is_tolerated(low: float, word: str) -> None:
    assert memorisation.verdict({"difference": {"copied": 0.3, "low": low, "high": 0.5}}, SETTINGS) == word


def test_the_difference_is_training_minus_test_rows() -> None:
    drawn = {"train": [example(str(n), str(n)) for n in range(40)], "test": [example(str(n), "") for n in range(50)]}
    hits = {"train": [True] * 20 + [False] * 20, "test": [True] * 5 + [False] * 45}
    found = memorisation.figures(drawn, hits)
    assert found["difference"]["copied"] == pytest.approx(0.4)
    assert 0.2 < found["difference"]["low"] < 0.4 < found["difference"]["high"] < 0.6
    assert found["copied_ids"] == [str(number) for number in range(20)]


def test_splits_with_the_same_answers_are_refused(here: Path, base: Path) -> None:
    write_rows(here / "train.jsonl", TRAIN)
    options = ["--train", "train.jsonl", "--test", "train.jsonl", "--prefix", "p.json", "--metrics", "m.json"]
    ran = CliRunner().invoke(memorisation.main, [*options, "--base", str(base), "--adapter", "nowhere"])
    assert ran.exit_code == 1
    assert "every train answer occurs in the other split too" in ran.output
