"""Behaviour tests (CheckList, Ribeiro et al. 2020): small checks of what the model must do, one file a capability.

In: a folder of *.jsonl files whose names say the kind of test: `minimum-*` holds labelled rows in any row format,
`invariance-*` rows of `instruction` and `variant`, `directional-*` rows with `changes` as well. Out: `Case`s, and the
requests that they put to the model. data/behaviour/README.md shows each kind.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.cli import InputError
from stages.data import contract, rows
from stages.data.examples import Example, of_row

ENDS = ("", "~variant")  # of the ids of a request and its variant
KINDS = ("minimum", "invariance", "directional")
SHOWN = 20  # problems


@dataclass(frozen=True)
class Case:
    """`examples`: the one request of a minimum test; else the request and its variant. `changes`: what the variant
    changes in the answer, nothing for an invariance test."""

    id: str
    capability: str
    kind: str
    examples: tuple[Example, ...]
    changes: dict[str, Any]


def read(folder: Path, rules: contract.Contract) -> list[Case]:
    """All tests of a folder, none where it is absent or has no *.jsonl files. Raises InputError naming each bad row."""
    tests: list[Case] = []
    problems: list[str] = []
    for file in sorted(folder.glob("*.jsonl")):
        kind = file.stem.partition("-")[0]
        if kind not in KINDS:
            raise InputError(f"{file}: a name that begins with {', '.join(f'{name}-' for name in KINDS)} is expected")
        for row in rows.read(file):
            try:
                if kind == "minimum":
                    made = of_row(row, rules, file.stem)
                    tests += [Case(example.id, file.stem, kind, (example,), {}) for example in made]
                else:
                    tests.append(_paired(row, file.stem, kind))
            except InputError as error:
                problems.append(f"{file}:{row.line}: {error.message}")
    counts = Counter(example.id for test in tests for example in test.examples)
    problems += [f"{folder}: id {name!r} occurs {count} times" for name, count in counts.items() if count > 1]
    if problems:
        if len(problems) > SHOWN:
            problems[SHOWN:] = [f"... and {len(problems) - SHOWN} more"]
        if not tests:
            problems.append(f"{folder}: are these tests of another task? Delete its *.jsonl files then, all of them")
        raise InputError(*problems)
    return tests


def _paired(row: rows.Row, capability: str, kind: str) -> Case:
    """A request and its variant. `rows.read` refuses such a row for its missing answer, so its text is read anew."""
    value = rows.parse(row)
    if unread := sorted(value.keys() - {"id", "instruction", "variant", "changes"}):
        raise InputError(f"field {unread[0]!r} is not read")
    asked = [value.get(name) for name in ("instruction", "variant")]
    changes = value.get("changes", {})
    if not all(isinstance(text, str) and text.strip() for text in asked):
        raise InputError("'instruction' and 'variant' must be text")
    if not isinstance(changes, dict) or bool(changes) != (kind == "directional"):
        raise InputError("'changes' must be an object of a directional test, and of no other")
    prompts = [[{"role": "user", "content": str(text)}] for text in asked]
    name = str(value.get("id") or rows.content_id([turn for prompt in prompts for turn in prompt]))
    first, variant = (Example(name + end, name, "", p, "", capability) for end, p in zip(ENDS, prompts, strict=True))
    return Case(name, capability, kind, (first, variant), changes)
