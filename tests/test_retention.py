"""What the model kept: likelihoods by hand, an adapter that is really off, bad rows by line, and the verdict."""

import json
import math
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import ROOT, write_rows

from stages import retention
from stages.shared import model, params
from tools.reporting import kept

FP32 = model.DEVICES["cpu-fp32"]
SETTINGS = retention.Params("cpu-fp32", 500, 1, 0.1, 2.0)
ITEMS: list[dict[str, Any]] = [
    {"id": "q1", "kind": "fact", "question": "Where does milk come from?", "options": ["Cows", "A well"], "answer": 0},
    {"id": "q2", "kind": "arithmetic", "question": "What is 2 + 2?", "options": ["3", "44", "4", "5"], "answer": 2},
    {
        "id": "q3",
        "kind": "fact",
        "question": "Is snow cold?",
        "options": ["No", "Yes, it is", "It is warm"],
        "answer": 1,
    },
]
TEXT = [
    {"id": "d1", "text": "The boat came in late, and nobody was there to meet it."},
    {"id": "d2", "text": "Bread needs flour, water, salt and time."},
    {"id": "d3", "text": "Rain, and then more of it."},
]


@pytest.fixture(scope="module")
def network(base: Path) -> Any:
    return model.load_for_generation(base, None, FP32)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the model says, with the record of what it was made from."""
    import torch
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trained = get_peft_model(model.load_quantised(base, FP32), lora)
    torch.manual_seed(0)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.3
    trained.save_pretrained(folder)
    (folder / "made_from.json").write_text('{"adapter": "a", "base": "b"}', encoding="utf-8")
    return folder


def queries(tokenizer: Any, folder: Path) -> list[retention.Query]:
    items = retention.read(write_rows(folder / "items.jsonl", ITEMS), retention.Item)
    documents = retention.read(write_rows(folder / "text.jsonl", TEXT), retention.Document)
    return [
        *(retention.question(tokenizer, item) for item in items),
        *(retention.document(tokenizer, row) for row in documents),
    ]


def by_hand(network: Any, context: list[int], continuation: list[int]) -> float:
    """One sequence at a time, nothing padded and nothing shared."""
    import torch

    with torch.inference_mode():
        spread = network(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
    return sum(float(spread[len(context) - 1 + step, token]) for step, token in enumerate(continuation))


def test_likelihoods_are_those_of_each_continuation_on_its_own(network: Any, tokenizer: Any, tmp_path: Path) -> None:
    asked = queries(tokenizer, tmp_path)
    expected = [[by_hand(network, query.context, part) for part in query.continuations] for query in asked]
    found = retention.likelihoods(network, asked, "test")
    assert [len(part) for part in found] == [2, 4, 3, 1, 1, 1]
    assert [s for part in found for s in part] == pytest.approx([s for part in expected for s in part], abs=1e-4)


def test_a_question_is_one_user_turn_without_our_system_prompt(tokenizer: Any) -> None:
    query = retention.question(tokenizer, retention.Item("q", "fact", "Is it?", ("Yes", "No"), 0))
    said = tokenizer.decode(query.context)
    assert said == (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
        "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [tokenizer.decode(part) for part in query.continuations] == ["Yes", "No"]


def test_the_highest_likelihood_per_byte_wins() -> None:
    items = [retention.Item("q", "fact", "?", ("ab", "abcd", "é"), 1), retention.Item("r", "fact", "?", ("a", "b"), 1)]
    found = retention.result(items, [[-3.0, -4.0, -2.2], [-1.0, -1.0], [-7.0]])
    assert (found.chosen, found.right, found.nats) == ([1, 0], [True, False], [7.0])


def test_perplexity_is_per_token_and_bits_per_byte() -> None:
    items = [retention.Item("q", "fact", "?", ("a", "b"), 0)]
    found = retention.figures(items, retention.Result([0], [True], [6.0, 2.0]), [3, 1], 16)
    assert found["perplexity"] == pytest.approx(math.exp(2.0))
    assert found["bits_per_byte"] == pytest.approx(8.0 / math.log(2) / 16)
    assert found["kinds"]["fact"]["n"] == 1


def test_an_adapter_that_is_off_is_not_there_and_one_that_is_on_is(
    base: Path, adapter: Path, tokenizer: Any, tmp_path: Path
) -> None:
    asked = queries(tokenizer, tmp_path)
    found = retention.ask_all(base, adapter, FP32, list("123456"), asked)
    merged = model.load_for_generation(base, adapter, FP32)
    assert found["tuned"] == retention.likelihoods(merged, asked, "test")
    assert found["tuned"] != found["adapter_off"] != found["base"]


def test_a_base_that_was_changed_under_the_adapter_is_found_out(
    base: Path, adapter: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    attach = PeftModel.from_pretrained

    def meddle(network: Any, folder: Path) -> Any:
        network.model.layers[1].mlp.up_proj.weight.data[3, 3] += 1e-2
        return attach(network, folder)

    monkeypatch.setattr(PeftModel, "from_pretrained", meddle)
    with pytest.raises(ValueError, match="6 of 6 rows are scored otherwise than by the same base without it, q1 the"):
        retention.ask_all(base, adapter, FP32, ["q1", *"23456"], queries(tokenizer, tmp_path))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ITEMS[0] | {"hint": "cow"}, "hint: Unexpected keyword argument"),
        ({key: value for key, value in ITEMS[0].items() if key != "kind"}, "kind: "),
        (ITEMS[0] | {"id": "q9", "answer": 2}, "answer 2 is none of the 2 options"),
        (ITEMS[0] | {"id": "q9", "answer": -1}, "answer: Input should be greater than or equal to 0"),
        (ITEMS[0] | {"id": "q9", "answer": "0"}, "answer: Input should be a valid integer"),
        (ITEMS[0] | {"id": "q9", "answer": True}, "answer: Input should be a valid integer"),
        (ITEMS[0] | {"id": "q9", "options": ["Cows", "Cows"]}, "two options are equal"),
        (ITEMS[0] | {"id": "q9", "options": ["Cows"]}, "options: "),
        (ITEMS[0] | {"id": "q9", "options": ["Cows", ""]}, "options.1: "),
        (ITEMS[0] | {"id": "q9", "question": ""}, "question: "),
        (ITEMS[0], "id 'q1' occurs twice"),
        (["q9"], ""),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_reason(tmp_path: Path, row: Any, reason: str) -> None:
    file = write_rows(tmp_path / "items.jsonl", [*ITEMS, row])
    with pytest.raises(click.ClickException) as caught:
        retention.read(file, retention.Item)
    assert caught.value.message.startswith(f"{file}:4: ")
    assert reason in caught.value.message


def test_the_first_tokens_of_a_paragraph_are_given_and_not_scored(tokenizer: Any) -> None:
    text = TEXT[0]["text"]
    query = retention.document(tokenizer, retention.Document("d1", text))
    assert len(query.context) == 1 + retention.CONTEXT
    assert tokenizer.decode([*query.context[1:], *query.continuations[0]]) == text
    with pytest.raises(ValueError, match=r"d9: \d tokens; a paragraph needs more than 8"):
        retention.document(tokenizer, retention.Document("d9", "Oh."))


def test_guessing_at_random_is_lost_by_the_limits_as_shipped() -> None:
    shipped = params.load("retention", retention.Params, ROOT / "params.yaml")
    items = [retention.Item(str(number), "fact", "?", ("a", "b", "c", "d"), 0) for number in range(180)]
    before = retention.Result([0] * 180, [number % 12 < 5 for number in range(180)], [1.0])
    after = retention.Result([0] * 180, [number % 4 == 0 for number in range(180)], [1.0])
    assert retention.lost(retention.change(items, before, after, [1], shipped), shipped)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows"):
        retention.read(write_rows(tmp_path / "text.jsonl", []), retention.Document)


def test_a_document_longer_than_the_model_reads_is_named() -> None:
    asked = [retention.Query([1], [[2] * 9]), retention.Query([1], [[2] * 10])]
    retention.check_length(["d1", "d2"], asked, 11)
    with pytest.raises(ValueError, match="d2: 11 tokens, and the model reads 10"):
        retention.check_length(["d1", "d2"], asked, 10)


@pytest.mark.parametrize(
    ("high", "ratio_low", "count"), [(-0.1, 2.0, 0), (-0.1001, 2.0, 1), (-0.1, 2.001, 1), (-0.2, 3.0, 2), (0.1, 0.5, 0)]
)
def test_lost_is_a_whole_interval_beyond_what_is_tolerated(high: float, ratio_low: float, count: int) -> None:
    changed = {"accuracy": -0.3, "low": -0.5, "high": high}
    ratio = {"perplexity_ratio": 3.5, "perplexity_ratio_low": ratio_low, "perplexity_ratio_high": 4.0}
    assert len(retention.lost(changed | ratio, SETTINGS)) == count


def test_a_change_is_paired_by_row() -> None:
    items = [retention.Item(str(number), "fact", "?", ("a", "b"), 0) for number in range(40)]
    before = retention.Result([0] * 40, [True] * 40, [10.0, 20.0, 30.0])
    after = retention.Result([0] * 40, [False] * 10 + [True] * 30, [20.0, 30.0, 40.0])
    found = retention.change(items, before, after, [10, 10, 10], SETTINGS)
    assert found["accuracy"] == -0.25
    assert found["low"] < -0.25 < found["high"] < 0
    assert found["p_value"] == pytest.approx(2 / 2**10)
    assert [found[f"perplexity_ratio{end}"] for end in ("", "_low", "_high")] == pytest.approx([math.e] * 3)


def test_the_stage_writes_the_same_figures_twice_and_a_line_per_question(here: Path, base: Path, adapter: Path) -> None:
    files = {"items": "items.jsonl", "text": "text.jsonl", "base": str(base), "adapter": str(adapter)}
    files |= {"metrics": "metrics/retention.json", "outcomes": "outcomes.jsonl"}
    write_rows(here / "items.jsonl", ITEMS)
    write_rows(here / "text.jsonl", TEXT)
    written = []
    for _ in range(2):
        options = [part for name, value in files.items() for part in (f"--{name}", value)]
        ran = CliRunner().invoke(retention.main, options, catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        written.append((here / "metrics" / "retention.json").read_bytes())
    assert written[0] == written[1]
    found = json.loads(written[0])
    assert {found[name]["n"] for name in ("base", "adapter_off", "tuned", "tuned_over_base")} == {3}
    assert found["verdict"] in ("held", "lost")
    assert {"items", "text", "adapter", "base"} <= set(found["computed_from"])
    sides, problems = kept.between(here, here)
    assert problems == []
    assert (sides["retention"]["after"] or {})["tuned"] == found["tuned"]["accuracy"]
    lines = [json.loads(line) for line in (here / "outcomes.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["id"] for line in lines] == ["q1", "q2", "q3"]
    assert all(line["tuned"]["right"] == (line["tuned"]["chosen"] == line["answer"]) for line in lines)
