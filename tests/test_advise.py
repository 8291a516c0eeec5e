"""Planted evidence leads to the branch that it should, and what is not known is said to be so."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner, Result

from tools import advise
from tools.advising import evidence, tree

NOTHING_KNOWN: dict[str, Any] = {
    **dict.fromkeys(("requests_a_day", "latency_target_ms", "minimum_accuracy", "differentiation")),
    **dict.fromkeys(("knowledge_changes", "task_changes", "prompt_price", "answer_price", "machine_hour_price")),
    **{"machine_hours_a_day": 24, "preparation_cost": None, "lifetime_days": 100},
    **{"enough_examples": 500, "high_volume": 1000},
}
TOKENS = {"prompt_price": 0.01, "answer_price": 0.02, "machine_hour_price": 0.5}
BETTER, UNCLEAR, WORSE = (0.3, 0.2, 0.4), (0.02, -0.01, 0.05), (-0.1, -0.2, -0.05)
Rate = tuple[float, float, float]


@dataclass(frozen=True)
class World:
    """The evidence of a repository. Rates: value, low, high; `ms`: p95 with its interval per system."""

    rows: int = 1200
    failed: dict[str, str] = field(default_factory=dict)
    zero_shot: Rate = (0.1, 0.05, 0.15)
    few_shot: Rate = (0.5, 0.45, 0.55)
    tuned: Rate = (0.8, 0.75, 0.85)
    gain: Rate = BETTER
    ms: dict[str, Rate] | None = field(
        default_factory=lambda: {
            "zero_shot": (900.0, 800.0, 950.0),
            "few_shot": (600.0, 550.0, 700.0),
            "tuned": (300.0, 250.0, 350.0),
        }
    )
    measured_adapter: str = "a"
    own: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        groups = {"consistent": "labels", "correct": "contract", "complete": "coverage", "size": "train_rows"}
        checklist = {
            group: {name: {"both": {"verdict": self.failed.get(group, "held"), "example": None}}}
            for group, name in groups.items()
        }
        put(folder / tree.VALIDATE, {"checklist": checklist, "train": {"kept": self.rows}})
        rates = {name: rate("exact_match", getattr(self, name)) for name in ("zero_shot", "few_shot", "tuned")}
        gain = dict(zip(("exact_match", "low", "high"), self.gain, strict=True)) | {"n": 300}
        origin = {"adapter": "a", "test": "t"}
        put(folder / tree.EVALUATE, {**rates, "gain_over_few_shot": gain, "computed_from": origin})
        put(folder / tree.TRAINED, {"seconds": 3600})
        if self.ms:
            used = {
                "prompt_tokens": 100,
                "answer_tokens": 10,
                "answers_per_second": 2.0,
                "p50_ms": 200,
                "prefix_ms": 100,
            }
            systems = {name: {**used, **rate("p95_ms", value)} for name, value in self.ms.items()}
            origin = origin | {"adapter": self.measured_adapter}
            put(folder / tree.LATENCY, {"systems": systems, "device": {"name": "cpu"}, "computed_from": origin})
        put(folder / "params.yaml", {"advise": NOTHING_KNOWN | self.own})


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def rate(name: str, value: Rate) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), value, strict=True))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(world: World | None = None, *options: str) -> Result:
    if world:
        world.write(Path())
    return CliRunner().invoke(advise.main, list(options))


def told(world: World) -> dict[str, Any]:
    result = run(world, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


UNSURE = World(gain=UNCLEAR, few_shot=(0.78, 0.7, 0.83))
GOOD_PROMPT = World(few_shot=(0.7, 0.65, 0.75), own={"minimum_accuracy": 0.6})
PLAIN = World(zero_shot=(0.7, 0.65, 0.75), own={"minimum_accuracy": 0.6})
PLANTED: list[tuple[str, str, World]] = [
    ("knowledge", "RAG", World(own={"knowledge_changes": True})),
    ("accuracy", "fine-tune", World(own={"knowledge_changes": False})),
    ("behaviour", "prompting", World(failed={"consistent": "critical"})),
    ("behaviour", "prompting", World(failed={"consistent": "warning"})),
    ("behaviour", "prompting", World(own={"task_changes": True})),
    ("accuracy", "fine-tune", World(own={"task_changes": False})),
    ("worse", "few-shot", World(gain=WORSE, own={"differentiation": True})),
    ("worse", "prompting", World(zero_shot=(0.95, 0.9, 0.98))),
    ("examples", "few-shot", replace(UNSURE, rows=499)),
    ("examples", "prompting", replace(PLAIN, rows=499)),
    ("examples", "few-shot", replace(GOOD_PROMPT, rows=499)),
    ("examples", "few-shot", World(rows=499, failed={"correct": "critical"})),
    ("examples", "few-shot", World(failed={"correct": "critical"})),
    ("measured", "fine-tune", World(rows=499)),
    ("cost", "fine-tune", replace(UNSURE, own={**TOKENS, "requests_a_day": 20_000})),
    ("cost", "fine-tune", replace(UNSURE, own={**TOKENS, "requests_a_day": 20, "machine_hours_a_day": 0})),
    ("nothing", "few-shot", replace(UNSURE, own={**TOKENS, "requests_a_day": 1001})),
    ("volume", "fine-tune", replace(UNSURE, own={"requests_a_day": 1000})),
    ("volume", "fine-tune", replace(UNSURE, ms=None, own={**TOKENS, "requests_a_day": 1000})),
    ("nothing", "few-shot", replace(UNSURE, own={"requests_a_day": 999})),
    ("latency", "fine-tune", replace(UNSURE, own={"latency_target_ms": 400})),
    ("nothing", "few-shot", replace(UNSURE, own={"latency_target_ms": 800})),
    ("nothing", "few-shot", replace(UNSURE, own={"latency_target_ms": 100})),
    ("nothing", "few-shot", replace(UNSURE, own={"latency_target_ms": 600})),
    ("differentiation", "fine-tune", replace(UNSURE, own={"differentiation": True})),
    ("nothing", "few-shot", replace(UNSURE, own={"differentiation": False})),
    ("accuracy", "fine-tune", World(ms=None)),
    ("accuracy", "fine-tune", World(own={"minimum_accuracy": 0.7})),
    ("accuracy", "fine-tune", World(own={"minimum_accuracy": 0.5})),
    ("enough", "few-shot", GOOD_PROMPT),
    ("enough", "prompting", PLAIN),
    ("differentiation", "fine-tune", replace(PLAIN, own={"minimum_accuracy": 0.6, "differentiation": True})),
    ("nothing", "few-shot", UNSURE),
    ("nothing", "prompting", World(zero_shot=(0.75, 0.7, 0.8))),
]


@pytest.mark.parametrize(("branch", "way", "world"), PLANTED)
def test_planted_evidence_leads_to_its_branch(branch: str, way: str, world: World, folder: Path) -> None:
    found = told(world)
    assert (found["branch"], found["recommendation"]) == (branch, way)


def test_every_branch_and_every_way_is_planted() -> None:
    assert {branch for branch, _, _ in PLANTED} == set(get_args(tree.Branch))
    assert {way for _, way, _ in PLANTED} == set(get_args(tree.Way))


ANSWERS: list[tuple[str, bool | None, World]] = [
    ("Q0", None, World()),
    ("Q0", True, World(own={"knowledge_changes": True})),
    ("Q0", False, World(own={"knowledge_changes": False})),
    ("Q1", True, World()),
    ("Q1", False, World(failed={"consistent": "warning"})),
    ("Q2", True, World(rows=500)),
    ("Q2", False, World(rows=499)),
    ("Q2", False, World(failed={"correct": "critical"})),
    ("Q2", True, World(failed={"complete": "warning"})),
    ("Q3", None, World()),
    ("Q3", True, World(own={"requests_a_day": 1000})),
    ("Q3", False, World(own={"requests_a_day": 999})),
    ("Q4", None, World()),
    ("Q4", None, World(ms=None, own={"latency_target_ms": 400})),
    ("Q4", True, World(own={"latency_target_ms": 400})),
    ("Q4", False, World(own={"latency_target_ms": 700})),
    ("Q4", False, World(own={"latency_target_ms": 200})),
    ("Q4", None, World(own={"latency_target_ms": 300})),
    ("Q5", None, World()),
    ("Q5", True, World(own={"differentiation": True})),
    ("Q5", False, World(own={"differentiation": False})),
]


@pytest.mark.parametrize(("name", "answer", "world"), ANSWERS)
def test_each_question_is_answered_from_its_evidence(
    name: str, answer: bool | None, world: World, folder: Path
) -> None:
    (found,) = (item for item in told(world)["questions"] if item["id"] == name)
    assert found["answer"] is answer
    assert found["evidence"] or found["unknown"]


@pytest.mark.parametrize(("minimum", "reached"), [(0.5, True), (0.51, None), (0.7, None), (0.71, False), (None, None)])
def test_a_minimum_within_the_interval_is_not_told(minimum: float | None, reached: bool | None) -> None:
    assert evidence.Accuracy(0.6, 0.5, 0.7).reaches(minimum) is reached


@pytest.mark.parametrize(("target", "met"), [(350, True), (349, None), (250, None), (249, False)])
def test_a_target_within_the_interval_is_not_told(target: float, met: bool | None) -> None:
    assert evidence.Speed(100, 10, 200, 300, 250, 350, 0, 2).meets(target) is met


def test_no_checks_of_consistency_tell_nothing(folder: Path) -> None:
    World().write(folder)
    put(folder / tree.VALIDATE, {"checklist": {}, "train": {"kept": 1200}})
    found = json.loads(run(None, "--json").stdout)
    assert found["questions"][1]["answer"] is None
    assert "no checks of the group `consistent`" in found["questions"][1]["unknown"][0]


def test_what_is_not_known_is_named_with_where_to_fill_it_in(folder: Path) -> None:
    text = run(World(ms=None)).stdout
    names = [name for name, value in NOTHING_KNOWN.items() if value is None]
    names = [name for name in names if name not in ("prompt_price", "answer_price", "preparation_cost")]
    assert all(f"not known: fill in params.yaml: advise.{name}\n" in text for name in names)
    assert "not known: run `python -m tools.latency`" in text
    assert "Recommendation: fine-tune" in text


def test_every_figure_of_ones_own_known_leaves_nothing_open(folder: Path) -> None:
    own = {**TOKENS, "requests_a_day": 50, "latency_target_ms": 400, "preparation_cost": 9, "minimum_accuracy": 0.7}
    text = run(World(own=own | dict.fromkeys(("differentiation", "knowledge_changes", "task_changes"), False))).stdout
    assert "not known" not in text
    assert "params.yaml" in text


@pytest.mark.parametrize(
    ("words", "world"),
    [
        ("not shown to reach advise.minimum_accuracy = 0.9", World(own={"minimum_accuracy": 0.9})),
        ("not shown to be more often right", replace(UNSURE, own={"differentiation": True})),
        ("a day of it costs more than prompting", World(own={**TOKENS, "requests_a_day": 10})),
        ("another adapter or other test rows", World(measured_adapter="b")),
        ("leaves out what it costs to write the rows", World(own=TOKENS)),
        ("warns about complete.coverage", World(failed={"complete": "warning"})),
    ],
)
def test_cautions_are_given_where_they_hold_and_only_there(words: str, world: World, folder: Path) -> None:
    assert any(words in caution for caution in told(world)["cautions"])
    assert not any(words in caution for caution in told(World())["cautions"])


@pytest.mark.parametrize("path", [tree.VALIDATE, tree.EVALUATE, tree.TRAINED, Path("params.yaml")])
def test_a_missing_file_is_named_in_one_line(path: Path, folder: Path) -> None:
    World().write(folder)
    path.unlink()
    result = run()
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {path}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("path", [tree.VALIDATE, tree.EVALUATE, tree.TRAINED, tree.LATENCY])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"train": NaN}', "\ufeff{}"])
def test_a_malformed_file_is_named_in_one_line(path: Path, text: str, folder: Path) -> None:
    World().write(folder)
    path.write_text(text, encoding="utf-8")
    result = run()
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {path}: ")
    assert result.stderr.count("\n") == 1


def test_a_rate_that_is_none_is_refused(folder: Path) -> None:
    result = run(World(few_shot=(1.2, 0.1, 0.2)))
    assert "metrics/evaluate.json: few_shot.exact_match: " in result.stderr


def test_the_advice_in_markdown_is_replaced_between_its_marks(folder: Path) -> None:
    document = folder / "README.md"
    document.write_text("<!-- advice -->\nold\n<!-- /advice -->\nrest\n", encoding="utf-8")
    result = run(World(), "--write", "README.md")
    assert document.read_text(encoding="utf-8") == (
        f"<!-- advice -->\n```text\n{result.stdout}```\n<!-- /advice -->\nrest\n"
    )
