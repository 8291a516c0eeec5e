"""Validate the rows: keep what is sound, refuse the rest by file, line and reason, and stop when too much is refused.

In: data/raw/*.jsonl (training), data/test/*.jsonl, the contract. Out: data/validated/{train,test,refused}.jsonl, a
metrics file and Great Expectations' Data Docs. Rows in = rows kept + rows refused, always.

Each check fills one column of a table with its reason, or leaves it null; the suites in expectations/ say which column
must be null how often. So Great Expectations decides, and its Data Docs lead from a failed check to file and line.
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from stages.shared import cli, contract, params, rows, strict_json, text
from stages.shared.rows import Row

CHECKS = ("well_formed", "contract", "duplicate", "conflict", "leak")
KNOWN = (".jsonl", ".dvc")  # the latter points at a large file that DVC holds
SHOWN = 20  # refused rows named on the terminal; all of them are in the file


@dataclass(frozen=True)
class Params:
    limits: dict[str, params.Share]


@dataclass
class Checked:
    """A row and the reason of each check that it failed; for each of its answers the normalised prompt with the answer,
    and the same prompt without a system turn.
    """

    row: Row
    reasons: dict[str, str] = field(default_factory=dict)
    examples: list[tuple[str, str]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        return f"{self.row.file}:{self.row.line}"


def read_folder(folder: Path) -> list[Row]:
    """All rows of the folder's *.jsonl files. No file, another kind of file, and a file without rows are errors."""
    other = [str(file) for file in sorted(folder.iterdir()) if file.suffix not in KNOWN and file.name[0] != "."]
    if other:
        raise cli.InputError(f"{', '.join(other)}: only *.jsonl files, not in folders, are read")
    found = {file: list(rows.read(file)) for file in sorted(folder.glob("*.jsonl"))}
    empty = [str(file) for file, content in found.items() if not content]
    if not found or empty:
        raise cli.InputError(f"{', '.join(empty)}: no rows" if empty else f"{folder}: no *.jsonl file")
    return [row for content in found.values() for row in content]


def check_row(row: Row, rules: contract.Contract) -> Checked:
    """Check a row by itself; the answers of the result have the one compact spelling."""
    if row.reason:
        return Checked(row, {"well_formed": row.reason})
    checked, turns, said = Checked(row), [], {"all": "", "talk": ""}
    for turn in row.turns:
        content = turn["content"]
        if turn["role"] == "assistant":
            try:
                value = contract.parse_answer(content)
            except strict_json.JsonError as error:
                return Checked(row, {"contract": f"answer: {error}{hint(content)}"})
            if broken := rules.error(value):
                return Checked(row, {"contract": f"answer: {broken}"})
            content = strict_json.compact(value)
            checked.examples.append((said["all"], strict_json.canonical(value).casefold()))
            checked.requests.append(said["talk"])
            checked.kinds.append(rules.kind(value))
        line = f"{turn['role']}: {text.normalise(content)}\n"
        said["all"] += line
        said["talk"] += line if turn["role"] != "system" else ""
        turns.append({"role": turn["role"], "content": content})
    checked.row = replace(row, turns=tuple(turns), id=row.id or content_id(turns))
    return checked


def hint(answer: str) -> str:
    """What people usually meant when an answer is not JSON."""
    if answer.lstrip().startswith("```"):
        return " (take the code fence away)"
    if answer.lstrip().startswith("{'"):
        return " (single quotes: this is Python's spelling, not JSON)"
    return ""


def content_id(turns: list[dict[str, str]]) -> str:
    """A row without an id is known by its content, so that it keeps its id wherever it moves."""
    return hashlib.sha256(strict_json.compact(turns).encode()).hexdigest()[:12]


def check_duplicates(table: list[Checked]) -> None:
    """Refuse a row that adds nothing to the rows before it, and a second row of the same id."""
    seen: dict[tuple[str, str], str] = {}
    ids: dict[str, str] = {}
    for checked in table:
        if checked.reasons:
            continue
        known = [seen[example] for example in checked.examples if example in seen]
        if len(known) == len(checked.examples):
            checked.reasons["duplicate"] = f"same request and answer as {known[-1]}"
        elif checked.row.id in ids:
            checked.reasons["duplicate"] = f"id {checked.row.id!r} is also at {ids[checked.row.id]}"
        if checked.reasons:
            continue
        for example in checked.examples:
            seen.setdefault(example, checked.where)
        ids.setdefault(checked.row.id, checked.where)


def check_conflicts(table: list[Checked]) -> None:
    """Refuse every row whose request has another answer elsewhere: nothing tells which one is right."""
    answers: dict[str, dict[str, str]] = {}
    for checked in table:
        for prompt, answer in checked.examples:
            answers.setdefault(prompt, {}).setdefault(answer, checked.where)
    for checked in table:
        for prompt, answer in checked.examples:
            others = [where for other, where in answers[prompt].items() if other != answer]
            if others:
                checked.reasons["conflict"] = f"same request, other answer at {others[0]}"


def check_leaks(train: list[Checked], test: list[Checked]) -> None:
    """Refuse training rows that hold a test request, whatever system prompt either has."""
    requests = {request: checked.where for checked in test for request in checked.requests}
    for checked in train:
        found = [requests[request] for request in checked.requests if request in requests]
        if found:
            checked.reasons["leak"] = f"same request as the test row {found[0]}"


def verdict(table: list[Checked], suite_file: Path, limits: dict[str, float], docs: Any) -> dict[str, dict[str, Any]]:
    """Run one suite over the table; return per expectation whether it held. Raises InputError if it can't run."""
    import great_expectations as gx
    import pandas as pd

    columns = ["file", "line", "id", *CHECKS]
    frame = pd.DataFrame(
        [[c.row.file, c.row.line, c.row.id, *(c.reasons.get(check) for check in CHECKS)] for c in table],
        columns=columns,
        dtype=object,
    )
    stored = strict_json.parse(suite_file.read_text(encoding="utf-8"))
    suite = docs.suites.add(gx.ExpectationSuite(**stored))
    source = docs.data_sources.add_pandas(suite.name)
    batch = source.add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")
    definition = docs.validation_definitions.add(gx.ValidationDefinition(name=suite.name, data=batch, suite=suite))
    checkpoint = gx.Checkpoint(
        name=suite.name,
        validation_definitions=[definition],
        result_format={
            "result_format": "COMPLETE",
            "unexpected_index_column_names": ["file", "line"],
            "include_unexpected_rows": False,
        },
    )
    ran = checkpoint.run(
        batch_parameters={"dataframe": frame},
        expectation_parameters={check: 1 - limit for check, limit in limits.items()},
    )
    (result,) = ran.run_results.values()
    return outcomes(suite_file, result, len(stored["expectations"]))


def outcomes(suite_file: Path, result: Any, expected: int) -> dict[str, dict[str, Any]]:
    """Great Expectations counts an expectation that raised as merely failed, and an empty suite as a success."""
    found = {}
    for item in result.results:
        name = item.expectation_config.kwargs.get("column", item.expectation_config.type)
        if raised := exceptions(item.exception_info or {}):
            raise cli.InputError(f"{suite_file}: {name}: {raised[0]}")
        found[name] = {"success": bool(item.success)}
    if not found or len(found) != expected:
        raise cli.InputError(f"{suite_file}: {len(found)} of {expected} expectations were evaluated")
    return found


def exceptions(info: dict[str, Any]) -> list[str]:
    """The messages in an expectation's exception_info, which holds one record, or one for each metric."""
    records = [info] if "exception_message" in info else [part for part in info.values() if isinstance(part, dict)]
    return [str(part["exception_message"]) for part in records if part.get("exception_message")]


def data_docs(folder: Path) -> Any:
    """A Great Expectations context whose Data Docs go to `folder`; no telemetry."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # a run takes well under two seconds
    for name in list(context.get_site_names()):
        context.delete_data_docs_site(name)
    context.add_data_docs_site(
        "local",
        {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.resolve())},
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        },
    )
    return context


def summary(table: list[Checked], held: dict[str, dict[str, Any]], limits: dict[str, float]) -> dict[str, Any]:
    """The figures of one split for metrics/validate.json."""
    kept = [checked for checked in table if not checked.reasons]
    counts = Counter(check for checked in table for check in checked.reasons)
    checks = {
        name: {"refused": counts[name], "share": counts[name] / max(len(table), 1), "limit": limits[name], **result}
        for name, result in held.items()
        if name in limits
    }
    return {
        "rows": len(table),
        "kept": len(kept),
        "refused": len(table) - len(kept),
        "examples": sum(len(checked.examples) for checked in kept),
        "multi_turn": sum(len(checked.examples) > 1 for checked in kept),
        "kinds": dict(Counter(kind for checked in kept for kind in checked.kinds if kind)),
        "ignored_fields": dict(Counter(name for checked in kept for name in checked.row.ignored)),
        "checks": checks,
        "failed": sorted(name for name, result in held.items() if not result["success"]),
    }


def kept_rows(table: list[Checked]) -> list[dict[str, Any]]:
    return [{"id": c.row.id, "source": c.where, "turns": list(c.row.turns)} for c in table if not c.reasons]


def refused_rows(table: list[Checked], split: str) -> list[dict[str, Any]]:
    return [
        {"split": split, "file": c.row.file, "line": c.row.line, "checks": c.reasons, "row": c.row.raw}
        for c in table
        if c.reasons
    ]


def report(refused: list[dict[str, Any]], figures: dict[str, Any]) -> list[str]:
    """Lines for the terminal: refused rows, then the checks that failed with the knob that rules them."""
    lines = [f"{r['file']}:{r['line']}: {check}: {why}" for r in refused for check, why in r["checks"].items()]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"... and {len(lines) - SHOWN} more, all of them in refused.jsonl"]
    for split, part in figures.items():
        others = [name for name in part["failed"] if name not in CHECKS]
        lines += [f"validate: {split}: the expectation on {name} failed ({part['rows']} rows)" for name in others]
        lines += [
            f"validate: {split}: {name} refused {check['refused']} of {part['rows']} rows, more than "
            f"validate.limits.{name} = {check['limit']} allows; mend the rows, or raise the limit in params.yaml"
            for name, check in part["checks"].items()
            if not check["success"]
        ]
    return lines


def limits_of(settings: Params) -> dict[str, float]:
    if set(settings.limits) != set(CHECKS):
        raise params.ParamsError(f"params.yaml: validate.limits must have exactly: {', '.join(CHECKS)}")
    if not all(0 <= limit <= 1 for limit in settings.limits.values()):
        raise params.ParamsError("params.yaml: validate.limits are shares, from 0 to 1")
    return settings.limits


@click.command(help=__doc__)
@cli.path_option("--raw", "folder of training rows")
@cli.path_option("--test", "folder of test rows")
@cli.path_option("--schema", "JSON Schema of an answer")
@cli.path_option("--suites", "folder of expectation suites, train.json and test.json")
@cli.path_option("--out", "folder for kept and refused rows")
@cli.path_option("--docs", "folder for Data Docs")
@cli.path_option("--metrics", "metrics file")
def main(raw: Path, test: Path, schema: Path, suites: Path, out: Path, docs: Path, metrics: Path) -> None:
    limits = limits_of(params.load("validate", Params))
    rules = contract.load(schema, params.load("contract", params.Contract).discriminator)
    tables = {
        "train": [check_row(row, rules) for row in read_folder(raw)],
        "test": [check_row(row, rules) for row in read_folder(test)],
    }
    for table in tables.values():
        check_duplicates(table)
        check_conflicts(table)
    check_leaks(tables["train"], tables["test"])
    context = data_docs(docs)
    figures = {
        split: summary(table, verdict(table, suites / f"{split}.json", limits, context), limits)
        for split, table in tables.items()
    }
    context.build_data_docs()
    refused = [row for split, table in tables.items() for row in refused_rows(table, split)]
    for split, table in tables.items():
        strict_json.write_jsonl(out / f"{split}.jsonl", kept_rows(table))
    strict_json.write_jsonl(out / "refused.jsonl", refused)
    strict_json.write_json(metrics, figures)
    for line in report(refused, figures):
        click.echo(line, err=True)
    for split, part in figures.items():
        click.echo(
            f"validate: {split}: {part['rows']} rows = {part['kept']} kept + {part['refused']} refused", err=True
        )
    if any(part["failed"] for part in figures.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
