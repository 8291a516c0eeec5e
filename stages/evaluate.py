"""Score the predictions of every system on the same test rows. CPU seconds, no model.

In: a folder of predictions, one *.jsonl file for each system (an empty file is a system that is switched off), the
tuned model's answers to held-out rows, the rows, the contract, what the model was made from. Out: what DVC's tables
show (metrics/headline.json), the rates of each system (metrics/evaluate.json), all figures with intervals and slices
(metrics/detail/evaluate.json), a verdict per row and system (metrics/outcomes.jsonl), the tables of three plots.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from stages.core import cli, params
from stages.data import contract, records, writing
from stages.data.examples import Example
from stages.scores import provenance, scoring, stats
from stages.scores.scoring import Score

TUNED = "tuned"  # the system that the plots show and the held-out rows are answered by
GAINS = {"gain_over_few_shot": ("few_shot", TUNED), "constrained_over_tuned": (TUNED, "constrained")}
INTERVAL = ("exact_match", "exact_match_low", "exact_match_high")
RATES = ("n", *INTERVAL, "json_valid", "schema_valid", "exact_match_normalised", "action_accuracy", "field_f1")
# Of a system in the headline, where `normalised` would be taken for exact_match_normalised.
RESERVED = {*GAINS, "high", "held_out", "low", "normalised"}
OUTCOME = ("id", "group", "kind", "slice", "request", "expected")  # beside them, each system by its name


def systems(folder: Path) -> dict[str, Path]:
    """The files with predictions by the name of their system. Raises InputError when `tuned` is not among them."""
    found = {file.stem: file for file in sorted(folder.glob("*.jsonl")) if file.stat().st_size}
    if TUNED not in found:
        raise cli.InputError(f"{folder}: {TUNED}.jsonl is needed")
    if taken := sorted(found.keys() & {*OUTCOME, *RESERVED}):
        raise cli.InputError(f"{folder}: no system may be called {taken[0]}")
    return found


def gain(before: list[Score], after: list[Score]) -> stats.Comparison:
    """The exact match of two systems, paired by row."""
    first, second = ([score.counts("exact_match") for score in part] for part in (before, after))
    return stats.compare(first, second, [score.example.group for score in after])


def headline(figures: dict[str, Any], held_out: dict[str, Any]) -> dict[str, float]:
    """What a person compares in DVC's tables: the tuned system, its held-out rows, exact match of the others."""
    shown = [name for name in RATES if name in figures[TUNED] and name not in ("json_valid", "field_f1")]
    tuned = {name: figures[TUNED][name] for name in shown}
    others = {f"exact_match_{name}": part["exact_match"] for name, part in figures.items() if name != TUNED}
    return tuned | others | {"exact_match_held_out": held_out["exact_match"]}


def outcome(scores: dict[str, Score]) -> dict[str, Any]:
    """One line of outcomes.jsonl: an answer stands there only where it was wrong."""
    example = scores[TUNED].example
    values = (example.id, example.group, example.kind, example.slice, example.request(), example.answer)
    verdicts = {
        system: {"verdict": score.verdict} | ({} if score.verdict == "exact" else {"answer": score.prediction.answer})
        for system, score in scores.items()
    }
    return dict(zip(OUTCOME, values, strict=True)) | verdicts


def write_intervals(file: Path, name: str, figures: dict[str, Any]) -> None:
    """The table of a plot: exact match with its interval, a line for each system or kind."""
    lines = ([key, *(part[column] for column in (*INTERVAL, "n"))] for key, part in figures.items())
    writing.write_csv(file, [name, "exact_match", "low", "high", "n"], lines)


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--test", "test rows, as built")
@cli.path_option("--valid", "held-out rows, as built")
@cli.path_option("--schema", "JSON Schema of an answer")
@cli.path_option("--predictions", "folder of answers to the test rows, a file for each system")
@cli.path_option("--held-out", "the tuned model's answers to the held-out rows")
@cli.path_option("--made-from", "made_from.json of the model")
@cli.path_option("--metrics", "what DVC's tables show")
@cli.path_option("--rates", "the rates of each system")
@cli.path_option("--detail", "all figures")
@cli.path_option("--outcomes", "verdict per row and system")
@cli.path_option("--plots", "folder of the tables of three plots")
def main(
    test: Path,
    valid: Path,
    schema: Path,
    predictions: Path,
    held_out: Path,
    made_from: Path,
    metrics: Path,
    rates: Path,
    detail: Path,
    outcomes: Path,
    plots: Path,
) -> None:
    rules = contract.load(schema, params.load("contract", contract.Params).discriminator)
    rows = records.read(test, Example)
    scores = {name: scoring.score_file(rows, file, rules) for name, file in systems(predictions).items()}
    figures = {name: scoring.figures(part) for name, part in scores.items()}
    compared = {
        name: gain(scores[before], scores[after])
        for name, (before, after) in GAINS.items()
        if {before, after} <= set(scores)
    }
    by_system = {system: {name: part[name] for name in RATES if name in part} for system, part in figures.items()}
    if found := compared.get("gain_over_few_shot"):
        interval = {"low": found.low, "high": found.high, "p_value": found.p_value}
        by_system["gain_over_few_shot"] = {"exact_match": found.difference} | interval
    writing.write_json(rates, by_system)
    on_held_out = scoring.figures(scoring.score_file(records.read(valid, Example), held_out, rules))
    writing.write_json(metrics, headline(figures, on_held_out))
    libraries = ("jsonschema", "llguidance", "numpy", "scipy")
    origin = provenance.computed_from(made_from, libraries, test=test, schema=schema)
    every = {"systems": figures, "held_out": {TUNED: on_held_out}, "computed_from": origin}
    writing.write_json(detail, every | {name: asdict(comparison) for name, comparison in compared.items()})
    lines = (dict(zip(scores, row, strict=True)) for row in zip(*scores.values(), strict=True))
    writing.write_jsonl(outcomes, map(outcome, lines))
    write_intervals(plots / "systems.csv", "system", figures)
    write_intervals(plots / "by_kind.csv", "kind", figures[TUNED]["slices"]["kind"])
    kinds = ([kind or "(none)" for kind in (score.example.kind, score.predicted_kind)] for score in scores[TUNED])
    writing.write_csv(plots / "confusion.csv", ["expected", "given"], kinds)
    best = figures[TUNED]
    click.echo(f"evaluate: tuned exact match {best['exact_match']:.3f} of {best['n']} test rows", err=True)


if __name__ == "__main__":
    main()
