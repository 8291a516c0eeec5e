"""A model that knows nothing, held to a contract, writes only answers that meet it."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import ROOT, SCHEMA, write_rows
from ruamel.yaml import YAML

from stages import constrained, predict
from stages.shared import chat, contract, generate, grammar, model, strict_json
from stages.shared.cli import InputError

RULES = contract.load(SCHEMA)
COMPLETE = '{"action":"complete","title":"Buy milk"}'
# A contract that bounds the length of every answer, kept short so that random words come to an end soon.
SHORT = strict_json.read(SCHEMA)
SHORT["$defs"]["title"]["maxLength"] = 8


def write(folder: Path, schema: dict[str, Any]) -> Path:
    (folder / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    return folder / "schema.json"


@pytest.fixture(scope="module")
def network(base: Path) -> Any:
    return model.load_for_generation(base, None, model.DEVICES["cpu-fp32"])


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    texts = ["buy milk", "what is due this week?", "hm", "delete the note about the boiler", "ok", "buy milk"]
    return [chat.prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in texts]


@pytest.fixture(scope="module")
def rules(tokenizer: Any) -> grammar.Grammar:
    return grammar.load(SCHEMA, tokenizer)


def spells(rules: grammar.Grammar, tokenizer: Any, answer: str) -> bool:
    return rules.spells(chat.answer_ids(tokenizer, answer))


def noisy(network: Any, seed: int) -> Any:
    """The same model with other random weights in its head: other random words."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        network.lm_head.weight.normal_()
    return network


@pytest.mark.parametrize("seed", range(4))
def test_a_random_model_meets_the_contract(base: Path, tokenizer: Any, prompts: Any, tmp_path: Path, seed: int) -> None:
    network = noisy(model.load_for_generation(base, None, model.DEVICES["cpu-fp32"]), seed)
    short = write(tmp_path, SHORT)
    mask = grammar.load(short, tokenizer).mask
    found = [answer for _, answer in generate.greedy(network, tokenizer, prompts, 400, 4, mask)]
    assert not any(answer.truncated for answer in found)
    values = [contract.parse_answer(answer.text) for answer in found]
    assert [contract.load(short).error(value) for value in values] == [None] * len(prompts)
    assert [strict_json.compact(value) for value in values] == [answer.text for answer in found]


def test_without_a_grammar_the_same_model_breaks_it(network: Any, tokenizer: Any, prompts: Any) -> None:
    for _, answer in generate.greedy(network, tokenizer, prompts, 20, 4):
        with pytest.raises(strict_json.JsonError):
            contract.parse_answer(answer.text)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_mask_that_forbids_nothing_changes_nothing(
    network: Any, tokenizer: Any, prompts: Any, batch_size: int
) -> None:
    free = list(generate.greedy(network, tokenizer, prompts, 12, batch_size))
    assert list(generate.greedy(network, tokenizer, prompts, 12, batch_size, lambda rows: lambda ids, s: s)) == free


def test_each_row_follows_its_own_grammar(network: Any, tokenizer: Any, prompts: Any, rules: grammar.Grammar) -> None:
    alone = dict(generate.greedy(network, tokenizer, prompts, 30, 1, rules.mask))
    assert dict(generate.greedy(network, tokenizer, prompts, 30, 4, rules.mask)) == alone


@pytest.mark.parametrize(
    "answer",
    [
        COMPLETE,
        '{"action":"complete","title":"Ruf \\"Käthe\\" an"}',
        '{"action":"create","title":"Buy milk","priority":"low","due_date":null}',
        '{"action":"update","title":"A","new_title":null,"priority":null,"due_date":"none"}',
        '{"action":"list","filter":"all"}',
    ],
)
def test_answers_as_in_training_can_be_written(rules: grammar.Grammar, tokenizer: Any, answer: str) -> None:
    assert RULES.error(contract.parse_answer(answer)) is None
    assert spells(rules, tokenizer, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Sure!",
        json.dumps(json.loads(COMPLETE)),  # spaces
        '{"title":"Buy milk","action":"complete"}',  # another order
        '{"action":"complete","title":"Buy milk ","x":1}',
        '{"action":"complete","title":" Buy milk"}',
        '{"action":"complete","title":"Buy milk\\u001c"}',  # white space for Python's regular expressions only
        json.dumps({"action": "complete", "title": "x" * 121}, separators=(",", ":")),
        '{"action":"complete"}',
        '{"action":"list","filter":"some"}',
        COMPLETE + COMPLETE,
        COMPLETE[:-1],
    ],
)
def test_other_answers_can_not(rules: grammar.Grammar, tokenizer: Any, answer: str) -> None:
    assert not spells(rules, tokenizer, answer)


def test_a_complete_answer_has_to_end(rules: grammar.Grammar, tokenizer: Any) -> None:
    import torch

    mask = rules.mask(1)
    written = [0, *chat.answer_ids(tokenizer, COMPLETE)[:-1]]
    for length in range(1, len(written) + 1):
        scores = mask(torch.tensor([written[:length]]), torch.zeros(1, len(tokenizer) + 7))
    assert torch.isfinite(scores).nonzero().tolist() == [[0, tokenizer.eos_token_id]]


@pytest.mark.parametrize(
    ("rule", "named"),
    [({"not": {"const": "a"}}, "not"), ({"oneOf": [{"minLength": 1}, {"maxLength": 3}]}, "oneOf")],
)
def test_what_the_engine_leaves_out_is_named(tokenizer: Any, tmp_path: Path, rule: dict[str, Any], named: str) -> None:
    wide = grammar.load(write(tmp_path, {"type": "object", "properties": {"a": rule}}), tokenizer)
    assert len(wide.left_out) == 1
    assert named in wide.left_out[0]


def test_nothing_is_left_out_of_the_usual_contract(rules: grammar.Grammar) -> None:
    assert rules.left_out == ()


@pytest.mark.parametrize("rule", [{"$ref": "http://localhost/x"}, {"type": "string", "pattern": "(?=a)b"}])
def test_a_schema_that_makes_no_grammar_is_refused(tokenizer: Any, tmp_path: Path, rule: dict[str, Any]) -> None:
    schema = write(tmp_path, {"type": "object", "properties": {"a": rule}, "required": ["a"]})
    with pytest.raises(InputError, match=r"schema.json: no grammar .* constrained.enabled"):
        grammar.load(schema, tokenizer)


def configure(folder: Path, **change: Any) -> None:
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["predict"].update(device="cpu-fp32", max_new_tokens=60)
    params["constrained"].update(change)
    with (folder / "params.yaml").open("w", encoding="utf-8") as handle:
        yaml.dump(params, handle)


def run(folder: Path, base: Path, monkeypatch: pytest.MonkeyPatch, answer: str = COMPLETE) -> Result:
    """The stage with the base in place of a tuned model: the adapter has tests of its own."""
    load = model.load_for_generation
    monkeypatch.setattr(model, "load_for_generation", lambda base, adapter, device: load(base, None, device))
    prompt = [{"role": "user", "content": "buy milk"}]
    write_rows(folder / "rows.jsonl", [{"id": f"t{n}", "prompt": prompt, "answer": answer} for n in range(2)])
    write_rows(folder / "prefix.json", [])
    (folder / "prefix.json").write_text("[]", encoding="utf-8")
    paths = {"base": base, "adapter": base, "prefix": "prefix.json", "schema": SCHEMA, "rows": "rows.jsonl"}
    outs = {"out": "constrained.jsonl", "timing": "timing.json"}
    options = [str(part) for name, value in (paths | outs).items() for part in (f"--{name}", value)]
    return CliRunner().invoke(constrained.main, options)


def test_the_stage_answers_every_row(here: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(here, enabled=True)
    assert run(here, base, monkeypatch).exit_code == 0
    rows = list(strict_json.read_jsonl(here / "constrained.jsonl"))
    assert [row["id"] for row in rows] == ["t0", "t1"]
    assert all(row["answer"].startswith('{"action":"') for row in rows)
    assert strict_json.read(here / "timing.json")["answers"] == 2


def test_switched_off_it_answers_nothing(here: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(here, enabled=False)
    result = run(here, base, monkeypatch)
    assert (result.exit_code, result.output) == (0, "constrained: off\n")
    assert (here / "constrained.jsonl").read_bytes() == b""
    assert strict_json.read(here / "timing.json")["answers"] == 0


def test_expected_answers_that_can_not_be_written_are_counted(
    here: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(here, enabled=True)
    assert "2 of 2 expected answers" not in run(here, base, monkeypatch).output
    assert "2 of 2 expected answers" in run(here, base, monkeypatch, '{"title":"A","action":"complete"}').output


def test_the_switch_is_not_the_other_systems_business() -> None:
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert [name for name, stage in stages.items() if "constrained" in stage.get("params", [])] == ["constrained"]
    assert not hasattr(predict, "grammar")
