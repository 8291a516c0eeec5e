import hashlib
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result
from conftest import SCHEMA, configure, invoke, read_json, read_rows, write_rows

from stages import build
from stages.answers import generate
from stages.core import params, strict_json
from stages.data import contract, examples, rows
from stages.data.examples import Example
from stages.model import chat

RULES = contract.load(SCHEMA)


def row(name: str, *requests: str, source: str = "data/raw/rows.jsonl") -> build.Conversation:
    turns = []
    for request in requests:
        answer = {"action": "complete", "title": request}
        turns += [{"role": "user", "content": request}, {"role": "assistant", "content": strict_json.compact(answer)}]
    return build.Conversation(name, f"{source}:{name}", turns)


def test_one_example_per_assistant_turn() -> None:
    (single,) = examples.of_turns("a", row("a", "x").turns, RULES)
    first, second = examples.of_turns("b", row("b", "x", "y").turns, RULES)
    assert single.id == "a"
    assert (first.id, second.id) == ("b#1", "b#2")
    assert first.group == second.group == "b"
    assert [turn["content"] for turn in second.prompt] == ["x", first.answer, "y"]
    assert (second.kind, first.turn(), second.turn()) == ("complete", "first", "later")


def test_a_request_is_plain_text_unless_turns_came_before() -> None:
    told = {"role": "system", "content": "be brief"}
    _, later = examples.of_turns("b", [told, *row("b", "x", "y").turns], RULES)
    (first,) = examples.of_turns("a", [told, *row("a", "x").turns], RULES)
    assert first.request() == "x"
    assert later.request() == later.prompt[1:]


def test_a_row_without_an_id_is_known_by_its_content() -> None:
    """These ids stand in files of earlier versions, so how they are made stays."""
    turns = row("", "buy milk").turns
    spaced = [turns[0], turns[1] | {"content": turns[1]["content"].replace(":", ": ")}]
    expected = hashlib.sha256(strict_json.compact(turns).encode()).hexdigest()[:12]
    assert rows.content_id(turns) == rows.content_id(spaced) == expected
    read = rows.Row("f", 1, "", tuple(spaced), "", "")
    assert [examples.of_row(r, RULES)[0].id for r in (read, replace(read, id="own"))] == [expected, "own"]


def test_adding_rows_moves_none() -> None:
    every = [row(f"r{n}", f"request number {n}") for n in range(200)]
    _, before = build.split(every[:100], 0.2)
    _, after = build.split(every, 0.2)
    assert 10 <= len(before) <= 30
    assert [r.id for r in after if int(r.id[1:]) < 100] == [r.id for r in before]


def test_case_and_punctuation_do_not_move_a_row() -> None:
    assert build.position(row("a", "Buy milk!").turns) == build.position(row("b", "buy  milk", "more").turns)
    told = {"role": "system", "content": "be brief"}
    assert build.position([told, *row("c", "buy milk").turns]) == build.position(row("a", "Buy milk!").turns)


def test_a_subset_keeps_the_mix_and_is_part_of_every_larger_one() -> None:
    every = [row(f"c{n}", f"done with {n}") for n in range(60)]
    for n in range(30):
        turns = [{"role": "user", "content": f"drop {n}"}, {"role": "assistant", "content": '{"action":"delete"}'}]
        every.append(build.Conversation(f"d{n}", "", turns))
    small, large = build.subset(every, 9, RULES), build.subset(every, 30, RULES)
    assert [Counter(row.id[0] for row in part) for part in (small, large)] == [{"c": 6, "d": 3}, {"c": 20, "d": 10}]
    assert {r.id for r in small} < {r.id for r in large}
    assert {r.id for r in build.subset(every[::-1], 30, RULES)} == {r.id for r in large}
    assert build.subset(every, None, RULES) == build.subset(every, 90, RULES) == every


def test_a_subset_of_more_rows_than_there_are_is_refused() -> None:
    with pytest.raises(click.ClickException, match=r"build.train_rows = 3.*2 training rows"):
        build.subset([row("a", "x"), row("b", "y")], 3, RULES)


def shot(kind: str, number: int) -> Example:
    return Example(f"{kind}{number}", kind, kind, [{"role": "user", "content": f"{kind} {number}"}], "{}")


def test_few_shot_covers_the_kinds_and_does_not_depend_on_order() -> None:
    every = [shot(kind, number) for kind in RULES.kinds for number in range(5)]
    chosen = build.few_shot(every, RULES.kinds, 8)
    assert [example.kind for example in chosen] == [*RULES.kinds, *RULES.kinds[:2]]
    assert build.few_shot(every[::-1], RULES.kinds, 8) == chosen
    assert len(build.few_shot(every, RULES.kinds, 100)) == len(every)
    assert len(build.few_shot([shot("", 1)], (), 3)) == 1
    places = [build.position(example.prompt) for example in build.few_shot(every[:5], (), 5)]
    assert places == sorted(places)
    said = [*every[0].prompt, {"role": "assistant", "content": "{}"}, {"role": "user", "content": "and that?"}]
    assert len(build.few_shot([*every, replace(every[0], id="later", prompt=said)], RULES.kinds, 100)) == len(every)


def test_a_shown_example_loses_its_own_system_turn() -> None:
    told = replace(shot("delete", 9), prompt=[{"role": "system", "content": "be brief"}, *shot("delete", 9).prompt])
    settings = build.Params(0.1, None, 0.0, 1, "zero", "few")
    prefixes = build.prefixes(settings, "tuned", {}, build.few_shot([told], ("create",), 3))
    assert [turn["role"] for turn in prefixes["few_shot"]] == ["system", "user", "assistant"]
    assert [prefixes[name][0]["content"] for name in ("zero_shot", "few_shot", "tuned")] == ["zero", "few", "tuned"]


def run(base: Path, train: list[build.Conversation], test: list[build.Conversation], schema: Path = SCHEMA) -> Result:
    parts = {"train": train, "test": test}.items()
    files = {name: write_rows(Path(f"{name}.jsonl"), [vars(r) for r in part]) for name, part in parts}
    return invoke(build.main, **files, behaviour="tests", schema=schema, base=base, out="chat", metrics="build.json")


@pytest.fixture
def sound(here: Path) -> list[build.Conversation]:
    return [row(f"r{n}", f"errand {n}") for n in range(60)]


def test_the_bytes_that_training_reads(here: Path, base: Path, sound: list[build.Conversation]) -> None:
    """Another field, order or spelling here trains every clone again."""
    told = {"role": "system", "content": params.load("chat", chat.Params).system}  # in every prompt already
    own = [replace(r, turns=[told, *r.turns]) for r in sound]
    assert run(base, own, [row("t1", "a test", source="data/test/head.jsonl")]).exit_code == 0
    lines = [line for name in ("train", "valid") for line in Path(f"chat/{name}.jsonl").read_text("utf-8").split("\n")]
    assert (
        '{"id":"r7","group":"r7","kind":"complete","prompt":[{"role":"user","content":"errand 7"}],'
        '"answer":"{\\"action\\":\\"complete\\",\\"title\\":\\"errand 7\\"}"}'
    ) in lines
    assert {r.id for r in sound} == {strict_json.parse(line)["id"] for line in lines if line}
    assert read_rows(Path("chat/test.jsonl"))[0]["slice"] == "head"


def test_too_long_rows_are_refused_and_test_rows_never(here: Path, base: Path, sound: list[build.Conversation]) -> None:
    long = "word " * 60
    configure(here, predict={"max_new_tokens": 300})
    held_out = row("held", f"{long}10")  # by its hash
    result = run(base, [*sound, row("long", long, "more"), held_out], [row("t1", "a test"), row("t2", long)])
    assert (result.exit_code, "build.max_refused" in result.output) == (1, True)
    assert "data/raw/rows.jsonl:long: " in result.output
    assert ", 2 test, 3 too long\n" in result.output
    assert [refused["id"] for refused in read_rows(here / "chat" / "refused.jsonl")] == ["long#1", "long#2", "held"]
    counts = read_json(here / "build.json")
    assert counts["train"]["examples"] + counts["valid"]["examples"] + counts["refused"] == 63
    assert counts["test"]["examples"] == 2
    configure(here, chat={"max_length": max(counts[name]["tokens_longest"] for name in ("train", "valid"))})
    assert run(base, sound, [row("t1", "a test")]).exit_code == 0
    counts = read_json(here / "build.json")
    assert counts["train"]["examples"] + counts["valid"]["examples"] == 60, "a row may have all of the length"


def test_the_counts_are_those_of_the_files(here: Path, base: Path, tokenizer: Any) -> None:
    many = [row(f"r{n}", f"errand {n}", *["later"] * (n % 3)) for n in range(40)]
    run(base, many, [row("t1", "a test"), row("t2", "one", "two")])
    prefix = read_json(here / "chat/prefix/tuned.json")
    for name in ("train", "valid", "test"):
        written = read_rows(here / f"chat/{name}.jsonl")
        prompts = [chat.prompt_ids(tokenizer, chat.with_prefix(prefix, line["prompt"])) for line in written]
        tokens = [len(p) + len(chat.answer_ids(tokenizer, e["answer"])) for p, e in zip(prompts, written, strict=True)]
        counts = {"examples": len(written), "groups": len({line["group"] for line in written})}
        counts |= {"tokens": sum(tokens), "tokens_longest": max(tokens)}
        assert read_json(here / "build.json")[name] == counts | {"kinds": {"complete": len(written)}}


@pytest.mark.parametrize(
    ("change", "refused", "limit", "problem"),
    [
        ({}, 1, 0.1, ""),
        ({}, 2, 0.1, "2 of 11 training examples are too long"),
        ({"train": [shot("list", n) for n in range(10, 80)], "valid": [shot("list", 8)]}, 29, 0.29, ""),
        ({"valid": []}, 0, 0.1, "no examples for valid; there are few rows: raise build.valid_share"),
        ({"shots": []}, 0, 0.1, "no examples for few_shot"),
        ({"test": [shot("list", 3)]}, 0, 0.1, "id 'list3' occurs twice, in train and test; ids differ"),
    ],
)
def test_a_result_that_is_not_what_it_says_is_refused(
    change: dict[str, Any], refused: int, limit: float, problem: str
) -> None:
    parts = {"train": [shot("list", n) for n in range(8)], "valid": [shot("list", 8)], "test": [shot("list", 9)]}
    parts |= {"shots": parts["train"]} | change
    shots = parts.pop("shots")
    with pytest.raises(click.ClickException, match=problem) if problem else nullcontext():
        build.check_result(parts, shots, refused, limit)


@pytest.mark.parametrize(
    ("own", "left"),
    [("Be kind.", []), ("Be kind.\nBe brief.", ["Be brief."]), ("Be kind. Be brief.", ["Be kind. Be brief."])],
)
def test_what_every_prompt_begins_with_is_not_trained_on_twice(own: str, left: list[str]) -> None:
    turns = [{"role": "system", "content": own}, *row("a", "x").turns]
    rest = chat.without("Be kind.", turns)
    assert [turn["content"] for turn in rest if turn["role"] == "system"] == left
    assert rest[-2:] == row("a", "x").turns


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"predict": {"max_new_tokens": 3}}, "valid: r8: the expected answer has "),
        ({"build": {"zero_shot_instructions": "{schema} " * 30}}, "test, zero_shot: t1: the prompt has "),
        ({"chat": {"system": ""}}, "chat.system is empty"),
    ],
)
def test_what_predict_would_refuse_is_refused_before_the_training(
    here: Path, base: Path, sound: list[build.Conversation], change: dict[str, Any], problem: str
) -> None:
    configure(here, **change)
    ran = run(base, sound, [row("t1", "a test")])
    assert (ran.exit_code, problem in ran.output) == (1, True), ran.output


def test_a_behaviour_test_beyond_the_context_is_refused_before_the_training(
    here: Path, base: Path, sound: list[build.Conversation]
) -> None:
    write_rows(here / "tests/invariance-long.jsonl", [{"id": "i1", "instruction": "milk " * 2500, "variant": "milk"}])
    ran = run(base, sound, [row("t1", "a test")])
    context = read_json(base / "config.json")["max_position_embeddings"]
    assert "behaviour, tuned: i1: the prompt has " in ran.output
    assert f"room for {context - params.load('predict', generate.Params).max_new_tokens}" in ran.output


def test_a_schema_that_no_grammar_can_hold_is_refused_before_the_training(
    here: Path, base: Path, sound: list[build.Conversation]
) -> None:
    own = {"properties": {"title": {"type": "string", "pattern": "^(?!x)"}}}
    (here / "own.json").write_text(strict_json.compact(own), encoding="utf-8")
    ran = run(base, sound, [row("t1", "a test")], here / "own.json")
    assert (ran.exit_code, "constrained.enabled: false" in ran.output) == (1, True), ran.output
    configure(here, constrained={"enabled": False})
    assert run(base, sound, [row("t1", "a test")], here / "own.json").exit_code == 0


def test_prefixes(here: Path, base: Path, sound: list[build.Conversation]) -> None:
    run(base, sound, [row("t1", "a test")])
    prefixes = {name: read_json(here / f"chat/prefix/{name}.json") for name in ("zero_shot", "few_shot", "tuned")}
    assert strict_json.compact(read_json(SCHEMA)) in prefixes["zero_shot"][0]["content"]
    assert len(prefixes["zero_shot"]) == len(prefixes["tuned"]) == 1
    assert len(prefixes["few_shot"]) == 1 + 2 * 12
    held_out = {row["id"] for row in read_rows(here / "chat" / "valid.jsonl")}
    assert not held_out & set(read_json(here / "build.json")["few_shot_ids"])


def test_the_knobs_of_the_stage(here: Path, base: Path, sound: list[build.Conversation]) -> None:
    knobs = {"valid_share": 0.5, "train_rows": 7, "max_refused": 1.0, "few_shot_examples": 3}
    configure(here, build=knobs, chat={"max_length": 90}, contract={"discriminator": "title"})
    assert run(base, [*sound, row("long", "word " * 200)], [row("t1", "a test")]).exit_code == 0
    counts = read_json(here / "build.json")
    assert (counts["train"]["examples"] + counts["refused"], len(counts["few_shot_ids"])) in ((7, 3), (8, 3))
    assert 20 <= counts["valid"]["examples"] <= 40
    assert counts["train"]["tokens_longest"] <= 90
    assert counts["test"]["kinds"] == {"a test": 1}


def test_the_requests_of_behaviour_tests_are_built_too(here: Path, base: Path, sound: list[build.Conversation]) -> None:
    case: dict[str, Any] = {"id": "i1", "instruction": "Buy milk", "variant": "buy milk"}
    write_rows(here / "tests" / "invariance-case.jsonl", [case])
    assert run(base, sound, [row("t1", "a test")]).exit_code == 0
    asked = read_rows(here / "chat" / "behaviour.jsonl")
    told = [(row["id"], row["prompt"][0]["content"]) for row in asked]
    assert told == [("i1", "Buy milk"), ("i1~variant", "buy milk")]
