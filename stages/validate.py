"""Hold the rows to the data checklist: keep what is sound, refuse the rest by file, line and reason.

In: data/raw/*.jsonl (training), data/test/*.jsonl, the contract, the labelling rules, the suites, and the folder of
real requests that params.yaml names, where there is one. Out: the folder data/validated with train.jsonl, test.jsonl,
refused.jsonl and flagged.jsonl, metrics, and the Data Docs. Rows in = rows kept + rows refused, always.

stages/checklist has a file for each group of checks. A check of single rows writes its reason into the row; a check of
the whole gives a figure. The suites in expectations/ say how many rows may have a reason and where a figure must lie,
and Great Expectations decides.
"""

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from stages.checklist import clean, consistent, correct, labelling, page, representative, safe, usage, verdicts
from stages.checklist.complete import SchemaValue, schema_values
from stages.checklist.row import Table, Tables, flag, sound
from stages.checklist.verdicts import Verdict
from stages.core import cli, params
from stages.data import contract, rows, writing

SHOWN = 20  # refused rows named on the terminal; all of them are in the file
STOPPING = {"critical": {"critical"}, "warning": {"critical", "warning"}, "never": set[str]()}


@dataclass(frozen=True)
class Params:
    stop_at: Literal["critical", "warning", "never"]
    flag_only: list[str]
    similarity: params.Share
    templated: params.Share
    copied: params.Share
    phone_region: str
    trigger_rows: params.Count
    usage: str

    def __post_init__(self) -> None:
        from phonenumbers import SUPPORTED_REGIONS

        if wrong := ", ".join(sorted(set(self.flag_only) - set(verdicts.FLAGGABLE))):
            raise ValueError(f"flag_only can't have {wrong}: not a check, or one that must refuse")
        if self.phone_region not in SUPPORTED_REGIONS:
            raise ValueError(f"phone_region: no such region: {self.phone_region!r}")


def read_folder(folder: Path) -> list[rows.Row]:
    """All rows of the folder's *.jsonl files. No file, another kind of file, and a file without rows are errors."""
    if not folder.is_dir():
        raise cli.InputError(f"{folder}: no such folder")
    content: dict[Path, list[rows.Row]] = {}
    for file in sorted(file for file in folder.iterdir() if file.name[0] != "."):
        if any("\udc80" <= char <= "\udcff" for char in file.name):
            raise cli.InputError(f"{file}: a file's name must be UTF-8")
        if file.suffix not in (".jsonl", ".dvc") or not file.is_file():
            raise cli.InputError(f"{file}: only *.jsonl files, not in folders, are read")
        if file.suffix == ".jsonl":
            content[file] = list(rows.read(file))
        elif not file.with_suffix("").is_file():
            raise cli.InputError(f"{file}: the rows that it points at are not here; try `dvc pull`")
    if empty := [str(file) for file in content if not content[file]] or ([] if content else [str(folder)]):
        raise cli.InputError(f"{', '.join(empty)}: no rows")
    return [row for file in content.values() for row in file]


def read_table(folder: Path, rules: contract.Contract) -> Table:
    from tqdm import tqdm

    read = tqdm(read_folder(folder), desc=f"validate: reading {folder}", unit=" rows", delay=2, mininterval=1)
    return [correct.check_row(row, rules) for row in read]


def check(tables: Tables, values: list[SchemaValue], task: labelling.Labelling, settings: Params) -> None:
    """Fill in the reasons of all row checks.

    Checks that compare rows come last and leave out what is refused already, so that one defect fails one check.
    """
    from tqdm import tqdm

    train, test = tables["train"], tables["test"]
    one_table: list[Callable[[Table], None]] = [
        consistent.check_order,
        consistent.check_types,
        partial(labelling.check_labels, rules=task.rules),
        clean.check_characters,
        clean.check_chat_tokens,
        safe.check_secrets,
        partial(safe.check_personal, region=settings.phone_region),
        partial(safe.check_abuse, allowed=task.allowed_words),
        partial(safe.hide, region=settings.phone_region),
        partial(flag, checks=settings.flag_only),
        clean.check_duplicates,
        consistent.check_conflicts,
        partial(clean.check_near_duplicates, similarity=settings.similarity),
    ]
    steps: list[Callable[[], None]] = [
        partial(correct.check_grounded, [train, test], values, settings.copied, task.copied_fields),
        *(partial(step, table) for table in (train, test) for step in one_table),
        partial(safe.check_triggers, train, settings.trigger_rows),
        partial(representative.check_leaks, train, test),
        partial(representative.check_near_leaks, train, test, settings.similarity),
        *(partial(flag, table, settings.flag_only) for table in (train, test)),
    ]
    for step in tqdm(steps, desc="validate: checking", unit=" checks", delay=2, mininterval=1):
        step()


def summary(table: Table) -> dict[str, Any]:
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
    }


def write_rows(out: Path, tables: Tables) -> None:
    """Write what is kept, by split, and what is refused or flagged, with its reasons."""
    for split, table in tables.items():
        kept = ({"id": c.row.id, "source": c.where, "turns": list(c.row.turns)} for c in sound(table))
        writing.write_jsonl(out / f"{split}.jsonl", kept)
    for name, reasons in (("refused", "reasons"), ("flagged", "flags")):
        lines = [
            {"split": split, "file": c.row.file, "line": c.row.line, "checks": checks, "row": c.row.raw}
            for split, table in tables.items()
            for c in table
            if (checks := getattr(c, reasons))
        ]
        writing.write_jsonl(out / f"{name}.jsonl", lines)


def report(tables: Tables, judged: list[Verdict], sizes: list[str]) -> list[str]:
    """Lines for the terminal: refused rows, what does not hold and what sets its limit, and the counts (`sizes`)."""
    refused = [checked for table in tables.values() for checked in table if checked.reasons]
    lines = [f"{checked.where}: {name}: {why}" for checked in refused for name, why in checked.reasons.items()]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"... and {len(lines) - SHOWN} more, all of them in refused.jsonl"]
    shown = [verdict.line() for verdict in judged if verdict.verdict != "held" or verdict.scope == "usage"]
    if out := sorted({name for checked in refused for name in checked.reasons} & set(verdicts.FLAGGABLE)):
        shown.append(f"rows refused by {', '.join(out)} are left out; with validate.flag_only they would stay in")
    if ignored := Counter(name for table in tables.values() for checked in table for name in checked.row.ignored):
        shown.append(f"fields that are not read, and rows that have them: {dict(sorted(ignored.items()))}")
    size = next(verdict.examples[0] for verdict in judged if verdict.check == "train_rows")
    # 'not measured' is one line for all figures of usage
    return lines + [f"validate: {line}" for line in dict.fromkeys([*shown, *sizes, f"training rows: {size}"])]


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--raw", "folder of training rows")
@cli.path_option("--test", "folder of test rows")
@cli.path_option("--schema", "JSON Schema of an answer")
@cli.path_option("--rules", "labelling rules of the task; may be blank or missing")
@cli.path_option("--suites", "folder of expectation suites: train, test, coverage, figures, usage")
@cli.path_option("--out", "folder for kept and refused rows")
@cli.path_option("--docs", "folder for Data Docs")
@cli.path_option("--metrics", "file for the counts of rows")
@cli.path_option("--detail", "file for all figures of the checklist")
def main(
    raw: Path, test: Path, schema: Path, rules: Path, suites: Path, out: Path, docs: Path, metrics: Path, detail: Path
) -> None:
    settings = params.load("validate", Params)
    task = labelling.load(rules)
    agreed = contract.load(schema, params.load("contract", contract.Params).discriminator)
    tables = {split: read_table(folder, agreed) for split, folder in (("train", raw), ("test", test))}
    values = schema_values(agreed)
    check(tables, values, task, settings)
    judged = verdicts.judge(tables, values, settings.templated, suites)
    # What is recorded is a function of what is committed; real requests are not, and are only shown.
    recorded = [*judged, *usage.not_measured("never recorded")]
    judged += usage.judge(tables, Path(settings.usage), suites)

    figures = {split: summary(table) for split, table in tables.items()}
    sizes = [f"{split}: {f['rows']} rows = {f['kept']} kept + {f['refused']} refused" for split, f in figures.items()]
    write_rows(out, tables)
    page.write(docs / "index.html", sizes, recorded)
    writing.write_json(detail, figures | {"checklist": verdicts.checklist(recorded)})
    writing.write_json(metrics, {f"{s}_{name}": figures[s][name] for s in tables for name in ("rows", "refused")})
    if agreed.unchecked:
        click.echo(f"validate: formats that answers are not held to: {', '.join(agreed.unchecked)}", err=True)
    for line in report(tables, judged, sizes):
        click.echo(cli.printable(line), err=True)
    if any(verdict.verdict in STOPPING[settings.stop_at] for verdict in judged):
        raise SystemExit(1)


if __name__ == "__main__":
    gc.disable()  # millions of small objects, none in a cycle, and each search for one would go through all
    main()
