"""Print the results of the last run as a Markdown table: three systems on the same test rows, and the gain."""

from pathlib import Path
from typing import Any

import click

from stages.shared import strict_json

SYSTEMS = ("zero_shot", "few_shot", "tuned")
COLUMNS = {
    "JSON valid": "json_valid",
    "schema valid": "schema_valid",
    "exact match": "exact_match",
    "normalised": "exact_match_normalised",
    "action": "action_accuracy",
    "field F1": "field_f1",
}


def cell(figures: dict[str, Any], name: str) -> str:
    return f"{figures[name]:.3f} [{figures[name + '_low']:.3f}, {figures[name + '_high']:.3f}]"


def table(metrics: dict[str, Any]) -> list[str]:
    """The lines of the table: a rate and its 95% interval in each cell."""
    lines = [f"| system | n | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    for system in SYSTEMS:
        figures = metrics[system]
        cells = [cell(figures, name) for name in COLUMNS.values()]
        lines.append(f"| {system} | {figures['n']} | {' | '.join(cells)} |")
    gain = metrics["gain_over_few_shot"]
    interval = f"[{gain['low']:+.3f}, {gain['high']:+.3f}]"
    held_out = metrics["validation"]["tuned"]
    return [
        *lines,
        "",
        f"Gain of tuned over few_shot, exact match: {gain['exact_match']:+.3f} {interval}, "
        f"p = {gain['p_value']:.2g}, n = {gain['n']} pairs.",
        f"Validation rows, for choosing settings: exact match {cell(held_out, 'exact_match')}, n = {held_out['n']}.",
    ]


@click.command(help=__doc__)
@click.option("--metrics", type=click.Path(path_type=Path), default="metrics/evaluate.json", show_default=True)
def main(metrics: Path) -> None:
    if not metrics.is_file():
        raise click.ClickException(f"{metrics} is missing; run `make repro`")
    click.echo("\n".join(table(strict_json.parse(metrics.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
