"""Generate answers with one system: the base model after a prompt prefix, or the tuned model, freely or by a grammar.

In: chat rows and a model's folder; for the base model the turns before each prompt, which the tuned one brings in its
chat template. With --schema the answers are held to the contract while they are written, with --grounded the fields
that copy from the request to the user's words as well; where `constrained.enabled` is false, or no field copies, no
answer is written, and `evaluate` leaves the system out. Out: for each --rows file an --out file with
`id`, `answer`, `prompt_tokens`, `answer_tokens`, `truncated`; a timing file. Nothing is scored here. Until all rows are
answered, the answers are kept below --answered: a run that was killed goes on from there.
"""

from dataclasses import asdict, astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from stages.answers import generate, work
from stages.answers.kept import Kept
from stages.core import cli, hashes, params, strict_json, timing, yaml12
from stages.data import records, writing
from stages.model import chat, checkpoints, loading

LIBRARIES = ("llguidance", "tokenizers", "torch", "transformers")
PREDICTION = ("id", "answer", "prompt_tokens", "answer_tokens", "truncated")  # a row's id, and a generate.Answer


@dataclass(frozen=True)
class Asked:
    """What is read of a chat row."""

    id: str
    prompt: list[chat.Turn]
    answer: str


def copied_fields(file: Path) -> tuple[str, ...]:
    """The fields that are made of the user's words. Raises InputError."""
    text = cli.read_text(file)
    fields = (yaml12.parse(text, str(file)).get("copied_fields") or []) if text.strip() else []
    if not isinstance(fields, list) or not all(isinstance(name, str) for name in fields):
        raise cli.InputError(f"{file}: copied_fields must be a list of names")
    return tuple(fields)


def speed(found: list[generate.Answer], seconds: float, device: str) -> dict[str, Any]:
    """What the timing file holds."""
    return {
        "answers": len(found),
        "answer_tokens": sum(answer.answer_tokens for answer in found),
        "seconds": round(seconds, 2),
        "answers_per_second": round(len(found) / seconds, 3) if seconds else 0.0,
        "device": device,
    }


@click.command(cls=cli.Command, help=__doc__)
@click.option("--model", "folder", required=True, type=click.Path(path_type=Path), help="folder of the model")
@cli.path_option("--prefix", "turns before each prompt, unless the chat template brings them", required=False)
@cli.path_option("--schema", "JSON Schema that answers are held to while they are written", required=False)
@cli.path_option("--grounded", "rules.yaml whose copied_fields may only hold the user's words", required=False)
@cli.path_option("--rows", "chat rows; may be repeated", multiple=True)
@cli.path_option("--out", "predictions, one file for each --rows", multiple=True)
@cli.path_option("--answered", "folder where a killed run left off")
@click.option("--processes", "count", type=click.IntRange(1), help="they share the rows; one for each GPU by default")
@cli.path_option("--timings", "timing file")
def main(
    folder: Path,
    prefix: Path | None,
    schema: Path | None,
    grounded: Path | None,
    rows: tuple[Path, ...],
    out: tuple[Path, ...],
    answered: Path,
    count: int | None,
    timings: Path,
) -> None:
    cli.end_with_caller()
    settings = params.load("predict", generate.Params)
    if len(rows) != len(out) or len({*rows}) < len(rows) or len({*out}) < len(out):
        raise click.UsageError("give one --out for each --rows, and each of these once")
    if grounded and not schema:
        raise click.UsageError("--grounded needs --schema, whose grammar it narrows")
    fields = copied_fields(grounded) if grounded else ()
    if (schema and not params.load("constrained", work.Constrained).enabled) or (grounded and not fields):
        for target in out:
            writing.write_jsonl(target, [])
        return click.echo("predict: switched off, or no field copies from the request: nothing is answered", err=True)
    import torch

    key, device = loading.device(params.load("compute", loading.Params).device)
    tokenizer = loading.load_tokenizer(folder)
    examples = {source: [vars(row) for row in records.read(source, Asked, "ignore", least=0)] for source in rows}
    for source, given in examples.items():
        work.check_answers_fit(str(source), given, tokenizer, settings.max_new_tokens)
    turns = chat.check_turns(str(prefix), strict_json.read(prefix)) if prefix else []
    inputs = {
        "model": hashes.of_folder(folder),
        "schema": hashes.of_file(schema) if schema else None,
        "fields": fields,
        "settings": asdict(settings),
        "device": key,
        "threads": torch.get_num_threads() if device.name == "cpu" else None,
        "versions": {name: version(name) for name in LIBRARIES},
        "code": checkpoints.code(),
    }
    parts, room = [], work.context(folder) - settings.max_new_tokens
    for source, given in examples.items():
        asked = [row["prompt"] for row in given]
        prompts = [chat.prompt_ids(tokenizer, chat.with_prefix(turns, prompt)) for prompt in asked]
        work.check_prompts_fit(str(source), given, prompts, room)
        batches = generate.batches(prompts, settings.batch_size)
        parts.append(work.Part(given, prompts, Kept(answered, {**inputs, "asked": asked, "prompts": prompts}, batches)))
    count = count or (torch.cuda.device_count() if device.name == "cuda" else 1)
    count = min(count, max(1, sum(len(part.kept.batches) for part in parts)))  # no process is without a batch
    work.answer_all(work.Job(folder, device, settings, tokenizer, schema, fields, parts), count)
    found, seconds = [], 0.0
    for part, target in zip(parts, out, strict=True):
        done = part.kept.read()
        lines = ((row["id"], *astuple(one)) for row, (_, one) in zip(part.rows, done.values(), strict=True))
        writing.write_jsonl(target, (dict(zip(PREDICTION, line, strict=True)) for line in lines))
        found += [one for _, one in done.values()]
        seconds += sum(took for took, _ in done.values()) / count
    timing.record(timings, out[0], speed(found, seconds, key))
    for part in parts:
        part.kept.clear()
    return click.echo(f"predict: {len(found)} answers in {seconds:.0f} s on {key}", err=True)


if __name__ == "__main__":
    main()
