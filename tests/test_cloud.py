"""The task for a rented card: spot, taken down by itself, and its commands in an order that loses nothing.

SkyPilot's own parser is no dependency. It read the file with
`sky.Task.from_yaml_config(yaml.safe_load(open("cloud/sky.yaml")), env_overrides=[("BUCKET", "b")])`.
"""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from stages.core import yaml12

TASK = yaml12.parse((ROOT / "cloud/sky.yaml").read_text(encoding="utf-8"), "sky.yaml")


def test_the_machine_is_a_spot_one_and_goes_when_it_is_idle() -> None:
    assert TASK["resources"]["use_spot"] is True
    assert TASK["resources"]["autostop"] == {"idle_minutes": 5, "down": True}
    assert TASK["file_mounts"]["/checkpoints"] == {"name": "${BUCKET}", "mode": "MOUNT_CACHED"}
    assert TASK["envs"] == {"BUCKET": None}  # no secret, and no default that is somebody's bucket


@pytest.mark.parametrize("breaks", [None, "make", "python"])
def test_the_run_pulls_first_keeps_checkpoints_and_pushes_what_was_made(tmp_path: Path, breaks: str | None) -> None:
    """The run block itself, with `make` and `dvc` that only say that they were called."""
    work, bucket, calls = tmp_path / "work", tmp_path / "checkpoints", tmp_path / "calls"
    for name, file in (("make", tmp_path / "bin/make"), *((n, work / ".venv/bin" / n) for n in ("dvc", "python"))):
        file.parent.mkdir(parents=True, exist_ok=True)
        status = int(name == breaks)
        save = "echo step | tee .dvc/tmp/checkpoints/step > .dvc/tmp/answers/step\n" if name == "make" else ""
        file.write_text(f'#!/bin/sh\necho {name} "$@" >> {calls}\n{save}exit {status}\n', encoding="utf-8")
        file.chmod(0o755)
    bucket.mkdir()
    command = ["bash", "-c", TASK["run"].replace(" /checkpoints", f" {bucket}")]
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    ran = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)
    assert (ran.returncode != 0) == (breaks is not None), ran.stderr
    called = ["dvc pull --run-cache --allow-missing", "make repro PULL=1", "python -m tools.push"]
    assert calls.read_text(encoding="utf-8").splitlines() == called
    for kept in ("step", "answers/step"):
        assert (bucket / kept).read_text(encoding="utf-8") == "step\n"
