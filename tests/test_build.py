import json
from collections import Counter
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from conftest import SCHEMA, write_rows

from stages import build
from stages.shared import contract, strict_json

RULES = contract.load(SCHEMA)


def row(name: str, *requests: str) -> dict[str, Any]:
    turns = []
    for request in requests:
        answer = {"action": "complete", "title": request}
        turns += [{"role": "user", "content": request}, {"role": "assistant", "content": strict_json.compact(answer)}]
    return {"id": name, "source": f"rows.jsonl:{name}", "turns": turns}


def test_one_example_per_assistant_turn() -> None:
    single, (first, second) = (
        list(build.examples_of(row("a", "x"), RULES)),
        build.examples_of(row("b", "x", "y"), RULES),
    )
    assert [example["id"] for example in single] == ["a"]
    assert (first["id"], second["id"]) == ("b#1", "b#2")
    assert first["group"] == second["group"] == "b"
    assert [turn["content"] for turn in second["prompt"]] == ["x", first["answer"], "y"]
    assert second["kind"] == "complete"


def test_adding_rows_moves_none() -> None:
    rows = [row(f"r{n}", f"request number {n}") for n in range(200)]
    _, before = build.split(rows[:100], 0.2)
    _, after = build.split(rows, 0.2)
    assert 10 <= len(before) <= 30
    assert [r["id"] for r in after if int(r["id"][1:]) < 100] == [r["id"] for r in before]


def test_a_conversation_is_never_divided() -> None:
    train, valid = build.split([row("a", "one", "two"), row("b", "ONE!")], 1.0)
    assert (len(train), len(valid)) == (0, 2)


def kinds_of(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(build.first_kind(row, RULES) for row in rows)


def test_a_subset_keeps_the_mix_and_is_part_of_every_larger_one() -> None:
    rows = [row(f"c{n}", f"done with {n}") for n in range(60)]
    for n in range(30):
        turns = [{"role": "user", "content": f"drop {n}"}, {"role": "assistant", "content": '{"action":"delete"}'}]
        rows.append({"id": f"d{n}", "source": "", "turns": turns})
    small, large = build.subset(rows, 9, RULES), build.subset(rows, 30, RULES)
    assert kinds_of(small) == {"complete": 6, "delete": 3}
    assert kinds_of(large) == {"complete": 20, "delete": 10}
    assert {r["id"] for r in small} < {r["id"] for r in large}
    assert {r["id"] for r in build.subset(rows[::-1], 30, RULES)} == {r["id"] for r in large}
    assert build.subset(rows, None, RULES) == rows


def test_a_subset_of_more_rows_than_there_are_is_refused() -> None:
    with pytest.raises(click.ClickException, match=r"build.train_rows = 3.*2 training rows"):
        build.subset([row("a", "x"), row("b", "y")], 3, RULES)


def test_few_shot_covers_the_kinds_and_does_not_depend_on_order() -> None:
    def shot(kind: str, number: int) -> dict[str, Any]:
        prompt = [{"role": "user", "content": f"{kind} {number}"}]
        return {"id": f"{kind}{number}", "kind": kind, "prompt": prompt, "answer": "{}"}

    examples = [shot(kind, number) for kind in RULES.kinds for number in range(5)]
    chosen = build.few_shot(examples, RULES.kinds, 8)
    assert [example["kind"] for example in chosen] == [*RULES.kinds, *RULES.kinds[:2]]
    assert build.few_shot(examples[::-1], RULES.kinds, 8) == chosen
    assert len(build.few_shot(examples, RULES.kinds, 100)) == len(examples)
    assert build.few_shot([{**shot("a", 1), "kind": ""}], (), 3) != []
    talk = shot("delete", 9)
    told = {**talk, "prompt": [{"role": "system", "content": "be brief"}, *talk["prompt"]]}
    assert build.few_shot([told], ("create",), 3) == [told]
    prefix = build.prefixes(build.Params(0.1, None, 0.0, 1, "zero", "few"), "tuned", {}, [told])["few_shot"]
    assert [turn["role"] for turn in prefix] == ["system", "user", "assistant"]


def run(base: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> Result:
    files = {
        "train": str(write_rows(Path("train.jsonl"), train)),
        "test": str(write_rows(Path("test.jsonl"), test)),
        "schema": str(SCHEMA),
        "base": str(base),
        "out": "chat",
        "metrics": "build.json",
    }
    return CliRunner().invoke(build.main, [part for name, value in files.items() for part in (f"--{name}", value)])


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [row(f"r{n}", f"errand {n}") for n in range(60)]


def test_too_long_rows_are_refused_and_test_rows_never(here: Path, base: Path, rows: list[dict[str, Any]]) -> None:
    long = "word " * 200
    result = run(base, [*rows, row("long", long)], [row("t1", "a test"), row("t2", long)])
    assert result.exit_code == 1
    assert "build.max_refused" in result.output
    assert "rows.jsonl:long: " in result.output
    (refused,) = strict_json.read_jsonl(here / "chat" / "refused.jsonl")
    assert refused["id"] == "long"
    metrics = json.loads((here / "build.json").read_text(encoding="utf-8"))
    assert metrics["train"]["examples"] + metrics["valid"]["examples"] + metrics["refused"] == 61
    assert metrics["test"]["examples"] == 2
    assert metrics["train"]["tokens_longest"] <= 256


def test_prefixes(here: Path, base: Path, rows: list[dict[str, Any]]) -> None:
    run(base, rows, [row("t1", "a test")])
    prefixes = {
        name: json.loads((here / "chat" / "prefix" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("zero_shot", "few_shot", "tuned")
    }
    assert '"oneOf"' in prefixes["zero_shot"][0]["content"]
    assert len(prefixes["zero_shot"]) == len(prefixes["tuned"]) == 1
    assert len(prefixes["few_shot"]) == 1 + 2 * 12
    held_out = {row["id"] for row in strict_json.read_jsonl(here / "chat" / "valid.jsonl")}
    shown = set(json.loads((here / "build.json").read_text(encoding="utf-8"))["few_shot_ids"])
    assert not shown & held_out


def test_no_training_rows_is_an_error(here: Path, base: Path) -> None:
    result = run(base, [], [row("t1", "a test")])
    assert result.exit_code == 1
    assert "train" in result.output
