"""What is timed is what is asked for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import write_rows

from benchmarks import latency
from stages.answers import generate
from stages.core import strict_json


@pytest.fixture
def built(here: Path, base: Path) -> Path:
    """Chat rows and prompts of the systems, and the base in the place of the tuned model."""
    rows = [{"id": str(n), "prompt": [{"role": "user", "content": f"buy {n} eggs"}]} for n in range(5)]
    write_rows(here / "data/chat/test.jsonl", rows)
    for system, words in (("zero_shot", "Answer in JSON."), ("few_shot", "Answer in JSON. " * 9)):
        prefix = here / f"data/chat/prefix/{system}.json"
        prefix.parent.mkdir(exist_ok=True)
        prefix.write_text(json.dumps([{"role": "system", "content": words}]), encoding="utf-8")
    (here / "models/merged").mkdir(parents=True)
    (here / "models/base").symlink_to(base)
    for file in base.iterdir():
        (here / "models/merged" / file.name).symlink_to(file)
    origin = {"adapter": "a", "base": "b", "versions": {"trl": "1"}}
    (here / "models/merged/made_from.json").write_text(json.dumps(origin), encoding="utf-8")
    return here


def run(*options: str) -> Result:
    words = ["--requests=3", "--cold-requests=2", "--batch-size=2", *options]
    return CliRunner().invoke(latency.main, words)


def test_the_three_systems_in_one_file(built: Path) -> None:
    result = run("--out=out.json")
    assert result.exit_code == 0, result.output
    figures = strict_json.read(Path("out.json"))
    assert list(figures["systems"]) == ["few_shot", "tuned", "zero_shot"]
    prompts = [figures["systems"][name]["prompt_tokens"] for name in ("few_shot", "zero_shot")]
    assert prompts[0] > prompts[1]
    assert (figures["requests"], figures["batch_size"], figures["device"]["key"]) == (3, 2, figures["device"]["key"])
    assert (figures["computed_from"]["adapter"], len(figures["computed_from"]["test"])) == ("a", 64)
    assert result.stdout.count("\n| ") == 3


@pytest.mark.parametrize("path", ["models/merged/made_from.json", "data/chat/test.jsonl"])
def test_what_is_not_built_is_named(path: str, built: Path) -> None:
    (built / path).unlink()
    result = run()
    assert (result.exit_code, f"{path} is missing; run `make repro`" in result.stderr) == (1, True)


def test_the_same_rows_are_drawn_every_time(built: Path) -> None:
    test = built / "data/chat/test.jsonl"
    assert latency.sample(test, 3) == latency.sample(test, 3) != latency.sample(test, 2)
    assert len(latency.sample(test, 99)) == 5


def test_the_first_call_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that the answers move: ten seconds for the first, then the length of the prompt."""
    now = [0.0]

    def asked(model: Any, tokenizer: Any, prompts: list[list[int]], *_: Any) -> Iterator[tuple[int, Any]]:
        for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
            now[0] += 10.0 * (now[0] == 0) + len(prompts[index])
            yield index, generate.Answer("", len(prompts[index]), 1, False)

    monkeypatch.setattr(generate, "greedy", asked)
    monkeypatch.setattr("benchmarks.latency.time.perf_counter", lambda: now[0])
    timed = latency.alone(None, None, [[1, 1, 1], [1], [1, 1]], 9)
    assert [seconds for seconds, _ in timed] == [3, 1, 2]
    assert latency.prefix_ms(None, None, [[1, 1, 1], [1]], 9, [2.0, 0.5]) == 750
    assert latency.together(None, None, [[1], [1, 1, 1]], 9, 2) == 0.5


def test_a_percentile_has_an_edge_only_where_enough_was_asked() -> None:
    value, low, high = latency.percentile([float(number) for number in range(100)], 0.95)
    assert low is not None
    assert high is not None
    assert low < value < high
    assert latency.percentile([1.0, 2.0, 3.0], 0.95)[2] is None


def test_percentiles_are_milliseconds() -> None:
    found = latency.figures([(n / 1000, generate.Answer("", 1, 2, False)) for n in range(1, 101)])
    assert (found["p50_ms"], found["p95_ms"]) == pytest.approx((50.5, 95.05), abs=0.1)
