"""Several processes, one stage: started by accelerate's launcher, each with its share of every batch.

Only reads the environment that the launcher sets: RANK, LOCAL_RANK and WORLD_SIZE, as torchrun does, and accelerate's
ACCELERATE_USE_FSDP.
"""

import os
import sys
from pathlib import Path


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def gpu() -> int:
    """The GPU of this process, by its number on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def sharded() -> bool:
    """Whether accelerate's launcher was told to shard the model."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"


def command(kind: str, folder: Path, words: list[str]) -> list[str]:
    """`python -m stages.train` with these words, under accelerate's launcher with the file of that kind."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / f"{kind}.yaml")]
    return [*launcher, "-m", "stages.train", *words]


def launch(kind: str, folder: Path) -> None:
    """Become accelerate's launcher, unless one process is asked for or this is one of the launched already."""
    if kind != "single" and "RANK" not in os.environ:
        words = command(kind, folder, sys.argv[1:])
        os.execv(words[0], words)  # noqa: S606
