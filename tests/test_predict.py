"""The stage answers every row of every file, or none where it is switched off."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import SCHEMA, configure, read_json, read_rows, write_rows

from stages import predict
from stages.answers import generate, processes, work
from stages.answers.kept import Kept
from stages.model import chat, loading

COMPLETE = '{"action":"complete","title":"Buy milk"}'
PREFIX: list[chat.Turn] = [{"role": "system", "content": "Answer in JSON."}]


def rows(count: int, answer: str = COMPLETE) -> list[dict[str, Any]]:
    """Each request is shorter than the one before: batches go by length, the file does not."""
    asked = [[{"role": "user", "content": "buy milk" + " again" * (9 - n)}] for n in range(count)]
    return [{"id": f"t{n}", "prompt": prompt, "answer": answer} for n, prompt in enumerate(asked)]


@pytest.fixture
def folder(here: Path) -> Path:
    configure(here, compute={"device": "cpu-fp32"}, predict={"max_new_tokens": 40}, constrained={"enabled": True})
    write_rows(here / "rows.jsonl", rows(3))
    write_rows(here / "more.jsonl", rows(1))
    return here


def run(base: Path, *options: str) -> Result:
    given = ["--model", str(base), "--rows", "rows.jsonl", "--out", "out.jsonl", "--answered", "kept"]
    return CliRunner().invoke(predict.main, [*given, "--timings", "timing.json", *options])


def test_each_file_gets_the_answers_of_its_rows_in_their_order(folder: Path, base: Path) -> None:
    assert run(base, "--rows", "more.jsonl", "--out", "more-out.jsonl").exit_code == 0
    answers, more = read_rows(folder / "out.jsonl"), read_rows(folder / "more-out.jsonl")
    assert [row["id"] for row in answers] == ["t0", "t1", "t2"]
    assert more == answers[:1]
    assert set(more[0]) == {"id", "answer", "prompt_tokens", "answer_tokens", "truncated"}
    timing = read_json(folder / "timing.json")
    assert (timing["answers"], timing["device"]) == (4, "cpu-fp32")


def test_the_prefix_stands_before_each_prompt(folder: Path, base: Path, tokenizer: Any) -> None:
    (folder / "prefix.json").write_text('[{"role": "system", "content": "Answer in JSON."}]', encoding="utf-8")
    run(base, "--prefix", "prefix.json")
    prompts = [chat.prompt_ids(tokenizer, chat.with_prefix(PREFIX, row["prompt"])) for row in rows(3)]
    model = loading.load_model(base, "float32", "cpu")
    expected = generate.answers(model, tokenizer, generate.Params(32, 40), prompts)
    figures = [asdict(answer) | {"answer": answer.text, "id": f"t{n}"} for n, answer in enumerate(expected)]
    assert [row | {"text": row["answer"]} for row in read_rows(folder / "out.jsonl")] == figures


@pytest.mark.parametrize("turns", ['{"role": "system", "content": "x"}', '[{"role": "system"}]'])
def test_a_prefix_of_another_shape_is_named(folder: Path, base: Path, turns: str) -> None:
    (folder / "prefix.json").write_text(turns, encoding="utf-8")
    ran = run(base, "--prefix", "prefix.json")
    assert (ran.exit_code, "prefix.json: a list of turns" in ran.stderr) == (1, True)


def test_answers_are_generated_in_the_type_for_it(folder: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    load = loading.load_model

    def noted(*given: Any) -> Any:
        asked.append(given)
        return load(*given)

    monkeypatch.setattr(loading, "load_model", noted)
    configure(folder, compute={"device": "cpu-bf16"})
    assert (run(base).exit_code, asked) == (0, [(base, "float32", "cpu")])


@pytest.mark.parametrize(
    ("options", "shares", "seconds"),
    [
        ([], [[[2]], [[1]], [[0]]], 6.0),
        (["--processes=2"], [[[2], [0]], [[1]]], 9.0),
        (["--processes=9"], [[[2]], [[1]], [[0]]], 6.0),
    ],
    ids=["own", "told", "more than batches"],
)
def test_processes_share_the_batches_one_for_each_card(
    folder: Path, base: Path, options: list[str], shares: list[Any], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def noted(*given: Any) -> Iterator[tuple[int, generate.Answer]]:
        asked.append(given[-1])
        yield from ((row, generate.Answer("{}", 1, 1, False)) for batch in given[-1] for row in batch)

    configure(folder, compute={"device": "cuda-bf16"}, predict={"batch_size": 1})
    monkeypatch.setattr(generate, "greedy", noted)
    monkeypatch.setattr(loading, "load_model", lambda *_: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr(processes, "run", lambda work, count, *given: [work(n, count, *given) for n in range(count)])
    add = Kept.add
    monkeypatch.setattr(Kept, "add", lambda kept, process, row, _, answer: add(kept, process, row, 6.0, answer))
    assert run(base, *options).exit_code == 0
    assert (asked, read_json(folder / "timing.json")["seconds"]) == (shares, seconds)


def test_rows_that_are_named_twice_are_refused_before_they_are_answered(folder: Path, base: Path) -> None:
    for source, out in (("rows.jsonl", "more-out.jsonl"), ("more.jsonl", "out.jsonl")):
        ran = run(base, "--rows", source, "--out", out)
        assert (ran.exit_code, "each of these once" in ran.output) == (2, True)
    assert run(base, "--rows", "more.jsonl").exit_code == 2


def test_speed_is_answers_and_their_tokens_over_seconds() -> None:
    found = [generate.Answer("{}", 9, 3, False), generate.Answer("{", 9, 4, True)]
    expected = {"answers": 2, "answer_tokens": 7, "seconds": 1.6, "answers_per_second": 1.25, "device": "cpu-fp32"}
    assert predict.speed(found, 1.6, "cpu-fp32") == expected
    assert predict.speed([], 0, "cpu-fp32")["answers_per_second"] == 0


def test_with_a_schema_the_answers_are_held_to_it(folder: Path, base: Path) -> None:
    assert run(base, "--schema", str(SCHEMA)).exit_code == 0
    assert all(row["answer"].startswith('{"action":"') for row in read_rows(folder / "out.jsonl"))


def test_switched_off_nothing_is_answered(folder: Path, base: Path) -> None:
    configure(folder, constrained={"enabled": False})
    result = run(base, "--schema", str(SCHEMA))
    assert (result.exit_code, "switched off" in result.output) == (0, True)
    assert (folder / "out.jsonl").read_bytes() == b""
    assert not (folder / "timing.json").exists()


def test_the_switch_is_not_the_other_systems_business(folder: Path, base: Path) -> None:
    configure(folder, constrained={"enabled": False})
    run(base)
    assert len(read_rows(folder / "out.jsonl")) == 3
    write_rows(folder / "rows.jsonl", [])  # as of a project without behaviour tests
    assert (run(base).exit_code, read_rows(folder / "out.jsonl")) == (0, [])


def test_expected_answers_that_can_not_be_written_are_counted(folder: Path, base: Path) -> None:
    write_rows(folder / "more.jsonl", rows(1, '{"title":"A","action":"complete"}'))
    result = run(base, "--schema", str(SCHEMA), "--rows", "more.jsonl", "--out", "more-out.jsonl")
    assert "1 of 4 expected answers can't be written" in result.output
    loose = {"type": "object", "properties": {"a": {"not": {"const": "a"}}}, "additionalProperties": False}
    write_rows(folder / "loose.json", [loose])
    assert "loose.json: the answers are not held to all of it: " in run(base, "--schema", "loose.json").output


@pytest.mark.parametrize("short", [0, 1])
def test_an_expected_answer_that_does_not_fit_is_refused(folder: Path, base: Path, tokenizer: Any, short: int) -> None:
    needed = len(chat.answer_ids(tokenizer, COMPLETE))
    configure(folder, predict={"max_new_tokens": needed - short})
    result, told = run(base), f"rows.jsonl: t0: the expected answer has {needed}"
    assert (result.exit_code, told in result.output) == (short, short > 0)


def test_a_prompt_beyond_the_context_is_refused(folder: Path, base: Path) -> None:
    most = read_json(base / "config.json")["max_position_embeddings"]
    long = [{"role": "user", "content": "milk " * most}]
    write_rows(folder / "rows.jsonl", [row | {"prompt": long} for row in rows(1)])
    result = run(base)
    assert (result.exit_code, "rows.jsonl: t0: the prompt has " in result.output) == (1, True)
    assert f"room for {most - 40} before the answer" in result.output
    work.check_prompts_fit("rows.jsonl", rows(1), [[5, 6]], 2)  # which is as long as there is room


def test_grounded_answers_need_a_schema_and_blank_rules_ground_none(folder: Path, base: Path) -> None:
    (folder / "rules.yaml").write_text("\n", encoding="utf-8")
    assert run(base, "--grounded", "rules.yaml").exit_code == 2
    assert run(base, "--grounded", "rules.yaml", "--schema", str(SCHEMA)).exit_code == 0
    assert (folder / "out.jsonl").read_bytes() == b""
    for fields in ("title", "[1]"):
        (folder / "rules.yaml").write_text(f"copied_fields: {fields}\n", encoding="utf-8")
        ran = run(base, "--grounded", "rules.yaml", "--schema", str(SCHEMA))
        assert (ran.exit_code, "copied_fields must be a list" in ran.stderr) == (1, True)


def test_copied_fields_hold_words_of_their_own_row(folder: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "rules.yaml").write_text("copied_fields: [title]", encoding="utf-8")
    prompts = [[{"role": "user", "content": text}] for text in ("buy milk", "call Dana")]
    write_rows(folder / "rows.jsonl", [row | {"prompt": said} for row, said in zip(rows(2), prompts, strict=True)])
    held: list[Any] = []

    def noted(*given: Any) -> Iterator[tuple[int, generate.Answer]]:
        *_, masks, chosen = given
        held.append((masks.conversations, masks.fields))
        yield from ((row, generate.Answer("{}", 1, 1, False)) for batch in chosen for row in batch)

    monkeypatch.setattr(generate, "greedy", noted)
    options = ["--schema", str(SCHEMA), "--grounded", "rules.yaml", "--rows", "more.jsonl", "--out", "more-out.jsonl"]
    assert run(base, *options).exit_code == 0
    assert held == [(prompts, ("title",)), ([rows(1)[0]["prompt"]], ("title",))]


def test_the_same_answers_leave_the_timing_as_it_was(folder: Path, base: Path) -> None:
    run(base)
    first = (folder / "timing.json").read_bytes()
    run(base)
    assert (folder / "timing.json").read_bytes() == first
    write_rows(folder / "rows.jsonl", rows(1))
    run(base)
    assert read_json(folder / "timing.json")["answers"] == 1


@pytest.mark.parametrize("line", ["[]", "{}", '{"id": "a", "prompt": [1], "answer": "{}"}'])
def test_a_row_of_another_shape_is_named(folder: Path, base: Path, line: str) -> None:
    (folder / "rows.jsonl").write_text(line + "\n", encoding="utf-8")
    ran = run(base)
    assert (ran.exit_code, "rows.jsonl:1: " in ran.stderr) == (1, True)
