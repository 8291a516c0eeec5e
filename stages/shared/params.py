"""Read one section of params.yaml into a frozen dataclass; nothing is guessed and nothing has a default here.

DVC parses params.yaml as YAML 1.2 with ruamel, so this does too: PyYAML would read `1e-3` as a string.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le

from stages.shared.cli import InputError

PARAMS = Path("params.yaml")
Section = TypeVar("Section")
Count = Annotated[int, Gt(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]


class ParamsError(InputError):
    """params.yaml has an unknown, a missing or a mistyped key; the message names each."""


@dataclass(frozen=True)
class Contract:
    """The section `contract`: what the schema alone can't tell."""

    discriminator: str | None


@dataclass(frozen=True)
class Chat:
    """The section `chat`."""

    system: str
    max_length: Count


@dataclass(frozen=True)
class Predict:
    """The section `predict`, for generating answers."""

    device: str
    batch_size: Count
    max_new_tokens: Count


def load(name: str, section: type[Section], path: Path = PARAMS) -> Section:
    """Return section `name` of params.yaml as an instance of the dataclass `section`.

    Raises ParamsError for a missing file or section, and for unknown, missing and mistyped keys (no coercion:
    `"3"` is not 3, while 3 is a valid float).
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.dataclasses import dataclass as checked
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        document = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ParamsError(f"{path}: {error}") from error
    if not isinstance(document, dict) or name not in document:
        raise ParamsError(f"{path}: section '{name}' is missing")
    # JSON mode: strict about types, yet it accepts a list for a tuple and 1 for 1.0 as YAML authors expect.
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    adapter = TypeAdapter(checked(section, frozen=True, config=config))
    try:
        checked_section = adapter.validate_json(json.dumps(document[name]))
        return section(**{field.name: getattr(checked_section, field.name) for field in fields(section)})  # type: ignore[arg-type]
    except ValidationError as error:
        raise ParamsError("\n".join(_lines(path, name, error.errors()))) from error
    except (TypeError, ValueError) as error:
        raise ParamsError(f"{path}: {name}: {error}") from error


def _lines(path: Path, name: str, errors: list[Any]) -> list[str]:
    return [f"{path}: {'.'.join([name, *map(str, e['loc'])])}: {e['msg']} (got {e['input']!r})" for e in errors]
