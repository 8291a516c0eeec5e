"""The ten-times rule: do few clean rows outperform many messy ones? And what does the checklist save of the messy ones?

    python -m experiments.ten_times --scratch /tmp/ten_times

In: a repository whose pipeline has run. Out: metrics/experiments/ten_times.json and .csv. LARGE rows are made messy by
a seeded recipe in two doses and trained on as they are, and again after `validate` has refused what it finds. They are
compared with ten and five times fewer clean rows, for the same epochs and for the same tokens, and with as many clean
ones: all answer the same test rows, and are compared answer by answer.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from experiments import trial
from stages import train
from stages.core import cli, params, strict_json
from stages.data import writing
from stages.scores import stats

Row = dict[str, Any]
LARGE, SMALL, DOSES = 500, (50, 100), (0.5, 0.9)
SEED = 17
OUT = Path("metrics/experiments/ten_times.json")
TRAIN = "data/chat/train.jsonl"


def answer_of(row: Row) -> str:
    return str(row["turns"][-1]["content"])


def with_answer(row: Row, answer: str) -> Row:
    """The row with another last answer."""
    return row | {"turns": [*row["turns"][:-1], row["turns"][-1] | {"content": answer}]}


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
    text = list(twin["turns"][number]["content"])
    at = rng.choice([n for n, (a, b) in enumerate(pairwise(text)) if a.isalpha() and b.isalpha() and a != b])
    text[at : at + 2] = text[at + 1], text[at]
    turns = [turn | {"content": "".join(text)} if n == number else turn for n, turn in enumerate(twin["turns"])]
    return row | {"turns": turns}


RECIPE = (label_noise, conflict, inconsistent_keys, single_quotes, near_duplicate)


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
    """What `validate` keeps of the rows when no limit stops it."""
    raw = [{"id": row["id"], "conversations": row["turns"]} for row in rows]
    trial.run(folder, {"validate.stop_at": "never"}, {"data/raw/rows.jsonl": raw}, ["validate"])
    return list(strict_json.read_jsonl(folder / "data/validated/train.jsonl"))


def kept_by_way(spoiled: list[tuple[str, Row]], kept: list[Row]) -> dict[str, dict[str, int]]:
    """For each way of spoiling: how many rows there were, and how many of them `validate` let through."""
    names = {row["id"] for row in kept}
    every, through = Counter(way for way, _ in spoiled), Counter(way for way, row in spoiled if row["id"] in names)
    return {way: {"rows": every[way], "kept": through[way]} for way in sorted(every)}


def examples(rows: list[Row]) -> Iterator[dict[str, Any]]:
    """A chat example per assistant turn, as stages/build.py makes them, of answers that need not be JSON."""
    for row in rows:
        for number, turn in enumerate(row["turns"]):
            if turn["role"] == "assistant":
                name = f"{row['id']}#{number}"
                yield {"id": name, "group": row["id"], "prompt": row["turns"][:number], "answer": turn["content"]}


@dataclass(frozen=True)
class Arm:
    """One training: its folder, its rows, the passes over them, and what the stage measured."""

    folder: Path
    rows: int
    epochs: int
    trained: dict[str, Any]

    def tokens(self) -> int:
        return int(self.trained["tokens_per_epoch"]) * self.epochs

    def figures(self) -> dict[str, Any]:
        made_from = trial.made_from(self.folder)
        return {
            **{"rows": self.rows, "epochs": self.epochs, "steps": self.trained["steps"], "tokens": self.tokens()},
            **stats.rate("exact_match", trial.hits(self.folder)),
            **stats.rate("json_valid", trial.hits(self.folder, "json_valid")),
            "made_from": {name: made_from[name] for name in ("train", "adapter")},
        }


def arm(folder: Path, rows: list[Row], epochs: int) -> Arm:
    trial.run(folder, {"train.epochs": epochs}, {TRAIN: examples(rows)})
    return Arm(folder, len(rows), epochs, strict_json.read(folder / "metrics/train.json"))


def train_all(scratch: Path, pool: list[Row], epochs: int) -> tuple[dict[str, Arm], dict[str, Any]]:
    """All trainings by name, and what the gate let through. `same tokens`: as many as the messy rows gave."""
    arms: dict[str, Arm] = {}
    gate: dict[str, Any] = {}

    def add(name: str, rows: list[Row], same_tokens: bool = False) -> None:
        arms[name] = arm(scratch / name, rows, epochs)
        if same_tokens:
            more = arms[f"messy {DOSES[0]:.0%}"].tokens() / arms[name].tokens()
            arms[f"{name}, same tokens"] = arm(scratch / f"{name}, same tokens", rows, round(more * epochs))

    large = subset(scratch, pool, LARGE)
    add(f"clean {LARGE}", large)
    for dose in DOSES:
        spoiled, name = messy(large, dose), f"messy {dose:.0%}"
        add(name, [row for _, row in spoiled])
        kept = gated(scratch / f"gate {dose:.0%}", [row for _, row in spoiled])
        gate[name] = kept_by_way(spoiled, kept)
        add(f"{name}, gated", kept, same_tokens=dose == DOSES[0])
    for count in SMALL:
        add(f"clean {count}", subset(scratch, pool, count), same_tokens=True)
    return arms, gate


def comparisons(arms: dict[str, Arm]) -> Iterator[dict[str, Any]]:
    """How much better each clean and each gated training is than each messy one, on the same answers."""
    groups = [row["group"] for row in trial.outcomes(next(iter(arms.values())).folder)]
    for worse in (f"messy {dose:.0%}" for dose in DOSES):
        for name, better in arms.items():
            if name.startswith("clean") or name.startswith(f"{worse}, gated"):
                compared = stats.compare(trial.hits(arms[worse].folder), trial.hits(better.folder), groups)
                interval = {"exact_match": compared.difference, "low": compared.low, "high": compared.high}
                yield {"of": name, "over": worse, **interval, "p_value": compared.p_value, "n": compared.n}


def subset(scratch: Path, pool: list[Row], count: int) -> list[Row]:
    """`count` rows of the pool, each kind of answer in its share: those that stages/build.py would take."""
    folder = scratch / f"subset {count}"
    trial.run(folder, {"build.train_rows": count}, {}, ["build"])
    names = {example["group"] for example in strict_json.read_jsonl(folder / TRAIN)}
    return [row for row in pool if row["id"] in names]


def read_rows() -> list[Row]:
    """The pipeline's training rows, each with the kind of its last answer."""
    kinds = {example["group"]: example["kind"] for example in strict_json.read_jsonl(Path(TRAIN))}
    rows = strict_json.read_jsonl(Path("data/validated/train.jsonl"))
    return [row | {"kind": kinds[row["id"]]} for row in rows if row["id"] in kinds]


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--scratch", "folder for the trainings")
@cli.path_option("--out", "file for the result", required=False, default=OUT, show_default=True)
def main(scratch: Path, out: Path) -> None:
    trial.require_reproduced()
    arms, gate = train_all(scratch.absolute(), read_rows(), int(params.load("train", train.Params).epochs))
    recipe = {"rows": LARGE, "doses": list(DOSES), "ways": [way.__name__ for way in RECIPE], "seed": SEED}
    figures = {name: part.figures() for name, part in arms.items()}
    found = {"recipe": recipe, "arms": figures, "gate": gate, "compared": list(comparisons(arms))}
    writing.write_json(out, found | {"computed_from": trial.made_from()})
    lines = ([name, part["exact_match"]] for name, part in figures.items())
    writing.write_csv(out.with_suffix(".csv"), ["trained on", "exact match"], lines)


if __name__ == "__main__":
    main()
