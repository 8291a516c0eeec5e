"""What is timed is what is asked for; prices are put on it later too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import write_rows
from ruamel.yaml import YAML

from stages.shared import generate, model
from tools import latency

PRICES = {"prompt_price": 0.5, "answer_price": 2.0, "machine_hour_price": 36.0}


def set_params(**sections: dict[str, Any]) -> None:
    """Change values of params.yaml in the working folder."""
    path, yaml = Path("params.yaml"), YAML()
    document = yaml.load(path.read_text(encoding="utf-8"))
    for name, values in sections.items():
        document[name].update(values)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(document, file)


@pytest.fixture
def built(here: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Chat rows and prefixes of three systems, an adapter in name, small settings, and the prices not known."""
    rows = [{"id": str(n), "prompt": [{"role": "user", "content": f"buy {n} eggs"}]} for n in range(5)]
    write_rows(here / "data/chat/test.jsonl", rows)
    for system, words in (("zero_shot", "Answer in JSON."), ("few_shot", "Answer in JSON. " * 9), ("tuned", "JSON.")):
        prefix = here / f"data/chat/prefix/{system}.json"
        prefix.parent.mkdir(exist_ok=True)
        prefix.write_text(json.dumps([{"role": "system", "content": words}]), encoding="utf-8")
    (here / "adapter").mkdir()
    (here / "adapter/made_from.json").write_text('{"adapter": "a", "base": "b"}', encoding="utf-8")
    set_params(
        latency={"requests": 3, "cold_requests": 2, "batch_size": 2},
        predict={"device": "cpu-fp32", "max_new_tokens": 4},
        advise=dict.fromkeys(PRICES),
    )
    plain = model.load_for_generation
    monkeypatch.setattr(model, "load_for_generation", lambda base, adapter, device: plain(base, None, device))
    return here


def run(base: Path, *options: str) -> Result:
    return CliRunner().invoke(latency.main, ["--base", str(base), "--adapter", "adapter", *options])


def written() -> dict[str, Any]:
    return dict(json.loads(Path("metrics/timing/latency.json").read_text(encoding="utf-8")))


def test_the_three_systems_in_one_file(built: Path, base: Path) -> None:
    result = run(base)
    assert result.exit_code == 0, result.output
    found = written()
    assert set(found["systems"]) == {"zero_shot", "few_shot", "tuned"}
    assert found["systems"]["few_shot"]["prompt_tokens"] > found["systems"]["zero_shot"]["prompt_tokens"]
    assert all(system["answer_tokens"] <= 4 for system in found["systems"].values())
    assert (found["requests"], found["batch_size"], found["device"]["key"]) == (3, 2, "cpu-fp32")
    assert (found["computed_from"]["adapter"], len(found["computed_from"]["test"])) == ("a", 64)
    assert set(found["cost_per_1000"]["few_shot"].values()) == {None}
    assert result.stdout.count("\n| ") == 3


def test_new_prices_are_put_on_old_figures(built: Path, base: Path) -> None:
    run(base)
    before = written()
    set_params(advise=PRICES)
    assert run(base, "--reprice").exit_code == 0
    after = written()
    assert {k: v for k, v in after.items() if k != "cost_per_1000"} == {
        k: v for k, v in before.items() if k != "cost_per_1000"
    }
    few, costs = after["systems"]["few_shot"], after["cost_per_1000"]
    assert costs["few_shot"]["by_tokens"] == pytest.approx(0.5 * few["prompt_tokens"] + 2 * few["answer_tokens"])
    assert costs["few_shot"]["by_machine"] == pytest.approx(10 / few["answers_per_second"])
    assert costs["tuned"]["by_tokens"] is None


def test_nothing_measured_has_no_price(built: Path, base: Path) -> None:
    result = run(base, "--reprice")
    assert result.exit_code == 1
    assert "metrics/timing/latency.json is missing; run `python -m tools.latency`" in result.stderr


@pytest.mark.parametrize("path", ["adapter/made_from.json", "data/chat/test.jsonl"])
def test_what_is_not_built_is_named(path: str, built: Path, base: Path) -> None:
    (built / path).unlink()
    result = run(base)
    assert result.exit_code == 1
    assert f"{path} is missing; run `make repro`" in result.stderr


def test_the_rows_are_drawn_by_the_seed(built: Path) -> None:
    test = built / "data/chat/test.jsonl"
    by_seed = [json.dumps(latency.drawn(test, latency.Settings(3, 2, 2, seed))) for seed in (1, 1, 2, 3)]
    assert by_seed[0] == by_seed[1]
    assert len(set(by_seed)) > 1
    assert len(latency.drawn(test, latency.Settings(99, 2, 2, 1))) == 5


def test_the_first_call_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that the answers move: ten seconds for the first, then the length of the prompt."""
    now = [0.0]

    def asked(network: Any, tokenizer: Any, prompts: list[list[int]], *_: Any) -> Iterator[tuple[int, Any]]:
        for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
            now[0] += 10.0 * (now[0] == 0) + len(prompts[index])
            yield index, generate.Answer("", len(prompts[index]), 1, False)

    monkeypatch.setattr(generate, "greedy", asked)
    monkeypatch.setattr("tools.latency.time.perf_counter", lambda: now[0])
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
