"""Fields that can only hold the user's words: the contract, narrowed for one conversation.

A field that copies from the request (`copied_fields` in data/rules.yaml: a title) gets a pattern of the user's own
words in their own order, the first letter in upper case, a clock time last; or what an earlier answer called it. The
grammar then has no way to write a word that nobody said.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from stages.answers import grammar
from stages.data.contract import branches, followed, parse_answer
from stages.model.chat import Turn

SIGN = "$€£¥&+"  # they belong to the word that they touch, or are one
# What stands before a word, the word, what stands after it.
WORD = re.compile(rf"((?:(?![{SIGN}])[\W_])*)([{SIGN}]?.*?[{SIGN}]*)([\W_]*)", re.DOTALL)
# Of Thai to Chinese, which have no words with spaces around them.
UNSPACED = re.compile(r"[\u0e01-\u0e3a\u0e40-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
MOST = 60  # words; a pattern grows with their square, and so does the time to compile it
CLOCK = re.compile(r"\d|^(noon|midnight|o.?clock|half|quarter)$", re.IGNORECASE)
CLOCK_WORDS = 4  # of the longest clock time: "at half past six"


class Masks:
    """The masks of conversations, as generate.Masks: each has the contract narrowed to its own words.

    The contract alone holds where the user said no word or too many to compile quickly, or writes without spaces.
    """

    def __init__(self, rules: grammar.Grammar, conversations: list[list[Turn]], fields: tuple[str, ...]) -> None:
        self.rules, self.conversations, self.fields = rules, conversations, fields

    def __call__(self, prompts: list[int]) -> grammar.Mask:
        return grammar.Mask([self._matcher(number) for number in prompts], self.rules.engine.vocab_size)

    def _matcher(self, number: int) -> Any:
        turns = self.conversations[number]
        said = [turn["content"] for turn in turns if turn["role"] == "user"]
        narrow = None
        if 0 < sum(len(words(text)) for text in said) <= MOST and not any(map(UNSPACED.search, said)):
            with suppress(RecursionError):  # a list of lists of itself
                schema = narrowed(self.rules.schema, turns, self.fields)
                narrow, _ = grammar.compiled(schema, self.rules.options, self.rules.engine)
        return narrow or self.rules.start.deep_copy()


def words(text: str) -> list[str]:
    """The words of a text as regular expressions; inside a text, punctuation after a word may stay with it."""
    split = [match for part in text.split() if (match := WORD.fullmatch(part)) and match[2]]
    tails = [match[3][:1] for match in split[:-1]] + [""] * bool(split)
    return [re.escape(m[2]) + (f"{re.escape(tail)}?" if tail else "") for m, tail in zip(split, tails, strict=True)]


def pattern(turns: list[Turn], fields: tuple[str, ...]) -> str:
    """A regular expression for what a copied field may hold after these turns."""
    requests = [words(turn["content"]) for turn in turns if turn["role"] == "user"]
    in_order = [choice for request in requests for choice in _in_order(request)]
    return f"^({'|'.join(dict.fromkeys([*in_order, *map(re.escape, _named_before(turns, fields))]))})$"


def _in_order(request: list[str]) -> Iterator[str]:
    """For each word a pattern that begins with it and goes on with any later words of the request."""
    clock = _clock_times(request)
    for number, word in enumerate(request):
        later = "".join(f"( {other})?" for other in request[number + 1 :])
        yield word[0].upper() + word[1:] + later + clock


def _clock_times(request: list[str]) -> str:
    """A clock time stands at the end of a title, wherever it was said."""
    runs = [
        request[first : first + length]
        for first in range(len(request))
        for length in range(1, CLOCK_WORDS + 1)
        if any(CLOCK.search(word) for word in request[first : first + length])
    ]
    choices = dict.fromkeys(f" {run[0][0].lower()}{' '.join(run)[1:]}" for run in runs)
    return f"({'|'.join(choices)})?" if choices else ""


def _named_before(turns: list[Turn], fields: tuple[str, ...]) -> Iterator[str]:
    """What earlier answers call the thing."""
    for turn in turns:
        if turn["role"] == "assistant":
            answer = parse_answer(turn["content"])
            yield from (answer[name] for name in fields if isinstance(answer.get(name), str))


def narrowed(schema: dict[str, Any], turns: list[Turn], fields: tuple[str, ...]) -> dict[str, Any]:
    """The schema with every property of these names held to the user's words; `null` stays possible where it was."""
    held = {"type": "string", "pattern": pattern(turns, fields)}

    def walk(part: Any) -> Any:
        if isinstance(part, list):
            return [walk(item) for item in part]
        if not isinstance(part, dict):
            return part
        part = {key: walk(value) for key, value in part.items()}
        if isinstance(properties := part.get("properties"), dict):
            narrow = {name: _held(schema, properties[name], held) for name in fields if name in properties}
            part["properties"] = properties | narrow
        return part

    return dict(walk(schema))


def _held(root: dict[str, Any], rule: Any, held: dict[str, Any]) -> dict[str, Any]:
    """The rule with its texts held to the user's words. Numbers and `null` stay, for no words make them."""
    told = followed(root, rule)
    listed = [told["const"]] if "const" in told else told.get("enum", [])
    if choices := branches(root, told):
        options = [_held(root, choice, held) for choice in choices]
    elif listed:
        others = [value for value in listed if not isinstance(value, str)]
        options = [held] * (len(others) < len(listed)) + [{"enum": others}] * bool(others)
    else:
        kinds = told.get("type", "string")
        texts = {"string": held} | _items(root, told, held)
        options = [texts.get(kind, told | {"type": kind}) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    return options[0] if len(options) == 1 else {"anyOf": options}


def _items(root: dict[str, Any], told: dict[str, Any], held: dict[str, Any]) -> dict[str, Any]:
    """The rule of a list, by its type; none where the list has no items, or is no list."""
    if "array" not in told.get("type", "") or not isinstance(told.get("items", {}), dict):
        return {}
    return {"array": told | {"type": "array", "items": _held(root, told.get("items", {}), held)}}
