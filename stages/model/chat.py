"""From turns to tokens: the one place where a prompt is rendered, for training, baselines, prediction and tools.ask.

The prompt comes from the tokenizer's own chat template; the answer's tokens are the plain encoding of its text plus
EOS. So what the model is trained to continue is, token for token, what it is asked to continue later.
"""

from dataclasses import dataclass
from typing import Any

from stages.core.cli import InputError
from stages.core.params import Count

Turn = dict[str, str]


@dataclass(frozen=True)
class Params:
    """The section `chat` of params.yaml. `max_length`: tokens of prompt and answer of a training row."""

    system: str
    max_length: Count


def with_prefix(prefix: list[Turn], turns: list[Turn]) -> list[Turn]:
    """Put a system's prefix (system prompt, few-shot examples) before a row's turns.

    A row may bring a system turn of its own; it is appended to the prefix's, since templates allow only one. One that
    begins with the prefix's text stays as it is, as in the chat template of stages/merge.py.
    """
    if not turns or turns[0]["role"] != "system":
        return prefix + turns
    own, rest = turns[0], turns[1:]
    if not prefix or prefix[0]["role"] != "system":
        return [own, *prefix, *rest]
    told = prefix[0]["content"]
    if not own["content"].startswith(told):
        own = {"role": "system", "content": told + "\n" + own["content"]}
    return [own, *prefix[1:], *rest]


def without(told: str, turns: list[Turn]) -> list[Turn]:
    """Drop from a row's own system turn the line `told`, which `with_prefix` adds again.

    Without it the row also fits a system that is told something else.
    """
    first, *rest = turns
    if first["role"] != "system" or not f"{first['content']}\n".startswith(f"{told}\n"):
        return turns
    own = first["content"].removeprefix(told).removeprefix("\n")
    return [first | {"content": own}, *rest] if own else rest


def check_turns(place: str, turns: Any) -> list[Turn]:
    """The turns, if they are a list of objects with the texts role and content. Raises InputError naming the place."""
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and {type(turn.get(name)) for name in ("role", "content")} == {str} for turn in turns
    ):
        raise InputError(f"{place}: a list of turns, each with the texts role and content, is expected")
    return turns


def prompt_ids(tokenizer: Any, turns: list[Turn]) -> list[int]:
    """Token ids of the prompt, ending where the assistant's answer begins.

    Control tokens written inside a turn (`<|im_end|>`) are encoded as ordinary text, so data cannot end its own turn.
    """
    return list(
        tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False, sanitize_control_tokens=True
        )
    )


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of an answer, with the EOS that tells the model to stop."""
    ids = tokenizer.encode(answer, add_special_tokens=False, split_special_tokens=True)
    return [*ids, tokenizer.eos_token_id]
