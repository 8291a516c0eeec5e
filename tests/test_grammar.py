"""A model that knows nothing, held to a contract, writes only answers that meet it."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA

from stages.answers import generate, grammar
from stages.core import strict_json
from stages.core.cli import InputError
from stages.data import contract
from stages.model import chat, loading

RULES = contract.load(SCHEMA)
COMPLETE = '{"action":"complete","title":"Buy milk"}'
# A contract that bounds the length of every answer, kept short so that random words come to an end soon.
SHORT = strict_json.read(SCHEMA)
SHORT["$defs"]["title"]["maxLength"] = 8


def write(folder: Path, schema: dict[str, Any]) -> Path:
    (folder / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    return folder / "schema.json"


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    texts = ["buy milk", "what is due this week?", "hm", "delete the note about the boiler", "ok", "buy milk"]
    return [chat.prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in texts]


@pytest.fixture(scope="module")
def rules(tokenizer: Any) -> grammar.Grammar:
    return grammar.load(SCHEMA, tokenizer)


def spells(rules: grammar.Grammar, tokenizer: Any, answer: str) -> bool:
    return rules.spells(chat.answer_ids(tokenizer, answer))


def noisy(base: Path, seed: int) -> Any:
    """The model with other random weights in its head: other random words."""
    import torch

    model = loading.load_model(base, "float32", "cpu")
    torch.manual_seed(seed)
    with torch.no_grad():
        model.lm_head.weight.normal_()
    return model


@pytest.mark.parametrize("seed", range(2))
def test_a_random_model_meets_the_contract(base: Path, tokenizer: Any, prompts: Any, tmp_path: Path, seed: int) -> None:
    short = write(tmp_path, SHORT)
    masks = grammar.load(short, tokenizer).masks
    found = generate.answers(noisy(base, seed), tokenizer, generate.Params(4, 400), prompts, masks)
    assert not any(answer.truncated for answer in found)
    values = [contract.parse_answer(answer.text) for answer in found]
    assert [contract.load(short).error(value) for value in values] == [None] * len(prompts)
    assert [strict_json.compact(value) for value in values] == [answer.text for answer in found]


class Nothing:
    """A mask that forbids nothing."""

    def __call__(self, last: list[int] | None, scores: Any) -> Any:
        return scores

    def keep(self, rows: list[int]) -> None:
        pass


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_mask_that_forbids_nothing_changes_nothing(model: Any, tokenizer: Any, prompts: Any, batch_size: int) -> None:
    free = list(generate.greedy(model, tokenizer, prompts, 12, batch_size))
    assert list(generate.greedy(model, tokenizer, prompts, 12, batch_size, lambda _: Nothing())) == free


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

    mask = rules.masks([0])
    scores = mask(None, torch.zeros(1, len(tokenizer) + 7))
    for token in chat.answer_ids(tokenizer, COMPLETE)[:-1]:
        scores = mask([token], torch.zeros(1, len(tokenizer) + 7))
    assert torch.isfinite(scores).nonzero().tolist() == [[0, tokenizer.eos_token_id]]


@pytest.mark.parametrize(
    ("rule", "named"), [({"not": {"const": "a"}}, "not"), ({"oneOf": [{"minLength": 1}, {"maxLength": 3}]}, "oneOf")]
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
