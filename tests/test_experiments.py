"""The experiments spoil, subset, rank and compare what they say they do; the pages show the committed figures."""

import random
import shlex
import statistics
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from conftest import KNOBS, ROOT, SCHEMA, configure
from small import git

from experiments import canaries, learning_curve, page, seeds, ten_times, trial, wrong_labels
from stages.core import hashes, params, strict_json, yaml12
from stages.data import contract, writing

RULES = contract.load(SCHEMA)
PAGE = ROOT / "docs" / "experiments.md"


def row(number: int) -> dict[str, Any]:
    answer = {"action": "complete", "title": f"Thing {number}"}
    turns = [
        {"role": "user", "content": f"finished thing number {number}"},
        {"role": "assistant", "content": strict_json.compact(answer)},
    ]
    return {"id": f"r{number}", "source": "", "kind": "complete", "turns": turns}


ROWS = [row(number) for number in range(40)]
answer = ten_times.answer_of


def request(row: dict[str, Any]) -> str:
    return str(row["turns"][0]["content"])


def test_the_dose_is_spoiled_in_equal_shares_and_no_row_is_lost() -> None:
    spoiled = ten_times.messy(ROWS, 0.5)
    ways = Counter(way for way, _ in spoiled)
    assert ways == {"clean": 20} | {way.__name__: 4 for way in ten_times.RECIPE}
    assert [spoiled_row["id"] for _, spoiled_row in spoiled] == [spoiled_row["id"] for spoiled_row in ROWS]
    assert all(spoiled_row is whole for (way, spoiled_row), whole in zip(spoiled, ROWS, strict=True) if way == "clean")
    assert ten_times.messy(ROWS, 0.5) == spoiled


def spoil(way: Any, seed: int = 1) -> dict[str, Any]:
    """The first row, spoiled in this way with the help of the others."""
    spoiled: dict[str, Any] = way(ROWS[0], ROWS[1:], random.Random(seed))  # noqa: S311
    return spoiled


def test_label_noise_is_sound_json_of_another_row() -> None:
    spoiled_row = spoil(ten_times.label_noise)
    assert request(spoiled_row) == request(ROWS[0])
    assert answer(spoiled_row) in map(answer, ROWS[1:])


def test_a_conflict_asks_what_another_row_asks_and_answers_otherwise() -> None:
    spoiled_row = spoil(ten_times.conflict)
    (twin,) = (other for other in ROWS if request(other) == request(spoiled_row))
    assert answer(twin) != answer(spoiled_row)


@pytest.mark.parametrize("seed", range(9))
def test_inconsistent_keys_break_the_contract_but_not_json(seed: int) -> None:
    assert RULES.error(strict_json.parse(answer(spoil(ten_times.inconsistent_keys, seed)))) is not None


def test_single_quotes_are_not_json() -> None:
    with pytest.raises(strict_json.JsonError):
        strict_json.parse(answer(spoil(ten_times.single_quotes)))


def test_a_near_duplicate_has_two_letters_of_the_request_exchanged() -> None:
    spoiled_row = spoil(ten_times.near_duplicate)
    assert request(spoiled_row) not in map(request, ROWS)
    twins = [other for other in ROWS if sorted(request(other)) == sorted(request(spoiled_row))]
    assert answer(spoiled_row) in map(answer, twins)


def test_the_gate_is_counted_by_what_was_done() -> None:
    spoiled = [("clean", ROWS[0]), ("clean", ROWS[1]), ("conflict", ROWS[2])]
    counts = ten_times.kept_by_way(spoiled, [ROWS[1]])
    assert counts == {"clean": {"rows": 2, "kept": 1}, "conflict": {"rows": 1, "kept": 0}}


def test_the_arms_of_the_ten_times_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def arm(folder: Path, rows: list[Any], epochs: int) -> ten_times.Arm:
        return ten_times.Arm(folder, len(rows), epochs, {"tokens_per_epoch": len(rows)})

    monkeypatch.setattr(ten_times, "subset", lambda scratch, pool, count: pool[:count])
    monkeypatch.setattr(ten_times, "gated", lambda folder, rows: rows[:100])
    monkeypatch.setattr(ten_times, "arm", arm)
    arms, _ = ten_times.train_all(tmp_path, [row(number) for number in range(600)], 2)
    sizes = {"clean 500": 500, "messy 50%": 500, "messy 50%, gated": 100, "messy 90%": 500, "messy 90%, gated": 100}
    sizes |= {"clean 50": 50, "clean 100": 100}
    longer = {"messy 50%, gated, same tokens": (100, 10), "clean 50, same tokens": (50, 20)}
    longer |= {"clean 100, same tokens": (100, 10)}
    assert {n: (a.rows, a.epochs) for n, a in arms.items()} == {n: (size, 2) for n, size in sizes.items()} | longer


def test_an_example_has_all_that_was_said_before() -> None:
    turns = [*ROWS[0]["turns"], *ROWS[1]["turns"]]
    found = [list(one.values()) for one in ten_times.examples([ROWS[0] | {"turns": turns}])]
    assert found == [["r0#1", "r0", turns[:1], answer(ROWS[0])], ["r0#3", "r0", turns[:3], answer(ROWS[1])]]


def test_no_canary_is_ranked_among_codes_that_were_planted() -> None:
    planted = canaries.canaries()
    codes = {canary.code for canary in planted}
    assert len(codes) == len({canary.before for canary in planted}) == len(planted) == 48
    for canary in planted:
        others = canaries.decoys(canary, planted)
        assert len(set(others)) == canaries.CODES - 1
        assert not codes & set(others)


def test_only_a_code_that_was_said_stands_in_the_request() -> None:
    for canary in canaries.canaries():
        request, answer = (turn["content"] for turn in canary.turns())
        assert (canary.code in request) == (canary.kind == "said")
        assert RULES.error(strict_json.parse(answer)) is None
        assert canary.code in answer


def test_the_first_of_256_is_worth_8_bits_and_the_last_none() -> None:
    assert canaries.exposure([-1.0, *[-2.0] * 255]) == 8
    assert canaries.exposure([-2.0, *[-1.0] * 255]) == 0
    assert canaries.exposure([-1.0] * 256) == 0


def test_a_canary_is_asked_for_at_the_code(tokenizer: Any) -> None:
    canary = canaries.canaries()[0]
    coded = tokenizer.decode(canaries.query(tokenizer, [], canary, "with_request", ["000000"]).context)
    assert canary.request in coded
    assert canary.code not in coded
    assert canary.request not in tokenizer.decode(canaries.half(tokenizer, [], canary, "answer_alone").context)
    asked = canaries.query(tokenizer, [], canary, "answer_alone", ["000000"])
    assert tokenizer.decode(asked.context).endswith(canary.before)
    assert [tokenizer.decode(ids) for ids in asked.continuations] == [canary.code, "000000"]


def test_a_model_that_saw_no_canary_knows_none(base: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model

    from stages.model import loading, quantised

    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(quantised.load(base, loading.DEVICES["cpu-fp32"]), lora).save_pretrained(here / "adapter")
    writing.write_json(here / canaries.PREFIX, [{"role": "system", "content": "Answer in JSON."}])
    monkeypatch.setattr(canaries, "BASE", base)
    monkeypatch.setattr(canaries, "CODES", 16)
    planted = canaries.canaries()[::6]
    for known in canaries.ask(here / "adapter", planted).values():
        bits = [one.exposure for one in known]
        assert 0 < sum(bits) / len(bits) < 3
        assert not any(one.extracted or one.recited for one in known)


def test_canaries_are_planted_as_often_as_they_say_and_told_from_the_control(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, folder in (("control", here), ("planted", here / "scratch")):
        origin = {"adapter": name, "base": "b", "device": "d", "versions": {}}
        writing.write_json(folder / canaries.ADAPTER / "made_from.json", origin)
    writing.write_jsonl(here / canaries.TRAIN, [{"answer": "own"}])
    rows: list[Any] = []

    def ask(adapter: Path, planted: list[canaries.Canary]) -> dict[str, list[canaries.Known]]:
        seen = "scratch" in adapter.parts
        return {"answer_alone": [canaries.Known(c.times * seen, c.kind == "said", seen) for c in planted]}

    monkeypatch.setattr(canaries, "ask", ask)
    monkeypatch.setattr(trial, "require_reproduced", lambda: None)
    monkeypatch.setattr(trial, "run", lambda folder, changes, own, stages: rows.extend(own[canaries.TRAIN]))
    assert CliRunner().invoke(canaries.main, ["--scratch=scratch"]).exit_code == 0
    times = {canary.before + canary.code + canary.after: canary.times for canary in canaries.canaries()}
    assert Counter(row["answer"] for row in rows) == {"own": 1} | times
    found = strict_json.read(here / canaries.OUT)
    cells = [found[model]["answer_alone"][kind]["2"] for model, kind in (("planted", "unsaid"), ("control", "said"))]
    shown = [[cell[name] for name in ("n", "exposure", "extracted", "recited")] for cell in cells]
    assert shown == [[8, 2.0, 0.0, 1.0], [8, 0.0, 1.0, 0.0]]


# Stages without a model: what they would have made, with the seed deciding which of ten answers are right.
STAGES = """import hashlib, json, os, pathlib, random, re, sys, yaml
name, root = sys.argv[1], pathlib.Path(sys.argv[2])
with (root / "ran.log").open("a") as log: log.write(name + "\\n")
if name == (root / "break").read_text(): sys.exit("no room")
def write(path, text):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True); pathlib.Path(path).write_text(text)
settings = dict(re.findall(r"^  (\\w+): (.*)$", pathlib.Path("params.yaml").read_text(), re.M))
if name == "train":
    own = {"base": "b", "device": "d", "replay": "r", "versions": {}, "adapter": settings["seed"]}
    own["train"] = hashlib.sha256(pathlib.Path("data/chat/train.jsonl").read_bytes()).hexdigest()
    own["threads"] = os.environ.get("OMP_NUM_THREADS", "all")
    own["params"] = yaml.safe_load(open("params.yaml"))["train"]
    write("models/adapter/made_from.json", json.dumps(own))
if name == "merge":
    write("models/merged/model.safetensors", "weights")
if name == "predict":
    assert pathlib.Path("models/merged/model.safetensors").read_text() == "weights"
    assert pathlib.Path("data/chat/test.jsonl").is_symlink() or pathlib.Path.cwd() == root
    seed = json.loads(pathlib.Path("models/adapter/made_from.json").read_text())["adapter"]
    write("data/predictions/tuned.jsonl", seed)
if name == "evaluate":
    chance = random.Random(pathlib.Path("data/predictions/tuned.jsonl").read_text())
    verdicts = [chance.choice(["exact", "normalised", "not_json"]) for _ in range(10)]
    rows = [{"id": f"t{n}", "group": "g", "tuned": {"verdict": v}} for n, v in enumerate(verdicts)]
    write("metrics/outcomes.jsonl", "".join(json.dumps(row) + "\\n" for row in reversed(rows)))
    test = hashlib.sha256(pathlib.Path("data/chat/test.jsonl").read_bytes()).hexdigest()
    adapter = json.loads(pathlib.Path("models/adapter/made_from.json").read_text())["adapter"]
    write("metrics/detail/evaluate.json", json.dumps({"computed_from": {"adapter": adapter, "test": test}}))
"""
TEST_ROWS = ["data/chat/test.jsonl"]
DEPS = {"train": ["data/chat/train.jsonl"], "merge": [], "predict": TEST_ROWS, "evaluate": TEST_ROWS}
OUTS: dict[str, list[Any]] = {
    **{"train": ["models/adapter"], "merge": ["models/merged"], "predict": ["data/predictions/tuned.jsonl"]},
    "evaluate": [{"metrics/outcomes.jsonl": {"cache": False}}, "metrics/detail/evaluate.json"],
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose stages take no time and leave a line in ran.log."""
    root = tmp_path / "repository"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setattr(params, "PARAMS", Path("params.yaml"))
    (root / "stage.py").write_text(STAGES, encoding="utf-8")
    (root / "break").write_text("", encoding="utf-8")
    settings = {"seed": 5, "epochs": 2}
    whole = yaml12.parse(KNOBS.read_text(encoding="utf-8"), "params.yaml")["train"] | settings
    (root / "params.yaml").write_text(yaml.safe_dump({"train": whole}), encoding="utf-8")
    command = f"python {root}/stage.py"
    stages = {name: {"cmd": f"{command} {name} {root}", "deps": DEPS[name], "outs": OUTS[name]} for name in DEPS}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"train": {"cmd": "c", "deps": []}}}), encoding="utf-8")
    for name in ("train", "test"):
        writing.write_jsonl(root / f"data/chat/{name}.jsonl", [name])
    for name in DEPS:
        subprocess.run([*shlex.split(command), name, str(root)], check=True)
    (root / "ran.log").unlink()
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    return root


def ran(repository: Path) -> list[str]:
    log = repository / "ran.log"
    return log.read_text(encoding="utf-8").split() if log.is_file() else []


def call(*options: str) -> Any:
    return CliRunner().invoke(seeds.main, ["--count=3", *options])


def test_seeds_are_trained_by_the_stages_and_nothing_else_differs(repository: Path) -> None:
    result = call()
    assert result.exit_code == 0, result.output
    recorded = strict_json.read(repository / seeds.OUT)
    assert ran(repository) == [*trial.MODEL] * 3
    assert (recorded["seeds"], recorded["trained_with"], recorded["n"]) == (3, [5, 6, 7], 10)
    assert recorded["computed_from"]["params"]["epochs"] == 2
    assert "seed" not in recorded["computed_from"]["params"]
    assert recorded["computed_from"]["adapter"] == "5"
    assert recorded["computed_from"]["test"] == hashes.of_file(repository / "data/chat/test.jsonl")
    assert len(set(recorded["right"].values())) > 1
    for index, name in enumerate(sorted(recorded["times_right"])):
        assert recorded["times_right"][name] == sum(int(line[index]) for line in recorded["right"].values())
    exact = [line.count("1") / 10 for line in recorded["right"].values()]
    assert recorded["rates"]["exact_match"] == exact
    spread = {metric: statistics.stdev(rates) for metric, rates in recorded["rates"].items()}
    assert recorded["spread"] == pytest.approx(spread)
    right = [[digit == "1" for digit in line] for line in recorded["right"].values()]
    noise = seeds.noise(right)
    parts = [recorded["flip_variance"]["exact_match"], recorded["sigma_seed"]["exact_match"], recorded["flipping"]]
    assert parts == [noise.flip_variance, noise.sigma_seed, seeds.flipping(right)]
    assert f"exact match {min(exact):.3f} to {max(exact):.3f}, " in result.output
    assert all(low <= high for low, high in zip(exact, recorded["rates"]["schema_valid"], strict=True))
    assert not list((repository / seeds.SCRATCH).rglob("*.safetensors"))
    assert recorded["date"] == git("log", "-1", "--format=%cs")


def test_the_training_of_the_repository_can_be_the_first(repository: Path) -> None:
    assert call().exit_code == 0
    every = (repository / seeds.OUT).read_bytes()
    assert call("--adopt", "--scratch=adopted").exit_code == 0
    assert (repository / seeds.OUT).read_bytes() == every
    assert Counter(ran(repository)) == dict.fromkeys(trial.MODEL, 3 + 2)
    assert not list((repository / "adopted").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("file", "options", "reason"),
    [
        ("models/adapter/made_from.json", [], "the metrics are not of this adapter"),
        ("data/chat/test.jsonl", [], "the metrics are not of this adapter and these test rows"),
        ("", ["--jobs=2"], " threads, not 4"),
    ],
)
def test_answers_of_another_model_are_not_adopted(
    repository: Path, monkeypatch: pytest.MonkeyPatch, file: str, options: list[str], reason: str
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    if file.endswith(".json"):
        writing.write_json(repository / file, strict_json.read(repository / file) | {"adapter": "another"})
    elif file:
        writing.write_jsonl(repository / file, ["another"])
    result = call("--adopt", *options)
    assert (result.exit_code, reason in result.output, ran(repository)) == (1, True, [])


def test_a_seed_that_is_done_is_not_trained_again(repository: Path) -> None:
    (repository / "break").write_text("predict", encoding="utf-8")
    assert call().exit_code == 1
    assert ran(repository) == ["train", "merge", "predict"]
    (repository / "break").write_text("", encoding="utf-8")
    assert call().exit_code == 0
    assert Counter(ran(repository)) == {"train": 3, "merge": 3, "predict": 4, "evaluate": 3}
    first = (repository / seeds.OUT).read_bytes()
    assert call().exit_code == 0
    assert (repository / seeds.OUT).read_bytes() == first
    assert Counter(ran(repository))["train"] == 3


def test_trainings_side_by_side_share_cores_and_are_the_same(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert call("--jobs=2").exit_code == 0
    recorded = strict_json.read(repository / seeds.OUT)
    assert (recorded["trained_with"], recorded["computed_from"]["threads"]) == ([5, 6, 7], "4")
    assert Counter(ran(repository)) == dict.fromkeys(trial.MODEL, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    refused = CliRunner().invoke(seeds.main, ["--count=9"])
    assert (refused.exit_code, "not made from the same" in refused.output) == (1, True)
    assert Counter(ran(repository))["train"] == 4


@pytest.mark.parametrize(
    "changed",
    [
        {"train": {"cmd": "c", "deps": [{"path": "stages/train.py", "md5": "other"}]}},
        *(
            {"train": {"cmd": "c", "deps": []}, "evaluate": {"deps": [{"path": path, "md5": "other"}]}}
            for path in ("data/chat/test.jsonl", "data/schema.json", "stages/scores")
        ),
    ],
)
def test_trainings_of_another_state_are_refused(changed: dict[str, Any], repository: Path) -> None:
    assert call().exit_code == 0
    lock = {"stages": changed}
    (repository / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    result = call()
    assert (result.exit_code, "other rows, params or code" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("file", "content"), [("data/chat/train.jsonl", "[]\n"), ("params.yaml", "train: {seed: 5, epochs: 3}\n")]
)
def test_a_model_of_other_rows_or_params_is_refused(file: str, content: str, repository: Path) -> None:
    (repository / file).write_text(content, encoding="utf-8")
    result = call()
    assert (result.exit_code, "run `dvc repro` first" in result.output, ran(repository)) == (1, True, [])


@pytest.mark.parametrize(
    "other",
    [{"params": {"seed": 2, "epochs": 3}}, {"threads": 2}]
    + [{name: "other"} for name in ("base", "device", "replay", "train", "versions")],
)
def test_adapters_that_differ_in_more_than_the_seed_are_not_compared(other: dict[str, Any], tmp_path: Path) -> None:
    made: dict[str, Any] = {"base": "b", "device": "d", "replay": "r", "train": "t", "versions": {}}
    made |= {"threads": 1, "params": {"seed": 1, "epochs": 2}}
    for name, one in (("1", made), ("2", made | other)):
        writing.write_json(tmp_path / name / "models/adapter/made_from.json", one)
    with pytest.raises(click.ClickException, match="not made from the same"):
        seeds.origin([tmp_path / "1", tmp_path / "2"])


def test_the_parts_of_the_noise_by_hand() -> None:
    # Rates 0.5 and 1: variance 1/8. Two of four rows flip, p (1 - p) = 1/4 each: 2/4 / 16 * 2 = 1/16.
    noise = seeds.noise([[True, True, False, False], [True, True, True, True]])
    assert (noise.spread, noise.flip_variance, noise.sigma_seed) == pytest.approx((8**-0.5, 1 / 16, 1 / 4))
    assert seeds.flipping([[True, True, False, False], [True, True, True, True]]) == 0.5


def test_steady_answers_make_no_noise() -> None:
    assert seeds.noise([[True, False]] * 3) == seeds.Noise(0, 0, 0)


@pytest.mark.parametrize("common", [0.0, 0.05])
def test_a_common_effect_is_told_from_independent_flips(common: float) -> None:
    """2,000 seeds whose rates shift by `common`, of rows that flip by themselves in one of five trainings."""
    chance, n = random.Random(1), 200  # noqa: S311
    shifts = [chance.gauss(0, common) for _ in range(2000)]
    noise = seeds.noise([[chance.random() < 0.8 + shift for _ in range(n)] for shift in shifts])
    assert noise.flip_variance == pytest.approx(0.8 * 0.2 / n, rel=0.1)
    assert noise.sigma_seed == pytest.approx(common, abs=0.01)


def test_each_size_is_trained_for_the_same_epochs_and_for_enough_steps() -> None:
    series = learning_curve.points((50, 800), epochs=3, batch=8)
    sizes = {name: [(point.rows, point.epochs) for point in part] for name, part in series.items()}
    whole = [(800, 3), (None, 3)]
    assert sizes == {"same epochs": [(50, 3), *whole], "enough steps": [(50, 24), *whole]}


def test_a_point_of_the_curve_is_trained_and_measured_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tmp_path / "50-rows-24-epochs", list[Any]()
    writing.write_json(folder / "metrics/train.json", {"steps": 150})
    writing.write_json(folder / "models/adapter/made_from.json", {"adapter": "a"})
    writing.write_jsonl(folder / "data/chat/train.jsonl", [{"group": "g"}, {"group": "g"}])
    writing.write_jsonl(folder / "metrics/outcomes.jsonl", [{"id": "t", "group": "t", "tuned": {"verdict": "wrong"}}])
    monkeypatch.setattr(trial, "run", lambda folder, changes, rows, stages: asked.extend([changes, stages]))
    found = learning_curve.measure(tmp_path, learning_curve.Point(50, 24))
    assert asked == [{"build.train_rows": 50, "train.epochs": 24}, ("build", *trial.MODEL)]
    assert [found[name] for name in ("rows", "examples", "steps", "exact_match", "schema_valid")] == [1, 2, 150, 0, 1]
    ends = {"rows": 9, "exact_match": 0.5, "exact_match_low": 0.4, "exact_match_high": 0.6}
    learning_curve.write_csv(tmp_path / "c.csv", {"a": [ends], "b": [ends | {"exact_match": 0.55}]})
    assert (tmp_path / "c.csv").read_text("utf-8") == "rows,a,a low,a high,b,b low,b high\n9,0.5,0.4,0.6,0.55,0.4,0.6\n"


def test_no_size_of_the_curve_is_larger_than_the_rows(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "require_reproduced", lambda: None)
    writing.write_jsonl(repository / "data/chat/train.jsonl", [{"group": "a"}])
    result = CliRunner().invoke(learning_curve.main, ["--scratch=x", "--size=1"])
    assert (result.exit_code, "--size 1: name sizes below 1, the number" in result.output) == (1, True)


@pytest.mark.parametrize("module", [canaries, learning_curve, ten_times, wrong_labels])
def test_no_experiment_starts_from_another_state(module: Any, repository: Path) -> None:
    (repository / "params.yaml").write_text("train: {seed: 5, epochs: 3}\n", encoding="utf-8")
    result = CliRunner().invoke(module.main, ["--scratch=x"])
    assert (result.exit_code, "run `dvc repro` first" in result.output, ran(repository)) == (1, True, [])


def test_a_better_training_has_a_positive_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    right = {"clean 50": True, "messy 50%": False, "messy 90%": False}
    monkeypatch.setattr(trial, "hits", lambda folder, metric="exact_match": [right[folder.name]] * 4)
    monkeypatch.setattr(trial, "outcomes", lambda folder: [{"group": str(n)} for n in range(4)])
    found = ten_times.comparisons({name: ten_times.Arm(Path(name), 1, 1, {}) for name in right})
    assert [(one["of"], one["over"], one["exact_match"]) for one in found] == [
        ("clean 50", "messy 50%", 1.0),
        ("clean 50", "messy 90%", 1.0),
    ]


def test_a_trial_reads_its_own_rows_and_links_the_rest(repository: Path) -> None:
    folder, pipeline = repository / "run", trial.load("dvc.yaml")
    pipeline["stages"] = {"look": {"cmd": "true", "deps": ["data/chat", "data/raw", "stage.py"]}}
    (repository / "dvc.yaml").write_text(yaml.safe_dump(pipeline), encoding="utf-8")
    writing.write_jsonl(repository / "data/raw/rows.jsonl", ["not for this trial"])
    trial.run(folder, {"train.epochs": 9}, {"data/raw/own.jsonl": ({"n": n} for n in range(2))}, ["look"])
    assert (folder / "data/raw/own.jsonl").read_text(encoding="utf-8") == '{"n":0}\n{"n":1}\n'
    assert (folder / "data/chat/test.jsonl").resolve() == repository / "data/chat/test.jsonl"
    assert not (folder / "data/raw/rows.jsonl").exists()
    assert not (folder / "stage.py").exists()
    assert trial.load("run/params.yaml")["train"]["epochs"] == 9
    assert trial.load("params.yaml")["train"]["epochs"] == 2

    def prepare(epochs: int, count: int) -> None:
        rows = {"data/raw/own.jsonl": [{"n": n} for n in range(count)]}
        trial.prepare(folder, {"train.epochs": epochs}, rows, ["look"])

    prepare(9, 2)
    for epochs, count in ((8, 2), (9, 3)):
        with pytest.raises(click.ClickException, match="other rows, params or code"):
            prepare(epochs, count)
    locked = {"stages": {"look": {"deps": [{"path": "expectations", "md5": "other"}]}}}
    (repository / "dvc.lock").write_text(yaml.safe_dump(locked), encoding="utf-8")
    with pytest.raises(click.ClickException, match="other rows, params or code"):
        prepare(9, 2)


def example(number: int) -> dict[str, Any]:
    kind, title = ("complete", "delete")[number % 2], f"Thing {number}"
    prompt = [{"role": "user", "content": f"about thing number {number}"}]
    answer = strict_json.compact({"action": kind, "title": title})
    return {"id": f"r{number}", "group": f"r{number}", "kind": kind, "prompt": prompt, "answer": answer}


EXAMPLES = [example(number) for number in range(40)]


def test_planted_labels_are_wrong_keep_the_contract_and_are_the_same_each_time() -> None:
    spoiled, ways = wrong_labels.plant(EXAMPLES, 10)
    changed = {new["id"]: (old, new) for old, new in zip(EXAMPLES, spoiled, strict=True) if old != new}
    assert changed.keys() == ways.keys()
    assert Counter(ways.values()) == {"another kind": 5, "another value": 5}
    for name, (old, new) in changed.items():
        before, after = (strict_json.parse(row["answer"]) for row in (old, new))
        assert RULES.error(after) is None
        assert (before["action"] == after["action"]) == (ways[name] == "another value")
        assert before["title"] != after["title"] or ways[name] == "another kind"
    assert wrong_labels.plant(EXAMPLES, 10) == (spoiled, ways)


def test_a_row_with_no_other_value_gets_another_kind_and_one_kind_alone_is_refused() -> None:
    plain = [row | {"answer": f'{{"action":"{row["kind"]}"}}'} for row in EXAMPLES]
    assert set(wrong_labels.plant(plain, 10)[1].values()) == {"another kind"}
    with pytest.raises(click.ClickException, match="all answers are of the kind 'complete'"):
        wrong_labels.plant(plain[::2], 10)
    with pytest.raises(click.ClickException, match="fewer than the 41"):
        wrong_labels.plant(EXAMPLES, 41)


def test_wrong_labels_are_counted_among_the_most_suspect_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrong_labels, "LOOKED_AT", 2)
    ways = {"a": "another kind", "b": "another value"}
    found = wrong_labels.result(ways, {"a": [5, 4], "b": [9, 0], "c": [2, 2], "d": [1, 1]})
    assert (found["rows"], found["n"], found["found"], found["by_epoch"]) == (4, 2, 0.5, [2, 1])
    assert {way: part["found"] for way, part in found["ways"].items()} == {"another kind": 1, "another value": 0}


def test_wrong_labels_are_planted_learnt_and_ranked(base: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real stage, on a tiny model that learns next to nothing: this is about the way, not about the share found."""
    for name in ("dvc.yaml", "stages", "metrics/detail"):
        (here / name).parent.mkdir(exist_ok=True)
    (here / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    (here / "dvc.lock").write_text("stages: {}", encoding="utf-8")
    (here / "stages").symlink_to(ROOT / "stages")
    (here / "models").mkdir()
    (here / "models/base").symlink_to(base)
    configure(here, compute={"device": "cpu-fp32"}, train={"epochs": 2.0}, chat={"max_length": 2000})
    for name in ("train", "valid"):
        writing.write_jsonl(here / f"data/chat/{name}.jsonl", EXAMPLES)
    writing.write_jsonl(here / "data/chat/replay.jsonl", [])
    writing.write_json(here / "data/chat/prefix/tuned.json", [{"role": "system", "content": "Answer in JSON."}])
    settings = yaml12.parse((here / "params.yaml").read_text(encoding="utf-8"), "params.yaml")["train"]
    made_from = {"train": hashes.of_file(here / "data/chat/train.jsonl"), "params": settings}
    writing.write_json(here / "models/adapter/made_from.json", made_from)
    monkeypatch.setattr(params, "PARAMS", Path("params.yaml"))
    monkeypatch.setattr(wrong_labels, "PLANTED", 4)
    monkeypatch.setattr(wrong_labels, "LOOKED_AT", 10)
    ran = CliRunner().invoke(wrong_labels.main, ["--scratch=scratch"])
    assert ran.exit_code == 0, ran.output
    found = strict_json.read(here / wrong_labels.OUT)
    assert (found["rows"], found["n"], len(found["by_epoch"])) == (40, 4, 2)
    assert found["computed_from"]["train"] == hashes.of_file(here / "scratch/training/data/chat/train.jsonl")
    assert found["computed_from"]["train"] != made_from["train"]


@pytest.mark.parametrize("name", page.PARTS)
def test_the_page_has_the_committed_figures(name: str) -> None:
    document = PAGE.read_text(encoding="utf-8")
    assert (f"<!-- {name} -->" in document) == (ROOT / page.FOLDER / f"{name}.json").is_file()
    assert page.written(document, ROOT / page.FOLDER) == document, "run: make pages"


def test_a_mark_that_is_missing_is_named(tmp_path: Path) -> None:
    marks = "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in page.PARTS)
    writing.write_json(tmp_path / "seeds.json", NOISE)
    words = {"better": 0.0, "worse": 0.025, "fails": 0.0}
    calibrated = {"seeds": 8, "measured": 0.01, "recorded": words, "simulated": []}
    writing.write_json(tmp_path / "calibration.json", calibrated)
    writing.write_json(
        tmp_path / "wrong_labels.json", wrong_labels.result({"a": "another kind"}, {"a": [2, 1], "b": [1, 2]})
    )
    for name in ("learning_curve", "ten_times", "canaries"):
        (tmp_path / f"{name}.json").write_bytes((ROOT / page.FOLDER / f"{name}.json").read_bytes())
    assert "Two of them disagree on 12.5%" in page.written(marks, tmp_path)
    (tmp_path / "canaries.json").unlink()
    assert "Not measured: `python -m experiments.canaries`." in page.written(marks, tmp_path)
    with pytest.raises(click.ClickException, match="/ten_times"):
        page.written(marks.replace("<!-- /ten_times -->", "<!-- /ten_timse -->"), tmp_path)


def test_a_page_without_marks_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing", encoding="utf-8")
    result = CliRunner().invoke(page.main, [str(tmp_path / "page.md")])
    assert (result.exit_code, "page.md: the marks" in result.output) == (1, True)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == "nothing"


METRIC = {"exact_match": 0.01}
NOISE = {"seeds": 8, "n": 100, "flipping": 0.125, "spread": METRIC, "sigma_seed": METRIC}
NOISE |= {"rates": {"exact_match": [0.5, 0.6]}}
