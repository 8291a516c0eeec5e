"""Generate answers with one system: the base model (stage `baseline`) or the base with its adapter (stage `predict`).

In: chat rows, a prompt prefix, the base model, optionally an adapter. Out: for each --rows file a --out file with
`id`, `answer`, `prompt_tokens`, `answer_tokens`, `truncated`; a timing file. Nothing is scored here.
"""

import time
from pathlib import Path

import click

from stages.shared import cli, model, params, predictions


@click.command(help=__doc__)
@cli.path_option("--base", "base model")
@cli.path_option("--adapter", "LoRA adapter; without it the base model answers", required=False)
@cli.path_option("--prefix", "turns before each prompt")
@cli.path_option("--rows", "chat rows; may be repeated", multiple=True)
@cli.path_option("--out", "predictions, one file for each --rows", multiple=True)
@cli.path_option("--timing", "timing file")
def main(
    base: Path, adapter: Path | None, prefix: Path, rows: tuple[Path, ...], out: tuple[Path, ...], timing: Path
) -> None:
    settings = params.load("predict", params.Predict)
    if len(rows) != len(out):
        raise click.UsageError("give one --out for each --rows")
    key, device = model.device(settings.device)
    tokenizer = model.load_tokenizer(base)
    network = model.load_for_generation(base, adapter, device)
    started = time.monotonic()
    found = [
        answer
        for source, target in zip(rows, out, strict=True)
        for answer in predictions.predict(network, tokenizer, prefix, source, target, settings)
    ]
    seconds = time.monotonic() - started
    predictions.write_timing(timing, found, seconds, key)
    click.echo(f"predict: {len(found)} answers in {seconds:.0f} s on {key}", err=True)


if __name__ == "__main__":
    main()
