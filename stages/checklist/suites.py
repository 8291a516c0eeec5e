"""Great Expectations over a table: every suite runs in full, and none of its vacuous passes counts as one."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.shared import cli, strict_json


@dataclass(frozen=True)
class Outcome:
    """What became of one expectation: `found` of `judged` values were not as expected."""

    name: str
    group: str
    severity: str
    success: bool
    found: int
    judged: int


def context(docs: Path) -> Any:
    """A Great Expectations context whose Data Docs go to the folder `docs`; no telemetry."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx

    made = gx.get_context(mode="ephemeral")
    made.variables.progress_bars = {"globally": False}  # a run takes well under two seconds
    for name in list(made.get_site_names()):
        made.delete_data_docs_site(name)
    made.add_data_docs_site(
        "local",
        {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        },
    )
    return made


def run(made: Any, suite_file: Path, frame: Any, index: list[str], parameters: dict[str, float]) -> list[Outcome]:
    """Run one suite over a data frame. The columns `index` lead from a failed expectation to the rows in Data Docs.

    Raises InputError for a suite that can't be run, or of which an expectation judged nothing.
    """
    import great_expectations as gx

    stored = read(suite_file)
    try:
        suite = made.suites.add(gx.ExpectationSuite(**stored))
    except (gx.exceptions.GreatExpectationsError, TypeError, ValueError) as error:
        raise cli.InputError(f"{suite_file}: {str(error)[:300]}") from error
    source = made.data_sources.add_pandas(suite.name)
    batch = source.add_dataframe_asset("table").add_batch_definition_whole_dataframe("all")
    definition = made.validation_definitions.add(gx.ValidationDefinition(name=suite.name, data=batch, suite=suite))
    checkpoint = gx.Checkpoint(
        name=suite.name,
        validation_definitions=[definition],
        result_format={
            "result_format": "COMPLETE",
            "unexpected_index_column_names": index,
            "include_unexpected_rows": False,
        },
    )
    try:
        ran = checkpoint.run(batch_parameters={"dataframe": frame}, expectation_parameters=parameters)
    except (gx.exceptions.GreatExpectationsError, TypeError, ValueError) as error:
        raise cli.InputError(f"{suite_file}: {str(error)[:300]}") from error
    (result,) = ran.run_results.values()
    return outcomes(suite_file, result, len(stored["expectations"]))


def read(suite_file: Path) -> dict[str, Any]:
    """The suite as stored. Raises InputError unless it is one, named after its file, of expectations about columns."""
    try:
        stored = strict_json.read(suite_file)
        parts = [(each["meta"]["group"], each["kwargs"]["column"]) for each in stored["expectations"]]
    except (OSError, UnicodeDecodeError, strict_json.JsonError) as error:
        raise cli.InputError(f"{suite_file}: {error}") from error
    except (KeyError, TypeError):
        needed = "meta.group and kwargs.column"
        raise cli.InputError(f"{suite_file}: a list 'expectations' is expected, each with {needed}") from None
    if not parts or not all(isinstance(part, str) for pair in parts for part in pair):
        raise cli.InputError(f"{suite_file}: no expectations, or a group or column that is no text")
    if stored.get("name") != suite_file.stem:
        raise cli.InputError(f"{suite_file}: its 'name' must be {suite_file.stem!r}")
    return dict(stored)


def require(suite_file: Path, columns: tuple[str, ...]) -> None:
    """Raises InputError unless the suite judges exactly these columns: a check that nothing judges gates nothing."""
    found = {each["kwargs"]["column"] for each in read(suite_file)["expectations"]}
    if found != set(columns):
        named = ", ".join(sorted(found ^ set(columns)))
        raise cli.InputError(f"{suite_file}: one expectation on each of its columns is needed, and no other: {named}")


def outcomes(suite_file: Path, result: Any, expected: int) -> list[Outcome]:
    """Great Expectations counts what raised as failed, and no expectations, no rows and only nulls as a success."""
    found = []
    for item in result.results:
        config = item.expectation_config
        name = config.kwargs.get("column", config.type)
        if raised := exceptions(item.exception_info or {}):
            raise cli.InputError(f"{suite_file}: {name}: {raised[0]}")
        counted = item.result or {}
        judged = counted.get("element_count", 1) - (counted.get("missing_count") or 0)
        if judged < 1:
            raise cli.InputError(f"{suite_file}: {name}: nothing to judge")
        missed = counted.get("unexpected_count", int(not item.success))
        found.append(Outcome(name, config.meta["group"], severity(config), bool(item.success), missed, judged))
    if len(found) != expected:
        raise cli.InputError(f"{suite_file}: {len(found)} of {expected} expectations were evaluated")
    return found


def severity(config: Any) -> str:
    return str(getattr(config.severity, "value", config.severity) or "critical")


def exceptions(info: dict[str, Any]) -> list[str]:
    """The messages in an expectation's exception_info, which holds one record, or one for each metric."""
    records = [info] if "exception_message" in info else [part for part in info.values() if isinstance(part, dict)]
    return [str(part["exception_message"]) for part in records if part.get("exception_message")]
