"""The contract of an answer: a JSON Schema, the strict parser of a model's text, and the discriminator field."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import strict_json
from stages.core.cli import InputError

# A `$` that ends a pattern, and what to step over: escaped characters and character classes.
END = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(\$)")
# To itself: any reference but one to a place below that holds none of the alternatives.
REFERS_TO_WHOLE = re.compile(r'"\$(?:ref":"(?!#/(?!(?:one|any|all)Of\b))|dynamicRef"|recursiveRef")')


@dataclass(frozen=True)
class Params:
    """The section `contract` of params.yaml: what the schema alone can't tell."""

    discriminator: str | None


@dataclass(frozen=True)
class Contract:
    """A loaded schema; `discriminator` names the property that tells the kinds of answer apart ('' if none does)."""

    validator: Any
    discriminator: str
    kinds: tuple[str, ...]  # its values in the order of the schema
    by_kind: dict[str, Any]  # a validator without the alternatives that the discriminator rules out; '' holds none
    unchecked: tuple[str, ...]  # formats that it names and that no answer is held to

    def error(self, value: Any) -> str | None:
        """Return why `value` breaks the contract, or None. Raises InputError where the schema refers to nowhere."""
        from jsonschema.exceptions import best_match
        from referencing.exceptions import Unresolvable

        try:
            validator = self.by_kind.get(self.kind(value), self.validator)
            error = best_match(validator.iter_errors(value))
        except OverflowError:
            return "a number is too large to be checked"
        except RecursionError:
            raise InputError("the schema refers to itself without end") from None
        except Unresolvable as unresolved:
            raise InputError(f"the schema's reference {unresolved} can't be resolved; nothing is fetched") from None
        if error is None:
            return None
        where = "/".join(map(str, error.absolute_path))
        return f"{where + ': ' if where else ''}{error.message}"[:300]

    def kind(self, value: Any) -> str:
        """Return the discriminator's value as text, '' where the value has none."""
        if not self.discriminator or not isinstance(value, dict) or self.discriminator not in value:
            return ""
        found = value[self.discriminator]
        return found if isinstance(found, str) else strict_json.compact(found)


def parse_answer(text: str) -> dict[str, Any]:
    """Return the one JSON object that `text` is. Raises strict_json.JsonError otherwise.

    Nothing is repaired: a code fence, a word before the brace or a trailing comma makes the answer invalid, as it
    would for the program that calls the model.
    """
    value = strict_json.parse(text)
    if not isinstance(value, dict):
        raise strict_json.JsonError(f"a JSON object is expected, not {type(value).__name__}")
    return value


def load(path: Path, discriminator: str | None = None) -> Contract:
    """Read a JSON Schema; find the discriminator unless `discriminator` names it.

    Remote references are never fetched. Raises InputError for a file that can't be used.
    """
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import extend, validator_for
    from referencing import Registry

    schema = strict_json.read(path)
    try:
        if not isinstance(schema, dict) or not isinstance(schema.get("$schema", ""), str):
            raise InputError(f"{path}: a JSON Schema object is expected")
        cls = validator_for(schema, default=Draft202012Validator)
        cls.check_schema(schema)
    except SchemaError as error:
        raise InputError(f"{path}: not a valid JSON Schema: {error.message}") from error
    name = _discriminator(schema) if discriminator is None else discriminator
    if name and strict_json.compact(name) not in strict_json.compact(schema):
        raise InputError(f"{path}: nothing is called {name!r}, which contract.discriminator in params.yaml names")
    strict: Any = extend(cls, {"pattern": _pattern})  # type: ignore[no-untyped-call]

    # An explicit empty registry: jsonschema's default one would fetch remote references over the network. No '$schema':
    # where the schema refers to itself, jsonschema would go back to the class that it names.
    def validator(rules: dict[str, Any]) -> Any:
        rules = {word: part for word, part in rules.items() if word != "$schema"}
        return strict(rules, registry=Registry(), format_checker=cls.FORMAT_CHECKER)

    by_kind = {kind: validator(rules) for kind, rules in _narrowed(schema, name).items()}
    formats = set(re.findall(r'"format":"([^"]*)"', strict_json.compact(schema)))
    unchecked = tuple(sorted(formats - set(cls.FORMAT_CHECKER.checkers)))
    whole = followed(schema, schema)
    kinds = [kind for part in (whole, *branches(schema, whole)) for kind in constants(schema, part, name)]
    return Contract(validator(schema), name, tuple(dict.fromkeys(kinds)), by_kind, unchecked)


def _pattern(_: Any, pattern: str, value: Any, __: Any) -> Iterator[Any]:
    """The keyword `pattern`: a `$` is the end of the text, as JSON Schema has it; Python's lets a line break follow."""
    from jsonschema import ValidationError

    if isinstance(value, str) and not re.search(END.sub(lambda m: r"\Z" if m[1] else m[0], pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def followed(root: dict[str, Any], part: Any) -> dict[str, Any]:
    """The schema that a local `$ref` points at, however often; the part itself where there is none."""
    for _ in range(strict_json.MAX_DEPTH):
        if not isinstance(part, dict) or not str(part.get("$ref", "")).startswith("#/"):
            break
        target: Any = root
        for step in part["$ref"].removeprefix("#/").split("/"):
            target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
        part = target
    return part if isinstance(part, dict) else {}


def branches(root: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of the schema."""
    return [followed(root, branch) for branch in schema.get("oneOf") or schema.get("anyOf") or []]


def constants(root: dict[str, Any], part: dict[str, Any], name: str) -> list[str]:
    """The strings that property `name` is limited to by `const` or `enum` in this part of the schema `root`."""
    rule = followed(root, part.get("properties", {}).get(name, {}))
    listed = [rule["const"]] if "const" in rule else rule.get("enum", [])
    return [value for value in listed if isinstance(value, str)]


def _discriminator(root: dict[str, Any]) -> str:
    """The property with another constant in the alternatives; else the first required one with an enum; else ''."""
    schema = followed(root, root)
    found = branches(root, schema)
    for name in found[0].get("properties", {}) if found else []:
        values = [constants(root, branch, name) for branch in found]
        if all(len(value) == 1 for value in values) and (values.count(values[0]) < len(values) or len(values) == 1):
            return str(name)
    required = schema.get("required", [])
    if not isinstance(required, list):
        return ""
    return next((str(name) for name in required if len(constants(root, schema, name)) > 1), "")


def _narrowed(root: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """For each kind the schema with the one alternative that can hold, where each alternative is one kind of its own.

    It accepts the same answers of that kind: the others fail on the discriminator. It is faster, and says what is wrong
    in this alternative.
    """
    word = next((word for word in ("oneOf", "anyOf") if root.get(word)), "")
    kinds = [constants(root, branch, name) for branch in branches(root, root)] if word else []
    told_apart = all(kinds) and len({kind for found in kinds for kind in found}) == sum(map(len, kinds))
    # A reference to the whole schema, or into the alternatives, would mean something else in the narrowed one.
    if not kinds or not told_apart or REFERS_TO_WHOLE.search(strict_json.compact(root)):
        return {}
    rest = {key: value for key, value in root.items() if key != word}
    return {
        kind: rest | {"allOf": [*root.get("allOf", []), branch]}
        for found, branch in zip(kinds, root[word], strict=True)
        for kind in found
    }
