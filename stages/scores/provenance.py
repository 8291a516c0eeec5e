"""What a metrics file was computed from: hashes of its inputs, the adapter and base behind them, library versions."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.core import hashes, strict_json
from stages.core.cli import InputError

ORIGIN = ("adapter", "base", "versions")


def computed_from(made_from: Path, libraries: tuple[str, ...], **inputs: Path) -> dict[str, Any]:
    """The entry `computed_from` of a metrics file.

    `made_from`: made_from.json of the adapter, which names adapter, base model and the versions that trained; `inputs`:
    a file, or a folder, by the name that it gets. Raises InputError for another file than made_from.json.
    """
    origin = strict_json.read(made_from)
    if not isinstance(origin, dict) or not set(ORIGIN) <= set(origin) or not isinstance(origin["versions"], dict):
        raise InputError(f"{made_from}: an object with {', '.join(ORIGIN)} is expected")
    return {
        **{name: hashes.of_folder(path) if path.is_dir() else hashes.of_file(path) for name, path in inputs.items()},
        "adapter": origin["adapter"],
        "base": origin["base"],
        "versions": {**origin["versions"], **{name: version(name) for name in libraries}},
    }
