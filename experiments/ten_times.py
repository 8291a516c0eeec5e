"""The ten-times rule: do few clean rows outperform many messy ones? And what does the checklist save of the messy ones?

    python -m experiments.ten_times --scratch /tmp/ten_times

In: the rows of a pipeline that has run. Out: metrics/experiments/ten_times.json and .csv. LARGE rows are made messy by
a seeded recipe in two doses and trained on as they are, and again after `validate` has refused what it finds. Against
them stand ten and five times fewer clean rows, for the same epochs and for the same tokens, and as many clean ones. All
answer the same test rows, and are compared answer by answer.
"""

import csv
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from experiments import chain
from stages import build, evaluate, train
from stages.shared import cli, contract, params, strict_json, writing

Row = dict[str, Any]
LARGE, SMALL, DOSES = 500, (50, 100), (0.5, 0.9)
SEED = 17


def with_answer(row: Row, answer: str) -> Row:
    """The row with another last answer."""
    return row | {"turns": [*row["turns"][:-1], row["turns"][-1] | {"content": answer}]}


def answer_of(row: Row) -> str:
    return str(row["turns"][-1]["content"])


def another_answer(row: Row, rows: list[Row], rng: random.Random) -> str:
    """An answer of the same kind as the row's, taken from another row. Raises InputError where there is none."""
    others = sorted({answer_of(other) for other in rows if other["kind"] == row["kind"]} - {answer_of(row)})
    if not others:
        raise cli.InputError(f"all clean answers of the kind {row['kind']!r} are equal: none is wrong")
    return rng.choice(others)


def label_noise(row: Row, rows: list[Row], rng: random.Random) -> Row:
    """A wrong answer in the right form: another row's."""
    return with_answer(row, another_answer(row, rows, rng))


def conflict(row: Row, rows: list[Row], rng: random.Random) -> Row:
    """Instead of the row another one's request once more, with a different answer."""
    twin = rng.choice(rows)
    return row | {"turns": with_answer(twin, another_answer(twin, rows, rng))["turns"]}


def inconsistent_keys(row: Row, rows: list[Row], rng: random.Random) -> Row:
    """Keys with a capital, a key by another name, or one left out."""
    answer = strict_json.parse(answer_of(row))
    way, key = rng.choice(("capital", "other name", "left out")), rng.choice(sorted(answer))
    if way == "capital":
        answer = {name.capitalize(): value for name, value in answer.items()}
    elif way == "other name":
        answer = {f"task_{name}" if name == key else name: value for name, value in answer.items()}
    else:
        del answer[key]
    return with_answer(row, strict_json.compact(answer))


def single_quotes(row: Row, rows: list[Row], rng: random.Random) -> Row:
    """A Python dictionary as text instead of JSON: what str() gives."""
    return with_answer(row, str(strict_json.parse(answer_of(row))))


def near_duplicate(row: Row, rows: list[Row], rng: random.Random) -> Row:
    """Instead of the row another one once more, two letters of its first request exchanged: right, and nothing new."""
    twin = rng.choice(rows)
    number = next(n for n, turn in enumerate(twin["turns"]) if turn["role"] == "user")
    text = twin["turns"][number]["content"]
    places = [n for n in range(len(text) - 1) if text[n].isalpha() and text[n + 1].isalpha() and text[n] != text[n + 1]]
    at = rng.choice(places)
    said = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    turns = [turn | {"content": said} if n == number else turn for n, turn in enumerate(twin["turns"])]
    return row | {"turns": turns}


RECIPE: tuple[Callable[[Row, list[Row], random.Random], Row], ...] = (
    label_noise,
    conflict,
    inconsistent_keys,
    single_quotes,
    near_duplicate,
)


def messy(rows: list[Row], dose: float) -> list[tuple[str, Row]]:
    """The rows with the name of what was done to each: `dose` of them spoiled, an equal share in each way.

    What takes the place of a row is made from rows that stay whole.
    """
    rng = random.Random(SEED)  # noqa: S311
    order = rng.sample(range(len(rows)), len(rows))
    spoiled = order[: round(dose * len(rows))]
    whole = [rows[number] for number in order[len(spoiled) :]]
    ways = {number: RECIPE[place % len(RECIPE)] for place, number in enumerate(spoiled)}
    return [
        (ways[number].__name__, ways[number](row, whole, rng)) if number in ways else ("clean", row)
        for number, row in enumerate(rows)
    ]


def gated(folder: Path, rows: list[Row]) -> list[Row]:
    """What `validate` keeps of the rows when no limit stops it. Raises InputError when it can't run."""
    chain.prepare(folder, {"validate.stop_at": "never"})
    raw = [{"id": row["id"], "conversations": row["turns"]} for row in rows]
    writing.write_jsonl(folder / "raw" / "rows.jsonl", raw)
    inputs = {"raw": folder / "raw", "test": chain.ROOT / "data" / "test", "schema": chain.SCHEMA}
    inputs |= {"rules": chain.ROOT / "data" / "rules.yaml"}
    outs = {"out": folder / "validated", "docs": folder / "docs", "metrics": folder / "validate.json"}
    outs |= {"detail": folder / "detail.json"}
    chain.stage("validate", folder, suites=chain.ROOT / "expectations", **inputs, **outs)
    return list(strict_json.read_jsonl(folder / "validated" / "train.jsonl"))


def kept_by_way(spoiled: list[tuple[str, Row]], kept: list[Row]) -> dict[str, dict[str, int]]:
    """For each way of spoiling: how many rows there were, and how many of them `validate` let through."""
    names = {row["id"] for row in kept}
    ways = sorted({way for way, _ in spoiled})
    return {
        way: {
            "rows": sum(w == way for w, _ in spoiled),
            "kept": sum(w == way and row["id"] in names for w, row in spoiled),
        }
        for way in ways
    }


@dataclass(frozen=True)
class Arm:
    """One training: its rows, the passes over them, what the stage measured, and the test answers, scored."""

    rows: int
    epochs: int
    trained: dict[str, Any]
    scored: list[evaluate.Score]

    def tokens(self) -> int:
        return int(self.trained["tokens_per_epoch"]) * self.epochs

    def figures(self, settings: evaluate.Params) -> dict[str, Any]:
        all_of_them = evaluate.figures(self.scored, settings)
        figures = {name: value for name, value in all_of_them.items() if name != "slices"}
        own = {"rows": self.rows, "epochs": self.epochs, "steps": self.trained["steps"], "tokens": self.tokens()}
        made_from = {name: self.trained["made_from"][name] for name in ("train", "adapter")}
        return own | {"examples": self.trained["rows"], "made_from": made_from} | figures


def arm(folder: Path, rows: list[Row], epochs: int) -> Arm:
    click.echo(f"ten times: {folder.name}: {len(rows)} rows, {epochs} epochs", err=True)
    trained = chain.train(folder, rows, epochs)
    return Arm(len(rows), epochs, trained, chain.score(folder))


def run(scratch: Path, pool: list[Row], rules: contract.Contract, epochs: int) -> tuple[dict[str, Arm], dict[str, Any]]:
    """All trainings by name, and what the gate let through. `tokens`: as many as the messy rows gave."""
    arms: dict[str, Arm] = {}
    gate: dict[str, Any] = {}

    def add(name: str, rows: list[Row], times: int = epochs) -> None:
        arms[name] = arm(scratch / name, rows, times)

    def add_with_as_many_tokens(name: str, rows: list[Row]) -> None:
        more = arms[f"messy {DOSES[0]:.0%}"].tokens() / arms[name].tokens()
        add(f"{name}, same tokens", rows, round(more * epochs))

    large = build.subset(pool, LARGE, rules)
    add(f"clean {LARGE}", large)
    for dose in DOSES:
        spoiled, name = messy(large, dose), f"messy {dose:.0%}"
        add(name, [row for _, row in spoiled])
        kept = gated(scratch / f"gate {dose:.0%}", [row for _, row in spoiled])
        gate[name] = kept_by_way(spoiled, kept)
        add(f"{name}, gated", kept)
        if dose == DOSES[0]:
            add_with_as_many_tokens(f"{name}, gated", kept)
    for count in SMALL:
        rows, name = build.subset(pool, count, rules), f"clean {count}"
        add(name, rows)
        add_with_as_many_tokens(name, rows)
    return arms, gate


def comparisons(arms: dict[str, Arm], settings: evaluate.Params) -> Iterator[dict[str, Any]]:
    """How much better each clean and each gated training is than each messy one, on the same answers."""
    for worse in (f"messy {dose:.0%}" for dose in DOSES):
        for name, better in arms.items():
            if name.startswith("clean") or name.startswith(f"{worse}, gated"):
                yield {"of": name, "over": worse, **evaluate.gain(arms[worse].scored, better.scored, settings)}


def write_csv(path: Path, arms: dict[str, Arm]) -> None:
    """A line for each training: its exact match."""
    with writing.replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trained on", "exact match"])
        writer.writerows([name, sum(s.exact for s in part.scored) / len(part.scored)] for name, part in arms.items())


def read_rows(rules: contract.Contract) -> list[Row]:
    """The pipeline's sound training rows without those held out, each with the kind of its last answer."""
    rows = list(strict_json.read_jsonl(chain.ROOT / "data" / "validated" / "train.jsonl"))
    train, _ = build.split(rows, params.load("build", build.Params).valid_share)
    return [row | {"kind": rules.kind(strict_json.parse(answer_of(row)))} for row in train]


@click.command(help=__doc__)
@click.option("--scratch", type=click.Path(path_type=Path), required=True, help="folder for data and adapters")
@click.option("--out", type=click.Path(path_type=Path), default="metrics/experiments/ten_times.json")
def main(scratch: Path, out: Path) -> None:
    chain.require_run()
    settings, epochs = params.load("evaluate", evaluate.Params), round(params.load("train", train.Params).epochs)
    rules = contract.load(chain.SCHEMA, params.load("contract", params.Contract).discriminator)
    arms, gate = run(scratch.absolute(), read_rows(rules), rules, epochs)
    writing.write_json(
        out,
        {
            "recipe": {"rows": LARGE, "doses": list(DOSES), "ways": [way.__name__ for way in RECIPE], "seed": SEED},
            "arms": {name: part.figures(settings) for name, part in arms.items()},
            "gate": gate,
            "compared": list(comparisons(arms, settings)),
            "computed_from": chain.computed_from(next(iter(arms.values())).trained["made_from"]),
        },
    )
    write_csv(out.with_suffix(".csv"), arms)


if __name__ == "__main__":
    main()
