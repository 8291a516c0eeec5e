"""Several processes on one machine that share a piece of work, each with a GPU if there are any."""

import multiprocessing
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from stages.core import cli


def run(work: Callable[..., None], count: int, *given: Any) -> None:
    """Call work(number, count, *given) in `count` processes; one is this process. Raises InputError when one fails."""
    if count == 1:
        return work(0, 1, *given)
    from torch.multiprocessing.spawn import ProcessExitedException, spawn

    try:
        spawn(_begin, (work, count, *given), count, daemon=True)  # type: ignore[no-untyped-call]
    except ProcessExitedException as error:
        raise cli.InputError(f"of {count} processes, {error}") from error


def _begin(number: int, work: Callable[..., None], count: int, *given: Any) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's `&` has it ignored, and torch ends us by it
    parent = multiprocessing.parent_process()
    if parent and not parent.is_alive():  # from here on torch ends this process with its parent
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    try:
        work(number, count, *given)
    except (click.ClickException, OSError) as error:
        click.echo(f"Error: {cli.printable(str(error))}", err=True)
        sys.exit(1)
