"""Validate the rows against the quality checklist: keep what is sound, refuse the rest by file, line and reason.

In: data/raw/*.jsonl (training), data/test/*.jsonl, the contract. Out: the folder data/validated with train.jsonl,
test.jsonl, refused.jsonl and flagged.jsonl, a metrics file and Great Expectations' Data Docs. Rows in = rows kept +
rows refused, always.

stages/checklist has a file for each bullet of the checklist. A check of single rows fills one column of a table with
its reason, or leaves it null; a check of the whole gives a figure. The suites in expectations/ say how many rows may
have a reason, and where a figure must lie, so Great Expectations decides, and its Data Docs lead to file and line.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from stages.checklist import clean, consistent, correct, representative, safe, size, verdicts
from stages.checklist.listed import Listed, listed
from stages.checklist.row import Checked, flag, sound
from stages.checklist.verdicts import Settings, Tables, Verdict
from stages.shared import cli, contract, params, rows, writing

KNOWN = (".jsonl", ".dvc")  # the latter points at a large file that DVC holds
SHOWN = 20  # refused rows named on the terminal; all of them are in the file
FILES = {"flags": "flagged.jsonl", "reasons": "refused.jsonl"}
Check = Callable[[list[Checked]], object]


def read_folder(folder: Path) -> list[rows.Row]:
    """All rows of the folder's *.jsonl files. No file, another kind of file, and a file without rows are errors."""
    if not folder.is_dir():
        raise cli.InputError(f"{folder}: no such folder")
    files = [file for file in sorted(folder.iterdir()) if file.name[0] != "."]
    other = [str(file) for file in files if file.suffix not in KNOWN or not file.is_file()]
    if other:
        raise cli.InputError(f"{', '.join(other)}: only *.jsonl files, not in folders, are read")
    absent = [str(file) for file in files if file.suffix == ".dvc" and not file.with_suffix("").is_file()]
    if absent:
        raise cli.InputError(f"{', '.join(absent)}: the rows that it points at are not here; try `dvc pull`")
    found = {file: list(rows.read(file)) for file in files if file.suffix == ".jsonl"}
    empty = [str(file) for file, content in found.items() if not content]
    if not found or empty:
        raise cli.InputError(f"{', '.join(empty)}: no rows" if empty else f"{folder}: no *.jsonl file")
    return [row for content in found.values() for row in content]


def read_table(folder: Path, rules: contract.Contract) -> list[Checked]:
    from tqdm import tqdm

    found = tqdm(read_folder(folder), desc=f"validate: reading {folder}", unit=" rows", delay=2, mininterval=1)
    return [correct.check_row(row, rules) for row in found]


def check(tables: Tables, values: list[Listed], settings: Settings) -> None:
    """Fill in the reasons of all row checks.

    Checks that compare rows come last and leave out what is refused already, so that one defect fails one check.
    """
    from tqdm import tqdm

    train, test = tables["train"], tables["test"]
    one_table: list[Check] = [
        *single_checks(settings),
        partial(flag, checks=settings.flag_only),
        clean.check_duplicates,
        consistent.check_conflicts,
        partial(clean.check_near_duplicates, similarity=settings.similarity),
    ]
    steps: list[Callable[[], object]] = [
        partial(correct.check_grounded, [train, test], values, settings.copied, settings.copied_fields),
        *(partial(step, table) for table in (train, test) for step in one_table),
        partial(safe.check_triggers, train, settings.trigger_rows),
        partial(representative.check_leaks, train, test),
        partial(representative.check_near_leaks, train, test, settings.similarity),
        *(partial(flag, table, settings.flag_only) for table in (train, test)),
    ]
    for step in tqdm(steps, desc="validate: checking", unit=" checks", delay=2, mininterval=1):
        step()


def single_checks(settings: Settings) -> list[Check]:
    """The checks that refuse a row whatever other rows are refused."""
    return [
        consistent.check_order,
        consistent.check_types,
        partial(consistent.check_rules, rules=settings.rules),
        clean.check_characters,
        clean.check_chat_tokens,
        safe.check_secrets,
        partial(safe.check_personal, region=settings.phone_region),
        partial(safe.check_abuse, allowed=settings.allowed_words),
        safe.hide,
    ]


def summary(table: list[Checked]) -> dict[str, Any]:
    """The counts of one split."""
    kept = sound(table)
    return {
        "rows": len(table),
        "kept": len(kept),
        "refused": len(table) - len(kept),
        "examples": sum(len(checked.examples) for checked in kept),
        "multi_turn": sum(len(checked.examples) > 1 for checked in kept),
        "kinds": dict(Counter(example.kind for checked in kept for example in checked.examples if example.kind)),
        "ignored_fields": dict(Counter(name for checked in kept for name in checked.row.ignored)),
        **clean.distinct_ngrams(kept),
    }


def write_rows(out: Path, tables: Tables) -> list[dict[str, Any]]:
    """Write what is kept, by split, and what is refused or flagged, with its reasons; return what is refused."""
    for split, table in tables.items():
        kept = [{"id": c.row.id, "source": c.where, "turns": list(c.row.turns)} for c in table if not c.reasons]
        writing.write_jsonl(out / f"{split}.jsonl", kept)
    for name in ("flags", "reasons"):
        failed = [
            {"split": split, "file": c.row.file, "line": c.row.line, "checks": getattr(c, name), "row": c.row.raw}
            for split, table in tables.items()
            for c in table
            if getattr(c, name)
        ]
        writing.write_jsonl(out / FILES[name], failed)
    return failed


def report(refused: list[dict[str, Any]], found: list[Verdict], tables: Tables) -> list[str]:
    """Lines for the terminal: refused rows, what does not hold and the knob that rules it, and the counts."""
    lines = [f"{r['file']}:{r['line']}: {name}: {why}" for r in refused for name, why in r["checks"].items()]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"... and {len(lines) - SHOWN} more, all of them in refused.jsonl"]
    lines += [verdict.line() for verdict in found if verdict.severity != "held"]
    lines += [f"validate: {verdicts.counts(split, table)}" for split, table in tables.items()]
    kept = len(sound(tables["train"]))
    return [*lines, f"validate: {kept} training rows; {size.verdict(kept)}"]


@click.command(help=__doc__)
@cli.path_option("--raw", "folder of training rows")
@cli.path_option("--test", "folder of test rows")
@cli.path_option("--schema", "JSON Schema of an answer")
@cli.path_option("--suites", "folder of expectation suites: train, test, coverage, figures")
@cli.path_option("--out", "folder for kept and refused rows")
@cli.path_option("--docs", "folder for Data Docs")
@cli.path_option("--metrics", "metrics file")
def main(raw: Path, test: Path, schema: Path, suites: Path, out: Path, docs: Path, metrics: Path) -> None:
    settings = params.load("validate", Settings)
    rules = contract.load(schema, params.load("contract", contract.Params).discriminator)
    tables = {split: read_table(folder, rules) for split, folder in (("train", raw), ("test", test))}
    values = listed(rules)
    check(tables, values, settings)
    found = verdicts.judge(tables, values, settings, suites, docs)
    refused = write_rows(out, tables)
    figures = {split: summary(table) for split, table in tables.items()}
    writing.write_json(metrics, figures | {"checklist": verdicts.checklist(found)})
    for line in report(refused, found, tables):
        click.echo(line, err=True)
    severities = {"critical"} if settings.stop_at == "critical" else {"critical", "warning"}
    if any(verdict.severity in severities for verdict in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
