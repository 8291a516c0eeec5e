"""Print the results of the last run as a Markdown table: every system on the same test rows, the gain, and its price.

With --write, the table also replaces the one between the marks in a Markdown file, so that the numbers on show are
those of the commit.
"""

from pathlib import Path
from typing import Any

import click

from stages.shared import cli, strict_json

BEGIN, END = "<!-- table -->", "<!-- /table -->"
SPLITS = ("train", "test")
SYSTEMS = ("zero_shot", "few_shot", "tuned", "constrained")
GAINS = (("gain_over_few_shot", "tuned", "few_shot"), ("constrained_over_tuned", "constrained", "tuned"))
COLUMNS = {
    "JSON valid": "json_valid",
    "schema valid": "schema_valid",
    "exact match": "exact_match",
    "normalised": "exact_match_normalised",
    "action": "action_accuracy",
    "field F1": "field_f1",
}


def cell(figures: dict[str, Any], name: str) -> str:
    if name not in figures:  # the contract has no discriminator
        return "-"
    return f"{figures[name]:.3f} [{figures[name + '_low']:.3f}, {figures[name + '_high']:.3f}]"


def comparison(gain: dict[str, Any]) -> str:
    interval = f"[{gain['low']:+.3f}, {gain['high']:+.3f}]"
    return f"{gain['exact_match']:+.3f} {interval}, p = {gain['p_value']:.2g}, n = {gain['n']} pairs"


def table(metrics: dict[str, Any]) -> list[str]:
    """The lines of the table: a rate and its 95% interval in each cell."""
    lines = [f"| system | n | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    for system in (system for system in SYSTEMS if system in metrics):
        figures = metrics[system]
        cells = [cell(figures, name) for name in COLUMNS.values()]
        lines.append(f"| {system} | {figures['n']} | {' | '.join(cells)} |")
    held_out = metrics["validation"]["tuned"]
    return [
        *lines,
        "",
        *(
            f"Gain of {after} over {before}, exact match: {comparison(metrics[name])}."
            for name, after, before in GAINS
            if name in metrics
        ),
        f"Validation rows, for choosing settings: exact match {cell(held_out, 'exact_match')}, n = {held_out['n']}.",
    ]


def side_effects(retention: dict[str, Any] | None, memorisation: dict[str, Any] | None) -> list[str]:
    """A line each for what training did to general ability and what it made the model recite, where measured."""
    lines = []
    if retention:
        before, after, change = (retention[name] for name in ("base", "tuned", "tuned_over_base"))
        interval = f"{change['accuracy']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
        low, high = change["perplexity_ratio_low"], change["perplexity_ratio_high"]
        lines.append(
            f"General questions, n = {change['n']}: {cell(before, 'accuracy')} right before training, "
            f"{cell(after, 'accuracy')} after, {interval}, p = {change['p_value']:.2g}. Perplexity of plain text: "
            f"{change['perplexity_ratio']:.2f} [{low:.2f}, {high:.2f}] times the base's. "
            f"Verdict: {retention['verdict']}."
        )
    if memorisation:
        alone = memorisation["answer_alone"]
        shares = " and ".join(f"{cell(alone[name], 'copied')} of {alone[name]['n']} {name} ones" for name in SPLITS)
        change = alone["difference"]
        interval = f"{change['copied']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
        lines.append(
            f"Answers recited from their first half, without the request: {shares}, {interval}. "
            f"Verdict: {memorisation['verdict']}."
        )
    return ["", *lines] if lines else []


def read(folder: Path) -> list[str]:
    """The lines for the metrics of a folder. Raises InputError where there is no evaluate.json."""
    if not (folder / "evaluate.json").is_file():
        raise cli.InputError(f"{folder / 'evaluate.json'} is missing; run `make repro`")
    names = ("evaluate", "retention", "memorisation")
    files = {name: folder / f"{name}.json" for name in names}
    found = {
        name: strict_json.parse(f.read_text(encoding="utf-8")) if f.is_file() else None for name, f in files.items()
    }
    return [*table(found["evaluate"]), *side_effects(found["retention"], found["memorisation"])]


def put(document: str, lines: list[str], marks: tuple[str, str] = (BEGIN, END)) -> str:
    """The document with the lines between its marks; unchanged where it has none."""
    before, begin, rest = document.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    return before + begin + "\n" + "\n".join(lines) + "\n" + end + after if end else document


@click.command(help=__doc__)
@click.option("--metrics", type=click.Path(path_type=Path), default="metrics", show_default=True, help="folder")
@click.option("--write", type=click.Path(path_type=Path, exists=True), help="Markdown file to put the table into")
def main(metrics: Path, write: Path | None) -> None:
    lines = read(metrics)
    click.echo("\n".join(lines))
    if write:
        document = put(write.read_text(encoding="utf-8"), lines)
        with strict_json.replacing(write) as file:
            file.write(document)


if __name__ == "__main__":
    main()
