"""Serve the exported model over HTTP, OpenAI-compatible: `transformers serve`, held to what the model was trained for.

Added to the engine: control tokens inside a message stay text, as in training; an answer stops where prediction stops;
and a request that the engine would stumble over, or whose wishes it would ignore, is refused with the reason.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Required

import click
from annotated_types import Gt, MinLen
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from stages.shared import cli, model, params

CHAT_TEMPLATE_KWARGS = '{"sanitize_control_tokens": true}'


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


class Request(TypedDict, total=False):
    """What a request may hold. Answers are greedy: the one temperature is 0."""

    model: str
    messages: Required[Annotated[list[Message], MinLen(1)]]
    max_tokens: Annotated[int, Gt(0)]
    max_completion_tokens: Annotated[int, Gt(0)]
    temperature: Literal[0]
    stream: bool


def problems(body: Any) -> list[str]:
    """Why a request can't be answered, a line for each reason; empty when it can."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    strict = with_config(ConfigDict(strict=True, extra="forbid"))
    try:
        TypeAdapter(strict(Request)).validate_python(body)
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc'])) or 'request'}: {e['msg']}" for e in error.errors()]
    return []


def checked(handler: type, max_new_tokens: int) -> type:
    """The engine's chat handler, with requests checked first and the length of an answer limited.

    Refusals have the form that OpenAI's clients read; the engine's own (another model) get it too.
    """
    from fastapi import HTTPException
    from fastapi.responses import JSONResponse

    def refusal(status: int, reason: str) -> Any:
        return JSONResponse({"error": {"message": reason, "type": "invalid_request_error"}}, status_code=status)

    class Checked(handler):  # type: ignore[misc]
        async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
            if found := problems(body):
                return refusal(400, "; ".join(found))
            try:
                return await super().handle_request({"max_tokens": max_new_tokens, **body}, request_id)
            except HTTPException as error:
                return refusal(error.status_code, error.detail)

    return Checked


@click.command(help=__doc__)
@click.option("--model", "folder", default="models/merged", show_default=True, help="folder of the export stage")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="0.0.0.0: for other machines too; there is no login"
)
@click.option("--port", default=8000, show_default=True)
def main(folder: str, host: str, port: int) -> None:
    if not (Path(folder) / "config.json").is_file():
        raise cli.InputError(f"{folder} is not an exported model; run `dvc repro export`")
    predict = params.load("predict", params.Predict)
    device = model.device(predict.device)[1]
    from transformers.cli.serve import Serve
    from transformers.cli.serving import chat_completion

    # `Serve` builds the handler itself and takes no other, so it finds this one under the name.
    handler = checked(chat_completion.ChatCompletionHandler, predict.max_new_tokens)
    chat_completion.ChatCompletionHandler = handler
    click.echo(f"serve: {folder} at http://{host}:{port}/v1", err=True)
    Serve(
        folder,
        host=host,
        port=port,
        device=device.name,
        dtype=device.generate_dtype,
        chat_template_kwargs=CHAT_TEMPLATE_KWARGS,
    )


if __name__ == "__main__":
    main()
