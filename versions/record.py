"""Does the record of a version (dvc.lock, metrics) belong to its data, params and code?"""

from dataclasses import dataclass
from functools import cache

from stages.shared.cli import InputError
from versions import history


@dataclass(frozen=True)
class Problem:
    """Something in the record that can't be true, and the file where it shows."""

    file: str
    reason: str


def problems(tree: str) -> list[Problem]:
    """Everything wrong with the record of a commit or tree, from Git's objects alone."""
    try:
        lock = history.lock(tree)
    except InputError as error:
        return [Problem(history.LOCK, error.message)]
    recorded = {history.RAW: lock.deps.get(history.RAW)} | {
        path: lock.outs.get(path) for path in (history.METRICS, history.OUTCOMES)
    }
    return [
        Problem(path, f"not what {history.LOCK} records; run dvc repro")
        for path, md5 in recorded.items()
        if not md5 or md5 != history.content_hash(tree, path)
    ]


@cache
def is_recorded(commit: str) -> bool:
    """True when the metrics of a commit are those of its data, params and code."""
    return not problems(commit)
