"""Wrong masks are caught, every knob arrives, and training twice gives the same bytes."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result
from conftest import ROOT, configure, invoke, read_json, write_rows

from stages import train
from stages.core import hashes, params
from stages.model import checkpoints, encoding, launching, loading, prefix_sharing, quantised, results
from stages.model.row_losses import UNSEEN, table

FP32 = loading.DEVICES["cpu-fp32"]
# Seed, epochs, learning rate, warm-up, batch, micro batch, weight decay, rank, alpha, dropout, launch.
SETTINGS = train.Params(1, 1.0, 1e-3, 0.0, 4, 4, 0.0, 4, 8, 0.0, "single")
PREFIX = [{"role": "system", "content": "Answer in JSON."}]


def example(number: int) -> dict[str, Any]:
    said = f"task number {number}"
    answer = json.dumps({"action": "create", "title": said}, separators=(",", ":"))
    names = {"id": f"r{number}", "group": f"r{number}", "kind": "create"}
    return names | {"prompt": [{"role": "user", "content": said}], "answer": answer}


def row(tokenizer: Any) -> dict[str, list[int]]:
    return encoding.encode(tokenizer, PREFIX, example(1))


def dataset(tokenizer: Any, numbers: range) -> Any:
    from datasets import Dataset

    rows = [encoding.encode(tokenizer, PREFIX, example(number)) for number in numbers]
    return Dataset.from_list([{**row, "row": number} for number, row in enumerate(rows)])


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
        encoding.check_labels("data/chat/train.jsonl: r1", broken, example(1), tokenizer, 256)
    assert "r1" in caught.value.message


@pytest.mark.parametrize(
    ("knob", "value", "argument", "expected"),
    [
        ("seed", 5, "seed", 5),
        ("epochs", 3.0, "num_train_epochs", 3.0),
        ("learning_rate", 2e-4, "learning_rate", 2e-4),
        ("warmup_share", 0.25, "warmup_steps", 0.25),
        ("weight_decay", 0.01, "weight_decay", 0.01),
        ("batch_size", 12, "gradient_accumulation_steps", 3),
        ("micro_batch_size", 2, "per_device_train_batch_size", 2),
        ("micro_batch_size", 2, "per_device_eval_batch_size", 2),
        ("micro_batch_size", 2, "gradient_accumulation_steps", 2),
    ],
)
def test_each_knob_reaches_the_trainer(tmp_path: Path, knob: str, value: Any, argument: str, expected: Any) -> None:
    args = train.arguments(replace(SETTINGS, **{knob: value}), FP32, tmp_path)
    assert getattr(args, argument) == expected


def test_few_of_the_compiled_products_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "1"}
    for name in kept:
        monkeypatch.setenv(name, "")  # so that what it was comes back
        monkeypatch.delenv(name)
    train.bound_caches()
    assert kept.items() <= os.environ.items()


def test_what_no_knob_changes(tmp_path: Path) -> None:
    args = train.arguments(SETTINGS, FP32, tmp_path)
    assert (args.lr_scheduler_type, args.train_sampling_strategy) == ("cosine", "random")
    assert (args.packing, args.max_length, args.save_strategy, args.report_to) == (False, None, "no", [])
    assert args.save_total_limit == 2
    often = next(option for option in train.main.params if option.name == "checkpoint_minutes")
    assert (often.default, often.envvar) == (5.0, "CHECKPOINT_MINUTES")


@pytest.mark.parametrize("key", ["cpu-fp32", "cpu-bf16"])
def test_the_device_decides_the_precision(tmp_path: Path, key: str) -> None:
    args = train.arguments(SETTINGS, loading.DEVICES[key], tmp_path)
    assert (args.use_cpu, args.bf16, args.fp16) == (True, key == "cpu-bf16", False)
    assert (args.optim.value, args.gradient_checkpointing) == ("adamw_torch", False)


def test_a_batch_that_micro_batches_do_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="micro_batch_size"):
        train.arguments(replace(SETTINGS, batch_size=10), FP32, tmp_path)


@pytest.mark.parametrize(
    ("knob", "wrong", "right"),
    [("seed", -1, 0), ("seed", 2**32, 2**32 - 1), ("weight_decay", -0.1, 0.0), ("warmup_share", 1.0, 0.0)],
)
def test_a_knob_out_of_range_is_named(here: Path, knob: str, wrong: float, right: float) -> None:
    configure(here, train={knob: right})
    assert getattr(params.load("train", train.Params), knob) == right
    configure(here, train={knob: wrong})
    with pytest.raises(params.ParamsError, match=f"train.{knob}"):
        params.load("train", train.Params)


def make(base: Path, tokenizer: Any, folder: Path, **changes: Any) -> Any:
    settings = replace(SETTINGS, **changes)
    rows, held_out = dataset(tokenizer, range(4)), dataset(tokenizer, range(100, 103))
    args = train.arguments(settings, FP32, folder)
    return train.make_trainer(quantised.for_training(base, FP32), tokenizer, settings, args, rows, held_out)


@pytest.fixture
def trainer(base: Path, tokenizer: Any, tmp_path: Path) -> Any:
    return make(base, tokenizer, tmp_path, lora_rank=3, lora_alpha=7, lora_dropout=0.5)


def test_the_adapter_is_of_the_shape_that_was_asked_for_and_float32(trainer: Any) -> None:
    config = trainer.model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 7, 0.5)
    adapted = {name.split(".lora_A")[0] for name, _ in trainer.model.named_parameters() if ".lora_A" in name}
    assert len(adapted) == 2 * 7  # every linear layer
    assert {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad} == {"torch.float32"}


def test_the_validation_loss_is_of_the_held_out_rows(trainer: Any, tokenizer: Any) -> None:
    held_out = dataset(tokenizer, range(100, 103))
    assert trainer.eval_dataset["input_ids"][:] == held_out["input_ids"][:]
    assert trainer.train_dataset["input_ids"][:] == dataset(tokenizer, range(4))["input_ids"][:]


def test_the_loss_is_that_of_trls_own_head(trainer: Any, tokenizer: Any) -> None:
    from trl import SFTTrainer

    rows = trainer.eval_dataset
    theirs = SFTTrainer(trainer.model, trainer.args, trainer.data_collator, rows, rows, tokenizer)
    with prefix_sharing.attention(trainer.model):
        assert trainer.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-5)


def losses(model: Any, rows: Any) -> list[float]:
    """Of each row by itself."""
    import torch

    from stages.model.trainer import labelled_loss

    with torch.no_grad(), prefix_sharing.attention(model):
        return [float(labelled_loss(model, prefix_sharing.collate([row]), None)) for row in rows]


def test_the_loss_of_a_row_is_that_before_the_step_that_learns_it(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = make(base, tokenizer, tmp_path, epochs=1.5, batch_size=2, micro_batch_size=1)
    expected = losses(trainer.model, trainer.train_dataset)
    trainer.args.eval_strategy, trainer.args.learning_rate = "no", 0.0
    train.run(trainer)
    first, second = trainer.row_losses.of_all()
    assert first == pytest.approx(expected, rel=1e-4)
    assert sorted(loss == UNSEEN for loss in second) == [False, False, True, True]


def test_trls_head_gives_the_same_losses_by_row(trainer: Any, tokenizer: Any) -> None:
    import torch

    found: list[Any] = []
    batch = prefix_sharing.collate(list(trainer.train_dataset))
    rows = batch.pop("rows")
    trainer.model.eval()
    with torch.no_grad(), prefix_sharing.attention(trainer.model):
        trainer.fused_loss(trainer.model, batch, None, found.append)
    trainer.row_losses.note(0, rows, found[0])
    assert trainer.row_losses.of_all()[0] == pytest.approx(losses(trainer.model, trainer.train_dataset), rel=1e-4)


def test_every_layer_of_a_training_attends_by_rows(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own attention would take a packed batch without a word, and let rows see each other."""
    layers: list[int] = []
    attend = prefix_sharing.attend

    def noted(module: Any, *args: Any, **kwargs: Any) -> Any:
        layers.append(module.layer_idx)
        return attend(module, *args, **kwargs)

    monkeypatch.setattr(prefix_sharing, "attend", noted)
    trainer.args.eval_strategy = "no"
    train.run(trainer)
    assert layers == list(range(trainer.model.config.num_hidden_layers))


def test_a_sharded_adapter_is_gathered_before_it_is_written(
    trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    whole = {name: tensor + 1 for name, tensor in trainer.model.state_dict().items() if "lora_" in name}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(trainer.accelerator, "get_state_dict", lambda model: whole)
    results.publish(trainer, tmp_path / "adapter", {})
    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(written[name.replace(".default", "")].equal(tensor) for name, tensor in whole.items())


def test_a_training_that_stopped_early_is_an_error(trainer: Any) -> None:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            control.should_training_stop = True
            return control

    trainer.add_callback(Stop)
    trainer.args.num_train_epochs = 3
    trainer.args.eval_strategy = "no"
    with pytest.raises(click.ClickException, match="stopped at step 1 of 3"):
        train.run(trainer)


@pytest.mark.parametrize(("epochs", "evaluated", "step"), [(3.0, "no", "step 2 of 3"), (1.0, "epoch", "step 1 of 1")])
def test_a_loss_that_is_no_number_ends_the_training(
    base: Path, tokenizer: Any, tmp_path: Path, epochs: float, evaluated: str, step: str
) -> None:
    trainer = make(base, tokenizer, tmp_path, epochs=epochs, learning_rate=1e30)
    trainer.args.eval_strategy = evaluated
    with pytest.raises(
        click.ClickException, match=rf"^{step}: the loss is (nan|inf); set a lower train\.learning_rate"
    ):
        train.run(trainer)


def test_a_loss_that_is_no_number_from_the_start_is_the_device_s(
    base: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(base, tokenizer, tmp_path)
    loss = trainer.compute_loss
    monkeypatch.setattr(trainer, "compute_loss", lambda *given, **named: loss(*given, **named) * math.nan)
    with pytest.raises(click.ClickException, match=r"^step 1 of \d+: the loss is nan; set another compute\.device"):
        train.run(trainer)


def stage(base: Path, out: str) -> Result:
    """The stage on the files of the working folder."""
    files = {name: f"{name}.jsonl" for name in ("train", "valid", "replay")} | {"prefix": "prefix.json"}
    files |= {"metrics": f"{out}.json", "train_loss": f"{out}-train.csv", "valid_loss": f"{out}-valid.csv"}
    files |= {"timings": f"{out}-timing.json", "row_losses": f"{out}-rows.csv", "checkpoint_folder": "kept"}
    return invoke(train.main, **files, base=base, out=out, launch=ROOT / "stages" / "launch")


def run(folder: Path, base: Path, out: str, rows: int = 24, replayed: Sequence[dict[str, Any]] = ()) -> Path:
    (folder / "prefix.json").write_text(json.dumps(PREFIX), encoding="utf-8")
    write_rows(folder / "train.jsonl", [example(number) for number in range(rows)])
    write_rows(folder / "valid.jsonl", [example(number) for number in range(100, 104)])
    write_rows(folder / "replay.jsonl", list(replayed))
    result = stage(base, out)
    assert result.exit_code == 0, result.output
    return folder / out


def test_the_hash_of_a_folder_is_of_names_and_bytes_in_the_order_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    rglob = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda folder, pattern: sorted(rglob(folder, pattern), reverse=True))
    assert hashes.of_folder(tmp_path) == "c3f0e666cfb31cdcccb693452c268b7d0bbea5a65381f6a21fbca67270f67ebb"


def test_the_same_inputs_give_the_same_adapter_and_no_pickle(here: Path, base: Path) -> None:
    configure(here, compute={"device": "cpu-fp32"})
    first, second = run(here, base, "one"), run(here, base, "two")
    names = ["adapter_config.json", "adapter_model.safetensors", "made_from.json"]
    assert sorted(file.name for file in first.iterdir()) == names
    assert hashes.of_folder(first) == hashes.of_folder(second)
    assert (here / "one.json").read_bytes() == (here / "two.json").read_bytes()
    assert not list(here.rglob("*.bin"))
    rows = (here / "one-rows.csv").read_text("utf-8").split("\n")[:-1]
    assert rows[0] == "id,epoch_1,epoch_2"
    assert [line.split(",")[0] for line in rows[1:]] == [f"r{number}" for number in range(24)]
    assert all(0 < float(loss) < 10 for line in rows[1:] for loss in line.split(",")[1:])


def test_the_metrics_are_those_of_the_curves_and_the_adapter(here: Path, base: Path, tokenizer: Any) -> None:
    from safetensors.torch import load_file

    configure(here, compute={"device": "cpu-fp32"}, train={"epochs": 2.0, "batch_size": 16, "micro_batch_size": 4})
    adapter = run(here, base, "one", rows=40)
    (steps, epochs, losses), (at, _, held_out) = (
        list(zip(*(map(float, line.split(",")) for line in (here / name).read_text("utf-8").split()[1:]), strict=True))
        for name in ("one-train.csv", "one-valid.csv")
    )
    weights = load_file(adapter / "adapter_model.safetensors")
    tokens = sum(len(encoding.encode(tokenizer, PREFIX, example(number))["input_ids"]) for number in range(40))
    assert (steps, at, losses[-1] < losses[0]) == ((1, 2, 3, 4, 5, 6), (3, 6), True)
    assert epochs == pytest.approx((0.4, 0.8, 1, 1.4, 1.8, 2))
    expected = {"rows": 40, "tokens_per_epoch": tokens, "steps": 6, "train_loss": losses[-1], "device": "cpu-fp32"}
    expected |= {"valid_rows": 4, "valid_loss": held_out[-1]}
    expected |= {"trainable_parameters": sum(weight.numel() for weight in weights.values())}
    assert read_json(here / "one.json") == expected
    took = read_json(here / "one-timing.json")
    assert took["seconds"] * took["tokens_per_second"] == pytest.approx(2 * tokens, rel=0.1)
    made_from = read_json(adapter / "made_from.json")
    hashed = {name: hashes.of_file(here / f"{name}.jsonl") for name in ("train", "valid", "replay")}
    hashed |= {"adapter": hashes.of_file(adapter / "adapter_model.safetensors"), "base": hashes.of_folder(base)}
    assert hashed.items() <= made_from.items()
    assert (made_from["prefix"], made_from["params"]["epochs"], made_from["device"]) == (PREFIX, 2.0, "cpu-fp32")
    assert (made_from["threads"], took["result"]) == (took["threads"], made_from["adapter"])
    assert took["peak_memory_bytes"] > 10**8


GENERAL = {"id": "p", "prompt": [{"role": "user", "content": "Hi"}], "answer": "Hello there", "truncated": False}


def test_a_truncated_answer_does_not_teach_to_stop(tokenizer: Any) -> None:
    whole, cut = (encoding.encode(tokenizer, [], GENERAL | {"truncated": short}) for short in (False, True))
    assert [*cut["input_ids"], tokenizer.eos_token_id] == whole["input_ids"]
    encoding.check_labels("p", cut, GENERAL | {"truncated": True}, tokenizer, len(cut["input_ids"]))
    with pytest.raises(click.ClickException, match="do not end in EOS"):
        encoding.check_labels("p", cut, GENERAL, tokenizer, 256)


def test_replayed_rows_train_without_the_prefix_and_are_no_rows_of_the_task(
    here: Path, base: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(here, compute={"device": "cpu-fp32"}, train={"epochs": 1.0})
    plain = run(here, base, "plain", rows=8)
    seen: list[Any] = []
    make = train.make_trainer

    def noted(*given: Any) -> Any:
        seen.append(given[4])
        return make(*given)

    monkeypatch.setattr(train, "make_trainer", noted)
    adapter = run(here, base, "one", rows=8, replayed=[GENERAL])
    assert seen[0][8]["input_ids"] == encoding.encode(tokenizer, [], GENERAL)["input_ids"]
    assert (seen[0]["part"][:], seen[0]["row"][:]) == ([0] * 8 + [1], list(range(9)))
    assert read_json(here / "one.json")["rows"] == 8
    assert len((here / "one-rows.csv").read_text("utf-8").split()) == 9
    assert hashes.of_folder(adapter) != hashes.of_folder(plain)


def test_a_row_that_was_not_seen_has_no_loss() -> None:
    assert (
        table(["a", 'b,"'], [[0.0, 1.23456], [UNSEEN, 0.1]]) == 'id,epoch_1,epoch_2\na,0.0000,\n"b,""",1.2346,0.1000\n'
    )


def test_the_stage_trains_on_its_rows_with_its_seed(here: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    configure(here, compute={"device": "cpu-fp32"}, train={"seed": 23, "epochs": 1.0, "launch": "ddp"})
    launched: list[str] = []
    seeds: list[int] = []
    sizes: list[tuple[int, int]] = []
    make = train.make_trainer

    def noted(model: Any, tokenizer: Any, settings: Any, args: Any, rows: Any, held_out: Any) -> Any:
        sizes.append((len(rows), len(held_out)))
        return make(model, tokenizer, settings, args, rows, held_out)

    origins: list[dict[str, Any]] = []
    store = checkpoints.Store

    def kept(root: Path, inputs: dict[str, Any]) -> checkpoints.Store:
        origins.append(inputs)
        return store(root, inputs)

    monkeypatch.setattr(train, "make_trainer", noted)
    monkeypatch.setattr(transformers, "set_seed", seeds.append)
    monkeypatch.setattr(checkpoints, "Store", kept)
    monkeypatch.setattr(checkpoints, "code", lambda *files: sorted(file.name for file in files))
    monkeypatch.setattr(launching, "launch", lambda kind, folder: launched.append(kind))
    monkeypatch.setattr(train, "bound_caches", lambda: launched.append("bounded"))
    run(here, base, "one", rows=8)
    assert launched == ["ddp", "bounded"]
    assert (seeds, sizes, origins[0]["code"]) == ([23], [(8, 4)], ["ddp.yaml"])


def test_the_seconds_before_a_kill_count(trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"seconds": {"wall": 9e6, "cpu": 8e6}, "row_losses": trainer.row_losses.of_all()}
    (tmp_path / checkpoints.SO_FAR).write_text(json.dumps(part), encoding="utf-8")
    monkeypatch.setattr(checkpoints.Store, "latest", lambda store: tmp_path)
    monkeypatch.setattr(train, "run", lambda trainer, checkpoint: None)
    took = train.run_or_resume(trainer, checkpoints.Store(tmp_path / "kept", {}), 5.0)
    assert (took["wall"] > 9e6, 9e6 > took["cpu"] > 8e6) == (True, True)
    speed = results.speed(100.0, 10.0, 20.0, FP32)
    assert (speed["tokens_per_second"], speed["tokens_per_cpu_second"]) == (10.0, 5.0)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"train.jsonl": '{"id":"r1","answer":"{}"}\n'}, "train.jsonl:1: prompt: a list of turns"),
        ({"train.jsonl": '{"id":1,"answer":"{}","prompt":[]}\n'}, "train.jsonl:1: an object with texts id and answer"),
        ({"train.jsonl": "[]\n"}, "train.jsonl:1: an object"),
        ({"valid.jsonl": ""}, "valid.jsonl: no rows"),
        ({"valid.jsonl": json.dumps(example(1) | {"answer": "x" * 3000}) + "\n"}, "training row valid.jsonl: r1: "),
        ({"replay.jsonl": "{}\n"}, "replay.jsonl:1: an object with texts id and answer"),
        ({"prefix.json": '[{"role":"system"}]'}, "prefix.json: a list of turns"),
        ({"prefix.json": "{}"}, "prefix.json: a list of turns"),
        ({"adapter": "a file"}, "adapter would be deleted, and has no adapter_config.json"),
        ({"adapter/thesis.txt": "a file"}, "adapter would be deleted, and has no adapter_config.json"),
    ],
)
def test_what_build_would_not_write_is_refused(here: Path, base: Path, broken: dict[str, str], message: str) -> None:
    configure(here, compute={"device": "cpu-fp32"})
    lines = "".join(json.dumps(example(number)) + "\n" for number in range(4))
    files = {"train.jsonl": lines, "valid.jsonl": lines, "replay.jsonl": "", "prefix.json": json.dumps(PREFIX)} | broken
    for name, text in files.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text, encoding="utf-8")
    result = stage(base, "adapter")
    assert (result.exit_code, result.stderr.startswith(f"Error: {message}")) == (1, True), result.output
    assert {name: (here / name).read_text("utf-8") for name in files} == files


def test_a_small_base_is_kept_dequantised_on_a_cpu_only(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes.nn import Linear4bit

    def quantised_layers() -> int:
        return sum(isinstance(part, Linear4bit) for part in quantised.for_training(base, FP32).modules())

    known, kept = (load(base, FP32).state_dict() for load in (quantised.dequantised, quantised.for_training))
    assert all(tensor.equal(known[name]) for name, tensor in kept.items())
    small = quantised_layers()
    monkeypatch.setattr(quantised, "IN_FULL", 1)
    assert (small, quantised_layers()) == (0, 2 * 7)
    monkeypatch.setattr(quantised, "load", lambda base, device: "in 4 bits")
    assert quantised.for_training(base, loading.DEVICES["cuda-bf16"]) == "in 4 bits"
