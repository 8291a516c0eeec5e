"""The server under load: several clients at once for a minute, and hostile ones beside them.

    python -m benchmarks.serve --model models/merged --out benchmarks/serve.json

In: a merged model, and chat rows whose prompts are asked. `tools.serve` runs as a process of its own, on loopback. Out:
how many requests were answered, refused and lost, how many had another answer than the same request before (answers are
greedy), their latency as the client sees it, and what became of each kind of hostile client.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from benchmarks import latency
from stages.core import cli, params
from stages.data import writing
from stages.model import loading
from stages.scores import provenance

PATH, JSON = "/v1/chat/completions", {"Content-Type": "application/json"}
PAUSE = 0.1  # seconds between two tries of a hostile client
PATIENCE = 60.0  # seconds that a client waits


class Load:
    """Clients that ask in turn until `seconds` are over or `most` requests are sent, and what they saw."""

    def __init__(self, port: int, prompts: list[list[dict[str, str]]], seconds: float, most: int) -> None:
        self.port, self.prompts, self.most = port, prompts, most
        self.end = time.monotonic() + seconds
        self.lock = threading.Lock()
        self.seen: Counter[str] = Counter()
        self.ms: list[float] = []
        self.answers: dict[int, str] = {}

    def client(self, first: int) -> None:
        for number in range(first, first + self.most):
            if time.monotonic() > self.end:
                return
            which, started = number % len(self.prompts), time.monotonic()
            try:
                status, text = self.ask(self.prompts[which])
            except (OSError, http.client.HTTPException, ValueError, LookupError):
                status, text = 0, ""
            with self.lock:
                self.seen["requests"] += 1
                self.seen[{200: "answered", 503: "refused"}.get(status, "lost")] += 1
                if status == 200:
                    self.ms.append(1000 * (time.monotonic() - started))
                    self.seen["differ"] += self.answers.setdefault(which, text) != text

    def ask(self, messages: list[dict[str, str]]) -> tuple[int, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as link:
            link.request("POST", PATH, json.dumps({"messages": messages}), JSON)
            answer = link.getresponse()
            content = answer.read()
        text = json.loads(content)["choices"][0]["message"]["content"] if answer.status == 200 else ""
        return answer.status, text

    def hostile(self, name: str, attack: Callable[["Load"], bytes], expected: tuple[bytes, ...]) -> None:
        """Attack again and again. Expected: how the answer begins, empty for none."""
        for _ in range(self.most):
            if time.monotonic() > self.end:
                return
            try:
                answer = attack(self)
            except OSError:  # cut off
                answer = b""
            with self.lock:
                self.seen[name] += 1
                self.seen[f"{name} as expected"] += answer[9:12] in expected
            time.sleep(PAUSE)

    def send(self, raw: bytes) -> socket.socket:
        link = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        link.sendall(raw)
        return link

    def exchange(self, raw: bytes) -> bytes:
        """The beginning of the answer."""
        with self.send(raw) as link:
            return link.recv(64)


def slow_loris(load: Load) -> bytes:
    """One byte of a header every half a second, until cut off."""
    with load.send(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nX: ".encode()) as link:
        link.settimeout(0.5)
        while time.monotonic() < load.end:
            link.sendall(b"x")
            with suppress(TimeoutError):
                return link.recv(64)
    return b""


def disconnecting(load: Load) -> bytes:
    """A sound request whose sender does not wait."""
    body = json.dumps({"messages": load.prompts[0]}).encode()
    load.send(head(length=len(body)) + body).close()
    return b""


def head(host: str = "localhost", length: int = 0) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


HOSTILE: dict[str, tuple[Callable[[Load], bytes], tuple[bytes, ...]]] = {
    "slow loris": (slow_loris, (b"", b"400", b"408")),
    "huge body": (lambda load: load.exchange(head(length=10**9) + b"x" * 1000), (b"413",)),
    "disconnecting": (disconnecting, (b"",)),
    "wrong host": (lambda load: load.exchange(head(host="evil.example")), (b"400",)),
    "garbage": (lambda load: load.exchange(bytes(range(256)) * 4 + b"\r\n\r\n"), (b"", b"400")),
}


def measure(port: int, prompts: list[list[dict[str, str]]], clients: int, seconds: float, most: int) -> dict[str, Any]:
    """What `clients` and one hostile client of each kind see; `most` bounds the requests of each."""
    load = Load(port, prompts, seconds, most)
    threads = [threading.Thread(target=load.client, args=[number * most]) for number in range(clients)]
    threads += [threading.Thread(target=load.hostile, args=[name, *attack]) for name, attack in HOSTILE.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    p50, (p95, low, high) = latency.percentile(load.ms, 0.5)[0], latency.percentile(load.ms, 0.95)
    return {
        "clients": clients,
        "seconds": seconds,
        **{name: load.seen[name] for name in ("requests", "answered", "refused", "lost", "differ")},
        "p50_ms": p50,
        "p95_ms": p95,
        "p95_ms_low": low,
        "p95_ms_high": high,
        "hostile": {
            name: {"tries": load.seen[name], "as_expected": load.seen[f"{name} as expected"]} for name in HOSTILE
        },
    }


@contextmanager
def served(model: Path) -> Iterator[int]:
    """`tools.serve` on a free port. Raises InputError when it doesn't start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tools.serve", "--model", str(model), "--port", str(port)]
    env = {name: value for name, value in os.environ.items() if name != "LOCKSTEP_API_KEY"}
    with subprocess.Popen(command, env=env) as server:
        try:
            while not healthy(port):
                if server.poll() is not None:
                    raise cli.InputError(f"tools.serve ended with {server.returncode}")
                time.sleep(0.2)
            yield port
            if not healthy(port):
                raise cli.InputError("tools.serve does not answer any more")
        finally:
            server.terminate()


def healthy(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as link:
        try:
            link.request("GET", "/health")
            return link.getresponse().status == 200
        except OSError:
            return False


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--model", "tuned model", required=False, default=Path("models/merged"), show_default=True)
@cli.path_option("--rows", "chat rows", required=False, default=Path("data/chat/test.jsonl"), show_default=True)
@click.option("--clients", default=8, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(1))
@click.option("--most", default=1000, show_default=True, type=click.IntRange(1), help="requests of each client")
@cli.path_option("--out", "file for the figures", required=False)
def main(model: Path, rows: Path, clients: int, seconds: float, most: int, out: Path | None) -> None:
    key, _ = loading.device(params.load("compute", loading.Params).device)
    libraries = ("torch", "transformers", "uvicorn", "starlette")
    made = provenance.computed_from(model / "made_from.json", libraries, test=rows)
    prompts = latency.sample(rows, most)
    with served(model) as port:
        result = measure(port, prompts, clients, seconds, most)
    if out:
        writing.write_json(out, result | {"device": latency.machine(key), "computed_from": made})
    click.echo(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
