"""Ask the tuned model: one request in, one JSON object out, with the verdict of the contract on stderr.

Exit status 0: the answer meets the contract; 1: it does not; 2: the question can't be put.
"""

import sys
from pathlib import Path
from typing import Any

import click

from stages.answers import generate, grammar
from stages.core import cli, params, strict_json
from stages.data import contract
from stages.model import chat, loading


def quiet() -> None:
    """Stderr holds the verdict and nothing else: no progress bars, no advice from libraries."""
    import logging
    import warnings

    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.disable_progress_bar()


def check(request: str, model: Path) -> None:
    """Raises InputError for what no model has to be loaded for."""
    if not request.strip():
        raise cli.InputError("the request is empty")
    if any("\ud800" <= char <= "\udfff" for char in request):
        raise cli.InputError("the request is not UTF-8")
    check_model(model)


def check_model(folder: Path) -> None:
    """Raises InputError where there is none."""
    if not (folder / "config.json").is_file():
        raise cli.InputError(f"{folder} is not a model; run `make repro`, which makes models/merged")


def load(folder: Path, schema: Path | None) -> tuple[Any, Any, generate.Masks | None]:
    """Model, tokenizer, and what holds answers to `schema`, where given."""
    device = loading.device(params.load("compute", loading.Params).device)[1]
    tokenizer = loading.load_tokenizer(folder)
    masks = grammar.load(schema, tokenizer).masks if schema else None
    return loading.load_model(folder, device.generate_dtype, device.name), tokenizer, masks


def answer(request: str, folder: Path, schema: Path | None) -> str:
    """The model's text for one request, held to `schema` where given. The chat template brings the system prompt."""
    limit = params.load("predict", generate.Params).max_new_tokens
    model, tokenizer, masks = load(folder, schema)
    prompt = chat.prompt_ids(tokenizer, [{"role": "user", "content": request}])
    ((_, found),) = generate.greedy(model, tokenizer, [prompt], limit, 1, masks)
    return found.text


def judge(text: str, rules: contract.Contract) -> tuple[str, str]:
    """The answer in the one spelling where it can be read, and why it breaks the contract, '' where it does not."""
    try:
        value = contract.parse_answer(text)
    except strict_json.JsonError as error:
        return cli.printable(text), f"not strict JSON: {error}"
    return strict_json.compact(value), rules.error(value) or ""


@click.command(cls=cli.Command, help=__doc__)
@click.argument("request")
@cli.path_option("--model", "tuned model", required=False, default=Path("models/merged"), show_default=True)
@cli.path_option("--schema", "contract", required=False, default=Path("data/schema.json"), show_default=True)
@click.option("--constrained", is_flag=True, help="hold the answer to the schema while it is written")
def main(request: str, model: Path, schema: Path, constrained: bool) -> None:
    try:
        check(request, model)
        rules = contract.load(schema, params.load("contract", contract.Params).discriminator)
        quiet()
        text, broken = judge(answer(request, model, schema if constrained else None), rules)
    except cli.InputError as error:
        error.show()
        sys.exit(2)
    click.echo(text)
    click.echo(f"contract: {broken or 'ok'}", err=True)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
