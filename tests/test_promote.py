"""A Git tag alone says which version is in use, by the commands that docs/deploying.md shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
TOY = """\
stages:
  train: {cmd: mkdir -p models/adapter && cp data models/adapter/weights, deps: [data], outs: [models/adapter]}
artifacts:
  adapter: {path: models/adapter, type: model, desc: toy, labels: [toy]}
"""


def run(folder: Path, *command: str) -> str:
    outside = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "DVC_NO_ANALYTICS": "1"}
    who = {f"GIT_{role}_{part}": "t@localhost" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    env = os.environ | outside | who | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two registered versions, the first of them in production."""
    folder = tmp_path_factory.mktemp("toy")
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    (folder / "dvc.yaml").write_text(TOY, encoding="utf-8")
    for version in ("v1.0.0", "v2.0.0"):
        (folder / "data").write_text(version, encoding="utf-8")
        run(folder, "dvc", "repro", "-q")
        run(folder, "git", "add", "-A")
        run(folder, "git", "commit", "-qm", version)
        run(folder, "gto", "register", "adapter", "--version", version)
    run(folder, "gto", "assign", "adapter", "--version", "v1.0.0", "--stage", "prod")
    return folder


@pytest.mark.parametrize(
    ("wanted", "version"),
    [(["--stage", "prod"], "v1.0.0"), (["--rev", "v2.0.0"], "v2.0.0"), ([], "v2.0.0")],
)
def test_a_version_is_fetched_by_stage_by_number_or_as_the_latest(
    toy: Path, tmp_path: Path, wanted: list[str], version: str
) -> None:
    run(tmp_path, "dvc", "artifacts", "get", str(toy), "adapter", *wanted, "-o", "got")
    assert (tmp_path / "got" / "weights").read_text(encoding="utf-8") == version


def test_the_registry_is_tags_and_nothing_else(toy: Path) -> None:
    assert run(toy, "git", "tag").split() == ["adapter#prod#1", "adapter@v1.0.0", "adapter@v2.0.0"]
    assert run(toy, "git", "status", "--porcelain") == ""
