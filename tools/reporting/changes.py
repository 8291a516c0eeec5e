"""What changed between two revisions beside rows and answers: checklist, params, contract, code, how the run was made.

In: two revisions' folders. Out: plain data with short texts; lists carry the total and the first few.
"""

import csv
import difflib
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from stages.shared import strict_json
from tools.reporting.revision import Revision

MOST = 60  # entries of a list
LONGEST = 400  # characters of a text from a row, an answer or a file
POINTS = 24  # of a curve
HIGHEST = 1e9  # a loss beyond is none
HASHES = {"base model": "base", "adapter": "adapter", "test rows": "test", "contract": "schema"}
LOSS = "metrics/plots/train_loss.csv"
Listing = dict[str, Any]


def clip(value: str, longest: int = LONGEST) -> str:
    """The text, or its beginning and a count of what is cut; a file name that is not UTF-8 gets question marks."""
    value = value.encode("utf-8", "replace").decode("utf-8")
    return value if len(value) <= longest else f"{value[:longest]}… (+{len(value) - longest} characters)"


def listing(items: Iterable[Any], most: int = MOST) -> Listing:
    found = list(items)
    return {"total": len(found), "items": found[:most]}


def read_json(file: Path, *names: str) -> Any:
    """A part of a metrics file of any age; {} where it is missing or broken, which is trust.py's to say."""
    try:
        value = strict_json.read(file)
    except (OSError, ValueError):
        return {}
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def problems(found: list[dict[str, str]]) -> Listing:
    return listing({"file": clip(item["file"], 150), "reason": clip(item["reason"])} for item in found)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The numbers, texts and so on in a JSON value, with their dotted names."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}.{number}")
    else:
        yield path, json.dumps(value, ensure_ascii=False, default=str)


def changed(before: Any, after: Any) -> Listing:
    """The leaves that differ, in the order of `after`; '' stands for none."""
    old, new = dict(leaves(before)), dict(leaves(after))
    names = [name for name in [*new, *(name for name in old if name not in new)] if old.get(name) != new.get(name)]
    return listing({"name": clip(n, 150), "before": clip(old.get(n, "")), "after": clip(new.get(n, ""))} for n in names)


def pointers(folder: Path) -> dict[str, str]:
    """Data that DVC holds: the md5 in each pointer file below data/."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    found = {}
    for file in sorted((folder / "data").rglob("*.dvc")):
        try:
            outs = YAML(typ="safe").load(file.read_bytes())["outs"]
            held = ", ".join(f"{out['md5']} ({out.get('size', '?')} bytes)" for out in outs)
        except (YAMLError, KeyError, TypeError):
            held = "unreadable"
        found[file.relative_to(folder).as_posix()] = held
    return found


def params_of(folder: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe").load((folder / "params.yaml").read_bytes())
    except (OSError, YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def pins(folder: Path) -> dict[str, str]:
    """The exact versions in constraints.txt."""
    lines = _bytes(folder / "constraints.txt").decode("utf-8", "replace").split("\n")
    return {name: version for name, exact, version in (line.partition("==") for line in lines) if exact}


def text_diff(before: Path, after: Path) -> Listing:
    """The lines of a text file that differ, with one line around them."""
    old, new = (_bytes(file).decode("utf-8", "replace").split("\n") for file in (before, after))
    lines = list(difflib.unified_diff(old, new, n=1, lineterm=""))[2:]
    return listing((clip(line, 160) for line in lines), 40)


def differing(before: Path, after: Path, names: Iterable[str]) -> list[str]:
    """The files that are not the same, byte for byte."""
    return [name for name in names if _bytes(before / name) != _bytes(after / name)]


def code(before: Path, after: Path) -> Listing:
    """The files that decide what the pipeline does and differ."""
    names = {
        file.relative_to(folder).as_posix()
        for folder in (before, after)
        for part in ("dvc.yaml", "stages", "expectations")
        for file in [folder / part, *(folder / part).rglob("*")]
        if file.is_file()
    }
    return listing(clip(name, 150) for name in differing(before, after, sorted(names)))


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def run_of(revision: Revision) -> dict[str, str]:
    """How a revision's metrics were made."""
    metrics = revision.folder / "metrics"
    trained, origin = read_json(metrics / "train.json"), read_json(metrics / "evaluate.json", "computed_from")
    facts = {
        "commit": revision.commit[:12] + (" and changes" if revision.name == "working tree" else ""),
        "commit date": revision.date,
        "device": read_json(metrics / "train.json", "device").get("key"),
        "training rows, steps": f"{trained.get('rows', '?')}, {trained.get('steps', '?')}",
        "training seconds": read_json(metrics / "timing" / "train.json").get("seconds"),
        "validation loss": trained.get("valid_loss"),
        **{f"{name} sha256": str(origin.get(key, ""))[:12] for name, key in HASHES.items()},
    }
    return {name: "" if fact is None else str(fact) for name, fact in facts.items()}


def curve(file: Path) -> list[float]:
    """The loss over a run, as the means of equal parts; fewer than that many steps give none."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            cells = [float(row.get("loss") or "nan") for row in csv.DictReader(lines)]
    except (OSError, ValueError, csv.Error):
        return []
    values = [value for value in cells if 0 <= value <= HIGHEST]  # NaN is not
    if len(values) < POINTS:
        return []
    ends = [round(len(values) * part / POINTS) for part in range(POINTS + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]


def between(before: Revision, after: Revision) -> dict[str, Any]:
    """All of it."""
    a, b = before.folder, after.folder
    versions = [read_json(side / "metrics" / "evaluate.json", "computed_from", "versions") for side in (a, b)]
    runs = [run_of(before), run_of(after)]
    return {
        "pointers": changed(pointers(a), pointers(b)),
        "checklist": changed(*(read_json(side / "metrics" / "validate.json") for side in (a, b))),
        "params": changed(params_of(a), params_of(b)),
        "base_model": changed(*({"sha256": runs[side]["base model sha256"]} for side in (0, 1))),
        "libraries": changed(*versions),
        "pins": changed(pins(a), pins(b)),
        "contract": text_diff(a / "data" / "schema.json", b / "data" / "schema.json"),
        "code": code(a, b),
        "run": [{"name": name, "before": clip(runs[0][name]), "after": clip(runs[1][name])} for name in runs[0]],
        "curve": {"before": curve(a / LOSS), "after": curve(b / LOSS)},
    }
