"""Read one section of params.yaml into a frozen dataclass; nothing is guessed and nothing has a default here."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le

from stages.core import cli, yaml12
from stages.core.cli import InputError

PARAMS = Path("params.yaml")
Section = TypeVar("Section")
Count = Annotated[int, Gt(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]


class ParamsError(InputError):
    """params.yaml has an unknown, a missing or a mistyped key; the message names each."""


def load(name: str, section: type[Section], path: Path = PARAMS) -> Section:
    """Return section `name` of params.yaml as an instance of the dataclass `section`.

    Raises ParamsError for a missing file or section, and for unknown, missing and mistyped keys (no coercion:
    `"3"` is not 3, while 3 is a valid float).
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    try:
        document = yaml12.parse(cli.read_text(path), str(path))
    except InputError as error:
        raise ParamsError(error.message) from error
    if name not in document:
        raise ParamsError(f"{path}: section '{name}' is missing")
    # JSON mode: strict about types, yet it accepts a list for a tuple and 1 for 1.0 as YAML authors expect.
    strict = with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
    try:
        return TypeAdapter(strict(section)).validate_json(json.dumps(document[name]))
    except ValidationError as error:
        raise ParamsError(*_lines(path, name, error.errors())) from error
    except (TypeError, ValueError) as error:
        raise ParamsError(f"{path}: {name}: {error}") from error


def _lines(path: Path, name: str, errors: list[Any]) -> list[str]:
    lines = []
    for error in errors:
        where, message = ".".join([name, *map(str, error["loc"])]), error["msg"].removeprefix("Value error, ")
        given = "" if error["type"] == "value_error" else f" (got {error['input']!r})"  # else the section
        lines.append(f"{path}: {where}: {message}{given}")
    return lines
