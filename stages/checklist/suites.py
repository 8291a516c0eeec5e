"""Great Expectations over a table: run a suite in full, and count no vacuous pass as a pass."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import strict_json
from stages.core.cli import InputError


@dataclass(frozen=True)
class Outcome:
    """What became of the expectation on one column. `unexpected`: where, and the value that stands there."""

    column: str
    group: str
    severity: str  # critical or warning
    holds: bool
    judged: int
    unexpected: list[tuple[str, Any]]
    bound: str  # the key in the suite file that sets the limit
    limit: float


def run(file: Path, frame: Any, columns: tuple[str, ...]) -> list[Outcome]:
    """Judge a data frame by a suite file. Its column `where` names rows, each of `columns` has one expectation.

    Raises InputError for a suite that can't be run, or of which an expectation judged nothing.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx

    stored = read(file, columns)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # a run takes well under two seconds
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    rows = asset.add_batch_definition_whole_dataframe("all")
    form: Any = {"result_format": "COMPLETE", "unexpected_index_column_names": ["where"]}
    try:
        suite = gx.ExpectationSuite(name=file.stem, expectations=stored)
        result = rows.get_batch({"dataframe": frame}).validate(suite, result_format=form)
    except (gx.exceptions.GreatExpectationsError, TypeError, ValueError) as error:
        raise InputError(f"{file}: {str(error)[:300]}") from error
    outcomes = [outcome(file, item) for item in result.results]
    if len(outcomes) != len(stored):
        raise InputError(f"{file}: {len(outcomes)} of {len(stored)} expectations were evaluated")
    return outcomes


def read(file: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The expectations in a suite file. Raises InputError unless each column has one: what nothing judges passes."""
    try:
        stored = strict_json.read(file)["expectations"]
        judged = [str(each["kwargs"]["column"]) for each in stored if each["meta"]["group"]]
    except (KeyError, TypeError):
        needed = "a list 'expectations', each with meta.group and kwargs.column"
        raise InputError(f"{file}: {needed} is needed") from None
    if sorted(judged) != sorted(columns):
        named = ", ".join(sorted(set(judged) ^ set(columns))) or "one has several"
        raise InputError(f"{file}: one expectation on each of its columns is needed, and no other: {named}")
    return list(stored)


def outcome(file: Path, item: Any) -> Outcome:
    """Great Expectations counts what raised as failed, and no rows and only nulls as a success."""
    config = item.expectation_config
    column, counted = config.kwargs["column"], item.result or {}
    # One record, or one for each metric.
    if raised := re.search(r"'exception_message': (['\"].*?['\"])[,}]", str(item.exception_info)):
        raise InputError(f"{file}: {column}: {raised[1][:300]}")
    judged = counted.get("element_count", 1) - (counted.get("missing_count") or 0)
    if judged < 1:
        raise InputError(f"{file}: {column}: nothing to judge")
    bound = next((name for name in ("max_value", "min_value") if name in config.kwargs), "mostly")
    severity = str(getattr(config.severity, "value", config.severity) or "critical")
    unexpected = [(each["where"], each[column]) for each in counted.get("unexpected_index_list") or []]
    limit = float(config.kwargs.get(bound, 1.0))
    return Outcome(column, config.meta["group"], severity, bool(item.success), judged, unexpected, bound, limit)
