"""The catalogue is right, the printed line is one that fetch takes, and each architecture runs from rows to answers."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import ROOT, SCHEMA, TEMPLATE, make_base, write_rows

from stages import build, fetch, predict, train
from stages.shared import memory, model
from tools import plan

# How the two families begin a prompt: Qwen2.5 puts a system prompt of its own where there is none, Llama 3 a date.
LLAMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n' + system + '<|eot_id|>' }}"
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN = TEMPLATE.replace(
    "You are a helpful assistant", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def call(*options: str) -> str:
    result = CliRunner().invoke(plan.main, list(options), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", plan.names())
def test_the_catalogue_counts_parameters_exactly(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    chosen = plan.find(name)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**chosen.config))
    assert chosen.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert chosen.parameters == memory.shape_of(chosen.config, name).parameters


@pytest.mark.parametrize("name", plan.names())
def test_the_smallest_card_is_the_one_worked_out(name: str) -> None:
    chosen = plan.find(name)
    assert chosen.smallest_card == plan.smallest_card(memory.shape_of(chosen.config, name), plan.current())


def test_the_catalogue_holds_the_lessons_starting_points_and_the_default() -> None:
    assert {"Llama-3.2-3B-Instruct", "Qwen2.5-7B-Instruct", "Llama-3.1-8B-Instruct", "Qwen2.5-14B-Instruct"} | {
        plan.DEFAULT
    } == set(plan.names())


def test_the_lessons_shapes_are_the_catalogues() -> None:
    for size, name in {"3B": "Llama-3.2-3B", "7B": "Qwen2.5-7B", "8B": "Llama-3.1-8B"}.items():
        assert plan.SHAPES[size] == memory.shape_of(plan.find(f"{name}-Instruct").config, name)


def test_the_table_on_show_is_what_the_tool_prints() -> None:
    page = (ROOT / "docs" / "deciding.md").read_text(encoding="utf-8")
    assert plan.BEGIN in page
    assert plan.put(page, plan.lesson()) == page, "run: python -m tools.plan --write docs/deciding.md"


@pytest.mark.parametrize("card", ["T4", "24GB", "80GB"])
@pytest.mark.parametrize("name", plan.names())
def test_the_printed_line_sets_knobs_that_exist_and_fit_the_card(name: str, card: str) -> None:
    from ruamel.yaml import YAML

    (line,) = (line for line in call("--model", name, "--card", card).split("\n") if line.startswith("dvc exp run"))
    knobs = dict(word.split("=", 1) for word in line.split() if "=" in word)
    known = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert all(knob.split(".")[1] in known[knob.split(".")[0]] for knob in knobs)
    if knobs["fetch.source"] == "hub":
        assert re.fullmatch(r"[0-9a-f]{40}", knobs["fetch.hub_revision"])
    settings, (key, size) = plan.current(), plan.device_of(card)
    run = plan.run_of(settings, model.DEVICES[key], "qlora", int(knobs["train.micro_batch_size"]))
    assert plan.fits(memory.shape_of(plan.find(name).config, name), run, size)


def test_prediction_goes_to_the_cpu_where_merging_does_not_fit() -> None:
    assert "predict.device=cpu-fp32" in call("--model", "Qwen2.5-7B-Instruct", "--card", "24GB")
    assert "predict.device" not in call("--model", "Qwen2.5-7B-Instruct", "--card", "80GB")


def test_what_does_not_fit_prints_no_line() -> None:
    said = call("--model", "Qwen2.5-14B-Instruct", "--card", "8GB")
    assert "does not fit" in said
    assert "dvc exp run" not in said


@pytest.mark.parametrize(("options", "named"), [(["--model", "GPT-9"], "GPT-9"), (["--card", "big"], "big")])
def test_what_is_not_known_is_named(options: list[str], named: str) -> None:
    result = CliRunner().invoke(plan.main, options)
    assert result.exit_code == 1
    assert named in result.output


def test_longer_rows_take_more() -> None:
    def peak(*options: str) -> float:
        return float(re.search(r"QLoRA needs ([\d.]+)", call("--card", "80GB", *options))[1])  # type: ignore[index]

    assert peak("--length", "2048") > peak("--length", "64")


def family(folder: Path, kind: str, template: str, marks: tuple[str, str]) -> Path:
    """The tiny base model as another class with that family's chat template."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    make_base(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks), "bos_token": marks[0]})
    tokenizer.eos_token = marks[-1]
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    numbers = {key: facts[key] for key in facts if key.startswith(("hidden_s", "inter", "num_", "tie"))}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **numbers, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def invoke(command: click.Command, **options: Any) -> None:
    words = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("kind", "template", "marks", "name"),
    [
        ("llama", LLAMA, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "Llama"),
        ("qwen2", QWEN, ("<|endoftext|>", "<|im_end|>"), "Qwen2"),
    ],
)
def test_each_architecture_runs_from_rows_to_answers(
    here: Path, kind: str, template: str, marks: tuple[str, ...], name: str
) -> None:
    from ruamel.yaml import YAML

    yaml = YAML()
    document = yaml.load((here / "params.yaml").read_text(encoding="utf-8"))
    document["fetch"].update(source="path", path=str(family(here / "local", kind, template, marks)))  # type: ignore[arg-type]
    document["train"].update(device="cpu-fp32", epochs=1)
    document["build"].update(few_shot_examples=1, max_refused=1.0)
    document["chat"].update(max_length=400)
    document["predict"].update(device="cpu-fp32", max_new_tokens=32)
    with (here / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(document, file)
    rows = [
        {"id": f"r{n}", "source": f"rows.jsonl:{n}", "turns": [
            {"role": "user", "content": f"add call number {n}"},
            {"role": "assistant", "content": json.dumps({"action": "create", "title": f"Call number {n}"})},
        ]}
        for n in range(24)
    ]  # fmt: skip
    invoke(fetch.main, out="models/base")
    shutil.copyfile(SCHEMA, here / "schema.json")
    write_rows(here / "train.jsonl", rows)
    write_rows(here / "test.jsonl", [row | {"id": f"t{n}"} for n, row in enumerate(rows[:2])])
    files = {"train": "train.jsonl", "test": "test.jsonl", "schema": "schema.json", "base": "models/base"}
    invoke(build.main, **files, out="chat", metrics="build.json")
    shared = {"base": "models/base", "prefix": "chat/prefix/tuned.json", "timing": "timing.json"}
    losses = {"train_loss": "train.csv", "valid_loss": "valid.csv", "metrics": "train.json"}
    data = {"train": "chat/train.jsonl", "valid": "chat/valid.jsonl"}
    invoke(train.main, **shared, **data, **losses, out="adapter")
    invoke(predict.main, **shared, adapter="adapter", rows="chat/test.jsonl", out="answers.jsonl")
    assert len((here / "answers.jsonl").read_text(encoding="utf-8").strip().split("\n")) == 2
    config = json.loads((here / "models/base/config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [f"{name}ForCausalLM"]
    prompt = json.loads((here / "chat/prefix/tuned.json").read_text(encoding="utf-8"))
    assert prompt[0]["role"] == "system"
