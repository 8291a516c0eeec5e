"""Which engine can hold answers to the contract: what it covers of JSON Schema, and its time per mask.

    python -m benchmarks.grammar_engines --rows 200 --out benchmarks/grammar_engines.json

The engine in use is llguidance. The others are no part of the environment; those that are missing are left out:

    pip install --no-deps --target /tmp/engines xgrammar==0.2.8 apache-tvm-ffi==0.1.15.post2 outlines-core==0.2.14
    PYTHONPATH=/tmp/engines python -m benchmarks.grammar_engines --rows 200 --out benchmarks/grammar_engines.json

A feature is covered when every sound value can be written and no broken one can. The same is then asked of
data/schema.json as a whole, with training answers and with each of them broken in several ways.
"""

import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click


@dataclass(frozen=True)
class Writer:
    """One answer being written: make the mask of the next token, take a token (false: refused), may it end here."""

    mask: Callable[[], object]
    take: Callable[[int], bool]
    done: Callable[[], bool]


Start = Callable[[], Writer]


def llguidance(schema: dict[str, Any], tokenizer: Any) -> Start:
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer

    from stages.shared.grammar import SPELLING

    rules = LLMatcher.grammar_from_json_schema(schema | {"x-guidance": SPELLING})
    first = LLMatcher(from_tokenizer(tokenizer), rules, log_level=0)
    if first.is_error():
        raise ValueError(first.get_error())

    def start() -> Writer:
        matcher = first.deep_copy()
        return Writer(matcher.compute_bitmask, matcher.consume_token, matcher.is_accepting)

    return start


def xgrammar(schema: dict[str, Any], tokenizer: Any) -> Start:
    import xgrammar as xg

    compiler = xg.GrammarCompiler(xg.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer)))
    compiled = compiler.compile_json_schema(json.dumps(schema), any_whitespace=False, separators=(",", ":"))
    bits = xg.allocate_token_bitmask(1, len(tokenizer))

    def start() -> Writer:
        matcher = xg.GrammarMatcher(compiled)
        return Writer(
            lambda: matcher.fill_next_token_bitmask(bits), matcher.accept_token, lambda: matcher.is_completed()
        )

    return start


def outlines(schema: dict[str, Any], tokenizer: Any) -> Start:
    import numpy as np
    from outlines_core import Guide, Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema

    ids: dict[bytes, list[int]] = {}
    for number in set(range(len(tokenizer))) - set(tokenizer.all_special_ids):
        ids.setdefault(token_bytes(tokenizer.convert_ids_to_tokens(number)), []).append(number)
    index = Index(build_regex_from_schema(json.dumps(schema), ""), Vocabulary(tokenizer.eos_token_id, ids))
    bits = np.zeros((len(tokenizer) + 31) // 32, np.int32)

    def start() -> Writer:
        guide = Guide(index)

        def take(token: int) -> bool:
            fits = guide.accepts_tokens([token])
            if fits:
                guide.advance(token, return_tokens=False)
            return bool(fits)

        return Writer(lambda: guide.write_mask_into(bits.ctypes.data, bits.size, 4), take, guide.is_finished)

    return start


ENGINES: dict[str, tuple[str, Callable[[dict[str, Any], Any], Start]]] = {
    "llguidance": ("llguidance", llguidance),
    "xgrammar": ("xgrammar", xgrammar),
    "outlines-core": ("outlines_core", outlines),
}


def token_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level BPE stands for."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    back = {chr(byte): byte for byte in kept} | {chr(256 + number): byte for number, byte in enumerate(others)}
    return bytes(back[letter] for letter in token)


def closed(**properties: Any) -> dict[str, Any]:
    """An object that has exactly these properties."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


TEXT = {"type": "string"}
# Feature: a schema, values that meet it, values that break it.
FEATURES: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "const": (closed(v={"const": "ab"}), [{"v": "ab"}], [{"v": "a"}, {"v": "abc"}]),
    "enum": (closed(v={"enum": ["a", "b"]}), [{"v": "a"}, {"v": "b"}], [{"v": "c"}, {"v": None}]),
    "null in anyOf": (closed(v={"anyOf": [{"enum": ["a"]}, {"type": "null"}]}), [{"v": None}, {"v": "a"}], [{"v": 0}]),
    "$ref": (closed(v={"$ref": "#/$defs/x"}) | {"$defs": {"x": {"enum": ["a"]}}}, [{"v": "a"}], [{"v": "b"}]),
    "required": (closed(v=TEXT, w=TEXT), [{"v": "a", "w": "b"}], [{"v": "a"}, {}]),
    "additionalProperties: false": (closed(v=TEXT), [{"v": "a"}], [{"v": "a", "w": "b"}]),
    "oneOf told apart by const": (
        {"type": "object", "oneOf": [closed(k={"const": "a"}, v=TEXT), closed(k={"const": "b"}, w=TEXT)]},
        [{"k": "a", "v": "x"}, {"k": "b", "w": "x"}],
        [{"k": "a", "w": "x"}, {"k": "c", "v": "x"}],
    ),
    "minLength, maxLength": (
        closed(v=TEXT | {"minLength": 1, "maxLength": 3}),
        [{"v": "a"}, {"v": "äöü"}],
        [{"v": ""}, {"v": "abcd"}],
    ),
    "pattern": (
        closed(v=TEXT | {"pattern": "^in_[1-9][0-9]?_days$"}),
        [{"v": "in_3_days"}],
        [{"v": "in_0_days"}, {"v": "in_3_days "}],
    ),
    "pattern with \\S": (
        closed(v=TEXT | {"pattern": "^\\S(.*\\S)?$"}),
        [{"v": "a"}, {"v": "a b"}, {"v": 'é"\\b'}],
        [{"v": " a"}, {"v": "a "}, {"v": "\u00a0a"}, {"v": ""}],
    ),
    "pattern and maxLength": (
        closed(v=TEXT | {"pattern": "^a*$", "maxLength": 3}),
        [{"v": "aaa"}, {"v": ""}],
        [{"v": "aaaa"}, {"v": "b"}],
    ),
}


def writes(start: Start, tokenizer: Any, text: str) -> bool:
    writer = start()
    return all(writer.take(token) for token in tokenizer.encode(text, add_special_tokens=False)) and writer.done()


def covers(make: Callable[[dict[str, Any], Any], Start], tokenizer: Any, feature: str) -> str:
    """'yes', or what went wrong."""
    from stages.shared.strict_json import compact

    schema, sound, broken = FEATURES[feature]
    try:
        start = make(schema, tokenizer)
        refused = [compact(value) for value in sound if not writes(start, tokenizer, compact(value))]
        passed = [compact(value) for value in broken if writes(start, tokenizer, compact(value))]
        passed += [text for text in map(json.dumps, sound) if writes(start, tokenizer, text)]  # with spaces
    except (ValueError, RuntimeError) as error:
        return f"error: {str(error)[:100]}"
    return "; ".join([*(f"refuses {text}" for text in refused), *(f"allows {text}" for text in passed)]) or "yes"


def damaged(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answer with one thing changed; some of these break the contract."""
    for name, value in answer.items():
        yield {key: item for key, item in answer.items() if key != name}
        for other in (None, 7, "", f"{value} ", f" {value}", f"{value}x", "x" * 121, "x\ny"):
            yield answer | {name: other}
    yield answer | {"extra": "x"}


def whole(start: Start, tokenizer: Any, answers: list[str]) -> dict[str, Any]:
    """How the engine does on data/schema.json: sound answers written, broken ones allowed, microseconds per mask."""
    from stages.shared import contract
    from stages.shared.strict_json import compact

    rules = contract.load(Path("data/schema.json"))
    broken = sorted(
        {compact(d) for answer in answers for d in damaged(json.loads(answer)) if rules.error(d) is not None}
    )
    allowed = [text for text in broken if writes(start, tokenizer, text)]
    times = []
    for answer in answers:
        writer = start()
        for token in tokenizer.encode(answer, add_special_tokens=False):
            begun = time.perf_counter()
            writer.mask()
            times.append((time.perf_counter() - begun) * 1e6)
            writer.take(token)
    return {
        "sound": len(answers),
        "sound_written": sum(writes(start, tokenizer, answer) for answer in answers),
        "broken": len(broken),
        "broken_allowed": len(allowed),
        "examples_allowed": allowed[:: max(1, len(allowed) // 3)][:3],
        "mask_us": {
            "n": len(times),
            "mean": round(statistics.fmean(times), 1),
            "p50": round(statistics.median(times), 1),
            "p99": round(statistics.quantiles(times, n=100)[98], 1),
        },
    }


@click.command(help=__doc__)
@click.option("--base", type=click.Path(path_type=Path, exists=True), default="models/base", show_default=True)
@click.option("--rows", type=int, default=200, show_default=True, help="training answers to measure with")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file for the figures")
def main(base: Path, rows: int, out: Path) -> None:
    from stages.shared import model, strict_json

    tokenizer = model.load_tokenizer(base)
    schema = strict_json.parse(Path("data/schema.json").read_text(encoding="utf-8"))
    answers = [row["answer"] for row in strict_json.read_jsonl(Path("data/chat/train.jsonl"))][:rows]
    found: dict[str, Any] = {}
    for name, (module, make) in ENGINES.items():
        if find_spec(module) is None:
            continue
        click.echo(name, err=True)
        features = {feature: covers(make, tokenizer, feature) for feature in FEATURES}
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        start = make(schema, tokenizer)
        seconds, grown = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        found[name] = {
            "version": version(name),
            "features": features,
            "prepare_seconds": round(seconds, 2),  # tokenizer and schema, once per process
            "prepare_mb": round(grown / 1024),
            "schema": whole(start, tokenizer, answers),
        }
        click.echo(json.dumps(found[name]), err=True)
        strict_json.write_json(out, found)


if __name__ == "__main__":
    main()
