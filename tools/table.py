"""Print the results of the last run as a Markdown table: every system on the same test rows, and the gain.

With --write, the tables also replace those between the marks of a Markdown file, so that the numbers on show are those
of the commit: `table` with the results, `kept` with general ability and recited answers.
"""

from pathlib import Path
from typing import Any

import click

from stages.shared import cli, strict_json, writing

BEGIN, END = "<!-- table -->", "<!-- /table -->"
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
    return f"{signed(gain, 'exact_match')}, p = {gain['p_value']:.2g}, n = {gain['n']} pairs"


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


def in_brief(retention: dict[str, Any]) -> list[str]:
    """What training did to general ability, in a line; more of it is on the page that has the `kept` marks."""
    change, tolerated = retention["tuned_over_base"], retention["limits"]["tolerated_drop"]
    return [
        f"What that cost: general questions right, tuned minus base, {signed(change, 'accuracy')}, p = "
        f"{change['p_value']:.2g}, n = {change['n']}; `lost` when the whole interval lies below -{tolerated:g}. "
        "[More](docs/deciding.md#what-it-kept-and-what-it-copied)"
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
    change, limits = retention["tuned_over_base"], retention["limits"]
    ends = [f"{change[f'perplexity_ratio_{end}']:.2f}" for end in ("low", "high")]
    return [
        *grid(["right, or predicted", "base as fetched", "quantised, adapter off", "tuned"], rows),
        "",
        f"Tuned minus base: {signed(change, 'accuracy')} of the questions (`lost` wholly below "
        f"-{limits['tolerated_drop']:g}); perplexity {change['perplexity_ratio']:.2f} [{', '.join(ends)}] times the "
        f"base's (`lost` wholly above {limits['tolerated_ratio']:g}). "
        f"Verdict: {retention['verdict']}.",
    ]


def recited(memorisation: dict[str, Any]) -> list[str]:
    """Answers continued word for word, of rows that were trained on and of rows that were not."""
    ways = [(way, memorisation[way]) for way in ("answer_alone", "with_request")]
    rows = [
        [
            *(name.replace("_", " "), way["train"]["n"]),
            *(cell(way[side], "copied") for side in ("train", "test")),
            signed(way["difference"], "copied"),
        ]
        for name, way in ways
    ]
    return [
        *grid(["answers recited from their first half", "n each", "training", "test", "difference"], rows),
        "",
        f"`copied` when the interval of *answer alone* lies wholly above {memorisation['limits']['tolerated']:g}. "
        f"Verdict: {memorisation['verdict']}.",
    ]


def grid(header: list[str], rows: list[list[Any]]) -> list[str]:
    return ["| " + " | ".join(map(str, row)) + " |" for row in [header, ["---"] * len(header), *rows]]


def signed(change: dict[str, Any], name: str) -> str:
    return f"{change[name]:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"


def read(folder: Path) -> dict[str, list[str]]:
    """The lines between each pair of marks, from the metrics of a folder.

    What was not measured has no lines. Raises InputError where there is no evaluate.json.
    """
    if not (folder / "evaluate.json").is_file():
        raise cli.InputError(f"{folder / 'evaluate.json'} is missing; run `make repro`")
    files = {name: folder / f"{name}.json" for name in ("evaluate", "retention", "memorisation")}
    found: dict[str, Any] = {name: strict_json.parse(f.read_text("utf-8")) for name, f in files.items() if f.is_file()}
    lines = {"table": table(found["evaluate"])}
    if "retention" in found:
        lines["table"] += in_brief(found["retention"])
    if len(found) == len(files):
        lines["kept"] = [*general(found["retention"]), "", *recited(found["memorisation"])]
    return lines


def put(document: str, lines: list[str], marks: tuple[str, str] = (BEGIN, END)) -> str:
    """The document with the lines between its marks; unchanged where it has none."""
    before, begin, rest = document.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    return before + begin + "\n" + "\n".join(lines) + "\n" + end + after if end else document


def put_all(document: str, parts: dict[str, list[str]]) -> str:
    for name, lines in parts.items():
        document = put(document, lines, (f"<!-- {name} -->", f"<!-- /{name} -->"))
    return document


@click.command(help=__doc__)
@click.option("--metrics", type=click.Path(path_type=Path), default="metrics", show_default=True, help="folder")
@click.option(
    "--write", type=click.Path(path_type=Path, exists=True), multiple=True, help="Markdown file; may be repeated"
)
def main(metrics: Path, write: tuple[Path, ...]) -> None:
    parts = read(metrics)
    click.echo("\n".join(parts["table"]))
    for path in write:
        document = put_all(path.read_text(encoding="utf-8"), parts)
        with writing.replacing(path) as file:
            file.write(document)


if __name__ == "__main__":
    main()
