"""Print the results of the last run as Markdown: every system on the same test rows, slices, behaviour tests, the gain.

With --write, the tables also replace those between the marks of a Markdown file (`<!-- table -->`, `<!-- /table -->`),
so that the numbers on show are those of the commit: `table` with the results, `kept` with general ability and extracted
answers, `requests` with what tools.measure kept of a file of requests. Exit status 2: a file to write has none of the
marks, or only one of a pair.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from stages.core import cli, strict_json
from stages.data import writing
from stages.memorisation import NOTHING

GAINS = {"gain_over_few_shot": "tuned over few_shot", "constrained_over_tuned": "constrained over tuned"}
COLUMNS = {
    **{"JSON valid": "json_valid", "schema valid": "schema_valid", "exact match": "exact_match"},
    **{"normalised": "exact_match_normalised", "action": "action_accuracy", "field F1": "field_f1"},
}
FEWEST = 20  # answers of a slice; with fewer the interval spans most of what is possible
MEASURE = "python -m tools.measure FILE --summary metrics/experiments/requests.json"


class MarkError(cli.InputError):
    """A page has no place for what should be written."""

    exit_code = 2


def cell(figures: dict[str, Any], name: str, digits: int = 3) -> str:
    if name not in figures:  # a contract without a discriminator, a slice without field F1
        return "-"
    value, low, high = (f"{figures[name + end]:.{digits}f}" for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def grid(header: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def rates(name: str, parts: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each system or slice, with a rate and its 95% interval in each cell."""
    rows = [[key, part["n"], *(cell(part, column) for column in COLUMNS.values())] for key, part in parts.items()]
    return grid([name, "n", *COLUMNS], rows)


def results(found: dict[str, Any]) -> list[str]:
    """The systems, best first, with the slices of the tuned one; the behaviour tests; what was gained and lost."""
    evaluated = found["evaluate"]
    parts: dict[str, dict[str, Any]] = {}
    for system, figures in sorted(evaluated["systems"].items(), key=lambda entry: -entry[1]["exact_match"]):
        parts[system] = figures
        if system == "tuned" and len(figures["slices"]["slice"]) > 1:
            parts |= {f"tuned, {name}": part for name, part in figures["slices"]["slice"].items()}
    kinds = found.get("behaviour", {"kinds": {}})["kinds"]
    tests = [[kind, part["n"], cell(part, "passed")] for kind, part in kinds.items() if part["n"]]
    gains = [
        f"Gain of {words}, exact match: {signed(evaluated[name], 'difference')}, p = {evaluated[name]['p_value']:.2g}, "
        f"n = {evaluated[name]['n']} pairs."
        for name, words in GAINS.items()
        if name in evaluated
    ]
    held_out = evaluated["held_out"]["tuned"]
    lines = [*rates("system", parts), ""]
    if tests:
        lines += [*grid(["behaviour tests", "n", "passed"], tests), ""]
    exact = f"exact match {cell(held_out, 'exact_match')}, n = {held_out['n']}."
    lines += [*gains, f"Held-out rows, for choosing settings: {exact}"]
    if "retention" in found:
        change = found["retention"]["tuned_over_base"]["accuracy"]
        cost = f"general questions right, tuned minus base, {signed(change, 'difference')}, n = {change['n']}."
        lines += [f"What that cost: {cost} [More](docs/deciding.md#what-it-kept-and-what-it-copied)"]
    return lines


def requests(found: dict[str, Any] | None, origin: dict[str, Any]) -> list[str]:
    """The tuned model on requests from elsewhere, which aren't in Git; none of another adapter or held to a grammar.

    `origin`: what the figures of the test rows were computed from.
    """
    same = found and all(found["computed_from"][name] == origin[name] for name in ("adapter", "schema"))
    if not found or not same or found.get("constrained"):
        return [f"Not measured for this model: `{MEASURE}`."]
    parts = {"all": found, **found["slices"]["kind"], **found["slices"]["value"]}
    return rates("answers", {name: part for name, part in parts.items() if part["n"] >= FEWEST})


def general(retention: dict[str, Any]) -> list[str]:
    """General questions and plain text: the base, the base as quantised for training, the tuned model."""
    models = [retention[name] for name in ("base", "adapter_off", "tuned")]
    asked = {f"all questions ({models[0]['n']})": models}
    asked |= {f"{kind} ({part['n']})": [m["kinds"][kind] for m in models] for kind, part in models[0]["kinds"].items()}
    rows = [
        *([name, *(cell(part, "accuracy") for part in parts)] for name, parts in asked.items()),
        ["perplexity of plain text", *(f"{model['perplexity']:.1f}" for model in models)],
        ["bits per byte of it", *(f"{model['bits_per_byte']:.2f}" for model in models)],
    ]
    return [*grid(["", "base as fetched", "quantised base", "tuned"], rows), "", *limits(retention)]


def memorised(memorisation: dict[str, Any]) -> list[str]:
    """Answers continued word for word, of rows that were trained on and of rows that were not."""
    if "without_request" not in memorisation:
        return [f"{NOTHING.capitalize()}."]
    rows = []
    for name in ("without_request", "with_request"):
        way = memorisation[name]
        cells = [cell(way[split], "extracted") for split in ("train", "test")]
        rows.append([name.replace("_", " "), way["train"]["n"], *cells, signed(way["difference"], "extracted")])
    header = ["answers continued from their first half", "n each", "training", "test", "difference"]
    return [*grid(header, rows), "", *limits(memorisation)]


def limits(found: dict[str, Any]) -> list[str]:
    """Each limit of params.yaml with the figure that it is for. It is broken where the whole interval lies beyond."""
    return [
        f"Limit {limit['limit']:g} of {limit['what']}: {signed(limit, 'value')}, "
        f"{'holds' if limit['holds'] else 'broken'}."
        for limit in found["limits"]
    ]


def signed(change: dict[str, Any], name: str) -> str:
    return f"{change[name]:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"


def read(folder: Path) -> dict[str, list[str]]:
    """The lines between each pair of marks, from metrics/detail. What was not measured has no lines.

    Raises InputError where evaluate.json is missing, or a file holds something else.
    """
    files = {name: folder / f"{name}.json" for name in ("evaluate", "behaviour", "retention", "memorisation")}
    files["requests"] = folder.parent / "experiments" / "requests.json"
    found = {name: strict_json.read(file) for name, file in files.items() if name == "evaluate" or file.is_file()}
    with as_written(folder, "dvc repro"):
        origin, lines = found["evaluate"]["computed_from"], {"table": results(found)}
        if {"retention", "memorisation"} <= set(found):
            lines["kept"] = [*general(found["retention"]), "", *memorised(found["memorisation"])]
    with as_written(files["requests"], MEASURE):
        lines["requests"] = requests(found.get("requests"), origin)
    return lines


@contextmanager
def as_written(place: Path, command: str) -> Iterator[None]:
    """Within it, what is not found in the figures becomes an InputError with the command that writes them."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        told = f"{place}: not the figures that this version writes ({error!r}); run `{command}`"
        raise cli.InputError(told) from error


def put(document: str, name: str, lines: list[str]) -> str:
    """The document with the lines between two marks. Raises MarkError unless each stands there once, in this order."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = document.partition(start)
    if [document.count(start), document.count(end)] != [1, 1] or end not in rest:
        raise MarkError(f"the marks {start} and {end} have to stand once each, in this order")
    return "\n".join([before + start, *lines, end + rest.partition(end)[2]])


def put_all(document: str, parts: dict[str, list[str]]) -> str:
    """The document with each part whose marks it has. Raises MarkError when it has none."""
    present = [name for name in parts if f"<!-- {name} -->" in document or f"<!-- /{name} -->" in document]
    if not present:
        raise MarkError(f"there is none of the marks {', '.join(f'<!-- {name} -->' for name in parts)}")
    for name in present:
        document = put(document, name, parts[name])
    return document


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--metrics", "folder of figures", required=False, default=Path("metrics/detail"), show_default=True)
@cli.path_option("--write", "Markdown file; may be repeated", required=False, multiple=True)
def main(metrics: Path, write: tuple[Path, ...]) -> None:
    parts = read(metrics)
    click.echo("\n".join(parts["table"]))
    for page in write:
        try:
            document = put_all(page.read_text(encoding="utf-8"), parts)
        except (cli.InputError, OSError, UnicodeDecodeError) as error:
            raise MarkError(f"{page}: {error}") from error
        with writing.replacing(page) as file:
            file.write(document)


if __name__ == "__main__":
    main()
