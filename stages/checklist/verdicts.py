"""The verdicts: what Great Expectations makes of the rows, of the coverage of the schema and of the figures."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.checklist import clean, complete, representative, size, suites
from stages.checklist.row import Table, Tables, sound, sound_examples

BOTH = (
    *("well_formed", "contract", "grounded", "order", "types", "labels", "conflict", "duplicate", "near_duplicate"),
    *("characters", "chat_tokens", "secret", "personal", "abuse"),
)
CHECKS = {"train": (*BOTH, "trigger", "leak", "near_leak"), "test": BOTH}
# A row that fails these can still be trained on. Not `duplicate`: two equal rows would share one id.
FLAGGABLE = tuple(name for name in CHECKS["train"][2:] if name != "duplicate")
NOT_MEASURED = "not measured"
EXAMPLES = 20  # shown of each check; refused.jsonl and flagged.jsonl have all

Numbers = dict[str, list[tuple[float, str]]]  # by column: values, each with what it is a value of


@dataclass(frozen=True)
class Verdict:
    """What became of one expectation: `value` is compared with `limit`, `found` values were not as expected."""

    group: str
    check: str
    scope: str  # train, test, both, or usage
    verdict: str  # held, warning, critical, or not measured
    value: float | None
    limit: float | None
    found: int
    examples: tuple[str, ...]
    knob: str  # file and key of the limit

    def line(self) -> str:
        example = f" ({self.examples[0]})" if self.examples else ""
        if self.verdict == NOT_MEASURED:
            return f"{self.verdict}: {self.group}: {self.scope}{example}"
        advice = "" if self.verdict == "held" else f"; correct the rows, or change {self.knob}"
        figures = f"{self.value:.3g}, limit {self.limit:.3g}"
        return f"{self.verdict}: {self.group}: {self.scope}: {self.check} {figures}{example}{advice}"


def judge(tables: Tables, values: list[complete.SchemaValue], templated: float, folder: Path) -> list[Verdict]:
    """Run the suites in `folder`, but for that of usage."""
    verdicts = [verdict for split, table in tables.items() for verdict in judge_rows(table, split, folder)]
    if values:  # a schema that lists nothing has nothing to cover
        covered = {split: complete.coverage(table, values) for split, table in tables.items()}
        by_split = judge_numbers(covered, folder / "coverage.json", "")
        verdicts += [replace(verdict, check="coverage", scope=verdict.check) for verdict in by_split]
    return verdicts + judge_numbers(measure(tables, templated), folder / "figures.json", "both")


def judge_rows(table: Table, split: str, folder: Path) -> list[Verdict]:
    """The verdicts on rows: one for each check that may refuse or flag them; `value` is the share of rows it found."""
    import pandas as pd

    reasons = [[row.where, *map((row.reasons | row.flags).get, CHECKS[split])] for row in table]
    frame = pd.DataFrame(reasons, columns=["where", *CHECKS[split]], dtype=object)
    file, verdicts = folder / f"{split}.json", []
    for outcome in suites.run(file, frame, CHECKS[split]):
        found = [f"{where}: {reason}" for where, reason in outcome.unexpected]
        allowed = round(1 - outcome.limit, 12)
        verdicts.append(verdict(outcome, file, split, len(found) / outcome.judged, allowed, found))
    return verdicts


def measure(tables: Tables, templated: float) -> Numbers:
    """The figures about all sound rows, each with an example or what it means."""
    train, test = (len(sound(tables[split])) for split in ("train", "test"))
    both = sound_examples(tables["train"]), sound_examples(tables["test"])
    figures = {
        "action_mix": representative.action_mix(*both),
        "length": representative.length(*both),
        "vocabulary": representative.unseen(*both),
        "templated": clean.templated(tables["train"], templated),
        "train_rows": (train, size.verdict(train)),
        "test_rows": (test, size.precision(test)),
    }
    return {name: [figure] for name, figure in figures.items()}


def judge_numbers(numbers: Numbers, file: Path, scope: str) -> list[Verdict]:
    """The verdicts on the numbers in each column; `value` is the one that is furthest out."""
    import pandas as pd

    frame = pd.DataFrame([{"where": where, column: n} for column, pairs in numbers.items() for n, where in pairs])
    verdicts = []
    for outcome in suites.run(file, frame, tuple(numbers)):
        value, furthest = (max if outcome.bound == "max_value" else min)(numbers[outcome.column])
        examples = [furthest, *(where for where, _ in outcome.unexpected if where != furthest)]
        verdicts.append(verdict(outcome, file, scope, value, outcome.limit, examples))
    return verdicts


def verdict(
    outcome: suites.Outcome, file: Path, scope: str, value: float, limit: float, examples: list[str]
) -> Verdict:
    held = "held" if outcome.holds else outcome.severity
    shown = tuple(example for example in examples[:EXAMPLES] if example)
    knob = f"`{outcome.bound}` of `{outcome.column}` in {file}"
    return Verdict(outcome.group, outcome.column, scope, held, value, limit, len(outcome.unexpected), shown, knob)


def checklist(verdicts: list[Verdict]) -> dict[str, Any]:
    """The verdicts by group, check and scope, for the metrics file."""
    shown: dict[str, Any] = {}
    for each in verdicts:
        figures = {"verdict": each.verdict, "value": each.value, "limit": each.limit, "found": each.found}
        example = each.examples[0] if each.examples else None
        shown.setdefault(each.group, {}).setdefault(each.check, {})[each.scope] = figures | {"example": example}
    return shown
