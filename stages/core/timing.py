"""How long a result took, beside the metrics and outside DVC: a clock's figure is no function of what it measured."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.core import hashes


def record(path: Path, result: Path, figures: dict[str, Any]) -> None:
    """Write `figures` with the sha256 of the file `result`, unless `path` already has figures of the same result.

    So making the same bytes once more, in a fresh clone say, leaves nothing to commit.
    """
    made = hashes.of_file(result)
    with suppress(OSError, ValueError, KeyError, TypeError):
        if json.loads(path.read_text(encoding="utf-8"))["result"] == made:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"result": made, **figures}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
