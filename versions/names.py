"""The data versions of this repository: what data/README.md names them, and which commit stands for each."""

import re
from pathlib import Path

from stages.core import strict_json
from stages.core.cli import InputError
from versions import history, record

NAMES = Path("data/README.md")
NAMED = re.compile(r"^\|\s*([^|`\s]+)\s*\|\s*`([0-9a-f]{32}(?:\.dir)?)`\s*\|", re.MULTILINE)


def names() -> dict[str, str]:
    """Names of data versions by the hash of data/raw, from the table in data/README.md; empty without one."""
    text = NAMES.read_text(encoding="utf-8", errors="replace") if NAMES.is_file() else ""
    return {md5: name for name, md5 in NAMED.findall(text)}


def data_hashes(commits: list[str]) -> list[str | None]:
    """DVC's md5 of data/raw in each commit: two commits with the same one have the same data version."""
    asked = "".join(f"{commit}:{history.RAW}\n" for commit in commits)
    answer = history.git("cat-file", "--batch-check=%(objecttype) %(objectname)", given=asked).decode()
    words = [line.split(" ") for line in answer.split("\n")[:-1]]
    return [_hash(oid) if kind == "tree" else None for kind, oid, *_ in words]


def _hash(tree: str) -> str | None:
    """None where a pointer can't be read: one such commit must not hide the other versions."""
    try:
        return history.content_hash(tree)
    except InputError:
        return None


def holders() -> dict[str, list[str]]:
    """The data versions behind HEAD, newest first: hash of data/raw, and the commits that hold it."""
    behind = history.commits("HEAD")
    found: dict[str, list[str]] = {}
    for commit, md5 in zip(behind, data_hashes(behind), strict=True):
        if md5:
            found.setdefault(md5, []).append(commit)
    return found


def recording(having: list[str]) -> str:
    """The newest of these commits that records its metrics, or else the newest."""
    return next(filter(record.is_recorded, having), having[0])


def commit_of(rev: str) -> str:
    """The commit that `rev` means: that of a data version's name, or else any commit.

    Raises InputError for neither, and for a name that Git knows as a commit with other data: a table in a page must not
    decide what `main` is.
    """
    wanted = [md5 for md5, name in names().items() if name == rev]
    try:
        commit = history.resolve(rev)
    except InputError:
        having = holders().get(wanted[0]) if wanted else None
        if having:
            return recording(having)
        if not wanted or history.is_shallow():
            raise
        lost = f"{rev!r} is named in {NAMES}, but no commit in the history of HEAD has that data"
        raise InputError(lost) from None
    if wanted and data_hashes([commit]) != wanted:
        raise InputError(f"{rev!r} is a commit and the name of another data version in {NAMES}; give the commit's hash")
    return commit


def table() -> list[str]:
    """One line per data version behind HEAD, newest first, under a line of headings."""
    known = names()
    lines = [("name", "commit", "date", "rows", "data", "tuned exact match")]
    for md5, having in holders().items():
        commit = recording(having)
        date = history.git("show", "--no-patch", "--no-show-signature", "--format=%cs", commit).decode().strip()
        lines.append((known.get(md5, "-"), history.short(commit), date, _rows(commit), md5[:12], _metric(commit)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _metric(commit: str) -> str:
    """Exact match of the tuned system with its interval and n, as `commit` recorded it."""
    if not record.is_recorded(commit):
        return "not recorded"
    try:
        tuned = strict_json.parse((history.read(commit, history.METRICS) or b"").decode())["tuned"]
        rate, low, high = (tuned[name] for name in ("exact_match", "exact_match_low", "exact_match_high"))
        return f"{rate:.3f} [{low:.3f}, {high:.3f}], n = {tuned['n']}"
    except (ArithmeticError, ValueError, KeyError, TypeError):
        return "can't be read"


def _rows(commit: str) -> str:
    """Number of training rows; '+' stands for DVC-tracked files, which are not in Git."""
    held = [oid for path, oid in history.files(commit, history.RAW).items() if path.endswith(".jsonl")]
    count = sum(bool(line.strip()) for rows in history.blobs(held) for line in rows.split(b"\n"))
    return f"{count}{'+' if history.pointers(commit, history.RAW) else ''}"
