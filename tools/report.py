"""What a change did: data, params, code and metrics of the working tree (or --head REV) against BASE_REV.

From what Git holds alone: no DVC remote, no model, no GPU. Markdown on stdout, ready for a pull request's comment.
Exit status 0: the gate holds; 1: it fails; 2: the two can't be compared.

With --render FILE, a report that --json wrote, perhaps on a stranger's pull request, is checked against
tools/reporting/report.schema.json and rendered here; exit status 0 if it could be, whatever its verdict.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from stages.shared import params, strict_json, writing
from stages.shared.cli import InputError
from tools.reporting import answers, changes, document, kept, paired, render, revision, row_changes, trust
from tools.reporting.paired import Outcome, Settings
from tools.reporting.revision import CannotCompareError, Revision

VERSION = 1
LARGEST = 20_000_000  # bytes of a report to render
EXIT = {"pass": 0, "fail": 1, "refused": 2}
SCHEMA = Path(__file__).parent / "reporting" / "report.schema.json"


def settings_for(base: Revision, head: Revision) -> tuple[Settings, bool]:
    """The gate's rules, and whether the change alters them: a change is judged by the rules it found.

    Where the base has none yet, those of the working folder count. Raises InputError.
    """
    old, new = (changes.params_of(side.folder).get("report") for side in (base, head))
    path = base.folder / "params.yaml" if old else params.PARAMS
    settings = params.load("report", Settings, path)
    if not settings.rules:
        raise CannotCompareError("params.yaml: report.rules is empty, so nothing would be judged")
    return settings, bool(old) and old != new


def outcomes_of(side: Revision, settings: Settings) -> tuple[dict[str, Outcome], str]:
    """The outcomes of a revision, or none and the reason: every system that the gate looks at must be in them."""
    file = "metrics/outcomes.jsonl"
    try:
        found = paired.read_outcomes(side.folder / file)
    except strict_json.JsonError as error:
        return {}, str(error).replace(f"{side.folder}/", "")
    for system in {rule.system for rule in settings.rules}:
        if not found or not all(system in outcome.verdicts for outcome in found.values()):
            return {}, f"{file}: no verdict of the system {system!r} on some rows, or no rows"
    return found, ""


def report(base: Revision, head: Revision) -> dict[str, Any]:
    """The report's data, as report.schema.json describes it. Raises InputError when the rules can't be read."""
    settings, rules_changed = settings_for(base, head)
    problems = trust.check(head.folder)
    (old, old_reason), (new, new_reason) = (outcomes_of(side, settings) for side in (base, head))
    if new_reason and not problems:
        problems.append(trust.problem("metrics/outcomes.jsonl", new_reason))
    pairs, edited = answers.shared(old, new, *(answers.asked(side.folder) for side in (base, head)))
    enough = len(pairs) >= settings.min_shared
    folders = base.folder, head.folder
    kept_and_copied, faults = kept.between(*folders)
    found = {
        "version": VERSION,
        "base": {"name": changes.clip(base.name, 100), "commit": base.commit},
        "head": {"name": changes.clip(head.name, 100), "commit": head.commit},
        "rules_changed": rules_changed,
        "problems": changes.problems([*problems, *faults]),
        "refused": "" if enough or new_reason else refusal(old_reason, len(pairs), settings),
        "comparison": answers.compare(old, new, pairs, edited, folders, settings) if enough else None,
        "kept": kept_and_copied,
        "changes": {"data": data_changes(*folders), **changes.between(base, head)},
    }
    return {**found, "status": document.status(found)}


def data_changes(before: Path, after: Path) -> dict[str, Any]:
    return {name: row_changes.between(before / "data" / name, after / "data" / name) for name in ("raw", "test")}


def refusal(reason: str, pairs: int, settings: Settings) -> str:
    """Why nothing can be said, which is the base's fault or the test set's; head's own faults fail the gate."""
    if reason:
        return f"the base has no usable outcomes: {changes.clip(reason, 200)}"
    return f"only {pairs} test answers are the same on both sides, {settings.min_shared} are needed"


def checked(data: Any) -> dict[str, Any]:
    """The data if it is what report.schema.json allows and not at odds with itself. Raises CannotCompareError."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    rules = Draft202012Validator(strict_json.read(SCHEMA))
    if error := best_match(rules.iter_errors(data)):
        where = "/".join(map(str, error.absolute_path))
        raise CannotCompareError(f"not a report: {where}: {error.validator} is broken")
    if data["status"] != document.status(data):
        raise CannotCompareError("not a report: its status is not the one that follows from what it holds")
    return dict(data)


def read(file: Path) -> dict[str, Any]:
    """A report that --json wrote. Raises CannotCompareError."""
    try:
        if file.stat().st_size > LARGEST:
            raise CannotCompareError(f"{file}: more than {LARGEST} bytes")
        return checked(strict_json.read(file))
    except (OSError, ValueError) as error:
        raise CannotCompareError(str(error)) from error


def compared(base: str, head: str | None) -> dict[str, Any]:
    """The report on two revisions by name, checked like a stranger's."""
    with tempfile.TemporaryDirectory() as scratch:
        return checked(report(*revision.pair(base, head, Path(scratch).resolve())))


def as_json(data: dict[str, Any]) -> str:
    """ASCII, so that no text of a model can direct a terminal, and without the `##[` that a runner would obey."""
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False).replace("##[", "#\\u0023[")


@click.command(help=__doc__)
@click.argument("base_rev", required=False)
@click.option("--head", metavar="REV", help="compare this commit instead of the working tree")
@click.option("--json", "as_data", is_flag=True, help="print the report's data instead of Markdown")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="also write a self-contained page")
@click.option("--render", "render_file", type=click.Path(path_type=Path), help="render this file's data instead")
def main(base_rev: str | None, head: str | None, as_data: bool, html: Path | None, render_file: Path | None) -> None:
    if (base_rev is None) == (render_file is None) or (head and render_file):
        raise click.UsageError("give either BASE_REV or --render FILE")
    try:
        data = read(render_file) if render_file else compared(str(base_rev), head)
    except InputError as error:
        raise CannotCompareError(render.visible(error.message)) from error
    title, blocks = document.title(data), document.blocks(data)
    click.echo(as_json(data) if as_data else render.markdown(title, blocks), nl=as_data)
    if html:
        with writing.replacing(html) as file:
            file.write(render.page(title, blocks))
    sys.exit(0 if render_file else EXIT[data["status"]])


if __name__ == "__main__":
    main()
