"""sha256 of files and folders: what a result was computed from."""

import hashlib
from pathlib import Path


def of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_folder(path: Path) -> str:
    """Hex sha256 over the names and hashes of all files below `path`, in name order."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{of_file(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
