"""Draw what `dvc plots show` draws, without a network: one page of all pictures, and those of the README.

In: the plots of dvc.yaml with their templates in .dvc/plots, filled in by DVC. Out: plots.html, which needs no network
and no script, and docs/pictures/NAME-light.svg and NAME-dark.svg for GitHub's <picture>. DVC's own page loads Vega from
a CDN. Equal figures give equal bytes, so the pictures in Git change only with the result.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from stages.core import cli
from stages.data import writing

# Colours of text and of grid lines; the background is left out. The page takes the reader's own text colour.
LIGHT, DARK, PAGE = ("#1f2328", "#d1d9e0"), ("#e6edf3", "#3d444d"), ("currentColor", "#8885")
VEGA_LITE = "5.21"
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"  # the first is inside vl-convert: the same widths everywhere
HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Lockstep: plots</title>
<style>
:root { color-scheme: light dark; font-family: sans-serif }
body { max-width: 60em; margin: 2em auto; padding: 0 1em }
figure { margin: 2em 0 }
svg { max-width: 100%; height: auto }
</style>
"""


def specs() -> dict[str, dict[str, Any]]:
    """The top-level plots of dvc.yaml by name, in order, as Vega-Lite with its data; those without data are named."""
    command = [sys.executable, "-m", "dvc", "plots", "show", "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode:
        raise cli.InputError(f"`dvc plots show` fails: {shown.stderr.strip()}")
    # Plots of stages are named by path: DVC draws them too, from files that are in the others already.
    plots = {name: drawn for name, drawn in json.loads(shown.stdout or "{}").get("data", {}).items() if "/" not in name}
    if empty := [name for name, drawn in plots.items() if not drawn]:
        click.echo(f"not drawn, no data: {', '.join(empty)}\n{shown.stderr.strip()}", err=True)
    return {name: drawn[0]["content"] for name, drawn in plots.items() if drawn}


def config(colours: tuple[str, str]) -> dict[str, Any]:
    text, grid = colours
    return {
        "background": None,
        "font": FONT,
        "padding": {"left": 20, "right": 45, "top": 8, "bottom": 8},  # room for readers whose sans-serif is wider
        "axis": {"labelColor": text, "titleColor": text, "gridColor": grid, "domainColor": grid, "tickColor": grid},
        "header": {"labels": False},  # the revision: there is only one here
        "legend": {"labelColor": text, "titleColor": text},
        "rule": {"color": text},
        "text": {"color": text},
        "tick": {"color": text},
        "title": {"color": text},
        "view": {"stroke": None},
    }


def svg(spec: dict[str, Any], colours: tuple[str, str]) -> str:
    import vl_convert

    coloured = spec | {"config": config(colours)}
    return vl_convert.vegalite_to_svg(coloured, VEGA_LITE, allowed_base_urls=[]) + "\n"


def page(plots: dict[str, dict[str, Any]]) -> str:
    return HEAD + "".join(f'<figure id="{name}">\n{svg(spec, PAGE)}</figure>\n' for name, spec in plots.items())


@click.command(cls=cli.Command)
@click.option("--pictures", type=click.Path(path_type=Path), default=Path("docs/pictures"), show_default=True)
@click.option("--page", "page_file", type=click.Path(path_type=Path), default=Path("plots.html"), show_default=True)
def main(pictures: Path, page_file: Path) -> None:
    """Draw the plots of dvc.yaml as SVG: one page of all, and the pictures of the README, light and dark."""
    plots = specs()
    if "systems" not in plots:
        raise cli.InputError("no results to draw; run `dvc repro` first")
    drawn = {page_file: page(plots)}
    for theme, colours in (("light", LIGHT), ("dark", DARK)):
        drawn[pictures / f"systems-{theme}.svg"] = svg(plots["systems"], colours)
    for path, text in drawn.items():
        with writing.replacing(path) as file:
            file.write(text)
    click.echo(f"wrote {page_file} and {pictures}/*.svg", err=True)


if __name__ == "__main__":
    main()
