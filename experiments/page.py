"""Put the figures of metrics/experiments into the tables of a Markdown page, so that they are those of the commit.

python -m experiments.page docs/experiments.md
"""

from pathlib import Path
from typing import Any

import click

from stages.checklist import size
from stages.shared import cli, strict_json, writing
from tools import table

FOLDER = Path("metrics/experiments")
SAID = {"said": "yes", "unsaid": "no"}
SERIES = ("same epochs", "enough steps")
RATES = ("exact_match", "json_valid")


def interval(figures: dict[str, Any], name: str, digits: int = 3) -> str:
    value, low, high = (figures[name + end] for end in ("", "_low", "_high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def learning_curve(found: dict[str, Any]) -> list[str]:
    """Both series, size by size, beside what a rule of thumb expects of so many rows."""
    same, enough = ({p["rows"]: p for p in found["series"][name]} for name in SERIES)
    passes = [f"{column}, {series}" for series in SERIES for column in ("epochs, steps", "exact match")]
    cells = [
        [rows, point["examples"], *exact(point), *exact(enough[rows]), size.verdict(rows)]
        for rows, point in same.items()
    ]
    header = ["rows", "answers", *passes, "rule of thumb"]
    return [*table.grid(header, cells), "", *chart(same, enough)]


def exact(point: dict[str, Any]) -> list[str]:
    return [f"{point['epochs']:g}, {point['steps']}", interval(point, "exact_match")]


def chart(same: dict[int, Any], enough: dict[int, Any]) -> list[str]:
    """A drawing that GitHub renders; one place for each size, since sizes double."""
    heights = [[f"{point['exact_match']:.3f}" for point in part.values()] for part in (enough, same)]
    drawn = [f"  {kind} [{', '.join(part)}]" for kind, part in zip(("bar", "line"), heights, strict=True)]
    axes = [f'  x-axis "training rows" [{", ".join(map(str, same))}]', '  y-axis "exact match" 0 --> 1']
    return ["```mermaid", "xychart-beta", *axes, *drawn, "```"]


def ten_times(found: dict[str, Any]) -> list[str]:
    """What each training was and reached, what the gate let through, and the comparisons."""
    arms = [
        [name, arm["rows"], arm["epochs"], arm["steps"], f"{arm['tokens']:,}", *(interval(arm, rate) for rate in RATES)]
        for name, arm in found["arms"].items()
    ]
    ways = [*found["recipe"]["ways"], "clean"]
    gate = [
        [name, *(f"{counts[way]['kept']} of {counts[way]['rows']}" for way in ways)]
        for name, counts in found["gate"].items()
    ]
    compared = [[c["of"], c["over"], table.signed(c, "exact_match"), f"{c['p_value']:.2g}"] for c in found["compared"]]
    return [
        *table.grid(["trained on", "rows", "epochs", "steps", "tokens", "exact match", "JSON valid"], arms),
        "",
        *table.grid(["difference of", "to", "exact match", "p"], compared),
        "",
        "Rows that `validate` let through, by what had been done to them:",
        "",
        *table.grid(["", *(name.replace("_", " ") for name in ways)], gate),
    ]


def canaries(found: dict[str, Any]) -> list[str]:
    """Exposure, extraction and recital by the model that saw the canaries, and exposure by the control."""
    rows = [
        [SAID[kind], times, way.replace("_", " "), cell["n"], *known(cell), spread(found["control"][way][kind][times])]
        for way, kinds in found["planted"].items()
        for kind, cells in kinds.items()
        for times, cell in cells.items()
    ]
    header = [
        "code in the request",
        "rows each",
        "asked with",
        "n",
        "exposure, bits",
        "extracted",
        "recited",
        "control, bits",
    ]
    return table.grid(header, rows)


def known(cell: dict[str, Any]) -> list[str]:
    return [spread(cell), interval(cell, "extracted", 2), interval(cell, "recited", 2)]


def spread(cell: dict[str, Any]) -> str:
    return f"{cell['exposure']:.1f} ({cell['exposure_least']:.1f} to {cell['exposure_most']:.1f})"


PARTS = {"learning_curve": learning_curve, "ten_times": ten_times, "canaries": canaries}


def written(page: str, folder: Path = FOLDER) -> str:
    """The page with every table made anew. Raises InputError for a result that is missing or not JSON."""
    for name, part in PARTS.items():
        file = folder / f"{name}.json"
        if not file.is_file():
            raise cli.InputError(f"{file} is missing; run `python -m experiments.{name} --help`")
        found = strict_json.read(file)
        page = table.put(page, part(found), (f"<!-- {name} -->", f"<!-- /{name} -->"))
    return page


@click.command(help=__doc__)
@click.argument("page", type=click.Path(path_type=Path, exists=True))
def main(page: Path) -> None:
    document = written(page.read_text(encoding="utf-8"))
    with writing.replacing(page) as file:
        file.write(document)


if __name__ == "__main__":
    main()
