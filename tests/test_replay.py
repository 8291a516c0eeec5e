"""The stage that lets the base model answer general prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import configure, invoke, read_rows, write_rows

from stages import replay

PROMPTS = [{"id": f"p{number}", "prompt": f"Say {number} words."} for number in range(3)]


def run(here: Path, base: Path, **settings: int) -> list[dict[str, Any]]:
    configure(here, compute={"device": "cpu-fp32"}, replay={"prompts": 3, "max_new_tokens": 5, "seed": 1} | settings)
    result = invoke(replay.main, prompts=write_rows(here / "prompts.jsonl", PROMPTS), base=base, out="replay.jsonl")
    assert result.exit_code == 0, result.output
    return read_rows(here / "replay.jsonl")


def test_a_row_has_the_prompt_alone_and_an_answer_of_so_many_tokens(here: Path, base: Path, tokenizer: Any) -> None:
    rows = run(here, base)
    assert [(row["id"], row["prompt"]) for row in rows] == [
        (one["id"], [{"role": "user", "content": one["prompt"]}]) for one in PROMPTS
    ]
    assert all(row["answer"] and isinstance(row["truncated"], bool) for row in rows)
    assert all(len(tokenizer.encode(row["answer"])) <= 5 for row in run(here, base, max_new_tokens=1))
    assert all(row["truncated"] is bool(row["answer"]) for row in run(here, base, max_new_tokens=1))


def test_the_seed_decides_what_is_drawn(here: Path, base: Path) -> None:
    first, again, other = run(here, base), run(here, base), run(here, base, seed=2)
    assert first == again
    assert [row["answer"] for row in first] != [row["answer"] for row in other]


def test_tokens_are_drawn_by_their_probabilities() -> None:
    import torch

    chances = torch.tensor([0.7, 0.2, 0.1])
    mask = replay.Sampled(torch.Generator().manual_seed(0))
    drawn = mask(None, chances.log().expand(20_000, 3)).argmax(-1)
    assert (drawn.bincount() / 20_000).tolist() == pytest.approx(chances.tolist(), abs=0.01)  # 3 standard errors


def test_as_many_prompts_as_the_params_say(here: Path, base: Path) -> None:
    assert [row["id"] for row in run(here, base, prompts=2)] == ["p0", "p1"]


def test_none_needs_no_model(here: Path) -> None:
    assert run(here, here / "absent", prompts=0) == []


def test_a_broken_prompt_is_named(here: Path, base: Path) -> None:
    (here / "prompts.jsonl").write_text(json.dumps({"id": "p", "prompt": ""}) + "\n", encoding="utf-8")
    result = invoke(replay.main, prompts="prompts.jsonl", base=base, out="replay.jsonl")
    assert (result.exit_code, "prompts.jsonl:1: prompt" in result.stderr) == (1, True)
    assert not (here / "replay.jsonl").exists()
