"""The label check catches wrong masks, and training twice gives the same bytes."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import write_rows

from stages import train
from stages.shared import hashes, packed

PREFIX = [{"role": "system", "content": "Answer in JSON."}]


def example(number: int) -> dict[str, Any]:
    said = f"task number {number}"
    return {
        "id": f"r{number}",
        "group": f"r{number}",
        "kind": "create",
        "prompt": [{"role": "user", "content": said}],
        "answer": json.dumps({"action": "create", "title": said}, separators=(",", ":")),
    }


def row(tokenizer: Any) -> dict[str, list[int]]:
    return train.encode(tokenizer, PREFIX, example(1))


def test_a_sound_row_passes(tokenizer: Any) -> None:
    train.check_labels("r1", row(tokenizer), example(1)["answer"], tokenizer, 256)


@pytest.mark.parametrize(
    ("breakage", "problem"),
    [
        (lambda r: {**r, "labels": [-100] * len(r["labels"])}, "no token is labelled"),
        (lambda r: {key: ids[:-1] for key, ids in r.items()}, "do not end in EOS"),
        (lambda r: {**r, "labels": r["input_ids"]}, "not the answer"),
        (lambda r: {**r, "labels": [*r["labels"][:-3], -100, *r["labels"][-2:]]}, "not the answer"),
        (lambda r: {"input_ids": [*r["input_ids"], 5], "labels": [*r["labels"], -100]}, "not the end of the row"),
        (lambda r: {key: [ids[0]] * 300 + ids for key, ids in r.items()}, "more than chat.max_length"),
    ],
)
def test_a_broken_row_is_named(tokenizer: Any, breakage: Any, problem: str) -> None:
    broken = breakage(row(tokenizer))
    if "max_length" in problem:
        broken["labels"] = [-100] * 300 + row(tokenizer)["labels"]
    with pytest.raises(click.ClickException, match=problem) as caught:
        train.check_labels("data/chat/train.jsonl: r1", broken, example(1)["answer"], tokenizer, 256)
    assert "r1" in caught.value.message


def run(folder: Path, base: Path, out: str) -> Path:
    write_rows(folder / "train.jsonl", [example(number) for number in range(24)])
    write_rows(folder / "valid.jsonl", [example(number) for number in range(100, 104)])
    (folder / "prefix.json").write_text(json.dumps(PREFIX), encoding="utf-8")
    files = {
        "train": "train.jsonl",
        "valid": "valid.jsonl",
        "prefix": "prefix.json",
        "base": str(base),
        "out": out,
        "metrics": f"{out}.json",
        "train-loss": f"{out}-train.csv",
        "valid-loss": f"{out}-valid.csv",
        "timing": f"{out}-timing.json",
    }
    options = [part for name, value in files.items() for part in (f"--{name}", value)]
    result = CliRunner().invoke(train.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder / out


def test_the_same_inputs_give_the_same_adapter_and_no_pickle(here: Path, base: Path) -> None:
    text = (here / "params.yaml").read_text(encoding="utf-8")
    (here / "params.yaml").write_text(text.replace("device: auto", "device: cpu-fp32", 1), encoding="utf-8")
    first, second = run(here, base, "one"), run(here, base, "two")
    assert sorted(file.name for file in first.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "made_from.json",
    ]
    assert hashes.of_folder(first) == hashes.of_folder(second)
    assert (here / "one.json").read_bytes() == (here / "two.json").read_bytes()
    made_from = json.loads((first / "made_from.json").read_text(encoding="utf-8"))
    assert made_from["adapter"] == hashes.of_file(first / "adapter_model.safetensors")
    assert made_from["base"] == hashes.of_folder(base)
    losses = [float(line.split(",")[2]) for line in (here / "one-train.csv").read_text("utf-8").split("\n")[1:-1]]
    assert losses[-1] < losses[0]
    assert not list(here.rglob("*.bin"))


def test_the_loss_is_that_of_trls_own_head(base: Path, tokenizer: Any) -> None:
    from datasets import Dataset
    from trl import SFTTrainer

    from stages.shared import model

    device = model.DEVICES["cpu-fp32"]
    rows = Dataset.from_list([train.encode(tokenizer, PREFIX, example(number)) for number in range(4)])
    settings = train.Params("auto", 1, 1.0, 1e-3, 0.0, 4, 4, 0.0, 4, 8, 0.0, True)
    args = train.arguments(settings, device, base / "scratch")
    ours = train.make_trainer(model.load_quantised(base, device), tokenizer, settings, args, rows, rows)
    theirs = SFTTrainer(ours.model, args, ours.data_collator, rows, rows, tokenizer)
    with packed.attention(ours.model):
        assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-5)


def test_a_batch_that_micro_batches_do_not_divide_is_refused(base: Path) -> None:
    from stages.shared import model, params

    settings = train.Params("auto", 1, 1.0, 1e-3, 0.0, 10, 4, 0.0, 4, 8, 0.0, True)
    with pytest.raises(params.ParamsError, match="micro_batch_size"):
        train.arguments(settings, model.DEVICES["cpu-fp32"], base / "scratch")


def test_every_layer_of_a_training_attends_by_rows(base: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own attention would take a packed batch without a word, and let rows see each other."""
    from datasets import Dataset

    from stages.shared import model

    layers: list[int] = []
    attend = packed.attend

    def noted(module: Any, *args: Any, **kwargs: Any) -> Any:
        layers.append(module.layer_idx)
        return attend(module, *args, **kwargs)

    monkeypatch.setattr(packed, "attend", noted)
    device = model.DEVICES["cpu-fp32"]
    rows = Dataset.from_list([train.encode(tokenizer, PREFIX, example(number)) for number in range(4)])
    settings = train.Params("auto", 1, 1.0, 1e-3, 0.0, 4, 4, 0.0, 4, 8, 0.0, True)
    args = train.arguments(settings, device, base / "scratch")
    args.eval_strategy = "no"
    trainer = train.make_trainer(model.load_quantised(base, device), tokenizer, settings, args, rows, rows)
    train.run(trainer)
    assert layers == list(range(trainer.model.config.num_hidden_layers))
