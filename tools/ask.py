"""Ask the tuned model: one request in, one JSON object out, with the verdict of the contract on stderr.

Exit status 0: the answer meets the contract; 1: it does not.
"""

import sys
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import click

from stages.shared import chat, cli, contract, generate, grammar, model, params, strict_json
from tools import due_date

HERE = {"base": "models/base", "adapter": "models/adapter", "schema": "data/schema.json"}


def folder(name: str, help_text: str) -> Callable[[Any], Any]:
    return click.option(
        f"--{name}", type=click.Path(path_type=Path, exists=True), default=HERE[name], show_default=True, help=help_text
    )


def quiet() -> None:
    """Stderr holds the verdict and nothing else: no progress bars, no advice from libraries."""
    import logging
    import warnings

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def answer(request: str, base: Path, adapter: Path, schema: Path | None) -> str:
    """Return the model's text for one request, with the prompt that training used, held to `schema` where given."""
    quiet()
    settings = params.load("predict", params.Predict)
    tokenizer = model.load_tokenizer(base)
    network = model.load_for_generation(base, adapter, model.device(settings.device)[1])
    prefix = strict_json.read(adapter / "made_from.json")["prefix"]
    prompt = chat.prompt_ids(tokenizer, chat.with_prefix(prefix, [{"role": "user", "content": request}]))
    mask = grammar.load(schema, tokenizer).mask if schema else None
    ((_, found),) = generate.greedy(network, tokenizer, [prompt], settings.max_new_tokens, 1, mask)
    return found.text


@click.command(help=__doc__)
@click.argument("request")
@folder("base", "base model")
@folder("adapter", "LoRA adapter")
@folder("schema", "JSON Schema of an answer")
@click.option(
    "--today", type=click.DateTime(["%Y-%m-%d"]), help="turn due_date into an ISO date, as seen from this day"
)
@click.option("--constrained", is_flag=True, help="hold the answer to the schema while it is written")
def main(request: str, base: Path, adapter: Path, schema: Path, today: datetime | None, constrained: bool) -> None:
    if not request.strip():
        raise click.UsageError("the request is empty")
    rules = contract.load(schema, params.load("contract", params.Contract).discriminator)
    said = answer(request, base, adapter, schema if constrained else None)
    try:
        value = contract.parse_answer(said)
    except strict_json.JsonError as error:
        click.echo(said)
        click.echo(f"contract: not strict JSON: {error}", err=True)
        sys.exit(1)
    broken = rules.error(value)
    if today and not broken:
        value = with_iso_date(value, today.date())
    click.echo(strict_json.compact(value))
    click.echo(f"contract: {broken or 'ok'}", err=True)
    sys.exit(1 if broken else 0)


def with_iso_date(value: dict[str, object], today: date) -> dict[str, object]:
    """The answer as the API gets it: `due_date` resolved, where there is one to resolve."""
    named = value.get("due_date")
    if not isinstance(named, str) or named == "none":
        return value
    try:
        return value | {"due_date": due_date.resolve(named, today).isoformat()}
    except ValueError as error:
        raise cli.InputError(str(error)) from error


if __name__ == "__main__":
    main()
