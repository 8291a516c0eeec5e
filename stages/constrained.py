"""The tuned model once more, held to the contract while it writes: a fourth system beside the three.

In: the test rows, the prompt prefix, base, adapter and the JSON Schema. Out: answers as in stages/predict.py and a
timing file; no answers where `constrained.enabled` is false, and `evaluate` then leaves the system out. The answers are
scored like any others: that they meet the contract is measured, not assumed.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stages.shared import chat, cli, grammar, model, params, predictions, strict_json


@dataclass(frozen=True)
class Params:
    enabled: bool


def remarks(rules: grammar.Grammar, schema: Path, rows: Path, tokenizer: Any) -> list[str]:
    """Where grammar and task part: what the grammar leaves out, and expected answers that it would not let through."""
    left_out = [f"{schema}: the answers are not held to all of it: {part}" for part in rules.left_out]
    ids = {e["id"]: chat.answer_ids(tokenizer, e["answer"]) for e in strict_json.read_jsonl(rows)}
    barred = [name for name, answer in ids.items() if not rules.spells(answer)]
    if not barred:
        return left_out
    return [
        *left_out,
        f"{rows}: {len(barred)} of {len(ids)} expected answers can't be written under the grammar, {barred[0]} the "
        f"first; do their keys stand in the order of {schema}?",
    ]


@click.command(help=__doc__)
@cli.path_option("--base", "base model")
@cli.path_option("--adapter", "LoRA adapter")
@cli.path_option("--prefix", "turns before each prompt")
@cli.path_option("--schema", "JSON Schema of an answer")
@cli.path_option("--rows", "chat rows")
@cli.path_option("--out", "predictions")
@cli.path_option("--timing", "timing file")
def main(base: Path, adapter: Path, prefix: Path, schema: Path, rows: Path, out: Path, timing: Path) -> None:
    settings = params.load("predict", params.Predict)
    key, device = model.device(settings.device)
    if not params.load("constrained", Params).enabled:
        strict_json.write_jsonl(out, [])
        predictions.write_timing(timing, [], 0.0, key)
        return click.echo("constrained: off", err=True)
    tokenizer = model.load_tokenizer(base)
    rules = grammar.load(schema, tokenizer)
    for remark in remarks(rules, schema, rows, tokenizer):
        click.echo(f"constrained: {remark}", err=True)
    network = model.load_for_generation(base, adapter, device)
    started = time.monotonic()
    found = predictions.predict(network, tokenizer, prefix, rows, out, settings, rules.mask)
    seconds = time.monotonic() - started
    predictions.write_timing(timing, found, seconds, key)
    return click.echo(f"constrained: {len(found)} answers in {seconds:.0f} s on {key}", err=True)


if __name__ == "__main__":
    main()
