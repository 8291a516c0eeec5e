"""YAML as DVC reads it: version 1.2, where `1e-3` is a number and `no` a word; PyYAML's own rules are those of 1.1."""

import re
from collections import Counter
from typing import Any

import yaml

from stages.core.cli import InputError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema, and without keys that occur twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # none of YAML 1.1's

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(self.construct_object(key, deep=True) for key, _ in node.value)
        for key, count in keys.items():
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
# PyYAML reads 010 as eight and 1:30 as ninety; here the first is ten and the second a text.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value, 16 if "x" in node.value else 10))


# PyYAML's constructors trust the tags that a text may give any scalar: `!!timestamp x`, `!!bool x`, `!!float ''`.
UNREADABLE = (yaml.YAMLError, RecursionError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError)


def parse(text: str, name: str) -> dict[str, Any]:
    """Return the mapping that a YAML text is. Raises InputError naming `name` for anything else."""
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506  # a safe loader
    except UNREADABLE as error:
        raise InputError(f"{name}: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(document, dict):
        raise InputError(f"{name}: a mapping is expected")
    return document
