"""Mend what a killed DVC leaves behind: half a dvc.lock, or half a list of locks, which it then refuses to read.

DVC writes both in place. dvc.lock comes back as it is in HEAD: DVC's run cache has the results of what ran since. What
can be read stays, and so does a dvc.lock with conflict markers. `make repro` and tools.rollback begin with this.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from stages.core import cli
from stages.core.cli import InputError
from stages.data import writing
from versions import history, record

LOCK, LOCKS, BUSY = Path(history.LOCK), Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/lock")


def mend() -> Iterator[str]:
    """Mend, and yield what was done."""
    from dvc.lock import Lock, LockError

    for path in filter(broken, (LOCKS, LOCK)):
        BUSY.parent.mkdir(parents=True, exist_ok=True)
        with suppress(LockError), Lock(str(BUSY)):  # which a live DVC holds
            if not broken(path):
                continue
            half, before = LOCKS.with_name(f"{path.name}.half"), recorded() if path == LOCK else None
            shutil.copyfile(path, half)
            if before:
                with writing.replacing(path) as file:
                    file.write(before.decode("utf-8", "replace"))
            else:
                path.unlink()
            done = "as in HEAD" if before else "gone"
            yield f"{path} was half written by a killed dvc; it is {done}, and what it was is {half}"


def recorded() -> bytes | None:
    """dvc.lock of HEAD; None without a commit, or in a folder of another repository."""
    try:
        history.require_root()
        return history.read(history.resolve("HEAD"), history.LOCK)
    except InputError:
        return None


def broken(path: Path) -> bool:
    """Whether DVC would refuse to read it."""
    import yaml
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "{}"
    try:
        if path == LOCKS:
            json.loads(text)
        elif path.is_file() and not any(marker.search(text.encode()) for marker in record.MARKERS):
            COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text))
    except (ValueError, yaml.YAMLError, Invalid):
        return True
    return False


@click.command(cls=cli.Command, help=__doc__)
def main() -> None:
    if not BUSY.parent.parent.is_dir():
        raise InputError("no .dvc here: run it in the top folder of the repository")
    for line in mend():
        click.echo(line, err=True)


if __name__ == "__main__":
    main()
