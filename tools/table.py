"""Print the results of the last run as Markdown: every system on the same test rows, slices, behaviour tests, the gain.

With --write, the tables also replace those between the marks of a Markdown file (`<!-- table -->`, `<!-- /table -->`),
so that the numbers on show are those of the commit: `table` with the results, `kept` with general ability and extracted
answers. Exit status 2: a file to write has none of the marks, or only one of a pair.
"""

from pathlib import Path
from typing import Any

import click

from stages.shared import cli, strict_json, writing

GAINS = {"gain_over_few_shot": "tuned over few_shot", "constrained_over_tuned": "constrained over tuned"}
COLUMNS = {
    "JSON valid": "json_valid",
    "schema valid": "schema_valid",
    "exact match": "exact_match",
    "normalised": "exact_match_normalised",
    "action": "action_accuracy",
    "field F1": "field_f1",
}


class MarkError(cli.InputError):
    """A page has no place for what should be written."""

    exit_code = 2


def cell(figures: dict[str, Any], name: str) -> str:
    if name not in figures:  # a contract without a discriminator, a slice without field F1
        return "-"
    return f"{figures[name]:.3f} [{figures[name + '_low']:.3f}, {figures[name + '_high']:.3f}]"


def grid(header: list[str], rows: list[list[Any]]) -> list[str]:
    return ["| " + " | ".join(map(str, row)) + " |" for row in [header, ["---"] * len(header), *rows]]


def rates(name: str, parts: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each system or slice, with a rate and its 95% interval in each cell."""
    rows = [[key, part["n"], *(cell(part, column) for column in COLUMNS.values())] for key, part in parts.items()]
    return grid([name, "n", *COLUMNS], rows)


def results(evaluated: dict[str, Any], behaviour: dict[str, Any] | None) -> list[str]:
    """The systems, best first, with the slices of the tuned one; the behaviour tests; what was gained."""
    best_first = sorted(evaluated["systems"].items(), key=lambda entry: -entry[1]["exact_match"])
    parts: dict[str, dict[str, Any]] = {}
    for system, figures in best_first:
        parts[system] = figures
        if system == "tuned":
            parts |= {f"tuned, {name}": part for name, part in figures["slices"]["slice"].items()}
    held_out = evaluated["held_out"]["tuned"]
    gains = [
        f"Gain of {words}, exact match: {signed(evaluated[name], 'difference')}, p = {evaluated[name]['p_value']:.2g}, "
        f"n = {evaluated[name]['n']} pairs."
        for name, words in GAINS.items()
        if name in evaluated
    ]
    ends = [f"Held-out rows, for choosing settings: exact match {cell(held_out, 'exact_match')}, n = {held_out['n']}."]
    return [*rates("system", parts), "", *(behaviours(behaviour) if behaviour else []), *gains, *ends]


def behaviours(found: dict[str, Any]) -> list[str]:
    """Pass rates of the behaviour tests by kind; nothing where there are none."""
    rows = [[kind, part["n"], cell(part, "passed")] for kind, part in found["kinds"].items() if part["n"]]
    return [*grid(["behaviour tests", "n", "passed"], rows), ""] if rows else []


def in_brief(retention: dict[str, Any]) -> list[str]:
    """What training did to general ability, in a line; more of it is on the page that has the `kept` marks."""
    change = retention["tuned_over_base"]["accuracy"]
    return [
        f"What that cost: general questions right, tuned minus base, {signed(change, 'difference')}, "
        f"n = {change['n']}. [More](docs/deciding.md#what-it-kept-and-what-it-copied)"
    ]


def general(retention: dict[str, Any]) -> list[str]:
    """General questions and plain text: the base, the base as quantised for training, the tuned model."""
    models = [retention[name] for name in ("base", "adapter_off", "tuned")]
    kinds = [
        [f"{kind} ({part['n']})", *(cell(model["kinds"][kind], "accuracy") for model in models)]
        for kind, part in models[0]["kinds"].items()
    ]
    rows = [
        [f"all questions ({models[0]['n']})", *(cell(model, "accuracy") for model in models)],
        *kinds,
        ["perplexity of plain text", *(f"{model['perplexity']:.1f}" for model in models)],
        ["bits per byte of it", *(f"{model['bits_per_byte']:.2f}" for model in models)],
    ]
    return [*grid(["", "base as fetched", "quantised, adapter off", "tuned"], rows), "", *limits(retention)]


def memorised(memorisation: dict[str, Any]) -> list[str]:
    """Answers continued word for word, of rows that were trained on and of rows that were not."""
    ways = [(name, memorisation[name]) for name in ("without_request", "with_request")]
    rows = [
        [
            *(name.replace("_", " "), way["train"]["n"]),
            *(cell(way[split], "extracted") for split in ("train", "test")),
            signed(way["difference"], "extracted"),
        ]
        for name, way in ways
    ]
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
    names = ("evaluate", "behaviour", "retention", "memorisation")
    files = {name: folder / f"{name}.json" for name in names}
    found: dict[str, Any] = {
        name: strict_json.read(file) for name, file in files.items() if name == "evaluate" or file.is_file()
    }
    try:
        lines = {"table": results(found["evaluate"], found.get("behaviour"))}
        if "retention" in found:
            lines["table"] += in_brief(found["retention"])
        if "retention" in found and "memorisation" in found:
            lines["kept"] = [*general(found["retention"]), "", *memorised(found["memorisation"])]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise cli.InputError(
            f"{folder}: not the figures that this version writes ({error!r}); run `dvc repro`"
        ) from error
    return lines


def put(document: str, lines: list[str], marks: tuple[str, str]) -> str:
    """The document with the lines between its marks. Raises MarkError unless each stands there once, in this order."""
    before, _, rest = document.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    if [document.count(mark) for mark in marks] != [1, 1] or marks[1] not in rest:
        raise MarkError(f"the marks {marks[0]} and {marks[1]} have to stand once each, in this order")
    return "\n".join([before + marks[0], *lines, marks[1] + after])


def put_all(document: str, parts: dict[str, list[str]]) -> str:
    """The document with each part whose marks it has. Raises MarkError when it has none."""
    marks = {name: (f"<!-- {name} -->", f"<!-- /{name} -->") for name in parts}
    present = [name for name, pair in marks.items() if any(mark in document for mark in pair)]
    if not present:
        raise MarkError(f"there is none of the marks {', '.join(pair[0] for pair in marks.values())}")
    for name in present:
        document = put(document, parts[name], marks[name])
    return document


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--metrics", "folder of figures", required=False, default=Path("metrics/detail"), show_default=True)
@cli.path_option("--write", "Markdown file; may be repeated", required=False, multiple=True)
def main(metrics: Path, write: tuple[Path, ...]) -> None:
    parts = read(metrics)
    click.echo("\n".join(parts["table"]))
    for path in write:
        try:
            document = put_all(path.read_text(encoding="utf-8"), parts)
        except (cli.InputError, OSError, UnicodeDecodeError) as error:
            raise MarkError(f"{path}: {error}") from error
        with writing.replacing(path) as file:
            file.write(document)


if __name__ == "__main__":
    main()
