"""Train on rows that the pipeline would not build, predict the test rows with the result, and score the answers.

The stages are those of the pipeline, run by hand in a folder of their own with a params.yaml of its own; the base
model, the test rows and the prompt are the pipeline's. What a folder holds already of the same rows, params and base is
not made again.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages import evaluate
from stages import train as stage_train
from stages.shared import cli, contract, hashes, params, strict_json, writing
from tools import history

ROOT = Path(__file__).parent.parent
CHAT, BASE, SCHEMA = ROOT / "data" / "chat", ROOT / "models" / "base", ROOT / "data" / "schema.json"
ADAPTER, PREFIX = ROOT / "models" / "adapter", CHAT / "prefix" / "tuned.json"
WATCHED = 8  # validation rows that train looks at after each epoch; nothing is chosen by them here


def require_run() -> None:
    """Raise InputError unless this is the repository's folder, and its adapter was made from its rows."""
    history.require_root()
    made_from = ADAPTER / "made_from.json"
    if not made_from.is_file() or read(made_from)["train"] != hashes.of_file(CHAT / "train.jsonl"):
        raise cli.InputError(f"{ADAPTER} was not made from {CHAT / 'train.jsonl'}; run `dvc repro`")


def read(file: Path) -> Any:
    return strict_json.read(file)


def stage(name: str, folder: Path, **paths: Path) -> None:
    """Run a stage in `folder` with these options. Raises InputError when it stops."""
    options = [str(word) for option, path in paths.items() for word in (f"--{option.replace('_', '-')}", path)]
    command = [sys.executable, "-m", f"stages.{name}", *options]
    if subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode:
        raise cli.InputError(f"{folder}: the stage {name} stopped; what it says stands above")


def prepare(folder: Path, changes: dict[str, Any]) -> None:
    """Make the folder and its params.yaml: the project's, with changes such as {"train.epochs": 6}."""
    yaml = YAML()
    document = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for name, value in changes.items():
        section, key = name.split(".")
        document[section][key] = value
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(document, file)


def examples(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A chat example per assistant turn, as stages/build.py makes them, of answers that need not be JSON."""
    for row in rows:
        for number, turn in enumerate(row["turns"]):
            if turn["role"] == "assistant":
                name = f"{row['id']}#{number}"
                yield {"id": name, "group": row["id"], "prompt": row["turns"][:number], "answer": turn["content"]}


def is_made(folder: Path) -> bool:
    """Whether the folder's adapter is of its rows, its params and the pipeline's base."""
    file = folder / "adapter" / "made_from.json"
    if not (file.is_file() and (folder / "metrics.json").is_file()):
        return False
    made_from, settings = read(file), params.load("train", stage_train.Params, folder / "params.yaml")
    now = (hashes.of_file(folder / "train.jsonl"), asdict(settings), hashes.of_folder(BASE))
    return (made_from["train"], made_from["params"], made_from["base"]) == now


def train(folder: Path, rows: Iterable[dict[str, Any]], epochs: float) -> dict[str, Any]:
    """Train on `rows` (id, turns) in `folder`; return the stage's metrics and, as `made_from`, its inputs."""
    prepare(folder, {"train.epochs": epochs})
    writing.write_jsonl(folder / "train.jsonl", examples(rows))
    writing.write_jsonl(folder / "valid.jsonl", list(strict_json.read_jsonl(CHAT / "valid.jsonl"))[:WATCHED])
    if not is_made(folder):
        plots = {"train_loss": folder / "train_loss.csv", "valid_loss": folder / "valid_loss.csv"}
        outs = {"metrics": folder / "metrics.json", "timing": folder / "train_timing.json", **plots}
        data = {"train": folder / "train.jsonl", "valid": folder / "valid.jsonl", "prefix": PREFIX, "base": BASE}
        stage("train", folder, **data, **outs, out=folder / "adapter")
    made_from = read(folder / "adapter" / "made_from.json")
    return dict(read(folder / "metrics.json")) | {"made_from": made_from}


def score(folder: Path) -> list[evaluate.Score]:
    """The answers of the folder's adapter to the test rows, scored."""
    answers = folder / f"answers-{read(folder / 'adapter' / 'made_from.json')['adapter'][:16]}.jsonl"
    if not answers.is_file():
        made = {"base": BASE, "adapter": folder / "adapter", "prefix": PREFIX, "rows": CHAT / "test.jsonl"}
        stage("predict", folder, **made, out=answers, timing=folder / "predict_timing.json")
    rules = contract.load(SCHEMA, params.load("contract", params.Contract).discriminator)
    return evaluate.scores(list(strict_json.read_jsonl(CHAT / "test.jsonl")), answers, rules)


def computed_from(made_from: dict[str, Any]) -> dict[str, Any]:
    """What all trainings of an experiment share: hashes, device and versions, by one of their made_from.json."""
    files = {"test": CHAT / "test.jsonl", "schema": SCHEMA, "rows": ROOT / "data" / "validated" / "train.jsonl"}
    shared = {name: made_from[name] for name in ("base", "device", "versions")}
    return {name: hashes.of_file(file) for name, file in files.items()} | shared
