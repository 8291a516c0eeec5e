"""Answers that are kept while others are made: a killed run goes on, and processes share the batches.

How a score is rounded depends on the rows beside it. So what is left to do is whole batches of all rows, and after any
number of runs and processes the answers are those of one run in one process.
"""

import hashlib
import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

from stages.answers.generate import Answer


class Kept:
    """The answers to `batches`, lists of numbers of rows, from `inputs`: a JSON object of whatever decides the answers.

    In files below `root`, one for each process. What was kept from other inputs has another name and is left alone.
    """

    def __init__(self, root: Path, inputs: dict[str, Any], batches: list[list[int]]) -> None:
        self.root, self.batches = root, batches
        self.name = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]

    def add(self, process: int, row: int, seconds: float, answer: Answer) -> None:
        """In one write. The line break comes first: what a kill tore must not run into the next line."""
        line = b"\n" + json.dumps([row, seconds, astuple(answer)]).encode()
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f"{self.name}.{process}.jsonl").open("ab", buffering=len(line) + 1) as file:
            file.write(line)

    def read(self) -> dict[int, tuple[float, Answer]]:
        """By row, in their order: seconds and the answer, those of a killed run too. What is torn is left out."""
        found: dict[int, tuple[float, Answer]] = {}
        for line in b"\n".join(file.read_bytes() for file in self._files()).split(b"\n"):
            try:
                row, seconds, answer = json.loads(line)
            except ValueError:
                continue
            found[row] = seconds, Answer(*answer)
        return dict(sorted(found.items()))

    def todo(self) -> list[list[int]]:
        """The batches that lack an answer."""
        done = self.read()
        return [batch for batch in self.batches if any(row not in done for row in batch)]

    def clear(self) -> None:
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.root.glob(f"{self.name}.*.jsonl"))
