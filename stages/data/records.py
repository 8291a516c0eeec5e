"""Read JSON Lines into dataclasses, strictly: nothing is coerced, no line is skipped, every id is unique."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from stages.core import strict_json
from stages.core.cli import InputError

Record = TypeVar("Record")


def read(
    path: Path, shape: type[Record], extra: Literal["forbid", "ignore"] = "forbid", least: int = 1
) -> list[Record]:
    """The lines of a file as instances of `shape`, a dataclass with an `id`. `extra`: what happens to other fields.

    Raises InputError naming file, line and reason; a file with fewer lines than `least` is refused too.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    adapter: TypeAdapter[Any] = TypeAdapter(with_config(ConfigDict(strict=True, extra=extra))(shape))
    by_id: dict[str, Any] = {}
    for line, value in enumerate(strict_json.read_jsonl(path), start=1):
        try:
            record = adapter.validate_json(strict_json.compact(value))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}:{line}: {field + ': ' if field else ''}{first['msg']}") from error
        if record.id in by_id:
            raise InputError(f"{path}:{line}: id {record.id!r} occurs twice")
        by_id[record.id] = record
    if len(by_id) < least:
        raise InputError(f"{path}: no rows")
    return list(by_id.values())
