"""Does the record of a version (dvc.lock, metrics) belong to its data, params and code?

In: a commit or tree. Out: what is wrong, each with its file. Everything is read from Git's objects by the readers of
this project, so a stranger's dvc.yaml is neither run nor handed to DVC. Answers and models are not in Git, so outcomes,
rates and dvc.lock may agree and be made up together: only a new run can tell.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from posixpath import normpath
from typing import Any

from stages.core import strict_json
from stages.core.cli import InputError
from stages.scores import scoring
from versions import history
from versions.history import LOCK, METRICS, OUTCOMES, Stage

PIPELINE, PARAMS, PINS = "dvc.yaml", "params.yaml", "constraints.txt"
APART = ("metrics/experiments", "metrics/timing")  # of no stage
DETAIL = "metrics/detail/evaluate.json"
MARKERS = [re.compile(marker, re.MULTILINE) for marker in (rb"^<{7} ", rb"^={7}\r?$", rb"^>{7} ")]
PIN = re.compile(r"^([\w.-]+)==([^\s;\\+]+)", re.MULTILINE)
MOST = 1000  # stages that one matrix may stand for
TOLERANCE = 1e-9
EMPTY = "d751713988987e9331980363e24189ce.dir"  # DVC's hash of a folder without files, which Git doesn't hold
KEYS = {"always_changed", "cmd", "deps", "desc", "frozen", "matrix", "meta", "metrics", "outs", "params", "plots"}


@dataclass(frozen=True)
class Problem:
    """Something in the record that can't be true, and the file where it shows."""

    file: str
    reason: str


@dataclass(frozen=True)
class Declared:
    """One stage of dvc.yaml: outputs with whether DVC's cache holds them, keys of params by file (none: all of it)."""

    cmd: str
    deps: tuple[str, ...]
    outs: dict[str, bool]
    params: dict[str, tuple[str, ...]]


def pipeline(content: bytes, params: bytes = b"{}") -> dict[str, Declared]:
    """The stages of a dvc.yaml by name, each matrix laid out. Raises InputError for what isn't understood."""
    context = history.parse_yaml(params, PARAMS)
    try:
        stages = history.parse_yaml(content, PIPELINE).get("stages", {})
        return dict(named for name, entry in stages.items() for named in _laid_out(str(name), entry, context))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:  # RuntimeError: an empty {}
        raise InputError(f"{PIPELINE} can't be followed: {history.printable(str(error) or repr(error))}") from None


def _laid_out(name: str, entry: dict[str, Any], context: dict[str, Any]) -> Iterator[tuple[str, Declared]]:
    if entry.keys() - KEYS:
        raise ValueError(f"{name} uses {', '.join(map(str, entry.keys() - KEYS))}")
    matrix: dict[str, list[Any]] = entry.get("matrix", {})
    for count, values in enumerate(product(*matrix.values())):
        if count == MOST:
            raise ValueError(f"{name} stands for more than {MOST} stages")
        suffix = f"@{'-'.join(map(str, values))}" if matrix else ""
        yield name + suffix, _declared(entry, context | {"item": dict(zip(matrix, values, strict=True))})


def _declared(entry: dict[str, Any], context: dict[str, Any]) -> Declared:
    def text(value: Any) -> str:
        return re.sub(r"\$\{([^}]*)\}", lambda match: str(_at(context, match[1].strip())), str(value))

    def items(key: str) -> Iterator[tuple[str, Any]]:
        for item in entry.get(key, []):
            yield next(iter(item.items())) if isinstance(item, dict) else (item, None)

    outs = {
        normpath(text(path)): not (isinstance(options, dict) and options.get("cache") is False)
        for key in ("outs", "metrics", "plots")
        for path, options in items(key)
    }
    params: dict[str, tuple[str, ...]] = {}
    for item in entry.get("params", []):
        for file, keys in item.items() if isinstance(item, dict) else [(PARAMS, [item])]:
            params[text(file)] = (*params.get(text(file), ()), *map(text, keys or []))
    return Declared(text(entry["cmd"]), tuple(normpath(text(path)) for path, _ in items("deps")), outs, params)


def _at(values: Any, path: str | tuple[str, ...], default: Any = None) -> Any:
    """The value at `a.b.c`, or at these keys. Raises KeyError where there is none and no default."""
    for key in path.split(".") if isinstance(path, str) else path:
        if not isinstance(values, dict) or key not in values:
            if default is None:
                raise KeyError(path)
            return default
        values = values[key]
    return values


def problems(tree: str) -> list[Problem]:
    """Everything wrong with the record of a commit or tree, from its files to its figures."""
    checks = (_conflicts, LOCK), (_unparsable, METRICS), (_stale, LOCK), (_disagreements, OUTCOMES), (_libraries, PINS)
    found: list[Problem] = []
    for check, file in checks:
        try:
            found += check(tree)
        except InputError as error:
            found.append(Problem(file, error.message))
        except ArithmeticError:  # JSON takes integers of thousands of digits
            found.append(Problem(file, "holds a number out of all range"))
        except RecursionError:  # what YAML's anchors make of a few kilobytes
            found.append(Problem(file, "nests too deeply to be read"))
    return list(dict.fromkeys(found))


@cache
def is_recorded(commit: str) -> bool:
    """True when the metrics of a commit, given by its full hash, are those of its data, params and code."""
    return not problems(commit)


def _conflicts(tree: str) -> Iterator[Problem]:
    """Files that still hold both sides of a merge."""
    held = history.files(tree)
    for path, content in zip(held, history.blobs(held.values()), strict=True):
        if all(marker.search(content) for marker in MARKERS):
            yield Problem(path, "holds conflict markers")


def _unparsable(tree: str) -> Iterator[Problem]:
    """Metrics that are not strict JSON; NaN is not."""
    held = {path: oid for path, oid in history.files(tree, "metrics").items() if path.endswith((".json", ".jsonl"))}
    for path, content in zip(held, history.blobs(held.values()), strict=True):
        try:
            _json(content, lines=path.endswith("l"))
        except InputError as error:
            yield Problem(path, error.message)


def _json(content: bytes, lines: bool) -> list[Any]:
    values = []
    for number, line in enumerate(content.rstrip(b"\n").split(b"\n") if lines else [content], start=1):
        try:
            values.append(strict_json.parse(line.decode("utf-8")))
        except ValueError as error:
            raise InputError(f"line {number}: {error}" if lines else str(error)) from None
    return values


def _stale(tree: str) -> Iterator[Problem]:
    """Where dvc.lock disagrees with dvc.yaml, with the files that Git holds, or with itself."""
    lock = history.lock(tree)
    declared = pipeline(history.read(tree, PIPELINE) or b"{}", history.read(tree, PARAMS) or b"{}")
    outs = {path: name for name, stage in declared.items() for path in stage.outs}
    wrote = {path: md5 for name in lock.keys() & declared for path, md5 in lock[name].outs.items()}
    users: dict[str, list[str]] = {}
    made = {path: wrote.get(path, "") for path in outs}
    for name, stage in declared.items():
        ran = lock.get(name)
        if not ran or ran.cmd != stage.cmd:
            users.setdefault(PIPELINE, []).append(name)
        for file, named in _changed(tree, stage, ran, made) if ran else ():
            if named:
                users.setdefault(file, []).append(name)
            else:
                reason = f"{PIPELINE} no longer names it, and it is not what {LOCK} says {name} ran with"
                yield Problem(file, f"{reason}; run dvc repro --force {name}")
    for file, names in users.items():
        yield Problem(file, f"not what {LOCK} says {', '.join(names)} ran with; run dvc repro")
    for path, name in outs.items():
        held = history.content_hash(tree, path)
        if not wrote.get(path):
            yield Problem(path, f"{LOCK} has no record that {name} wrote it; run dvc repro")
        elif not held and not declared[name].outs[path]:
            yield Problem(path, f"missing, though {name} writes it; run dvc repro")
        elif held and held != wrote[path]:
            yield Problem(path, f"edited since {name} wrote it: its md5 is not the one in {LOCK}")
    for path in [METRICS, OUTCOMES, *history.files(tree, "metrics")]:
        if not history.within(path, [*outs, *APART]):
            yield Problem(path, f"no stage in {PIPELINE} writes it")


def _changed(tree: str, stage: Declared, ran: Stage, made: dict[str, str]) -> Iterator[tuple[str, bool]]:
    """What is not as a stage ran with it, and whether dvc.yaml names it: DVC does not look at the rest.

    `made`: md5 of each output, by its path.
    """
    for path in dict.fromkeys([*stage.deps, *ran.deps]):
        if path not in ran.deps or _now(tree, path, made) not in (None, ran.deps[path]):
            yield path, path in stage.deps
    for file in dict.fromkeys([*stage.params, *ran.params]):
        values, then = history.parse_yaml(history.read(tree, file) or b"{}", file), ran.params.get(file, {})
        whole, named = stage.params.get(file) == (), stage.params.get(file, ())
        for key in map(str, values) if whole else (*named, *sorted(then.keys() - {*named})):
            if _at(values, key, ...) != then.get(key, ()):
                yield f"{file}: {key}", whole or key in named


def _now(tree: str, path: str, made: dict[str, str]) -> str | None:
    """The md5 that a dependency has, EMPTY for none. None where only the cache knows: it is part of an output's folder.

    What another stage wrote is followed through its record, so that a run that stopped half-way shows.
    """
    if path in made:
        return made[path]
    inside = {out.removeprefix(f"{path}/"): md5 for out, md5 in made.items() if history.within(out, [path])}
    if history.within(path, made) or any(md5.endswith(".dir") for md5 in inside.values()):
        return None
    return history.content_hash(tree, path, inside) or EMPTY


def _disagreements(tree: str) -> Iterator[Problem]:
    """Rates in evaluate.json that are not those of the verdicts in outcomes.jsonl."""
    lines = _json(history.read(tree, OUTCOMES) or b"", lines=True)
    [rates] = _json(history.read(tree, METRICS) or b"", lines=False)
    if not isinstance(rates, dict) or not lines:
        raise InputError(f"no outcomes, or no rates in {METRICS}")
    known = [(line, "verdict") for line in lines if isinstance(line, dict)] + [(rates, "json_valid")]
    systems = {name for held, key in known for name, value in held.items() if isinstance(value, dict) and key in value}
    for system in sorted({"tuned"} | systems):
        verdicts = [str(_at(line, (system, "verdict"), "none")) for line in lines]
        if set(verdicts) - set(scoring.VERDICTS):
            raise InputError(f"not every line has a known verdict of {history.printable(system)}")
        for metric in scoring.METRICS:
            rate = sum(scoring.counts(verdict, metric) for verdict in verdicts) / len(lines)
            value = _at(rates, (system, metric), "missing")
            if type(value) not in (int, float) or abs(value - rate) > TOLERANCE:
                yield Problem(METRICS, f"{system}.{metric} is {value}, the outcomes make it {rate:.6f}")


def _libraries(tree: str) -> Iterator[Problem]:
    """Libraries that the metrics were computed with, against the versions that are pinned."""
    pinned: dict[str, set[str]] = {}
    for name, version in PIN.findall((history.read(tree, PINS) or b"").decode("utf-8", "replace")):
        pinned.setdefault(name.lower().replace("_", "-"), set()).add(version)
    for path in (METRICS, DETAIL):  # older versions name the libraries among the rates
        content = history.read(tree, path)
        used = _at(_json(content, lines=False)[0], "computed_from.versions", {}) if content else {}
        for name, version in used.items() if isinstance(used, dict) else ():
            allowed = pinned.get(name.lower().replace("_", "-"))
            if allowed and str(version).split("+")[0] not in allowed:
                reason = f"pins {name} {' or '.join(sorted(allowed))}, {path} was computed with {version}"
                yield Problem(PINS, f"{reason}; run dvc repro --force evaluate, or train again")
