"""Time and memory of the validate stage at 1,000, 10,000 and 100,000 training rows, or as many as --rows says.

\b
    python -m benchmarks.validate --out benchmarks/validate.json
    python -m benchmarks.validate --rows 1000 --rows 10000 --rows 100000 --rows 1000000 --out benchmarks/validate.json

The rows are put together at random (seeded) from the words of the shipped training requests, so that letters, lengths
and spelling are realistic and the rows differ.
"""

import json
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from stages.core import strict_json
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


def measure(raw: Path, scratch: Path) -> dict[str, Any]:
    """Run the stage in a process of its own; return wall and CPU seconds and the peak of its memory."""
    paths = {"raw": raw, "test": "data/test", "schema": "data/schema.json", "suites": "expectations"}
    outs = {name: scratch / name for name in ("out", "docs", "metrics", "detail")} | {"rules": "data/rules.yaml"}
    options = [str(part) for name, value in (paths | outs).items() for part in (f"--{name}", value)]
    started = time.perf_counter()
    process = os.posix_spawn(sys.executable, [sys.executable, "-m", "stages.validate", *options], os.environ)
    _, status, used = os.wait4(process, 0)
    counts = strict_json.read(scratch / "metrics")
    return {
        "rows": counts["train_rows"],
        "refused": counts["train_refused"],
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024),
        "status": os.waitstatus_to_exitcode(status),
    }


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file for the figures")
@click.option("--rows", "counts", type=int, multiple=True, default=SIZES, show_default=True, help="training rows")
def main(out: Path, counts: tuple[int, ...]) -> None:
    known = words(Path("data/raw"))
    sizes = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "raw" / "rows.jsonl"
            writing.write_jsonl(file, made(count, known))
            sizes.append(measure(file.parent, Path(folder)))
            click.echo(json.dumps(sizes[-1]), err=True)
    device = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    writing.write_json(out, {"device": device, "sizes": sizes})


if __name__ == "__main__":
    main()
