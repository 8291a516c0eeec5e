"""dvc.yaml tells the truth: deps are imports, paths in a command are declared, params read are params declared."""

import ast
import re
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import KNOBS, ROOT

from stages import build, fetch, gguf, memorisation, merge, replay, retention, train, validate
from stages.answers import generate, work
from stages.core import params, yaml12
from stages.data import contract
from stages.model import chat, loading
from versions import history, rollback

DVC = yaml12.parse((ROOT / "dvc.yaml").read_text(encoding="utf-8"), "dvc.yaml")
PARAMS = yaml12.parse((ROOT / "params.yaml").read_text(encoding="utf-8"), "params.yaml")
STAGES: dict[str, dict[str, Any]] = DVC["stages"]
NAMES = sorted(STAGES)
EACH = pytest.mark.parametrize("name", NAMES)
# Anything else may change without training again, or fetching again.
TRAINING = {f"data/chat/{name}" for name in ("train.jsonl", "valid.jsonl", "replay.jsonl", "prefix/tuned.json")}
TRAINING |= {"models/base", "stages/launch", "stages/train.py", "stages/core", "stages/model"}
FETCHING = {"stages/fetch.py", "stages/core"}
# Who may import whom: a package depends on those before it, so a change to `scores` writes no answer again.
PACKAGES = {
    "core": {"core"},
    "data": {"core", "data"},
    "model": {"core", "model"},
    "answers": {"core", "data", "model", "answers"},
    "scores": {"core", "data", "scores"},
}


def module_of(stage: dict[str, Any]) -> Path:
    found = re.search(r"python -m stages\.(\w+)", stage["cmd"])
    assert found
    return Path("stages") / f"{found[1]}.py"


def imports_of(file: Path) -> set[Path]:
    """Modules of this project that a file imports, directly."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {Path(*name.split(".")).with_suffix(".py") for name in names}
    return {path for path in found if (ROOT / path).is_file()}


def closure(file: Path) -> set[Path]:
    seen: set[Path] = set()
    todo = {file}
    while todo:
        seen |= todo
        todo = {path for known in todo for path in imports_of(known)} - seen
    return seen


def declared(entries: list[Any]) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def outputs(stage: dict[str, Any]) -> set[str]:
    return declared([*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])])


@EACH
def test_code_deps_are_exactly_the_packages_of_the_imports(name: str) -> None:
    stage = STAGES[name]
    module = module_of(stage)
    code = {dep for dep in stage["deps"] if dep.startswith("stages/") and dep != "stages/launch"}
    assert code == {str(path if path == module else path.parent) for path in closure(module)}


@EACH
def test_every_path_of_the_command_is_declared_and_the_reverse(name: str) -> None:
    """A folder may stand for the outputs below it. Timings and what a killed run leaves are no function of inputs."""
    stage = STAGES[name]
    words = stage["cmd"].split()
    no_outputs = ("--timings", "--checkpoint-folder", "--answered")
    undeclared = {after for word, after in pairwise(words) if word in no_outputs}
    named = {word for word in words if "/" in word or word == "expectations"} - undeclared
    code = {dep for dep in stage["deps"] if dep.startswith("stages/") and dep != "stages/launch"}
    known = declared(stage["deps"]) - code | outputs(stage)
    folders = {path for path in named if any(out.startswith(path + "/") for out in outputs(stage))}
    assert named - folders <= known
    assert {path for path in known if not any(path.startswith(folder + "/") for folder in folders)} <= named
    assert all(path.startswith(("metrics/timing/", ".dvc/tmp/")) for path in undeclared)


@EACH
def test_params_read_are_params_declared(name: str) -> None:
    stage = STAGES[name]
    source = (ROOT / module_of(stage)).read_text(encoding="utf-8")
    read = set(re.findall(r'params\.load\("(\w+)"', source))
    if module_of(stage).name == "predict.py" and "--schema" not in stage["cmd"]:
        read -= {"constrained"}  # read with --schema only, so that switching it answers nothing else again
    assert read == set(stage.get("params", []))


@EACH
def test_metrics_and_plots_are_in_git(name: str) -> None:
    stage = STAGES[name]
    small = [entry for entry in stage.get("outs", []) if next(iter(declared([entry]))).startswith("metrics/")]
    for entry in [*stage.get("metrics", []), *stage.get("plots", []), *small]:
        assert isinstance(entry, dict), entry
        assert next(iter(entry.values()))["cache"] is False, entry


def test_the_tests_have_the_same_knobs() -> None:
    of_tests = yaml12.parse(KNOBS.read_text(encoding="utf-8"), "tests/params.yaml")
    assert {name: {*section} for name, section in of_tests.items()} == {name: {*PARAMS[name]} for name in PARAMS}


def test_every_value_is_one_that_its_stage_takes() -> None:
    of_stages = (build, fetch, gguf, memorisation, merge, replay, retention, train, validate)
    sections = {module.__name__.removeprefix("stages."): module.Params for module in of_stages}
    sections |= {"chat": chat.Params, "compute": loading.Params, "constrained": work.Constrained}
    sections |= {"contract": contract.Params, "predict": generate.Params}
    assert {*sections} == {*PARAMS}
    for name, section in sections.items():
        params.load(name, section, ROOT / "params.yaml")


def test_every_params_section_is_read() -> None:
    stages = {section for stage in STAGES.values() for section in stage.get("params", [])}
    files = [file for folder in ("tools", "review", "versions") for file in (ROOT / folder).rglob("*.py")]
    sources = "".join(file.read_text(encoding="utf-8") for file in files)
    # A third argument names another file than params.yaml.
    assert set(PARAMS) == stages | set(re.findall(r'params\.load\("(\w+)", [\w.]+\)', sources))


def test_every_stage_has_a_description() -> None:
    assert all(stage.get("desc") for stage in STAGES.values())


@pytest.mark.parametrize("file", sorted(path.relative_to(ROOT) for path in (ROOT / "stages").rglob("[a-z]*.py")))
def test_code_imports_only_packages_before_it(file: Path) -> None:
    folder = file.parts[1] if len(file.parts) > 2 else "checklist" if file.name == "validate.py" else ""
    allowed = PACKAGES.get(folder, set(PACKAGES) | {folder})
    imported = {path for path in imports_of(file) if path.name != "__init__.py"}
    assert {path.parts[1] for path in imported} <= allowed


def test_what_training_and_fetching_depend_on() -> None:
    assert declared(STAGES["train"]["deps"]) == TRAINING
    assert STAGES["train"]["params"] == ["chat", "compute", "train"]
    assert declared(STAGES["fetch"]["deps"]) == FETCHING
    assert STAGES["fetch"]["outs"] == [{"models/base": {"push": False}}], "public weights are not stored again"
    assert STAGES["fetch"]["params"] == ["fetch"]


def test_the_mutated_copy_has_all_that_tests_read() -> None:
    """`make mutants` runs the tests in a copy; where a folder lacks there, it stops before the first mutant."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    copied = {*settings["source_paths"], *settings["also_copy"], "tests", "pyproject.toml"}
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    assert {path.split("/")[0] for path in listed.stdout.split("\0") if path} <= copied


def test_every_artifact_is_an_output_of_a_stage_and_says_what_it_is() -> None:
    outs = {out for stage in STAGES.values() for out in stage.get("outs", []) if isinstance(out, str)}
    assert {"adapter", "merged", "gguf"} <= set(DVC["artifacts"])
    for artifact in DVC["artifacts"].values():
        assert artifact["path"] in outs
        assert (artifact["type"], bool(artifact["desc"]), bool(artifact["labels"])) == ("model", True, True)


def test_a_rollback_brings_back_all_that_stages_read_and_none_makes() -> None:
    made = {out for stage in STAGES.values() for out in outputs(stage)}
    read = {dep for stage in STAGES.values() for dep in stage["deps"] if dep.startswith(("data/", "expectations"))}
    given = {path for path in read if "$" not in path and not any(overlap(path, out) for out in made)}
    assert {"data/raw", "data/rules.yaml", "expectations"} <= given
    assert not {path for path in given if not history.within(path, (*rollback.DATA, *rollback.RESULTS))}


def overlap(one: str, other: str) -> bool:
    return history.within(one, [other]) or history.within(other, [one])
