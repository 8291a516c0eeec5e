"""The experiments spoil, subset and rank what they say they do; what they measured is on show as it was measured."""

import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest
import toy
from conftest import ROOT, SCHEMA

from experiments import canaries, chain, learning_curve, page, ten_times
from stages import build, train
from stages.shared import contract, hashes, model, params, strict_json, writing
from tools import history

RULES = contract.load(SCHEMA)
PAGE = ROOT / "docs" / "experiments.md"


def row(number: int) -> dict[str, Any]:
    answer = {"action": "complete", "title": f"Thing {number}"}
    turns = [
        {"role": "user", "content": f"finished thing number {number}"},
        {"role": "assistant", "content": strict_json.compact(answer)},
    ]
    return {"id": f"r{number}", "source": "", "kind": "complete", "turns": turns}


ROWS = [row(number) for number in range(40)]


def request(found: dict[str, Any]) -> str:
    return str(found["turns"][0]["content"])


def test_each_size_is_trained_for_the_same_epochs_and_for_enough_steps() -> None:
    series = learning_curve.points((50, 800), epochs=3, batch=8)
    sizes = {name: [(point.rows, point.epochs) for point in part] for name, part in series.items()}
    assert sizes == {
        "same epochs": [(50, 3), (800, 3), (None, 3)],
        "enough steps": [(50, 24), (800, 3), (None, 3)],
    }


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.isolate(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    toy.run(tmp_path, "git", "init", "--quiet")
    (tmp_path / "a.txt").write_text("a")
    toy.commit(tmp_path, "first")
    return tmp_path


def experiment(repository: Path, name: str, epochs: int, rate: float) -> str:
    """A commit with the dvc.lock of an experiment, and the ref that DVC would give it."""
    stages: dict[str, Any] = {stage: {"deps": [{"path": "data/raw", "md5": "a"}]} for stage in learning_curve.MAKING}
    stages["train"]["params"] = {"params.yaml": {"train": {"epochs": epochs, "learning_rate": rate}}}
    writing.write_json(repository / "dvc.lock", {"stages": stages})
    toy.commit(repository, name)
    made = toy.run(repository, "git", "rev-parse", "HEAD").strip()
    toy.run(repository, "git", "update-ref", f"refs/exps/ab/cdef/{name}", made)
    return made


def test_an_experiment_is_found_by_its_whole_name_and_its_recipe(repository: Path) -> None:
    experiment(repository, "curve-100-rows-3-epochs", 3, 0.5)
    made = experiment(repository, "curve-50-rows-9-epochs", 9, 0.1)
    experiment(repository, "other", 3, 0.1)
    assert learning_curve.found("curve-50-rows-9-epochs") == made
    assert learning_curve.found("50-rows-9-epochs") is None
    assert learning_curve.found("curve-100-rows-3-epochs") is None


def test_uncommitted_changes_do_not_enter_an_experiment(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "is_recorded", lambda commit: True)
    learning_curve.require_clean()
    (repository / "a.txt").write_text("b")
    with pytest.raises(click.ClickException, match="uncommitted changes"):
        learning_curve.require_clean()


def test_the_dose_is_spoiled_in_equal_shares_and_no_row_is_lost() -> None:
    spoiled = ten_times.messy(ROWS, 0.5)
    ways = Counter(way for way, _ in spoiled)
    assert ways == {"clean": 20} | {way.__name__: 4 for way in ten_times.RECIPE}
    assert [found["id"] for _, found in spoiled] == [found["id"] for found in ROWS]
    assert all(found is whole for (way, found), whole in zip(spoiled, ROWS, strict=True) if way == "clean")
    assert ten_times.messy(ROWS, 0.5) == spoiled


def test_label_noise_is_sound_json_of_another_row() -> None:
    found = ten_times.label_noise(ROWS[0], ROWS, random.Random(1))  # noqa: S311
    assert request(found) == request(ROWS[0])
    assert ten_times.answer_of(found) in {ten_times.answer_of(other) for other in ROWS[1:]}


def test_a_conflict_asks_what_another_row_asks_and_answers_otherwise() -> None:
    found = ten_times.conflict(ROWS[0], ROWS[1:], random.Random(1))  # noqa: S311
    (twin,) = (other for other in ROWS if request(other) == request(found))
    assert ten_times.answer_of(twin) != ten_times.answer_of(found)


@pytest.mark.parametrize("seed", range(9))
def test_inconsistent_keys_break_the_contract_but_not_json(seed: int) -> None:
    found = ten_times.inconsistent_keys(ROWS[0], ROWS, random.Random(seed))  # noqa: S311
    assert RULES.error(strict_json.parse(ten_times.answer_of(found))) is not None


def test_single_quotes_are_not_json() -> None:
    found = ten_times.single_quotes(ROWS[0], ROWS, random.Random(1))  # noqa: S311
    with pytest.raises(strict_json.JsonError):
        strict_json.parse(ten_times.answer_of(found))


def test_a_near_duplicate_has_two_letters_of_the_request_exchanged() -> None:
    found = ten_times.near_duplicate(ROWS[0], ROWS[1:], random.Random(1))  # noqa: S311
    assert request(found) not in {request(other) for other in ROWS}
    twins = [other for other in ROWS if sorted(request(other)) == sorted(request(found))]
    assert ten_times.answer_of(found) in {ten_times.answer_of(twin) for twin in twins}


def test_the_gate_is_counted_by_what_was_done() -> None:
    spoiled = [("clean", ROWS[0]), ("clean", ROWS[1]), ("conflict", ROWS[2])]
    counts = ten_times.kept_by_way(spoiled, [ROWS[1]])
    assert counts == {"clean": {"rows": 2, "kept": 1}, "conflict": {"rows": 1, "kept": 0}}


def test_no_canary_is_ranked_among_codes_that_were_planted() -> None:
    planted = canaries.canaries()
    codes = {canary.code for canary in planted}
    assert len(codes) == len({canary.before for canary in planted}) == len(planted) == 48
    for canary in planted:
        others = canaries.decoys(canary, planted)
        assert len(set(others)) == canaries.CODES - 1
        assert not codes & set(others)


def test_only_a_code_that_was_said_stands_in_the_request() -> None:
    for canary in canaries.canaries():
        request, answer = (turn["content"] for turn in canary.turns())
        assert (canary.code in request) == (canary.kind == "said")
        assert RULES.error(strict_json.parse(answer)) is None
        assert canary.code in answer


def test_the_first_of_256_is_worth_8_bits_and_the_last_none() -> None:
    assert canaries.exposure([-1.0, *[-2.0] * 255]) == 8
    assert canaries.exposure([-2.0, *[-1.0] * 255]) == 0
    assert canaries.exposure([-1.0] * 256) == 0


def test_a_canary_is_asked_for_at_the_code(tokenizer: Any) -> None:
    canary = canaries.canaries()[0]
    asked = canaries.query(tokenizer, [], canary, "answer_alone", ["000000"])
    assert tokenizer.decode(asked.context).endswith(canary.before)
    assert [tokenizer.decode(ids) for ids in asked.continuations] == [canary.code, "000000"]


def test_a_model_that_saw_no_canary_knows_none(
    base: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model

    quantised = model.load_quantised(base, model.DEVICES["cpu-fp32"])
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(quantised, lora).save_pretrained(tmp_path / "adapter")
    writing.write_json(tmp_path / "prefix.json", [{"role": "system", "content": "Answer in JSON."}])
    monkeypatch.setattr(chain, "BASE", base)
    monkeypatch.setattr(chain, "PREFIX", tmp_path / "prefix.json")
    monkeypatch.setattr(canaries, "CODES", 16)
    planted = canaries.canaries()
    for found in canaries.ask(tmp_path / "adapter", planted).values():
        cells = canaries.figures(planted, found)
        bits = [cell["exposure"] for part in cells.values() for cell in part.values()]
        assert 0 < sum(bits) / len(bits) < 3
        assert {cell["n"] for part in cells.values() for cell in part.values()} == {canaries.EACH}
        assert not any(known.extracted or known.recited for known in found)


def test_what_is_made_of_other_rows_params_or_base_is_made_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "of_folder", lambda base: "base")
    chain.prepare(here / "run", {"train.epochs": 2})
    writing.write_jsonl(here / "run" / "train.jsonl", [])
    settings = asdict(params.load("train", train.Params, here / "run" / "params.yaml"))
    made_from = {"train": hashes.of_file(here / "run" / "train.jsonl"), "params": settings, "base": "base"}
    writing.write_json(here / "run" / "metrics.json", {})
    writing.write_json(here / "run" / "adapter" / "made_from.json", made_from)
    assert chain.is_made(here / "run")
    chain.prepare(here / "run", {"train.epochs": 3})
    assert not chain.is_made(here / "run")


def test_rows_that_the_pipeline_would_build_become_the_same_examples() -> None:
    talk = ROWS[0] | {"turns": [*ROWS[0]["turns"], *ROWS[1]["turns"]]}
    for whole in (ROWS[0], talk):
        by_hand = [(e["prompt"], e["answer"], e["group"]) for e in chain.examples([whole])]
        assert by_hand == [(e["prompt"], e["answer"], e["group"]) for e in build.examples_of(whole, RULES)]


def test_the_page_has_the_committed_figures() -> None:
    document = PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in document for name in page.PARTS)
    assert page.written(document, ROOT / page.FOLDER) == document, "run: python -m experiments.page docs/experiments.md"
