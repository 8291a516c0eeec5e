"""versions.record notices whatever in a version does not belong to the rest, and executes or raises nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
from hypothesis import example, given
from hypothesis import strategies as st
from test_history import FAST

from stages.core.cli import InputError
from versions import history, record

LOCK, METRICS, OUTCOMES = history.LOCK, history.METRICS, history.OUTCOMES


def files_with_problems(commit: str) -> set[str]:
    return {problem.file for problem in record.problems(commit)}


def changed(path: str, old: str, new: str, commit: str = "HEAD") -> dict[str, bytes]:
    content = (history.read(commit, path) or b"").decode()
    assert old in content
    return {path: content.replace(old, new).encode()}


@pytest.mark.parametrize(
    "path",
    [
        *("data/raw/a.jsonl", "data/test/rows.jsonl", "data/schema.json", "expectations/train.json", "stages/toy.py"),
        *(METRICS, OUTCOMES, "metrics/validate.json", LOCK),
    ],
)
def test_a_file_that_changed_since_the_run_is_named(repository: Path, path: str) -> None:
    content = history.read("HEAD", path) or b""
    folder = next(root for root in ("data/raw", "data/test", "expectations", path) if history.within(path, [root]))
    assert path == LOCK or folder in files_with_problems(toy.forge(repository, {path: content + b"\n"}))
    assert folder in files_with_problems(toy.forge(repository, {path: None}))


def test_a_folder_without_files_is_in_dvc_lock_and_not_in_git(repository: Path) -> None:
    (repository / "data/none").mkdir()
    config = repository / "dvc.yaml"
    config.write_text(config.read_text("utf-8").replace("deps: [data/raw,", "deps: [data/none, data/raw,"), "utf-8")
    toy.run(repository, str(toy.BIN / "dvc"), "repro", "-q")
    toy.run(repository, "git", "commit", "-qam", "none")
    assert files_with_problems("HEAD") == set()


def test_a_changed_pointer_is_new_data(repository: Path) -> None:
    md5 = history.pointers("HEAD", "data/raw")["data/raw/big.jsonl"]
    pointer = changed("data/raw/big.jsonl.dvc", md5, "f" * 32)
    assert "data/raw" in files_with_problems(toy.forge(repository, pointer))


@pytest.mark.parametrize(
    ("path", "old", "new", "file"),
    [
        ("params.yaml", "epochs: 3", "epochs: 4", "params.yaml: train"),
        ("params.yaml", "train", "other", "params.yaml: train"),
        ("dvc.yaml", "toy.py train", "toy.py train --more", "dvc.yaml"),
        ("dvc.yaml", "deps: [data/test, models", "deps: [params.yaml, data/test, models", "params.yaml"),
        ("dvc.yaml", "outs: [models/adapter]", "outs: [models/adapter, models/more]", "models/more"),
        ("dvc.yaml", ", {metrics/outcomes.jsonl: {cache: false}}", "", OUTCOMES),
        ("dvc.yaml", "outs: [data/predictions.txt]", "wdir: ..", LOCK),
        ("dvc.lock", "schema", "<<<<<<< HEAD\nschema", LOCK),
    ],
)
def test_code_params_and_pipeline_must_fit_the_lock(repository: Path, path: str, old: str, new: str, file: str) -> None:
    assert file in files_with_problems(toy.forge(repository, changed(path, old, new)))


def test_a_setting_whose_name_is_no_text_is_a_problem_and_no_traceback(repository: Path) -> None:
    whole = changed("dvc.yaml", "params: [train]", "params: [{params.yaml: null}]")
    assert "params.yaml: 1" in files_with_problems(toy.forge(repository, {**whole, "params.yaml": b"1: 2\n"}))


@pytest.mark.parametrize("stage", ["validate", "train"])
def test_a_run_that_stopped_half_way_shows(repository: Path, stage: str) -> None:
    toy.write_rows(Path("data/raw/a.jsonl"), [toy.row("a1", "other"), toy.row("a2")])
    toy.run(repository, "dvc", "repro", "--quiet", stage)
    toy.commit(repository, "half a run")
    expected = {"validate": "data/validated", "train": "models/adapter"}[stage]
    assert files_with_problems("HEAD") == {expected}
    toy.run(repository, "dvc", "repro", "--quiet")
    toy.commit(repository, "the whole run")
    assert record.problems("HEAD") == []


def test_what_another_stage_once_wrote_is_not_todays_output(repository: Path) -> None:
    toy.write_rows(Path("data/raw/a.jsonl"), [toy.row("a1", "other"), toy.row("a2")])
    before = history.lock("HEAD")["train"].outs["models/adapter"]
    toy.run(repository, "dvc", "repro", "--quiet", "train")
    old = f"  fit:\n    cmd: x\n    outs:\n    - {{path: models/adapter, hash: md5, md5: {before}}}\n"
    Path(LOCK).write_text(Path(LOCK).read_text(encoding="utf-8") + old, encoding="utf-8")
    toy.commit(repository, "half a run")
    assert files_with_problems("HEAD") == {"models/adapter"}


def lock_for(repository: Path, changes: dict[str, bytes]) -> str:
    """A commit whose dvc.lock was made to fit the changed files by hand."""
    lock = (history.read("HEAD", LOCK) or b"").decode()
    forged = toy.forge(repository, {**changes})
    for path in changes:
        lock = lock.replace(str(history.content_hash("HEAD", path)), str(history.content_hash(forged, path)))
    return toy.forge(repository, {**changes, LOCK: lock.encode()})


def edited(change: Callable[[dict[str, Any]], Any]) -> bytes:
    document = json.loads(history.read("HEAD", METRICS) or b"")
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda rates: rates["tuned"].update(exact_match=0.9),
        lambda rates: rates["tuned"].update(json_valid=0.99),
        lambda rates: rates["tuned"].update(exact_match=0.700001),
        lambda rates: rates["tuned"].update(exact_match="high"),
        lambda rates: rates["tuned"].pop("schema_valid"),
        lambda rates: rates.pop("tuned"),
        lambda rates: rates.update(other=rates["tuned"]),
    ],
)
def test_rates_that_the_verdicts_do_not_give_are_named_though_the_lock_fits(
    repository: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    commit = lock_for(repository, {METRICS: edited(change)})
    assert files_with_problems(commit) & {METRICS, OUTCOMES}
    assert LOCK not in files_with_problems(commit)


@pytest.mark.parametrize(
    ("path", "old", "new", "reason"),
    [
        (OUTCOMES, '"wrong"', '"superb"', "known verdict of tuned"),
        (METRICS, "0.7", "NaN", "NaN is not JSON"),
        (OUTCOMES, '"id": "t01"', '"id": NaN', "line 2: "),
    ],
)
def test_an_unknown_verdict_and_a_nan_are_named(repository: Path, path: str, old: str, new: str, reason: str) -> None:
    found = record.problems(lock_for(repository, changed(path, old, new)))
    assert [problem.file for problem in found if reason in problem.reason][:1] == [path]


def test_what_nests_too_deeply_to_be_compared_is_a_problem(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(tree: str) -> None:
        endless(tree)

    monkeypatch.setattr(record, "_stale", endless)
    assert record.problems("HEAD") == [record.Problem(LOCK, "nests too deeply to be read")]


def test_a_system_may_have_dots_in_its_name(repository: Path) -> None:
    named = {
        path: (history.read("HEAD", path) or b"").replace(b'"tuned"', b'"tuned-1.7b"') for path in (METRICS, OUTCOMES)
    }
    lines = [json.loads(line) for line in named[OUTCOMES].splitlines()]
    both = [line | {"tuned": line["tuned-1.7b"]} for line in lines]
    rates = json.loads(named[METRICS])
    content = {OUTCOMES: "".join(json.dumps(line) + "\n" for line in both).encode()}
    content |= {METRICS: json.dumps(rates | {"tuned": rates["tuned-1.7b"]}).encode()}
    assert record.problems(lock_for(repository, content)) == []


def test_metrics_of_no_stage_are_named_but_for_experiments_and_timings(repository: Path) -> None:
    apart = {"metrics/experiments/a.json": b"{}", "metrics/timing/a.json": b"{}", "page.md": b"Title\n=======\n"}
    assert files_with_problems(toy.forge(repository, {**apart})) == set()
    assert files_with_problems(toy.forge(repository, {"metrics/more.json": b"{}"})) == {"metrics/more.json"}


@pytest.mark.parametrize(
    ("pins", "named"), [("py-yaml==2.1", False), ("py-yaml==2.2", True), ("Py_Yaml==2.1\npy-yaml==2.2", False)]
)
def test_libraries_that_were_swapped_after_the_run_are_named(repository: Path, pins: str, named: bool) -> None:
    versions = {"computed_from": {"versions": {"Py_YAML": "2.1+cpu", "unpinned": "1"}}}
    metrics = edited(lambda rates: rates.update(versions))
    commit = lock_for(repository, {METRICS: metrics})
    commit = toy.forge(repository, {"constraints.txt": pins.encode()}, commit)
    assert files_with_problems(commit) == ({"constraints.txt"} if named else set())
    detail = {record.DETAIL: json.dumps(versions).encode(), "constraints.txt": pins.encode()}
    assert ("constraints.txt" in files_with_problems(toy.forge(repository, {**detail}))) == named


def test_what_dvc_yaml_no_longer_names_is_still_held_against_the_lock(repository: Path) -> None:
    """Or a change that drops a dependency could pass with rows that were never trained on."""
    text = Path("dvc.yaml").read_text(encoding="utf-8")
    dropped = text.replace("    params: [train]\n", "").replace("deps: [data/raw, ", "deps: [")
    assert len(text) - len(dropped) == len("    params: [train]\ndata/raw, ")
    whole = toy.forge(repository, {"dvc.yaml": dropped.encode()})
    assert files_with_problems(whole) == set()
    changed = {"params.yaml": b"train: {epochs: 9}\n", "data/raw/a.jsonl": b"{}\n"}
    assert {"data/raw", "params.yaml: train"} <= files_with_problems(toy.forge(repository, {**changed}, whole))


def test_a_matrix_stands_for_a_stage_each() -> None:
    text = b"""stages:
  baseline:
    matrix: {system: [zero, few], n: [1]}
    cmd: run ${item.system} ${item.n} ${sizes.small}
    deps: ["./in/${item.system}.json"]
    params: [sizes, other.yaml: [a.b]]
    outs: [{"./out/${item.system}": {push: false}}]
    metrics: [{m.json: {cache: false}}]
"""
    stages = record.pipeline(text, b"sizes: {small: 7}")
    assert list(stages) == ["baseline@zero-1", "baseline@few-1"]
    assert stages["baseline@few-1"] == record.Declared(
        "run few 1 7",
        ("in/few.json",),
        {"out/few": True, "m.json": False},
        {"params.yaml": ("sizes",), "other.yaml": ("a.b",)},
    )


@pytest.mark.parametrize(
    "text",
    [
        b"stages: {a: {cmd: x, wdir: ..}}",
        b"stages: {a: {foreach: [1], do: {cmd: x}}}",
        b"stages: {a: {cmd: '${nowhere}'}}",
        b"stages: {a: {deps: [x]}}",
        b"stages: [a]",
        b"stages: {a: {matrix: {x: [" + b"1, " * 1001 + b"1]}, cmd: x}}",
    ],
)
def test_a_pipeline_that_can_not_be_followed_is_refused(text: bytes) -> None:
    with pytest.raises(InputError):
        record.pipeline(text)


KEYS, WORDS = st.sampled_from(["stages", "tuned", "id"]), st.sampled_from(["stages", "outs", "path", "md5"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)
BROKEN = st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode())


@given(path=st.sampled_from([LOCK, "dvc.yaml", "params.yaml", METRICS, OUTCOMES]), content=BROKEN)
@example(path=OUTCOMES, content=b"[]")
@example(path=METRICS, content=b"[]")
@example(path=METRICS, content=b'{"computed_from": []}')
@example(path="dvc.yaml", content=b"stages: {a: {cmd: x, deps: [{}]}}")
@example(path=LOCK, content=b"!!timestamp x")
@example(path=LOCK, content=b"stages: {train: {cmd: x, params: {params.yaml: {1: 2}}}}")
@example(path=METRICS, content=b'{"tuned": {"json_valid": 1}, "computed_from": {"versions": []}}')
@FAST
def test_whatever_is_in_its_files_is_a_problem_and_no_traceback(repository: Path, path: str, content: bytes) -> None:
    assert record.problems(toy.forge(repository, {path: content}))
