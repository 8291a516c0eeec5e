"""What every command line here shares: paths as options, errors without a traceback, and ending with its caller."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class InputError(click.ClickException, ValueError):
    """Something that was given can't be used. The command prints the message, which names it, and exits with 1.

    Each argument is a line: a line break or a control character inside one, as of a file's name, is printed escaped.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines

    def format_message(self) -> str:
        return "\n".join(map(printable, self.lines))


class Command(click.Command):
    """A command that ends in one line, too, where the system refuses a file: a full disk, a folder for a file."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            if isinstance(error, BrokenPipeError):  # click ends quietly
                raise
            name = os.fsdecode(error.filename) + ": " if isinstance(error.filename, (str, bytes, Path)) else ""
            raise InputError(f"{name}{error.strerror or error}") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises InputError naming it."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from error


def printable(text: str) -> str:
    """The text on one line, with nothing in it that could steer a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def path_option(name: str, text: str, **options: Any) -> Callable[[Any], Any]:
    """A required option that holds a path; paths live in dvc.yaml only, so there is no default."""
    return click.option(name, type=click.Path(path_type=Path), help=text, **({"required": True} | options))


def end_with_caller() -> None:
    """From now on, end this process when the `dvc` or `make` above it is gone: when killed, neither tells its children.

    Without this a killed `make repro` leaves its training running, beside the next one.
    """
    import psutil

    callers = [process for process in psutil.Process().parents() if _is_caller(process)]

    def watch() -> None:
        while all(map(_runs, callers)):
            time.sleep(1)
        try:
            sys.stderr.write("\nthe dvc or make that started this is gone; stopping\n")
        except OSError:  # nobody reads it: the next write of a progress bar would end a training before its checkpoint
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        os.kill(os.getpid(), signal.SIGTERM)  # a training leaves a checkpoint after its step; all else ends at once
        time.sleep(300)
        os._exit(1)  # still here: it hangs, or the step takes longer

    if callers:
        threading.Thread(target=watch, daemon=True).start()


def _is_caller(process: Any) -> bool:
    """Whether it is dvc or make, also as `python -m dvc`."""
    import psutil

    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    names = words[:3] if words[1:2] == ["-m"] else words[:2]
    return bool({Path(name).name for name in names} & {"dvc", "make", "gmake"})


def _runs(process: Any) -> bool:
    """A killed process that nobody has waited for yet is gone, too."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
