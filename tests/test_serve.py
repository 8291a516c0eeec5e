"""The tuned model over HTTP, on a real socket: OpenAI's client, clear refusals, fair turns, and hostile clients."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner
from conftest import SCHEMA, configure
from jinja2 import TemplateError
from taught import ANSWER, REQUEST

from benchmarks import serve as load
from stages.answers import generate, grammar
from stages.model import chat, loading
from tools import serve

MESSAGES = [{"role": "user", "content": REQUEST}]
SOUND = {"messages": MESSAGES}


@dataclass(frozen=True)
class Running:
    port: int
    engine: serve.Engine

    def client(self, key: str = "none") -> Any:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=30)

    def complete(self, messages: list[dict[str, str]], **options: Any) -> Any:
        return self.client().chat.completions.create(model="models/merged", messages=messages, **options)

    def send(self, raw: bytes) -> socket.socket:
        link = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        link.sendall(raw)
        return link

    def post(self, body: bytes, *headers: str, path: str = "/v1/chat/completions") -> tuple[int, Any]:
        """Status and JSON of the answer, or its text."""
        with self.send(request(body, *headers, path=path)) as link:
            answer = b"".join(iter(lambda: link.recv(65536), b""))
        head, _, content = answer.partition(b"\r\n\r\n")
        try:
            return int(head.split()[1]), json.loads(content)
        except ValueError:
            return int(head.split()[1]), content.decode()


def request(body: bytes, *headers: str, path: str = "/v1/chat/completions", length: int | None = None) -> bytes:
    given = {"Host": "localhost", "Content-Type": "application/json", "Connection": "close"}
    given["Content-Length"] = str(len(body) if length is None else length)
    given |= dict(header.split(": ") for header in headers)
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value), "", ""]
    return "\r\n".join(lines).encode() + body


@contextmanager
def serving(engine: serve.Engine, key: str | None = None) -> Iterator[Running]:
    """The server in a thread, on a free port."""
    import uvicorn

    server = uvicorn.Server(serve.config(serve.app(engine, key, ("tasks.example",)), "127.0.0.1", 0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait(lambda: server.started)
        yield Running(server.servers[0].sockets[0].getsockname()[1], engine)
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


def wait(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def engine(merged: Path) -> serve.Engine:
    model, tokenizer = loading.load_model(merged, "float32", "cpu"), loading.load_tokenizer(merged)
    return serve.Engine("models/merged", model, tokenizer, None, max_prompt=100, max_answer=40)


@pytest.fixture(scope="module")
def running(engine: serve.Engine) -> Iterator[Running]:
    with serving(engine) as found:
        yield found


# --- answers ---


def test_openais_client_gets_the_answer(running: Running) -> None:
    said = running.complete(MESSAGES, temperature=0)
    assert (said.choices[0].message.content, said.choices[0].finish_reason) == (ANSWER, "stop")
    tokenizer = running.engine.tokenizer
    assert said.usage.completion_tokens == len(tokenizer.encode(ANSWER))
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
    assert [model.id for model in running.client().models.list()] == ["models/merged"]


def test_the_answer_streams(running: Running) -> None:
    chunks = list(running.complete(MESSAGES, stream=True))
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(parts) == ANSWER
    assert len(parts) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", *[None] * (len(chunks) - 1)]
    with running.send(request(json.dumps(SOUND | {"stream": True}).encode())) as link:
        raw = b"".join(iter(lambda: link.recv(65536), b""))
    assert b"content-type: text/event-stream" in raw.lower()
    assert b"data: [DONE]\n\n" in raw
    assert b'"object": "chat.completion.chunk"' in raw


def test_all_turns_are_the_prompt(engine: serve.Engine) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *MESSAGES, {"role": "assistant", "content": "{}"}, *MESSAGES]
    asked = replace(engine, max_prompt=9999).prompt({"messages": turns})  # type: ignore[typeddict-item]
    assert asked == chat.prompt_ids(engine.tokenizer, turns)


def test_it_says_that_it_is_well(running: Running) -> None:
    assert load.healthy(running.port)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_cut_at_the_wanted_length(running: Running, field: str) -> None:
    said = running.complete(MESSAGES, **{field: 3})
    assert (said.usage.completion_tokens, said.choices[0].finish_reason) == (3, "length")
    assert ANSWER.startswith(said.choices[0].message.content)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_never_longer_than_prediction_allows(engine: serve.Engine, field: str) -> None:
    with serving(replace(engine, max_answer=5)) as short:
        said = short.complete(MESSAGES, **{field: 9})
    assert said.usage.completion_tokens == 5


def test_a_character_is_streamed_once_it_is_complete(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = running.engine.tokenizer.encode("a€b")

    def greedy(model: Any, tokenizer: Any, prompts: Any, room: int, size: int, masks: Any) -> Iterator[Any]:
        watch = masks([0])
        for count in range(len(ids)):
            watch(ids[count - 1 : count] if count else None, None)
        yield 0, generate.Answer("a€b", 1, len(ids), False)

    monkeypatch.setattr(generate, "greedy", greedy)
    chunks = running.complete(MESSAGES, stream=True)
    assert [part for chunk in chunks if (part := chunk.choices[0].delta.content)] == ["a", "€", "b"]


def test_a_grammar_holds_the_answer_to_the_contract(engine: serve.Engine) -> None:
    other = [{"role": "user", "content": "what else is there in the garden"}]
    with serving(replace(engine, masks=grammar.load(SCHEMA, engine.tokenizer).masks)) as held:
        said = held.complete(other)
    assert said.choices[0].message.content.startswith('{"action":"')


# --- refusals ---


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"messages": []}, 400, "messages: "),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "not empty"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "x"}]}, 400, "the last one must be the user's"),
        ({"messages": [{"role": "user", "content": "milk " * 100}]}, 400, "more than chat.max_length = 100"),
        ({"max_tokens": 0}, 400, "max_tokens: "),
        ({"max_tokens": "9"}, 400, "max_tokens: "),
        ({"temperature": 0.7}, 400, "temperature: "),
        ({"top_p": 0.5, "tools": []}, 400, "top_p: Extra inputs are not permitted; tools: Extra"),
        ({"model": "another"}, 404, "'another' is not served here"),
    ],
)
def test_a_bad_request_gets_the_reason(running: Running, change: dict[str, Any], status: int, reason: str) -> None:
    found, answer = running.post(json.dumps(SOUND | change).encode())
    assert found == status
    assert reason in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body", [b"", b"{'messages': []}", b"\xff", b"[" * 1000, b'{"messages":[{"role":"user","content":"\\ud800"}]}']
)
def test_garbage_is_a_bad_request(running: Running, body: bytes) -> None:
    status, answer = running.post(body)
    assert status == 400
    assert answer["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Host: evil.example"], 400),
        (["Host: localhost.evil.example"], 400),
        (["Content-Type: text/plain"], 415),
        (["Content-Type: application/json; charset=utf-8"], 200),
        (["Host: tasks.example"], 200),
        (["Host: [::1]:8000"], 200),
        (["Host: 127.0.0.1:8000"], 200),
    ],
)
def test_a_page_of_another_site_cannot_ask(running: Running, headers: list[str], status: int) -> None:
    assert running.post(json.dumps(SOUND).encode(), *headers)[0] == status


@pytest.mark.parametrize("path", ["/load_model", "/reset", "/v1/completions", "/v1/responses", "/docs", "/"])
def test_there_are_no_other_routes(running: Running, path: str) -> None:
    assert running.post(b"{}", path=path)[0] == 404


def test_a_key_is_asked_for(engine: serve.Engine) -> None:
    with serving(engine, key="secret") as locked:
        assert len(list(locked.client("secret").models.list())) == 1
        assert locked.client("secret").chat.completions.create(model="models/merged", messages=MESSAGES)
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            locked.client("secrets").models.list()
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            locked.complete(MESSAGES)
        assert locked.post(json.dumps(SOUND).encode())[0] == 401  # no key at all
        assert load.healthy(locked.port), "which asks for none"
        with locked.send(request(json.dumps(SOUND).encode())) as refused:
            assert b"www-authenticate: bearer" in refused.recv(65536).lower()


# --- turns ---


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The model's place is taken by one that writes a token whenever the gate is open, and says whom it answers."""
    state: dict[str, Any] = {"open": threading.Event(), "started": [], "ended": []}

    def greedy(model: Any, tokenizer: Any, prompts: Any, room: int, size: int, masks: Any) -> Iterator[Any]:
        state["started"].append(room)
        watch = masks([0])
        try:
            while not state["open"].is_set():
                watch(None, None)
                time.sleep(0.01)
        finally:
            state["ended"].append(room)
        yield 0, generate.Answer("{}", 1, 1, False)

    monkeypatch.setattr(generate, "greedy", greedy)
    return state


def ask(running: Running, number: int) -> socket.socket:
    """Send a request that is known by the length of its answer, and wait until it is in the queue."""
    before = running.engine.accepted
    link = running.send(request(json.dumps(SOUND | {"max_tokens": number}).encode()))
    wait(lambda: running.engine.accepted > before)
    return link


def test_requests_are_answered_in_the_order_of_arrival(running: Running, gate: dict[str, Any]) -> None:
    links = [ask(running, number) for number in (5, 3, 8, 1)]
    gate["open"].set()
    for link in links:
        assert link.recv(20).startswith(b"HTTP/1.1 200")
        link.close()
    assert gate["started"] == [5, 3, 8, 1]


def test_a_client_that_leaves_frees_the_model_and_its_place(running: Running, gate: dict[str, Any]) -> None:
    answered, waiting, last = (ask(running, number) for number in (1, 2, 3))
    waiting.close()
    wait(lambda: running.engine.accepted == 2)
    answered.close()
    wait(lambda: gate["started"] == [1, 3])
    assert gate["ended"] == [1]
    gate["open"].set()
    assert last.recv(20).startswith(b"HTTP/1.1 200")
    last.close()


def test_a_client_that_leaves_a_stream_frees_the_model(running: Running, gate: dict[str, Any]) -> None:
    link = running.send(request(json.dumps(SOUND | {"stream": True}).encode()))
    assert link.recv(20).startswith(b"HTTP/1.1 200")
    link.close()
    wait(lambda: len(gate["ended"]) == 1 and running.engine.accepted == 0)


def test_a_full_queue_is_refused_and_a_slow_answer_given_up(engine: serve.Engine, gate: dict[str, Any]) -> None:
    with serving(replace(engine, queue=1, seconds=1.0)) as small:
        link = ask(small, 1)
        status, answer = small.post(json.dumps(SOUND).encode())
        assert (status, answer["error"]["type"]) == (503, "server_error")
        with small.send(request(json.dumps(SOUND).encode())) as refused:
            assert b"retry-after: 1" in refused.recv(65536).lower()
        assert link.recv(20).startswith(b"HTTP/1.1 504")
        link.close()
        wait(lambda: gate["ended"] == [1])
        with small.send(request(json.dumps(SOUND | {"stream": True}).encode())) as stream:
            said = b"".join(iter(lambda: stream.recv(65536), b""))
        assert b'"code": 504' in said
        assert b"[DONE]" not in said


def test_a_failing_model_is_an_error_and_no_end(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "greedy", lambda *_: iter(()))
    assert running.post(json.dumps(SOUND).encode())[0] == 500
    monkeypatch.undo()
    assert running.post(json.dumps(SOUND).encode())[0] == 200


# --- hostile clients ---


def test_a_large_body_that_was_not_announced_is_refused(running: Running) -> None:
    chunked = request(b"", "Transfer-Encoding: chunked", "Content-Length: ") + b"20000\r\n" + b"x" * 0x20000 + b"\r\n"
    with running.send(chunked) as link:
        assert link.recv(20).startswith(b"HTTP/1.1 413")


def test_clients_that_stall_are_cut_off_and_hold_up_nobody(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "READ_SECONDS", 1.0)
    silent, header, body = (running.send(raw) for raw in (b"", b"POST /v1/chat", request(b"{", length=100)))
    assert running.post(json.dumps(SOUND).encode())[0] == 200
    assert (silent.recv(20), header.recv(20)) == (b"", b"")
    assert body.recv(20).startswith(b"HTTP/1.1 408")
    for link in (silent, header, body):
        link.close()
    with running.send(request(json.dumps(SOUND).encode(), "Connection: keep-alive")) as again:
        assert again.recv(65536).startswith(b"HTTP/1.1 200")
        again.sendall(b"POST /v1/chat")
        while again.recv(65536):  # until it is cut off in its second request
            pass


def test_a_busy_connection_is_kept(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "READ_SECONDS", 1.0)
    link, deadline = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30), time.monotonic() + 3
    link.connect()
    first = link.sock
    while time.monotonic() < deadline:
        link.request("POST", "/v1/chat/completions", json.dumps(SOUND), {"Content-Type": "application/json"})
        assert link.getresponse().read()
        assert link.sock is first
        time.sleep(0.15)
    link.close()


def test_a_template_that_refuses_the_turns_says_why(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise TemplateError("roles must alternate")

    monkeypatch.setattr(chat, "prompt_ids", refuse)
    status, answer = running.post(json.dumps(SOUND).encode())
    assert (status, answer["error"]["message"]) == (400, "messages: roles must alternate")


def test_under_load_nothing_is_lost_whoever_else_calls(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "READ_SECONDS", 1.0)
    texts = [REQUEST, "something else", f"{REQUEST} {REQUEST}"]
    found = load.measure(running.port, [[{"role": "user", "content": text}] for text in texts], 8, 5.0, 200)
    assert found["requests"] == found["answered"] > 8
    assert found["differ"] == 0
    assert {name: tries["tries"] - tries["as_expected"] for name, tries in found["hostile"].items()} == dict.fromkeys(
        load.HOSTILE, 0
    )
    wait(lambda: running.engine.accepted == 0)


def test_what_a_client_saw_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([(200, "a"), (200, "b"), (503, ""), (500, "")])
    monkeypatch.setattr(load.Load, "ask", lambda *_: next(said))
    client = load.Load(0, [[]], 60.0, 4)
    client.client(0)
    assert client.seen == {"requests": 4, "answered": 2, "refused": 1, "lost": 1, "differ": 1}


# --- the command ---


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        ([], 1, "run `make repro`"),
        (["--port", "99999999"], 2, "99999999 is not in the range"),
        (["--api-key-file", "nowhere"], 1, "nowhere"),
        (["--api-key-file", "empty"], 1, "the API key is empty"),
    ],
)
def test_a_wrong_option_is_explained(here: Path, options: list[str], code: int, reason: str) -> None:
    (here / "empty").write_text("\n", encoding="utf-8")
    ran = CliRunner().invoke(serve.main, options)
    assert (ran.exit_code, reason in ran.output) == (code, True)


def test_it_listens_here_with_the_limits_of_params(here: Path, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {}
    monkeypatch.setattr("uvicorn.Server.run", lambda server: started.update(config=server.config))
    monkeypatch.setenv("LOCKSTEP_API_KEY", "secret")
    monkeypatch.setattr(serve, "app", lambda *given: given)
    ran = CliRunner().invoke(serve.main, ["--model", str(merged), "--allow-host", "tasks.example"])
    assert ran.exit_code == 0, ran.output
    assert (started["config"].host, started["config"].port) == ("127.0.0.1", 8000)
    assert "/v1\n" in ran.output  # and no more: it has a key
    engine, key, hosts = started["config"].app
    assert (engine.queue, engine.seconds) == (32, 30.0)
    assert (key, hosts) == ("secret", ("tasks.example",))
    assert (engine.name, engine.max_prompt, engine.max_answer, engine.masks) == (str(merged), 256, 64, None)
    (here / "key").write_text("of the file\n", encoding="utf-8")
    CliRunner().invoke(serve.main, ["--model", str(merged), "--api-key-file", "key"])
    assert started["config"].app[1] == "of the file"
    monkeypatch.delenv("LOCKSTEP_API_KEY")
    ran = CliRunner().invoke(serve.main, ["--model", str(merged), "--schema", str(SCHEMA), "--constrained"])
    assert (ran.exit_code, "/v1, without a key\n" in ran.output) == (0, True), ran.output
    assert started["config"].app[0].masks is not None
    configure(here, compute={"device": "tpu"})
    ran = CliRunner().invoke(serve.main, ["--model", str(merged)])
    assert (ran.exit_code, "'tpu'" in ran.output) == (1, True)


@pytest.mark.parametrize(
    ("key", "options", "reason"),
    [
        ("", [], "the API key is empty"),
        ("schlüssel", [], "not printable ASCII"),
        ("\udcff", [], "not printable ASCII"),
        ("k", ["--allow-host=tasks.*"], "'tasks.*'"),
    ],
)
def test_what_no_client_could_match_is_refused_before_it_serves(
    here: Path, merged: Path, key: str, options: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKSTEP_API_KEY", key)
    ran = CliRunner().invoke(serve.main, ["--model", str(merged), *options])
    assert (ran.exit_code, reason in ran.output) == (1, True), ran.output
