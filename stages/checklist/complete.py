"""Complete: every kind of answer, every value that the schema lists and every default has enough rows."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stages.checklist.row import Table, sound
from stages.core import strict_json
from stages.data import contract

Path = tuple[str, ...]  # the names of the fields that lead to a value


@dataclass(frozen=True)
class SchemaValue:
    """A value that the schema lists for field `path` in answers of one kind, '' for any."""

    kind: str
    path: Path
    value: Any

    def __str__(self) -> str:
        return f"{self.kind and self.kind + ': '}{'.'.join(self.path)} = {strict_json.compact(self.value)}"

    def is_in(self, value: Any) -> bool:
        """Whether an answer of the kind has it."""
        for name in self.path:
            if not isinstance(value, dict) or name not in value:
                return False
            value = value[name]
        items = value if isinstance(value, list) and not isinstance(self.value, list) else [value]
        return any(strict_json.same(item, self.value) for item in items)


def schema_values(rules: contract.Contract) -> list[SchemaValue]:
    """Every value that the schema lists, once, in the order of the schema."""
    root, name = rules.validator.schema, rules.discriminator
    schema = contract.followed(root, root)
    around = {word: inner for word, inner in schema.items() if word not in ("oneOf", "anyOf")}
    found = [
        SchemaValue(kind, path, value)
        for branch in contract.branches(root, schema) or [{}]
        for kind in contract.constants(root, branch, name) or contract.constants(root, schema, name) or [""]
        for path, value in _values(root, branch)
        if path != (name,) or value == kind
    ]
    told = {listed.path for listed in found} & {(name,)}  # the alternatives say which kinds there are
    found += [SchemaValue("", path, value) for path, value in _values(root, around) if path not in told]
    return list({str(listed): listed for listed in found}.values())


def _values(root: Any, schema: Any, path: Path = (), above: tuple[str, ...] = ()) -> Iterator[tuple[Path, Any]]:
    """The enumerated values and defaults in a piece of the schema, each with the path of its field.

    Searches properties, array items and alternatives, but neither conditions (`if`) nor patterns of names. `above`
    holds the references on the way here: a schema may refer to itself.
    """
    reference = schema.get("$ref", "")
    if reference in above:
        return
    above = (*above, reference) if reference else above
    schema = contract.followed(root, schema) | ({"default": schema["default"]} if "default" in schema else {})
    if path:
        listed = [*schema.get("enum", []), *(schema[word] for word in ("const", "default") if word in schema)]
        yield from ((path, value) for value in listed)
    inside = [inner for word in ("anyOf", "oneOf", "allOf") for inner in schema.get(word, [])]
    for inner in [*inside, schema.get("items")]:
        if isinstance(inner, dict):
            yield from _values(root, inner, path, above)
    for name, inner in schema.get("properties", {}).items():
        if isinstance(inner, dict):
            yield from _values(root, inner, (*path, str(name)), above)


def coverage(table: Table, values: list[SchemaValue]) -> list[tuple[float, str]]:
    """For each value the number of sound rows that have it in an answer."""
    of_kind: dict[str, list[int]] = defaultdict(list)
    for number, value in enumerate(values):
        of_kind[value.kind].append(number)
    rows = Counter[int]()
    for row in sound(table):
        listed = ((n, e.answer) for e in row.examples for kind in {e.kind, ""} for n in of_kind[kind])
        rows.update({n for n, answer in listed if values[n].is_in(answer)})
    return [(rows[number], str(value)) for number, value in enumerate(values)]
