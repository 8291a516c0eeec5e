"""What every command line here shares: paths as options, and errors without a traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class InputError(click.ClickException, ValueError):
    """Something that was given can't be used. The command prints the message, which names it, and exits with 1."""


def path_option(name: str, text: str, **options: Any) -> Callable[[Any], Any]:
    """A required option that holds a path; paths live in dvc.yaml only, so there is no default."""
    return click.option(name, type=click.Path(path_type=Path), help=text, **({"required": True} | options))
