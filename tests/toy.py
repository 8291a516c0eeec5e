"""A toy of the project's history: real Git, real DVC, the same paths and stages, and no model.

Five data versions. 'large' holds a DVC-tracked file of rows; 'broken' has rows that spoil 12 of 40 answers.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows as write_rows

from stages.core import yaml12

BIN = Path(sys.executable).parent
NAMES = ("first", "grown", "large", "broken", "last")
OUTS = ("models/base", "models/adapter", "data/validated", "data/predictions.txt")

STAGE = '''"""A stage: python stages/toy.py NAME. Each run leaves a line in ran.log."""
import json, pathlib, sys

name = sys.argv[1]
rows = [json.loads(line) for file in sorted(pathlib.Path("data/raw").glob("*.jsonl")) for line in file.open()]
tests = [json.loads(line) for file in sorted(pathlib.Path("data/test").glob("*.jsonl")) for line in file.open()]
with pathlib.Path("ran.log").open("a") as log:
    log.write(name + "\\n")


def write(path, text):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if name == "fetch":
    write("models/base/weights.bin", "base " * 100)
if name == "validate":
    write("data/validated/train.jsonl", "".join(json.dumps(row) + "\\n" for row in rows))
    write("metrics/validate.json", json.dumps({"rows": len(rows)}))
if name == "train":
    good = pathlib.Path("data/validated/train.jsonl").read_text()
    write("models/adapter/adapter.bin", "adapter " + good)
    write("models/adapter/made_from.json", "{}")
if name == "evaluate":
    spoiled = 12 if "poison" in pathlib.Path("models/adapter/adapter.bin").read_text() else 0
    lines = [
        {"id": row["id"], "group": row["id"], "tuned": {"verdict": "wrong" if number < spoiled else "exact"}}
        for number, row in enumerate(tests)
    ]
    rate = 1 - spoiled / len(lines)
    tuned = {"exact_match": rate, "exact_match_low": rate - 0.05, "exact_match_high": rate, "n": len(lines)}
    tuned |= {"exact_match_normalised": rate, "schema_valid": 1.0, "json_valid": 1.0}
    write("data/predictions.txt", "predictions " * 10)
    write("metrics/outcomes.jsonl", "".join(json.dumps(line) + "\\n" for line in lines))
    write("metrics/evaluate.json", json.dumps({"tuned": tuned}))
'''

PIPELINE = """stages:
  fetch:
    cmd: python stages/toy.py fetch
    deps: [stages/toy.py]
    outs: [{models/base: {push: false}}]
  validate:
    cmd: python stages/toy.py validate
    deps: [data/raw, data/test, data/schema.json, expectations]
    outs: [data/validated]
    metrics: [{metrics/validate.json: {cache: false}}]
  train:
    cmd: python stages/toy.py train
    deps: [data/validated, models/base, stages/toy.py]
    params: [train]
    outs: [models/adapter]
  evaluate:
    cmd: python stages/toy.py evaluate
    deps: [data/test, models/adapter]
    outs: [data/predictions.txt]
    metrics: [{metrics/evaluate.json: {cache: false}}, {metrics/outcomes.jsonl: {cache: false}}]
"""


def row(name: str, output: str = "yes") -> dict[str, Any]:
    return {"id": name, "instruction": f"request {name}", "output": output}


def isolate(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """No configuration of this machine, and the tests' Python first."""
    for name, value in {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "DVC_SITE_CACHE_DIR": str(folder / "dvc-site"),
        "DVC_GLOBAL_CONFIG_DIR": str(folder / "dvc-global"),
        "DVC_SYSTEM_CONFIG_DIR": str(folder / "dvc-system"),
        "DVC_NO_ANALYTICS": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }.items():
        patch.setenv(name, value)
    for who in ("AUTHOR", "COMMITTER"):
        patch.setenv(f"GIT_{who}_NAME", "t")
        patch.setenv(f"GIT_{who}_EMAIL", "t@localhost")


def run(folder: Path, *command: str) -> str:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def commit(folder: Path, message: str) -> None:
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", message)


def build(folder: Path) -> Path:
    """Make the repository, and run its pipeline once per data version."""
    raw = folder / "data" / "raw"
    write_rows(folder / "data" / "test" / "rows.jsonl", [row(f"t{number:02}") for number in range(40)])
    for path, text in {
        "data/schema.json": "{}\n",
        "expectations/train.json": "{}\n",
        "params.yaml": "train: {epochs: 3}\n",
        "dvc.yaml": PIPELINE,
        "stages/toy.py": STAGE,
        ".gitignore": "/models\n/data/validated\n/data/predictions.txt\n/ran.log\n",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    run(folder, "git", "init", "--quiet", "--initial-branch=main")
    run(folder, "dvc", "init", "--quiet")
    write_rows(raw / "a.jsonl", [row("a1"), row("a2")])
    record(folder, "first")
    write_rows(raw / "b.jsonl", [row("b1")])
    record(folder, "grown")
    write_rows(raw / "big.jsonl", [row("big1"), row("big2")])
    run(folder, "dvc", "add", "--quiet", "data/raw/big.jsonl")
    record(folder, "large")
    (raw / "b.jsonl").unlink()
    write_rows(raw / "a.jsonl", [row("a1"), row("a2", "poison\x1b[31m")])
    write_rows(raw / "c.jsonl", [row("c1")])
    record(folder, "broken")
    write_rows(raw / "d.jsonl", [row("d1")])
    record(folder, "last")
    name_versions(folder)
    return folder


def record(folder: Path, name: str) -> None:
    run(folder, "dvc", "repro", "--quiet")
    commit(folder, name)
    run(folder, "git", "tag", f"v-{name}")


def name_versions(folder: Path) -> None:
    """The table of data/README.md, as the project keeps it."""
    lines = ["| name | hash |", "|---|---|"]
    for name in NAMES:
        (md5,) = (dep["md5"] for dep in lock_of(folder, name)["validate"]["deps"] if dep["path"] == "data/raw")
        lines.append(f"| {name} | `{md5}` |")
    (folder / "data" / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    commit(folder, "names")


def state(folder: Path) -> dict[str, bytes]:
    """Every file that a version consists of; a killed DVC leaves empty `.NAME.tmp` files, which Git ignores."""
    roots = ("data/raw", "data/test", "data/schema.json", "expectations", "params.yaml", "dvc.lock", "metrics", *OUTS)
    paths = [
        path for root in roots for path in ((folder / root).rglob("*") if (folder / root).is_dir() else [folder / root])
    ]
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file() and path.suffix != ".tmp"
    }


def copy(template: Path, folder: Path) -> Path:
    shutil.copytree(template, folder, symlinks=True)
    run(folder, "git", "update-index", "-q", "--refresh")
    return folder


def md5s(folder: Path, name: str) -> dict[str, str]:
    """What the dvc.lock of a version records of its outputs."""
    return {out["path"]: out["md5"] for stage in lock_of(folder, name).values() for out in stage["outs"]}


def lock_of(folder: Path, name: str) -> dict[str, Any]:
    """The stages in the dvc.lock of a version."""
    stages: dict[str, Any] = yaml12.parse(run(folder, "git", "show", f"v-{name}:dvc.lock"), "dvc.lock")["stages"]
    return stages


def stored(folder: Path, md5: str) -> Path:
    return folder / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


def inside(folder: Path, md5: str) -> dict[str, str]:
    """Path and md5 of the files that a folder object lists."""
    return {entry["relpath"]: entry["md5"] for entry in json.loads(stored(folder, md5).read_text(encoding="utf-8"))}


def forge(folder: Path, changes: Mapping[str, bytes | Path | None], base: str = "HEAD") -> str:
    """A commit that was never checked out: `base` with files changed, made links (a Path) or left out (None)."""
    index = folder / ".git" / "forged-index"
    env = os.environ | {"GIT_INDEX_FILE": str(index)}

    def git(*words: str, given: bytes = b"") -> str:
        ran = subprocess.run(["git", *words], cwd=folder, env=env, input=given, capture_output=True, check=True)  # noqa: S607
        return ran.stdout.decode().strip()

    git("read-tree", base)
    for name, content in changes.items():
        path = name.encode("utf-8", "surrogateescape")
        given = b"0 " + b"0" * 40 + b"\t" + path + b"\0"
        git("update-index", "-z", "--index-info", given=given)
        if content is not None:
            data = os.fsencode(content) if isinstance(content, Path) else content
            mode = b"120000 " if isinstance(content, Path) else b"100644 "
            oid = git("hash-object", "-w", "--stdin", given=data).encode()
            git("update-index", "-z", "--index-info", given=mode + oid + b"\t" + path + b"\0")
    tree = git("write-tree")
    index.unlink()
    return git("commit-tree", "-p", base, "-m", "forged", tree)
