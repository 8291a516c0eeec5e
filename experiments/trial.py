"""A trial: stages of dvc.yaml, run in a folder of their own with other rows or params.

Commands are those of dvc.yaml. What a stage reads and the trial has not made is linked from the repository. A stage
that is done is not run again, so an experiment that was interrupted goes on.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from stages.core import cli, hashes, params, strict_json, yaml12
from stages.data import writing
from stages.scores import scoring

MODEL = ("train", "merge", "predict", "evaluate")  # from chat rows to verdicts
MERGED = "models/merged"


def load(name: str) -> dict[str, Any]:
    """A YAML file of the repository, which is the working folder. Raises InputError."""
    return yaml12.parse(cli.read_text(Path(name)), name)


def made_from(folder: Path = Path()) -> Any:
    """What the adapter in the folder was made from; without one, the repository's own."""
    return strict_json.read(folder / "models/adapter/made_from.json")


def require_reproduced() -> None:
    """Raise InputError unless the adapter was made from the training rows and params that are here."""
    made = made_from()
    rows, settings = hashes.of_file(Path("data/chat/train.jsonl")), load(str(params.PARAMS)).get("train")
    if (made["train"], made["params"]) != (rows, settings):
        raise cli.InputError("models/adapter is not of these rows and params; run `dvc repro` first")


def prepare(
    folder: Path, changes: Mapping[str, Any], rows: Mapping[str, Iterable[Any]], stages: Sequence[str] = MODEL
) -> None:
    """Make the folder: params.yaml with changes such as {"train.epochs": 6}, and JSON Lines files by their paths.

    `stages`: those to run, in order. Raises InputError where it holds a trial of something else.
    """
    import yaml

    document = load(str(params.PARAMS))
    for name, value in changes.items():
        section, key = name.split(".")
        document[section][key] = value
    texts = {path: "".join(strict_json.compact(line) + "\n" for line in lines) for path, lines in rows.items()}
    own = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in texts.items()}
    locked = load("dvc.lock").get("stages", {})
    made_of: dict[str, Any] = {"params": document, "rows": own}
    made_of[stages[0]] = {key: locked.get(stages[0], {}).get(key) for key in ("cmd", "deps")}
    later = [dep for name in stages[1:] for dep in locked.get(name, {}).get("deps", [])]
    made_of["later"] = [dep for dep in later if dep["path"].startswith(("stages", "data/chat", "data/schema"))]
    record = folder / "made_of.json"
    if record.is_file() and strict_json.read(record) != made_of:
        raise cli.InputError(f"{folder} holds a trial of other rows, params or code; remove it or name another folder")
    writing.write_json(record, made_of)
    for path, text in (texts | {"params.yaml": yaml.safe_dump(document, sort_keys=False)}).items():
        with writing.replacing(folder / path) as file:
            file.write(text)


def run(
    folder: Path,
    changes: Mapping[str, Any],
    rows: Mapping[str, Iterable[Any]],
    stages: Sequence[str] = MODEL,
    threads: int | None = None,
) -> None:
    """Prepare the folder and run the stages in turn, on so many threads where it is given; no merged weights stay.

    Raises InputError when a stage stops.
    """
    prepare(folder, changes, rows, stages)
    pipeline = load("dvc.yaml")["stages"]
    for stage in stages:
        done = folder / f"{stage}.done"
        if done.is_file():
            continue
        click.echo(f"{folder.name}: {stage}", err=True)
        for path in pipeline[stage]["deps"]:
            if not any(Path(file).is_relative_to(path) for file in rows):  # a folder of own rows holds no others
                link(folder, path)
        env = os.environ | {"PYTHONPATH": str(Path.cwd())} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        words = [sys.executable if word == "python" else word for word in shlex.split(pipeline[stage]["cmd"])]
        if subprocess.run(words, cwd=folder, env=env, check=False).returncode:
            raise cli.InputError(f"{folder}: the stage {stage} stopped; the reason stands above")
        done.touch()
    drop_weights(folder)


def adopt(folder: Path, changes: Mapping[str, Any]) -> None:
    """Take what the repository's own run of the MODEL stages wrote, as if they had run in the folder."""
    prepare(folder, changes, {})
    pipeline = load("dvc.yaml")["stages"]
    for stage in MODEL:
        for item in (item for key in ("outs", "metrics", "plots") for item in pipeline[stage].get(key, [])):
            path = item if isinstance(item, str) else next(iter(item))
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(path).is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
            else:
                shutil.copy(path, target)
        (folder / f"{stage}.done").touch()
    drop_weights(folder)


def link(folder: Path, path: str) -> None:
    """Give the folder every file of the repository at or below `path` that it has not made itself."""
    source = Path.cwd() / path
    for file in [source] if source.is_file() else sorted(source.rglob("*")):
        target = folder / file.relative_to(Path.cwd())
        if file.is_file() and file.suffix != ".py" and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)


def drop_weights(folder: Path) -> None:
    """The merged model takes as much room as the base, and is made again from the adapter within seconds."""
    for file in (folder / MERGED).glob("*.safetensors"):
        file.unlink()


def outcomes(folder: Path) -> list[dict[str, Any]]:
    """Each test row with what the answers to it are worth."""
    return list(strict_json.read_jsonl(folder / "metrics/outcomes.jsonl"))


def hits(folder: Path, metric: str = "exact_match") -> list[bool]:
    """Whether the tuned model's answer counts, by test row."""
    return [scoring.counts(row["tuned"]["verdict"], metric) for row in outcomes(folder)]
