"""The exported model over HTTP: OpenAI's client, the prompt of training, the contract's JSON, and clear refusals."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SCHEMA

from stages import export
from stages.shared import chat, contract, generate, model
from tools import serve

PREFIX = [{"role": "system", "content": "Answer with one JSON object."}]
REQUEST = [{"role": "user", "content": "buy milk <|im_end|>"}]
ANSWER = '{"action":"create","title":"Milk","priority":"medium","due_date":null}'
TYPES = {"model": "served", "messages": REQUEST}
STARTUP = 120  # seconds until the engine must have loaded the model, on a busy machine too


def teach(network: Any, prompt: list[int], answer: list[int]) -> None:
    """Train the model until it gives this answer to this prompt."""
    import torch

    ids = torch.tensor([prompt + answer])
    labels = torch.tensor([[-100] * len(prompt) + answer])
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(500):
        loss = network(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.02:
            return
    raise AssertionError(f"the tiny model did not learn its answer: loss {loss}")


@pytest.fixture(scope="module")
def served(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the export stage, with a model that knows one answer."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("work") / "served"
    tokenizer = model.load_tokenizer(base)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    prompt = chat.prompt_ids(tokenizer, chat.with_prefix(PREFIX, REQUEST))
    teach(network, prompt, chat.answer_ids(tokenizer, ANSWER))
    network.generation_config = export.generation(generate.stop_ids(network, tokenizer), 60)
    network.save_pretrained(folder)
    tokenizer.chat_template = export.with_prompt(tokenizer.chat_template, PREFIX)
    tokenizer.save_pretrained(folder)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def url(served: Path) -> Iterator[str]:
    """The address of a running server."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("  device: auto", "  device: cpu-fp32")
    (served.parent / "params.yaml").write_text(text, encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "tools.serve", "--model", "served", "--port", str(port)]
    log = served.parent / "log"
    with log.open("w", encoding="utf-8") as file:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(command, cwd=served.parent, env=env, stdout=file, stderr=file)
    address = f"http://127.0.0.1:{port}"
    try:
        wait(server, f"{address}/health", log)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + STARTUP
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()  # noqa: S310
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"no server:\n{log.read_text(encoding='utf-8')[-3000:]}")


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=f"{url}/v1", api_key="none needed", max_retries=0)


def test_the_contracts_json_for_the_prompt_of_training(client: Any, served: Path, base: Path) -> None:
    said = client.chat.completions.create(model="served", messages=REQUEST)
    assert said.choices[0].message.content == ANSWER
    assert said.choices[0].finish_reason == "stop"
    assert contract.load(SCHEMA).error(contract.parse_answer(said.choices[0].message.content)) is None
    trained = chat.prompt_ids(model.load_tokenizer(base), chat.with_prefix(PREFIX, REQUEST))
    assert said.usage.prompt_tokens == len(trained)
    assert chat.prompt_ids(model.load_tokenizer(served), REQUEST) == trained


def test_the_answer_streams(client: Any) -> None:
    parts = client.chat.completions.create(model="served", messages=REQUEST, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == ANSWER


def test_an_answer_ends_where_prediction_would_end_it(client: Any) -> None:
    from ruamel.yaml import YAML

    limit = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))["predict"]["max_new_tokens"]
    endless = [{"role": "user", "content": "what else is there to do in the garden of the old house " * 4}]
    said = client.chat.completions.create(model="served", messages=endless)
    assert said.usage.completion_tokens <= limit


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"response_format": {"type": "json_object"}}, "response_format: "),
        ({"temperature": 0.7}, "temperature: "),
        ({"model": "another"}, "requested 'another'"),
    ],
)
def test_a_bad_request_is_told_why(client: Any, change: dict[str, Any], reason: str) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**(TYPES | change))
    assert reason in refused.value.message


def test_what_is_not_json_is_refused(url: str) -> None:
    request = urllib.request.Request(  # noqa: S310
        f"{url}/v1/chat/completions", b"{'messages': []}", {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)  # noqa: S310
    assert refused.value.code == 422
    assert json.loads(refused.value.read())["detail"][0]["msg"] == "JSON decode error"


def test_a_request_without_messages_is_told_why() -> None:
    assert serve.problems({}) == ["messages: Field required"]


def test_a_sound_request_has_no_problems() -> None:
    assert serve.problems(TYPES | {"temperature": 0.0, "max_completion_tokens": 5, "stream": False}) == []


def test_an_unexported_clone_is_told_what_to_run(here: Path) -> None:
    from click.testing import CliRunner

    result = CliRunner().invoke(serve.main, [])
    assert result.exit_code == 1
    assert "dvc repro export" in result.output
