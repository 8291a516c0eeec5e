"""Hold an answer to the contract while it is written: at each step, only tokens that the JSON Schema can go on with.

The schema becomes a grammar of the spelling that training used (no spaces, keys in the order of the schema), and the
grammar a mask over the vocabulary, as in Willard and Louf (2023). The engine is llguidance; benchmarks/README.md has
what it was chosen for. The grammar shapes answers, the contract still judges them: see `Grammar.left_out`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import strict_json
from stages.core.cli import InputError

# What strict_json.compact writes, but for \u: it writes control characters, and whether those are white space for a
# `pattern` is something that the engine and the contract's validator disagree about.
SPELLING: dict[str, Any] = {"whitespace_flexible": False, "json_allowed_escapes": '"\\bfnrt'}
# A second try: alternatives that may overlap become any of them, and keywords that are not known are left out.
LOOSER: dict[str, Any] = {"coerce_one_of": True, "lenient": True}


@dataclass(frozen=True)
class Grammar:
    """A schema in the tokens of one tokenizer. `left_out`: what of the schema it does not hold answers to."""

    schema: dict[str, Any]
    options: dict[str, Any]
    engine: Any  # the tokenizer, as llguidance knows it
    start: Any  # llguidance's matcher, before the first token
    left_out: tuple[str, ...]

    def masks(self, prompts: list[int]) -> "Mask":
        """The mask of a batch, as generate.Masks; every prompt has the same grammar."""
        return Mask([self.start.deep_copy() for _ in prompts], self.engine.vocab_size)

    def spells(self, ids: list[int]) -> bool:
        """Whether an answer, its EOS included, can be written."""
        return bool(self.start.validate_tokens(ids) == len(ids))


class Mask:
    """Impossible tokens get -inf; only EOS is left where an answer is complete (generate.Mask)."""

    def __init__(self, matchers: list[Any], vocabulary: int) -> None:
        self.matchers, self.vocabulary = matchers, vocabulary

    def __call__(self, last: list[int] | None, scores: Any) -> Any:
        """Mask the `scores` of the next token (rows, vocabulary). Raises InputError where the engine gives up."""
        import numpy as np
        import torch
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        bits = allocate_token_bitmask(len(self.matchers), self.vocabulary)
        for number, matcher in enumerate(self.matchers):
            if last is not None and not matcher.is_stopped():
                matcher.consume_token(last[number])
            if matcher.is_error():
                raise InputError(f"the grammar engine gave up: {matcher.get_error()}; see constrained in params.yaml")
            fill_next_token_bitmask(matcher, bits, number)
        # A model may have more outputs than its tokenizer has tokens; unpackbits fills up with zeros.
        allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=scores.shape[1], bitorder="little")
        return scores.masked_fill(torch.from_numpy(allowed == 0).to(scores.device), float("-inf"))

    def keep(self, rows: list[int]) -> None:
        """Forget all other rows."""
        self.matchers = [self.matchers[row] for row in rows]


def compiled(schema: dict[str, Any], options: dict[str, Any], engine: Any) -> tuple[Any, list[str]]:
    """A matcher, None where the engine refuses the schema; and what the engine says of it."""
    from llguidance import LLMatcher

    text = LLMatcher.grammar_from_json_schema(schema | {"x-guidance": options})
    failed, messages = LLMatcher.validate_grammar_with_warnings(text, engine)
    return None if failed else LLMatcher(engine, text, log_level=0), messages


def load(schema: Path, tokenizer: Any) -> Grammar:
    """Read a JSON Schema; leave out what the engine can't express. Raises InputError when nothing can be made of it."""
    from llguidance.hf import from_tokenizer

    try:
        engine = from_tokenizer(tokenizer)
    except ValueError as error:
        raise InputError(f"the grammar engine can't read this tokenizer: {error}") from error
    rules = strict_json.read(schema)
    for options in (SPELLING, SPELLING | LOOSER):
        start, messages = compiled(rules, options, engine)
        if start:
            return Grammar(rules, options, engine, start, tuple(messages))
    reason = " ".join(messages[0].split())
    raise InputError(f"{schema}: no grammar can be made of it: {reason}; constrained.enabled: false does without")
