"""What the model memorised: an overfitted model is noticed, an untrained one is not; which answers are asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import configure, invoke, read_json, write_rows
from taught import PREFIX, save, teach

from stages import memorisation
from stages.core import hashes
from stages.data.examples import Example
from stages.memorisation import Params
from stages.model import chat, loading
from tools import table

SECRETS = ("zebra 7714 quartz", "mauve tin opener", "Old Kent Road 38b")


def row(name: str, answer: str, request: str = "as before", group: str = "") -> Example:
    return Example(name, group or name, "note", [{"role": "user", "content": request}], answer)


def secret(number: int, words: str) -> Example:
    return row(f"r{number}", json.dumps({"n": number, "title": words}, separators=(",", ":")), f"note {number}")


TRAIN = [secret(number, words) for number, words in enumerate(SECRETS)]
TEST = [secret(number, words[::-1]) for number, words in enumerate(SECRETS, start=5)]


def run(merged: Path, test: list[Example] = TEST) -> Result:
    files = {"metrics": "m.json", "detail": "d.json", "merged": merged}
    files |= {"train": write_rows(Path("train.jsonl"), [example.line() for example in TRAIN])}
    return invoke(memorisation.main, test=write_rows(Path("test.jsonl"), [e.line() for e in test]), **files)


def written(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return read_json(folder / "m.json"), read_json(folder / "d.json")


def test_a_model_that_recites_its_training_rows_breaks_the_limit(here: Path, base: Path, tokenizer: Any) -> None:
    model = loading.load_model(base, "float32", "cpu")
    silent = [*PREFIX, {"role": "user", "content": ""}]
    prompt = chat.prompt_ids(tokenizer, silent)
    answers = [chat.answer_ids(tokenizer, example.answer) for example in TRAIN]
    teach(model, [(prompt + ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in answers])
    save(model, loading.load_tokenizer(base), here / "merged")
    configure(here, memorisation={"sample": 3, "tolerated": 0.1})
    assert run(here / "merged").exit_code == 0
    metrics, detail = written(here)
    assert metrics == {"extracted_train": 1.0, "extracted_test": 0.0, "extracted_difference": 1.0}
    (limit,) = detail["limits"]
    assert (limit["value"], limit["limit"], limit["n"], limit["holds"]) == (1.0, 0.1, 3, False)
    assert sorted(detail["without_request"]["extracted_ids"]) == ["r0", "r1", "r2"]
    assert detail["without_request"]["train"]["extracted"] == 1.0
    assert not any(words in json.dumps(detail) for words in SECRETS)
    read = {name: hashes.of_file(here / f"{name}.jsonl") for name in ("train", "test")}
    assert read.items() <= detail["computed_from"].items()


def test_the_limit_is_on_those_without_their_request(here: Path, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def extract(model: Any, tokenizer: Any, way: str, examples: list[Example]) -> list[bool]:
        return [way == "with_request" and example in TRAIN for example in examples]

    monkeypatch.setattr(memorisation, "extract", extract)
    assert run(merged).exit_code == 0
    metrics, detail = written(here)
    assert metrics == {"extracted_train": 0.0, "extracted_test": 0.0, "extracted_difference": 0.0}
    assert detail["limits"][0]["value"] == 0.0
    assert detail["with_request"]["difference"]["extracted"] == 1.0


@pytest.mark.parametrize(("way", "said"), [("with_request", "buy milk"), ("without_request", "")])
@pytest.mark.parametrize("answer", ["{}", '{"title":"one"}', '{"title":"one more"}'])
def test_the_first_half_is_given_and_the_rest_asked_for(tokenizer: Any, answer: str, way: str, said: str) -> None:
    prompt = chat.prompt_ids(tokenizer, [{"role": "user", "content": said}])
    query = memorisation.query(tokenizer, way, row("a", answer, "buy milk"))
    (rest,) = query.continuations
    given = query.context[len(prompt) :]
    assert query.context[: len(prompt)] == prompt
    assert given + rest == chat.answer_ids(tokenizer, answer)
    assert len(given) - (len(rest) - 1) in (0, 1)


def test_answers_of_both_splits_are_left_out_and_each_counts_once() -> None:
    train = [row("a", "1"), row("b", "2"), row("c", "2"), row("d", "3")]
    talk = [row("g#1", "5", group="g"), row("g#2", "6", group="g")]
    assert sorted(example.answer for example in memorisation.draw(train, {"3", "4"})) == ["1", "2"]
    assert len(memorisation.draw(talk, set())) == 1


def test_the_splits_are_compared_on_answers_of_the_same_shape() -> None:
    """Defaults that both splits use are a shape; a title, or a value of one split only, is not."""
    plain, rare = '{"title":"%s","priority":"medium"}', '{"title":"%s","priority":"low"}'
    train = [*(row(f"p{n}", plain % f"a{n}") for n in range(5)), row("r", rare % "b"), row("o", rare % "b2")]
    test = [row("x", rare % "c"), row("y", plain % "d"), row("z", '{"title":"e","priority":"high"}')]
    found = memorisation.alike(train, test, 9)
    assert [[example.id for example in part] for part in found] == [["p0", "r"], ["x", "y"]]
    assert [[example.id for example in part] for part in memorisation.alike(train, test, 1)] == [["r"], ["x"]]


def test_what_was_left_out_is_counted(here: Path, merged: Path) -> None:
    configure(here, memorisation={"sample": 1})
    assert run(merged, [*TEST, TRAIN[0]]).exit_code == 0
    detail = written(here)[1]
    assert detail["left_out"] == {"train": {"rows": 3, "in_both": 1}, "test": {"rows": 4, "in_both": 1}}
    assert [detail["with_request"][split]["n"] for split in ("train", "test")] == [1, 1]


def test_more_rows_move_the_sample_only_by_those_that_come_in() -> None:
    rows = [row(f"r{number}", str(number)) for number in range(60)]
    before = [example.id for example in memorisation.draw(rows[:50], set())[:20]]
    after = [example.id for example in memorisation.draw(rows[::-1], set())[:20]]
    old = [name for name in after if int(name[1:]) < 50]
    assert len(before) == 20
    assert 0 < len(old) < 20
    assert old == before[: len(old)]


def test_the_difference_is_training_minus_test_rows() -> None:
    sample = [row(str(number), "") for number in range(40)]
    way = memorisation.figures([True] * 24 + [False] * 16, [True] * 5 + [False] * 45, sample)
    limit = memorisation.judge(way, Params(sample=50, tolerated=0.25))
    assert limit.value == pytest.approx(0.5)
    assert (limit.limit, limit.n, way["test"]["n"]) == (0.25, 40, 50)
    assert 0.25 < limit.low < 0.5 < limit.high < 0.75
    assert way["extracted_ids"] == [str(number) for number in range(20)]


def test_a_task_of_few_answers_has_nothing_to_compare(here: Path, merged: Path) -> None:
    assert run(merged, TRAIN).exit_code == 0
    metrics, detail = written(here)
    assert (metrics, detail["limits"], detail["left_out"]["train"]) == ({}, [], {"rows": 3, "in_both": 3})
    assert "Nothing to compare" in table.memorised(detail)[0]
