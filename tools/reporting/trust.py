"""Whether the recorded metrics are those of this code, these params and this data, from what Git holds alone.

In: a revision's folder. Out: problems, each with its file. DVC's own code compares dvc.lock with the files. What DVC
keeps outside Git can't be looked at and is passed over: a run that was stopped half-way shows only where a file in
Git, or the record of another stage, disagrees.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.shared import strict_json
from tools.reporting import changes, kept, paired

MARKERS = [re.compile(marker, re.MULTILINE) for marker in (rb"^<{7} ", rb"^={7}\r?$", rb"^>{7} ")]
TOLERANCE = 1e-9
OUTCOMES, RATES = "metrics/outcomes.jsonl", "metrics/evaluate.json"
Problem = dict[str, str]


def problem(file: str, reason: str) -> Problem:
    return {"file": file, "reason": reason}


def check(folder: Path) -> list[Problem]:
    """Everything that is wrong with a revision's record. The order is that of the folder, then of the pipeline."""
    found = [*conflicts(folder), *unparsable(folder), *stale(folder), *disagreements(folder)]
    return [dict(items) for items in dict.fromkeys(tuple(one.items()) for one in found)]


def conflicts(folder: Path) -> Iterator[Problem]:
    """Files that still hold both sides of a merge."""
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        content = file.read_bytes()
        if all(marker.search(content) for marker in MARKERS):
            yield problem(file.relative_to(folder).as_posix(), "holds conflict markers")


def unparsable(folder: Path) -> Iterator[Problem]:
    """Metrics that are not strict JSON; NaN is not."""
    for file in sorted((folder / "metrics").rglob("*.json*")):
        try:
            if file.suffix == ".jsonl":
                list(strict_json.read_jsonl(file))
            else:
                strict_json.read(file)
        except ValueError as error:
            yield problem(file.relative_to(folder).as_posix(), _reason(error, file))


def _reason(error: Exception, file: Path) -> str:
    return str(error).replace(f"{file}:", "line ", 1).replace("line  ", "")


def stale(folder: Path) -> list[Problem]:
    """Where dvc.lock says something else than the files that Git holds, or than itself."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not (folder / "dvc.lock").is_file():
        return [problem("dvc.lock", "missing; run dvc repro")]
    # DVC keeps its notes beside the folder, and looks neither at Git nor at settings of the machine's user.
    own = {"core": {"no_scm": True, "analytics": False, "site_cache_dir": str(folder.with_name("dvc"))}}
    try:
        with Repo(str(folder), config=own) as repo:
            stages = list(repo.index.stages)
            held = {out.fs_path: out for stage in stages for out in stage.outs}
            ran = [stage for stage in stages if not stage.is_data_source]
            return [*_outdated(ran, held, folder), *_edited(ran, folder), *_unwritten(held, folder)]
    except DvcException as error:
        said = (str(error) or type(error).__name__).replace(f"{os.path.relpath(folder)}/", "")
        return [problem("dvc.lock or dvc.yaml", f"DVC can't read it: {said}")]


def _outdated(stages: Iterable[Any], held: dict[str, Any], folder: Path) -> Iterator[Problem]:
    """What each stage was run with, against what is there; one problem for a file that several stages need."""
    found: dict[str, list[str]] = {}
    for stage in stages:
        if stage.cmd_changed:
            found.setdefault("dvc.yaml", []).append(stage.name)
        for dep in stage.deps:
            for name in _changes(dep, held, folder):
                found.setdefault(name, []).append(stage.name)
    for name, users in found.items():
        yield problem(name, f"not what dvc.lock says {', '.join(dict.fromkeys(users))} ran with; run dvc repro")


def _name(part: Any, folder: Path) -> str:
    return os.path.relpath(part.fs_path, folder) if part.is_in_repo else str(part)


def _changes(dep: Any, held: dict[str, Any], folder: Path) -> list[str]:
    """The names under which a dependency differs from its record; none if Git doesn't hold it."""
    if hasattr(dep, "params"):
        found = dep.workspace_status().values()
        return [f"params.yaml: {name}" for part in found for name in (part if isinstance(part, dict) else ["missing"])]
    name, path = _name(dep, folder), Path(dep.fs_path)
    if not dep.hash_info:
        return [name]
    if dep.fs_path in held:
        return [name] if held[dep.fs_path].hash_info != dep.hash_info else []
    if not dep.is_in_repo or any(str(parent) in held for parent in path.parents):
        return []
    pointers = [out for inner, out in held.items() if path in Path(inner).parents and out.stage.is_data_source]
    if any(out.hash_info.isdir for out in pointers):
        return []
    return [name] if not dep.exists or _hash(dep, pointers) != dep.hash_info else []


def _hash(dep: Any, pointers: list[Any]) -> Any:
    """DVC's hash of a file or folder; files that Git knows only by their pointer are counted with the md5 in it."""
    from dvc_data.hashfile.build import build

    if not pointers:
        return dep.get_hash()
    _, _, tree = build(dep.cache, dep.fs_path, dep.fs, dep.hash_name, dry_run=True, ignore=dep.dvcignore)
    for out in pointers:
        tree.add(Path(out.fs_path).relative_to(dep.fs_path).parts, None, out.hash_info)
    tree.digest()
    return tree.hash_info


def _edited(stages: Iterable[Any], folder: Path) -> Iterator[Problem]:
    """Outputs that lie in Git, against the md5 of what the stage wrote."""
    for stage in stages:
        for out in stage.outs:
            name = _name(out, folder)
            if not out.hash_info:
                yield problem(name, f"dvc.lock has no record that {stage.name} wrote it; run dvc repro")
            elif out.is_in_repo and not out.exists and not out.use_cache:
                yield problem(name, f"missing, though {stage.name} writes it; run dvc repro")
            elif out.is_in_repo and out.exists and out.get_hash() != out.hash_info:
                yield problem(name, f"edited since {stage.name} wrote it: its md5 is not the one in dvc.lock")


def _unwritten(held: dict[str, Any], folder: Path) -> Iterator[Problem]:
    """The files that the gate reads must be some stage's, or nothing vouches for them."""
    measured = [name for name in kept.FILES.values() if (folder / name).is_file()]
    for name in (OUTCOMES, RATES, *measured):
        if str(folder / name) not in held:
            yield problem(name, "no stage in dvc.yaml writes it")


def disagreements(folder: Path) -> Iterator[Problem]:
    """Rates in evaluate.json that are missing, or aren't those of the verdicts in outcomes.jsonl."""
    try:
        outcomes = list(paired.read_outcomes(folder / OUTCOMES).values())
    except ValueError as error:
        yield problem(OUTCOMES, _reason(error, folder / OUTCOMES))
        return
    everywhere = set.intersection(*(set(outcome.verdicts) for outcome in outcomes)) if outcomes else set()
    for system in sorted(everywhere):
        recorded = changes.read_json(folder / RATES, system)
        for metric in paired.METRICS:
            rate, said = sum(paired.hits(outcomes, system, metric)) / len(outcomes), recorded.get(metric)
            if not isinstance(said, (int, float)) or abs(said - rate) > TOLERANCE:
                yield problem(RATES, f"{system}.{metric} is {said}, the outcomes make it {rate:.6f}")
                break
