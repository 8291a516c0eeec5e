"""Time and memory of `validate`, `build` or the report's comparison of rows, at 1,000 training rows and more.

\b
    python -m benchmarks.scale validate --out benchmarks/scale_validate.json
    python -m benchmarks.scale build --out benchmarks/scale_build.json

The rows are put together at random (seeded) from the words of the shipped training requests, so that letters, lengths
and spelling are realistic and the rows differ. The report compares two commits; the second has one row more.
"""

import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from stages.core import cli
from stages.data import rows, writing

SIZES = (1000, 10_000, 100_000)
KEPT_OUT = re.compile(r"^(a|an|the|my|our|some|asap|urgent)$|day$|tonight|tomorrow|task|todo|reminder")
OPENINGS = ("", "please ", "i need to ", "remind me to ", "dont forget to ", "ok so ", "hey ", "could you ")


def words(folder: Path) -> list[str]:
    """The lower-case words of the requests in the folder, but for those that the labelling rules keep out of titles."""
    turns = (turn for file in sorted(folder.glob("*.jsonl")) for row in rows.read(file) for turn in row.turns)
    used = {word for turn in turns if turn["role"] == "user" for word in turn["content"].split()}
    return sorted(word for word in used if word.isalpha() and word.islower() and not KEPT_OUT.search(word))


def made(count: int, known: list[str]) -> Iterator[dict[str, Any]]:
    """`count` rows: half of them create a task, the others complete, delete or ask for something else."""
    rng = random.Random(17)  # noqa: S311
    for _ in range(count):
        title = " ".join(rng.choices(known, k=rng.randint(2, 8)))
        answers: list[tuple[str, dict[str, Any]]] = [
            (f"{title} is done", {"action": "complete", "title": title.capitalize()}),
            (f"drop {title}", {"action": "delete", "title": title.capitalize()}),
            (f"tell me about {title}", {"action": "reject", "reason": "out_of_scope"}),
        ]
        new = {"action": "create", "title": title.capitalize(), "priority": "medium", "due_date": None}
        request, answer = rng.choice([*answers, *[(rng.choice(OPENINGS) + title, new)] * len(answers)])
        yield {"instruction": request, "output": json.dumps(answer)}


def write_rows(file: Path, made_rows: Iterable[dict[str, Any]], stage: str) -> None:
    """As people write them, or for `build` as `validate` does."""
    if stage == "build":
        made_rows = (
            {"id": f"r{number}", "source": f"rows.jsonl:{number}"}
            | {"turns": [{"role": "user", "content": r["instruction"]}, {"role": "assistant", "content": r["output"]}]}
            for number, r in enumerate(made_rows, start=1)
        )
    writing.write_jsonl(file, made_rows)


def options(stage: str, file: Path, scratch: Path) -> list[str]:
    """What the stage is given, as in dvc.yaml, but for the rows and where it writes."""
    given: dict[str, str | Path] = {"test": "data/test", "schema": "data/schema.json"}
    if stage == "validate":
        given |= {"raw": file.parent, "suites": "expectations", "rules": "data/rules.yaml"}
        given |= {name: scratch / name for name in ("out", "docs", "metrics", "detail")}
    else:
        given |= {
            "train": file,
            "test": "data/validated/test.jsonl",
            "base": "models/base",
            "behaviour": "data/behaviour",
        }
        given |= {name: scratch / name for name in ("out", "metrics")}
    return ["-m", f"stages.{stage}", *(f"--{name}={value}" for name, value in given.items())]


def two_commits(folder: Path) -> list[str]:
    """A program that compares the rows of two commits; the second has one row more."""
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "gc.auto=0"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "rows"]):
        subprocess.run([*git, *command], check=True)
    with (folder / "data/raw/rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"instruction": "one more", "output": "{}"}\n')
    subprocess.run([*git, "commit", "--quiet", "-am", "one more"], check=True)
    compare = "assert len(rows.between('HEAD~1', 'HEAD', 'data/raw')['added']) == 1"
    return ["-c", f"import os; from review import rows; os.chdir({str(folder)!r}); {compare}"]


def measure(words: list[str]) -> dict[str, Any]:
    """Run Python in a process of its own; wall and CPU seconds and the peak of its memory."""
    started = time.perf_counter()
    process = os.posix_spawn(sys.executable, [sys.executable, *words], os.environ)
    _, status, used = os.wait4(process, 0)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024),
        "status": os.waitstatus_to_exitcode(status),
    }


@click.command(cls=cli.Command, help=__doc__)
@click.argument("stage", type=click.Choice(["validate", "build", "report"]))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file for the figures")
@click.option("--rows", "counts", type=int, multiple=True, default=SIZES, show_default=True, help="training rows")
def main(stage: str, out: Path, counts: tuple[int, ...]) -> None:
    known = words(Path("data/raw"))
    sizes = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "data/raw/rows.jsonl"
            write_rows(file, made(count, known), stage)
            asked = two_commits(Path(folder)) if stage == "report" else options(stage, file, Path(folder))
            sizes.append({"rows": count, **measure(asked)})
            if sizes[-1]["status"]:
                raise cli.InputError(f"{stage} stopped at {count} rows; the reason stands above")
            click.echo(json.dumps(sizes[-1]), err=True)
    device = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    writing.write_json(out, {"device": device, "sizes": sizes})


if __name__ == "__main__":
    main()
