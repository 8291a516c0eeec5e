"""Serve the tuned model over HTTP, with the part of OpenAI's API that it was trained for.

Routes: POST /v1/chat/completions, GET /v1/models, GET /health. Answers are greedy, and requests are answered one at a
time, first come, first served. A request that is too long, has an option that would be ignored, or comes when the queue
is full is refused with the reason. A client that leaves frees the model at the next token. LOCKSTEP_API_KEY, or a file,
can hold a key that requests must bring.
"""

import asyncio
import hmac
import json
import os
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Required

import click
from annotated_types import Gt, MinLen
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from stages.answers import generate
from stages.answers.generate import Answer
from stages.core import cli, params, strict_json
from stages.model import chat
from tools import ask

MAX_BODY = 64 * 1024
READ_SECONDS = 10.0  # that a client may take to send a request
POLL_SECONDS = 0.2  # between looks at whether a client still waits
HOSTS = ("localhost", "127.0.0.1", "[::1]")  # other names could be a web page's (DNS rebinding)
ALLOWED = re.compile(r"\*|(\*\.)?[^*]+")  # what Starlette takes for one


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


class Body(TypedDict, total=False):
    """What a request may hold. Answers are greedy: the one temperature is 0."""

    model: str
    messages: Required[Annotated[list[Message], MinLen(1)]]
    max_tokens: Annotated[int, Gt(0)]
    max_completion_tokens: Annotated[int, Gt(0)]
    temperature: Literal[0]
    stream: bool


def parse(raw: bytes) -> Body:
    """Raises ValueError naming every field that is wrong."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    value = strict_json.parse(raw.decode("utf-8"))
    try:
        body: Body = TypeAdapter(with_config(ConfigDict(strict=True, extra="forbid"))(Body)).validate_python(value)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, e['loc'])) or 'request'}: {e['msg']}" for e in error.errors()]
        raise ValueError("; ".join(reasons)) from error
    if body["messages"][-1]["role"] != "user" or not body["messages"][-1]["content"].strip():
        raise ValueError("messages: the last one must be the user's, and not empty")
    return body


class Left(Exception):  # noqa: N818
    """Nobody waits for this answer any more."""


@dataclass
class Engine:
    """A model, the one thread that runs it, and its limits: `queue` requests at a time, `seconds` for each."""

    name: str
    model: Any
    tokenizer: Any
    masks: generate.Masks | None
    max_prompt: int
    max_answer: int
    queue: int = 32
    seconds: float = 30.0
    accepted: int = 0

    def __post_init__(self) -> None:
        self.worker = ThreadPoolExecutor(1)  # whose queue is first in, first out

    async def answer(self, body: Body, gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[str | Answer]:
        """The text so far after each token, at last the whole answer. `gone`: whether the client has left."""
        prompt = self.prompt(body)
        room = min(self.max_answer, body.get("max_tokens", self.max_answer))
        room = min(room, body.get("max_completion_tokens", room))
        if self.accepted >= self.queue:
            raise HTTPException(503, f"{self.queue} requests are waiting; try again later", {"Retry-After": "1"})
        loop, items, left = asyncio.get_running_loop(), asyncio.Queue[Any](), threading.Event()
        deadline = loop.time() + self.seconds

        def tell(text: str) -> None:
            loop.call_soon_threadsafe(items.put_nowait, text)

        work = loop.run_in_executor(self.worker, self.write, prompt, room, tell, left)
        work.add_done_callback(items.put_nowait)
        self.accepted += 1
        try:
            while True:
                item = None
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        item = await items.get()
                if await gone():
                    raise HTTPException(499, "the client has left")  # read by nobody
                if item is work:
                    yield work.result()
                    return
                if loop.time() > deadline:
                    raise HTTPException(504, f"no answer within {self.seconds:g} seconds")
                if item is not None:
                    yield item
        finally:
            left.set()
            work.cancel()
            self.accepted -= 1

    def prompt(self, body: Body) -> list[int]:
        """Token ids. Raises HTTPException for another model, turns that the template refuses, and too many tokens."""
        from jinja2 import TemplateError

        if body.get("model", self.name) != self.name:
            raise HTTPException(404, f"model: {body['model']!r} is not served here, {self.name!r} is")
        try:
            turns = [{"role": str(m["role"]), "content": m["content"]} for m in body["messages"]]
            ids = chat.prompt_ids(self.tokenizer, turns)
        except TemplateError as error:
            raise HTTPException(400, f"messages: {error}") from error
        if len(ids) > self.max_prompt:
            raise HTTPException(400, f"messages: {len(ids)} tokens, more than chat.max_length = {self.max_prompt}")
        return ids

    def write(self, prompt: list[int], room: int, tell: Callable[[str], None], left: threading.Event) -> Answer:
        """The answer, in the worker; `tell` gets the text so far. Raises Left at the next token once `left` is set."""
        watch = Watch(self.tokenizer, self.masks([0]) if self.masks else None, tell, left)
        ((_, answer),) = generate.greedy(self.model, self.tokenizer, [prompt], room, 1, lambda _: watch)
        return answer


class Watch:
    """A mask (generate.Mask) that tells the text so far at each token, and raises Left once `left` is set."""

    def __init__(
        self, tokenizer: Any, inner: generate.Mask | None, tell: Callable[[str], None], left: threading.Event
    ) -> None:
        self.tokenizer, self.inner, self.tell, self.left = tokenizer, inner, tell, left
        self.written: list[int] = []

    def __call__(self, last: list[int] | None, scores: Any) -> Any:
        if self.left.is_set():
            raise Left
        self.written += last or []
        self.tell(self.tokenizer.decode(self.written, clean_up_tokenization_spaces=False))
        return self.inner(last, scores) if self.inner else scores

    def keep(self, rows: list[int]) -> None:
        """There is one row, and it stays."""


def completion(model: str, kind: str) -> dict[str, Any]:
    """OpenAI's object of an answer, or of a part of it, without the answer."""
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def finish(answer: Answer) -> str:
    return "length" if answer.truncated else "stop"


def whole(model: str, answer: Answer) -> dict[str, Any]:
    message, total = {"role": "assistant", "content": answer.text}, answer.prompt_tokens + answer.answer_tokens
    usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.answer_tokens, "total_tokens": total}
    choice = {"index": 0, "message": message, "finish_reason": finish(answer)}
    return completion(model, "chat.completion") | {"choices": [choice], "usage": usage}


async def events(model: str, first: str | Answer, texts: AsyncIterator[str | Answer]) -> AsyncIterator[str]:
    """Server-sent events: what each token adds to the text, held back while a character is not complete.

    The role comes once: clients concatenate the deltas.
    """
    chunk, sent, item = completion(model, "chat.completion.chunk"), "", first
    try:
        yield event(chunk, {"role": "assistant", "content": ""})
        while not isinstance(item, Answer):
            if not item.endswith("\ufffd"):
                yield event(chunk, {"content": item[len(sent) :]})
                sent = item
            item = await anext(texts)
        yield event(chunk, {"content": item.text[len(sent) :]}, finish(item)) + "data: [DONE]\n\n"
    except HTTPException as error:
        yield f"data: {json.dumps(failure(error.status_code, error.detail))}\n\n"


def event(chunk: dict[str, Any], delta: dict[str, str], finish_reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n"


def failure(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


async def refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse(failure(error.status_code, error.detail), error.status_code, error.headers)
    return JSONResponse(failure(500, "the server failed; its log says why"), 500)


def app(engine: Engine, key: str | None = None, hosts: tuple[str, ...] = ()) -> Starlette:
    """The routes. `key`: what requests must bring; `hosts`: names of the server beside those of this machine."""

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if key is not None and not hmac.compare_digest(given.encode("latin-1"), f"Bearer {key}".encode()):
            raise HTTPException(401, "the API key is missing or wrong", {"WWW-Authenticate": "Bearer"})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(request: Request) -> Response:
        check_key(request)
        card = {"id": engine.name, "object": "model", "created": 0, "owned_by": "lockstep"}
        return JSONResponse({"object": "list", "data": [card]})

    async def complete(request: Request) -> Response:
        check_key(request)
        body = await read(request)
        texts = engine.answer(body, request.is_disconnected)
        if body.get("stream"):
            first = await anext(texts)  # before that a refusal still has its status
            return StreamingResponse(events(engine.name, first, texts), media_type="text/event-stream")
        answers = [item async for item in texts if isinstance(item, Answer)]
        return JSONResponse(whole(engine.name, answers[0]))

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/chat/completions", complete, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS, *hosts], www_redirect=False)],
        exception_handlers={HTTPException: refuse, Exception: refuse},
        max_body_size=MAX_BODY,
    )


async def read(request: Request) -> Body:
    """Raises HTTPException for a body that is slow, of another type, or wrong."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the content type must be application/json")  # a page of another site can't send it
    try:
        async with asyncio.timeout(READ_SECONDS):
            raw = await request.body()
    except (TimeoutError, ClientDisconnect):
        raise HTTPException(408, f"the body has to arrive within {READ_SECONDS:g} seconds") from None
    try:
        return parse(raw)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


def config(served: Starlette, host: str, port: int) -> Any:
    """uvicorn's settings. A connection that brings no request within READ_SECONDS is closed."""
    from uvicorn import Config
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(READ_SECONDS, self.give_up, None)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.loop.call_later(READ_SECONDS, self.give_up, self.cycle)

        def give_up(self, latest: Any) -> None:
            """Close, unless a request came after `latest`, or `latest` is still being answered."""
            if self.cycle is latest and (latest is None or latest.response_complete):
                self.transport.close()

    return Config(served, host, port, http=Impatient, ws="none", lifespan="off", log_level="error", server_header=False)


def load(folder: Path, schema: Path | None) -> Engine:
    """The model with the limits of params.yaml, held to `schema` where given."""
    ask.check_model(folder)
    longest, most = params.load("chat", chat.Params).max_length, params.load("predict", generate.Params).max_new_tokens
    return Engine(str(folder), *ask.load(folder, schema), longest, most)


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--model", "tuned model", required=False, default=Path("models/merged"), show_default=True)
@cli.path_option("--schema", "contract", required=False, default=Path("data/schema.json"), show_default=True)
@click.option("--constrained", is_flag=True, help="hold answers to the contract while they are written")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on; 0.0.0.0: every address")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--allow-host", "hosts", multiple=True, help="further name by which clients call this server")
@cli.path_option("--api-key-file", "file with the key that requests must bring", required=False)
def main(
    model: Path,
    schema: Path,
    constrained: bool,
    host: str,
    port: int,
    hosts: tuple[str, ...],
    api_key_file: Path | None,
) -> None:
    from uvicorn import Server

    key = cli.read_text(api_key_file).strip() if api_key_file else os.environ.get("LOCKSTEP_API_KEY")
    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise cli.InputError("the API key is empty or not printable ASCII")
    if odd := [name for name in hosts if not ALLOWED.fullmatch(name)]:
        raise cli.InputError(f"--allow-host {odd[0]!r}: a name, or *.example.com for those below it")
    served = app(load(model, schema if constrained else None), key, hosts)
    click.echo(f"serve: {model} at http://{host}:{port}/v1{'' if key else ', without a key'}", err=True)
    Server(config(served, host, port)).run()


if __name__ == "__main__":
    main()
