"""Mend what a killed DVC leaves behind: half a dvc.lock, or half a list of locks, which it then refuses to read.

DVC writes both in place. dvc.lock comes back as it is in HEAD: DVC's run cache has the results of what ran since. What
can be read stays, and so does a dvc.lock with conflict markers. `make repro` and tools.rollback begin with this.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import click

from stages.core import cli
from stages.data import writing
from versions import history

LOCK, LOCKS = Path(history.LOCK), Path(".dvc/tmp/rwlock")
MOMENT = 1.0  # seconds in which a live DVC is done with writing


def mend() -> Iterator[str]:
    """Mend, and yield what was done."""
    for path in (LOCKS, LOCK):
        if not broken(path):
            continue
        time.sleep(MOMENT)
        if broken(path):
            recorded = history.read(history.resolve("HEAD"), history.LOCK) if path == LOCK else None
            if recorded:
                with writing.replacing(path) as file:
                    file.write(recorded.decode("utf-8", "replace"))
            else:
                path.unlink()
            yield f"{path} was half written by a killed dvc; it is {'as in HEAD' if path.exists() else 'gone'}"


def broken(path: Path) -> bool:
    """Whether DVC would refuse to read it."""
    import yaml
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "{}"
    try:
        if path == LOCKS:
            json.loads(text)
        elif path.is_file() and "<<<<<<<" not in text:
            COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text))
    except (ValueError, yaml.YAMLError, Invalid):
        return True
    return False


@click.command(cls=cli.Command, help=__doc__)
def main() -> None:
    history.require_root()
    for line in mend():
        click.echo(line, err=True)


if __name__ == "__main__":
    main()
