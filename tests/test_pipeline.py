"""dvc.yaml tells the truth: deps are imports, paths in a command are declared, params read are params declared."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
STAGES: dict[str, dict[str, Any]] = DVC["stages"]
NAMES = sorted(STAGES)


def module_of(stage: dict[str, Any]) -> Path:
    found = re.search(r"python -m stages\.(\w+)", stage["cmd"])
    assert found
    return Path("stages") / f"{found[1]}.py"


def imports_of(file: Path) -> set[Path]:
    """Project modules that a file imports, directly."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        paths = [
            Path(*name.split(".")).with_suffix(".py") for name in names if name.split(".")[0] in ("stages", "tools")
        ]
        found |= {path for path in paths if (ROOT / path).is_file()}
    return found


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


@pytest.mark.parametrize("name", NAMES)
def test_python_deps_are_exactly_the_imports(name: str) -> None:
    stage = STAGES[name]
    listed = {Path(dep) for dep in stage["deps"] if dep.endswith(".py")}
    assert listed == closure(module_of(stage))


@pytest.mark.parametrize("name", NAMES)
def test_every_path_of_the_command_is_declared_and_the_reverse(name: str) -> None:
    stage = STAGES[name]
    in_command = {word for word in stage["cmd"].split() if "/" in word or word == "expectations"}
    known = {dep for dep in declared(stage["deps"]) if not dep.endswith(".py")} | outputs(stage)
    assert in_command == known


@pytest.mark.parametrize("name", NAMES)
def test_params_read_are_params_declared(name: str) -> None:
    stage = STAGES[name]
    source = (ROOT / module_of(stage)).read_text(encoding="utf-8")
    assert set(re.findall(r'params\.load\("(\w+)"', source)) == set(stage.get("params", []))


@pytest.mark.parametrize("name", NAMES)
def test_metrics_and_plots_are_in_git(name: str) -> None:
    stage = STAGES[name]
    for entry in [*stage.get("metrics", []), *stage.get("plots", [])]:
        assert isinstance(entry, dict), entry
        assert next(iter(entry.values()))["cache"] is False, entry


def test_every_params_section_is_read_by_a_stage_or_a_tool() -> None:
    stages = {section for stage in STAGES.values() for section in stage.get("params", [])}
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tools").rglob("*.py"))
    assert set(PARAMS) == stages | set(re.findall(r'params\.load\("(\w+)"', sources))


def test_every_stage_has_a_description() -> None:
    assert all(stage.get("desc") for stage in STAGES.values())


@pytest.mark.parametrize("file", sorted(path.relative_to(ROOT) for path in (ROOT / "stages").rglob("*.py")))
def test_stages_import_neither_stages_nor_tools(file: Path) -> None:
    for imported in imports_of(file):
        own = imported.parts[:2] == ("stages", "checklist") and (
            file.name == "validate.py" or file.parts[1] == "checklist"
        )
        shared = imported.parts[:2] == ("stages", "shared")
        assert own or shared or imported.name == "__init__.py", (file, imported)


@pytest.mark.parametrize("file", sorted(path.relative_to(ROOT) for path in (ROOT / "stages" / "shared").glob("*.py")))
def test_a_shared_module_has_two_importers(file: Path) -> None:
    users = [*(ROOT / "stages").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    importers = [path for path in users if file in imports_of(path.relative_to(ROOT))]
    assert file.name == "__init__.py" or len(importers) >= 2, importers


def upstream(name: str) -> set[str]:
    """The stage and all stages whose outputs it needs, directly or not."""
    needed = declared(STAGES[name]["deps"])
    found = {name}
    for other, stage in STAGES.items():
        produced = outputs(stage)
        if other != name and any(dep == out or dep.startswith(out + "/") for dep in needed for out in produced):
            found |= upstream(other)
    return found


def test_editing_tools_or_evaluation_never_retrains() -> None:
    deps = {dep for name in upstream("train") for dep in STAGES[name]["deps"]}
    assert "stages/train.py" in deps
    assert not any(dep.startswith("tools") for dep in deps)
    assert not {"stages/evaluate.py", "stages/predict.py", "stages/shared/stats.py", "stages/shared/generate.py"} & deps
