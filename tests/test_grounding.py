"""A copied field can hold the user's words in their order, a clock time last, and nothing else."""

import re
from pathlib import Path
from typing import Any

import pytest

from stages.answers import grammar, grounding
from stages.core import strict_json
from stages.model import chat

SCHEMA = {
    "type": "object",
    "properties": {
        "action": {"enum": ["add", "drop"]},
        "title": {"$ref": "#/$defs/title"},
        "new_title": {"anyOf": [{"$ref": "#/$defs/title"}, {"type": "null"}]},
    },
    "required": ["action", "title", "new_title"],
    "additionalProperties": False,
    "$defs": {"title": {"type": "string", "minLength": 1}},
}
FIELDS = ("title", "new_title")


def user(text: str) -> chat.Turn:
    return {"role": "user", "content": text}


def holds(title: str, *turns: chat.Turn) -> bool:
    return re.fullmatch(grounding.pattern(list(turns), FIELDS)[1:-1], title) is not None


@pytest.mark.parametrize(
    ("request_text", "title"),
    [
        ("remind me to water the ferns", "Water ferns"),
        ("remind me to water the ferns", "Water the ferns"),
        ("call Mrs. Okafor tomorrow.", "Call Mrs. Okafor"),
        ("buy butter, eggs and milk", "Buy butter, eggs and milk"),
        ('add "Ask Leila about the keys"', "Ask Leila about the keys"),
        ("in 20 minutes remind me to check the oven", "Check oven in 20 minutes"),
        ("at 3pm call Dana", "Call Dana at 3pm"),
        ("return the Petrovs' deposit", "Return Petrovs' deposit"),
        ("w/ Lorenzo, asap!!", "W/ Lorenzo"),
        ("überweise die Miete", "Überweise Miete"),
        ("dispute the $48.99 charge", "Dispute $48.99 charge"),
        ("chase Delgado & Sons", "Chase Delgado & Sons"),
        ("pay Dana 5€", "Pay Dana 5€"),
        ("learn C++.", "Learn C++"),
        ("at noon call Dana", "Call Dana at noon"),
        ("at half past six call Dana", "Call Dana at half past six"),
    ],
)
def test_the_users_words_can_be_written(request_text: str, title: str) -> None:
    assert holds(title, user(request_text))


@pytest.mark.parametrize("title", ["Blood radiators", "Ferns water", "water ferns", "Water ferns.", "", "Water  ferns"])
def test_other_words_other_orders_and_small_letters_cannot(title: str) -> None:
    assert not holds(title, user("remind me to water the ferns, bleed radiators."))


def test_an_earlier_title_can_be_named_again_and_words_of_two_requests_do_not_mix() -> None:
    turns = [
        user("bleed the radiators"),
        {"role": "assistant", "content": '{"title":"Bleed radiators","new_title":null}'},
        user("make it urgent"),
    ]
    assert holds("Bleed radiators", *turns)
    assert not holds("Bleed urgent", *turns)


@pytest.fixture(scope="module")
def rules(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> grammar.Grammar:
    file: Path = tmp_path_factory.mktemp("schema") / "schema.json"
    file.write_text(strict_json.compact(SCHEMA), encoding="utf-8")
    return grammar.load(file, tokenizer)


def can_write(rules: grammar.Grammar, tokenizer: Any, turns: list[chat.Turn], answer: str) -> bool:
    (matcher,) = grounding.Masks(rules, [[user("buy milk")], turns], FIELDS)([1]).matchers  # of the second row
    ids = chat.answer_ids(tokenizer, answer)
    return bool(matcher.validate_tokens(ids) == len(ids))


@pytest.mark.parametrize(
    ("answer", "possible"),
    [
        ('{"action":"add","title":"Water ferns","new_title":null}', True),
        ('{"action":"add","title":"Water ferns","new_title":"Ferns"}', True),
        ('{"action":"add","title":"Water roses","new_title":null}', False),
        ('{"action":"add","title":"Water ferns","new_title":"Roses"}', False),
        ('{"action":"add","title":null,"new_title":null}', False),
    ],
)
def test_a_grammar_allows_what_is_grounded(rules: grammar.Grammar, tokenizer: Any, answer: str, possible: bool) -> None:
    assert can_write(rules, tokenizer, [user("water the ferns")], answer) is possible


@pytest.mark.parametrize(("title", "possible"), [("Reply to a<bob", True), ("Anything", False)])
def test_angle_brackets_do_not_switch_it_off(
    rules: grammar.Grammar, tokenizer: Any, title: str, possible: bool
) -> None:
    answer = f'{{"action":"add","title":"{title}","new_title":null}}'
    assert can_write(rules, tokenizer, [user("reply to a<bob and <bob> about it")], answer) is possible


def test_without_a_word_the_contract_alone_holds(rules: grammar.Grammar, tokenizer: Any) -> None:
    assert can_write(rules, tokenizer, [user("?!")], '{"action":"add","title":"Anything","new_title":null}')
    asked = [user("water the ferns " * 20)]  # as many words as are held
    assert not can_write(rules, tokenizer, asked, '{"action":"add","title":"Anything","new_title":null}')


@pytest.mark.parametrize("asked", ["water the ferns " * 30, "请浇花"])
def test_the_contract_alone_holds_what_is_too_long_or_has_no_spaces(
    rules: grammar.Grammar, tokenizer: Any, asked: str
) -> None:
    assert can_write(rules, tokenizer, [user(asked)], '{"action":"add","title":"Anything","new_title":null}')


@pytest.mark.parametrize(
    ("rule", "written", "possible"),
    [
        ({"type": "array", "items": {"type": "string"}}, '["Ferns","Water"]', True),
        ({"type": "array", "items": {"type": "string"}}, '["Roses"]', False),
        ({"type": "integer"}, "3", True),
        ({"type": ["string", "null"]}, "null", True),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, "null", True),
        ({"type": ["string", "null"]}, '"Roses"', False),
        ({"type": ["string", "integer"]}, '"Roses"', False),
        ({"type": ["string", "integer"]}, "3", True),
        ({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}, '["Roses"]', False),
        ({"enum": ["Ferns", None]}, "null", True),
        ({"enum": ["Ferns", None]}, '"Roses"', False),
    ],
)
def test_texts_alone_are_held(rule: dict[str, Any], written: str, possible: bool, tokenizer: Any, here: Path) -> None:
    schema = {"type": "object", "properties": {"title": rule}, "required": ["title"], "additionalProperties": False}
    (here / "schema.json").write_text(strict_json.compact({"oneOf": [schema]}), encoding="utf-8")  # a kind, as shipped
    rules = grammar.load(here / "schema.json", tokenizer)
    assert can_write(rules, tokenizer, [user("water the ferns")], f'{{"title":{written}}}') is possible


def test_the_schema_itself_stays_as_it_is() -> None:
    before = strict_json.compact(SCHEMA)
    grounding.narrowed(SCHEMA, [user("water the ferns")], FIELDS)
    assert strict_json.compact(SCHEMA) == before
