"""Put the figures of metrics/experiments between the marks of a Markdown page, so that they are those of the commit.

python -m experiments.page docs/experiments.md
"""

from pathlib import Path
from typing import Any

import click

from stages.core import cli, strict_json
from stages.data import writing
from tools import table

FOLDER = Path("metrics/experiments")
Figures = dict[str, Any]


def bits(figures: Figures) -> str:
    return f"{figures['exposure']:.1f} ({figures['exposure_least']:.1f} to {figures['exposure_most']:.1f})"


def learning_curve(result: Figures) -> list[str]:
    """Both series, size by size, and a drawing that GitHub renders; sizes double, so each gets one place."""
    names = ("same epochs", "enough steps")
    pairs = list(zip(*(result["series"][name] for name in names), strict=True))
    columns = [f"{column}, {name}" for name in names for column in ("epochs, steps", "exact match")]
    cells = [
        [pair[0]["rows"], pair[0]["examples"]]
        + [cell for p in pair for cell in (f"{p['epochs']:g}, {p['steps']}", table.cell(p, "exact_match"))]
        for pair in pairs
    ]
    same, enough = (", ".join(f"{p['exact_match']:.3f}" for p in part) for part in zip(*pairs, strict=True))
    axes = [f'  x-axis "training rows" [{", ".join(str(row[0]) for row in cells)}]', '  y-axis "exact match" 0 --> 1']
    chart = ["```mermaid", "xychart-beta", *axes, f"  bar [{enough}]", f"  line [{same}]", "```"]
    return [*table.grid(["rows", "answers", *columns], cells), "", *chart]


def ten_times(result: Figures) -> list[str]:
    """What each training was and reached, the comparisons, and what the gate let through."""
    arms = [
        [name, arm["rows"], arm["epochs"], arm["steps"], f"{arm['tokens']:,}"]
        + [table.cell(arm, rate) for rate in ("exact_match", "json_valid")]
        for name, arm in result["arms"].items()
    ]
    compared = [[c["of"], c["over"], table.signed(c, "exact_match"), f"{c['p_value']:.2g}"] for c in result["compared"]]
    ways = [*result["recipe"]["ways"], "clean"]
    gate = [
        [name, *(f"{counts[way]['kept']} of {counts[way]['rows']}" for way in ways)]
        for name, counts in result["gate"].items()
    ]
    return [
        *table.grid(["trained on", "rows", "epochs", "steps", "tokens", "exact match", "JSON valid"], arms),
        "",
        *table.grid(["difference of", "to", "exact match", "p"], compared),
        "",
        "Rows that `validate` let through, by what had been done to them:",
        "",
        *table.grid(["", *(name.replace("_", " ") for name in ways)], gate),
    ]


def canaries(result: Figures) -> list[str]:
    """Exposure, extraction and recital by the model that saw the canaries, and exposure by the control."""
    rows = []
    for way, kinds in result["planted"].items():
        for kind, times in ((kind, times) for kind, cells in kinds.items() for times in cells):
            cell, control = kinds[kind][times], result["control"][way][kind][times]
            rates = [table.cell(cell, rate, 2) for rate in ("extracted", "recited")]
            asked = [{"said": "yes", "unsaid": "no"}[kind], times, way.replace("_", " "), cell["n"]]
            rows.append([*asked, bits(cell), *rates, bits(control)])
    measured = ["n", "exposure, bits", "extracted", "recited", "control, bits"]
    return table.grid(["code in the request", "rows each", "asked with", *measured], rows)


def seeds(result: Figures) -> list[str]:
    """The rates of the trainings and how much of their spread is common to all answers of a seed."""
    rows = [
        [metric.replace("_", " "), f"{min(rates):.3f} to {max(rates):.3f}"]
        + [f"{result[part][metric]:.4f}" for part in ("spread", "sigma_seed")]
        for metric, rates in result["rates"].items()
    ]
    header = [f"{result['seeds']} trainings, {result['n']} test rows", "range", "spread", "of the seed"]
    return [
        *table.grid(header, rows),
        "",
        f"Two of them disagree on {result['flipping']:.1%} of the answers, by whether they are exact.",
    ]


def calibration(result: Figures) -> list[str]:
    """How often each word falls, with nothing but seeds between the sides and with a drop."""
    words = ("better", "worse", "fails", "alone_better", "alone_worse")
    cases = [["recorded pairs", 0, 1, result["recorded"]]]
    cases += [[one["common"], one["drop"], one["runs"], one] for one in result["simulated"]]
    rows = [[*case, *(f"{one[word]:.3f}" if word in one else "-" for word in words)] for *case, one in cases]
    header = ["effect of a seed", "drop", "trainings a side", "better", "worse", "gate fails"]
    lines = table.grid([*header, "better, these two models", "worse, these two models"], rows)
    return [*lines, "", f"{result['seeds']} seeds were recorded; their own effect: {result['measured']:.4f}."]


def wrong_labels(result: Figures) -> list[str]:
    """The share of planted wrong labels that the list of suspects shows, by how they are wrong."""
    parts = {"all": result, **result["ways"]}
    header = ["wrong labels", "n", f"among the {result['looked_at']} most suspect of {result['rows']} rows"]
    lines = table.grid(header, [[name, part["n"], table.cell(part, "found")] for name, part in parts.items()])
    alone = ", ".join(f"{count} in epoch {epoch}" for epoch, count in enumerate(result["by_epoch"], start=1))
    return [*lines, "", f"By the loss of one epoch alone: {alone}."]


PARTS = {part.__name__: part for part in (learning_curve, ten_times, canaries, seeds, calibration, wrong_labels)}


def written(page: str, folder: Path = FOLDER) -> str:
    """The page with every table made anew. Raises InputError for a mark that is missing.

    An experiment that has no result yet and no marks in the page is left out.
    """
    names = [name for name in PARTS if (folder / f"{name}.json").is_file() or f"<!-- {name} -->" in page]
    if not names:
        raise cli.InputError(f"no results in {folder}, and no marks such as <!-- {next(iter(PARTS))} -->")
    for name in names:
        lines = [f"Not measured: `python -m experiments.{name}`."]
        if (file := folder / f"{name}.json").is_file():
            lines = PARTS[name](strict_json.read(file))
        page = table.put(page, name, lines)
    return page


@click.command(cls=cli.Command, help=__doc__)
@click.argument("page", type=click.Path(path_type=Path))
def main(page: Path) -> None:
    try:
        document = written(cli.read_text(page))
    except table.MarkError as error:
        raise cli.InputError(f"{page}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise cli.InputError(f"{FOLDER}: not the figures that this version writes ({error!r})") from error
    with writing.replacing(page) as file:
        file.write(document)


if __name__ == "__main__":
    main()
