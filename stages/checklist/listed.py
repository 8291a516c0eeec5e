"""What the contract lists: each kind of answer, each enumerated value and each default, with its place in an answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stages.checklist.row import Example
from stages.shared import contract, strict_json

Path = tuple[str, ...]  # the names of the fields that lead to a value


@dataclass(frozen=True)
class Listed:
    """A value that the schema names for the field `path` of the answers of one kind ('' where there are no kinds)."""

    kind: str
    path: Path
    value: Any

    def __str__(self) -> str:
        field = ".".join(self.path)
        return f"{self.kind + ': ' if self.kind else ''}{field} = {strict_json.compact(self.value)}"

    def found_in(self, example: Example) -> bool:
        if example.kind != self.kind:
            return False
        value: Any = example.answer
        for name in self.path:
            if not isinstance(value, dict) or name not in value:
                return False
            value = value[name]
        values = value if isinstance(value, list) and not isinstance(self.value, list) else [value]
        return any(strict_json.same(one, self.value) for one in values)


def listed(rules: contract.Contract) -> list[Listed]:
    """Every value that the schema lists, once, in the order of the schema."""
    root = rules.validator.schema
    schema = contract.followed(root, root)
    found: dict[str, Listed] = {}
    around = {name: part for name, part in schema.items() if name not in ("oneOf", "anyOf")}
    for branch in contract.branches(root, schema) or [{}]:
        kinds = contract.constants(branch, rules.discriminator) or contract.constants(schema, rules.discriminator)
        for kind in kinds or [""]:
            for path, value in [*values(root, branch, (), ()), *values(root, around, (), ())]:
                if path != (rules.discriminator,) or value == kind:
                    item = Listed(kind, path, value)
                    found.setdefault(str(item), item)
    return list(found.values())


def values(root: Any, part: Any, path: Path, above: tuple[str, ...]) -> Iterator[tuple[Path, Any]]:
    """The enumerated values and defaults of a part of the schema, with the path of the field.

    `above` are the references that led here: a schema may refer to itself. Properties, array items and alternatives are
    looked into; conditions (`if`) and patterns of names are not.
    """
    reference = part.get("$ref", "")
    if reference in above:
        return
    above = (*above, reference) if reference else above
    part = contract.followed(root, part) | ({"default": part["default"]} if "default" in part else {})
    if path:
        yield from ((path, value) for value in [*([part["const"]] if "const" in part else []), *part.get("enum", [])])
        if "default" in part:
            yield path, part["default"]
    inside = [inner for word in ("anyOf", "oneOf", "allOf") for inner in part.get(word, [])]
    for inner in [*inside, part.get("items")]:
        if isinstance(inner, dict):
            yield from values(root, inner, path, above)
    for name, inner in part.get("properties", {}).items():
        if isinstance(inner, dict):
            yield from values(root, inner, (*path, str(name)), above)
