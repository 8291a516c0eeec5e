"""Go back to a data version: its data, contract, params, dvc.lock and metrics from Git, its outputs from the DVC cache.

REV is a commit, or the name of a data version in data/README.md. What comes back is staged, ready to commit, and
nothing is trained. Code and dvc.yaml stay as they are today. Everything is looked up and hashed before a file is
touched, and every restored file is hashed again, because DVC checks out an altered cache object without a word.

Exit status 0: restored; 1: refused, nothing touched; 3: the cache lacks something, nothing touched; 4: something is
altered, or the rollback broke off.
"""

import click

from stages.core import cli
from tools import mend
from versions import history, names, rollback


@click.command(cls=cli.Command, help=__doc__)
@click.argument("rev", required=False)
@click.option("--data-only", is_flag=True, help="take the data and the schema only; `dvc repro` then trains on them")
@click.option("--allow-missing", is_flag=True, help="bring back the rest when the cache lacks an output")
@click.option("--list", "listing", is_flag=True, help="list the data versions behind HEAD, newest first")
def main(rev: str | None, data_only: bool, allow_missing: bool, listing: bool) -> None:
    if bool(rev) == listing:
        raise click.UsageError("give a REV, or --list")
    history.require_root()
    for line in mend.mend():
        click.echo(line, err=True)
    if listing:
        click.echo("\n".join(names.table()))
        if history.is_shallow():
            click.echo("this clone is shallow: older versions come with `git fetch --unshallow`", err=True)
    if rev:
        for line in rollback.roll_back(rev, data_only, allow_missing):
            click.echo(line)


if __name__ == "__main__":
    main()
