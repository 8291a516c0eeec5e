"""The verdicts: which suite judges what, the figures behind each expectation, and the settings that bound them."""

import html
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stages.checklist import clean, complete, consistent, page, representative, size, suites
from stages.checklist.listed import Listed
from stages.checklist.row import Checked, sound
from stages.shared import params

BOTH = (
    *("well_formed", "contract", "grounded", "order", "types", "labels", "conflict", "duplicate", "near_duplicate"),
    *("characters", "chat_tokens", "secret", "personal", "abuse"),
)
CHECKS = {"train": (*BOTH, "trigger", "leak", "near_leak"), "test": BOTH}
FIGURES = ("action_mix", "length", "vocabulary", "templated", "train_rows", "test_rows")
Tables = dict[str, list[Checked]]
Figures = dict[str, tuple[float, str]]


@dataclass(frozen=True)
class Settings:
    stop_at: Literal["critical", "warning"]
    limits: dict[str, params.Share]
    flag_only: list[str]
    covered: dict[str, params.Count]
    figures: dict[str, float]
    similarity: params.Share
    templated: params.Share
    copied_fields: list[str]
    copied: params.Share
    rules: list[consistent.Rule]
    allowed_words: list[str]
    phone_region: str
    trigger_rows: params.Count

    def __post_init__(self) -> None:
        for name, expected in (("limits", CHECKS["train"]), ("covered", tuple(CHECKS)), ("figures", FIGURES)):
            if set(getattr(self, name)) != set(expected):
                raise params.ParamsError(f"params.yaml: validate.{name} must have exactly: {', '.join(expected)}")
        if unknown := set(self.flag_only) - set(CHECKS["train"][2:]):
            named = ", ".join(sorted(unknown))
            raise params.ParamsError(f"params.yaml: validate.flag_only: no check is called, or must refuse: {named}")
        if self.phone_region not in supported_regions():
            raise params.ParamsError(f"params.yaml: validate.phone_region: no such region: {self.phone_region!r}")

    def parameters(self) -> dict[str, float]:
        """What the suites call {"$PARAMETER": name}."""
        least = {f"covered_{split}": count for split, count in self.covered.items()}
        # Rounded, because 1 - 0.96 is more than 0.04: a share exactly at the limit holds.
        return {check: round(1 - limit, 12) for check, limit in self.limits.items()} | self.figures | least


def supported_regions() -> set[str]:
    from phonenumbers import SUPPORTED_REGIONS

    return set(SUPPORTED_REGIONS)


@dataclass(frozen=True)
class Verdict:
    """The outcome of an expectation, the figures behind it, and the knob in params.yaml that rules it."""

    outcome: suites.Outcome
    suite: str
    scope: str  # train, test, or both
    figures: dict[str, Any]
    knob: str

    @property
    def severity(self) -> str:
        return "held" if self.outcome.success else self.outcome.severity

    def numbers(self) -> str:
        shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in self.figures.items()}
        return ", ".join(f"{name} {value}" for name, value in shown.items() if name != "example" and value is not None)

    def line(self) -> str:
        found = f"{self.outcome.group}: {self.outcome.name}: {self.numbers()}"
        example = f" ({self.figures['example']})" if self.figures["example"] else ""
        return f"validate: {self.severity}: {self.scope}: {found}{example}; mend the rows, or change {self.knob}"


def measure(tables: Tables, settings: Settings) -> Figures:
    """The figures about all sound rows, each with an example or what it means."""
    kept = {split: len(sound(table)) for split, table in tables.items()}
    return representative.comparison(tables["train"], tables["test"]) | {
        "templated": clean.templated(tables["train"], settings.templated),
        "train_rows": (kept["train"], size.verdict(kept["train"])),
        "test_rows": (kept["test"], f"a rate of one half is known to ±{size.half_width(kept['test']):.0%}"),
    }


def judge(tables: Tables, values: list[Listed], settings: Settings, folder: Path, docs: Path) -> list[Verdict]:
    """Run the suites in `folder` over the rows, the coverage of the contract and the figures; build the Data Docs."""
    made = suites.context(docs)
    verdicts = [
        *row_verdicts(tables, settings, made, folder),
        *coverage_verdicts(complete.coverage(tables, values), settings, made, folder / "coverage.json"),
        *figure_verdicts(measure(tables, settings), settings, made, folder / "figures.json"),
    ]
    made.build_data_docs()
    page.write(docs, [counts(split, table) for split, table in tables.items()], [item(v) for v in verdicts])
    return verdicts


def row_verdicts(tables: Tables, settings: Settings, made: Any, folder: Path) -> Iterator[Verdict]:
    for split, table in tables.items():
        suite = folder / f"{split}.json"
        suites.require(suite, CHECKS[split])
        for outcome in suites.run(made, suite, row_frame(table, split), ["file", "line"], settings.parameters()):
            figures = row_figures(table, outcome, settings)
            yield Verdict(outcome, split, split, figures, f"validate.limits.{outcome.name}")


def coverage_verdicts(covered: list[dict[str, Any]], settings: Settings, made: Any, suite: Path) -> Iterator[Verdict]:
    import pandas as pd

    if not covered:  # a schema that lists nothing: nothing to cover
        return
    suites.require(suite, tuple(CHECKS))
    for outcome in suites.run(made, suite, pd.DataFrame(covered).map(inert), ["value"], settings.parameters()):
        figures = coverage_figures(covered, outcome.name, settings)
        knob = f"validate.covered.{outcome.name}"
        yield Verdict(replace(outcome, name="coverage"), "coverage", outcome.name, figures, knob)


def figure_verdicts(found: Figures, settings: Settings, made: Any, suite: Path) -> Iterator[Verdict]:
    import pandas as pd

    suites.require(suite, FIGURES)
    # A row and a column for each figure, so that a failed expectation leads to the example in its row.
    frame = pd.DataFrame([{"example": inert(example), name: value} for name, (value, example) in found.items()])
    for outcome in suites.run(made, suite, frame, ["example"], settings.parameters()):
        value, example = found[outcome.name]
        figures = {"value": value, "limit": settings.figures[outcome.name], "example": example}
        yield Verdict(outcome, "figures", "both", figures, f"validate.figures.{outcome.name}")


def row_frame(table: list[Checked], split: str) -> Any:
    """One row for each data row: where it stands, and a column of reasons for each check."""
    import pandas as pd

    failed = [(c.row, c.reasons | c.flags) for c in table]
    content = [[row.file, row.line, row.id, *map(why.get, CHECKS[split])] for row, why in failed]
    columns = ["file", "line", "id", *CHECKS[split]]
    return pd.DataFrame(content, columns=columns, dtype=object).map(inert)


def inert(value: Any) -> Any:
    """Text that stays text on Great Expectations' pages, which put values into their HTML as they are."""
    return html.escape(value) if isinstance(value, str) else value


def row_figures(table: list[Checked], outcome: suites.Outcome, settings: Settings) -> dict[str, Any]:
    failed = ((c.where, c.reasons | c.flags) for c in table)
    example = next((f"{where}: {why[outcome.name]}" for where, why in failed if outcome.name in why), None)
    share, limit = outcome.found / outcome.judged, settings.limits.get(outcome.name)
    return {"found": outcome.found, "share": share, "limit": limit, "example": example}


def coverage_figures(covered: list[dict[str, Any]], split: str, settings: Settings) -> dict[str, Any]:
    rare = sorted((value[split], value["value"]) for value in covered if value[split] < settings.covered[split])
    example = f"{rare[0][1]}: {rare[0][0]} rows" if rare else None
    return {"found": len(rare), "values": len(covered), "limit": settings.covered[split], "example": example}


def checklist(verdicts: list[Verdict]) -> dict[str, Any]:
    """The verdicts by group, check and scope, for the metrics file."""
    found: dict[str, Any] = {}
    for verdict in verdicts:
        scopes = found.setdefault(verdict.outcome.group, {}).setdefault(verdict.outcome.name, {})
        scopes[verdict.scope] = verdict.figures | {"verdict": verdict.severity}
    return found


def counts(split: str, table: list[Checked]) -> str:
    kept = len(sound(table))
    return f"{split}: {len(table)} rows = {kept} kept + {len(table) - kept} refused"


def item(verdict: Verdict) -> dict[str, Any]:
    """A verdict as a line of the front page."""
    return {
        "group": verdict.outcome.group,
        "check": verdict.outcome.name,
        "suite": verdict.suite,
        "scope": verdict.scope,
        "verdict": verdict.severity,
        "numbers": verdict.numbers(),
        "example": verdict.figures["example"],
    }
