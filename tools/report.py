"""What a change did: data, params, code and metrics of the working tree, or of --head REV, against BASE.

BASE and REV are commits or data versions by name. Everything is read from Git: no remote, no model, no GPU, and nothing
of the change is run. Prints Markdown, ready for a pull request's comment. Exit status 0: the gate holds; 1: it fails;
2: the two can't be compared.
"""

import sys

import click

from review import inert, report
from stages.core import cli


class CannotCompareError(cli.InputError):
    """There is nothing to report."""

    exit_code = report.REFUSED


@click.command(cls=cli.Command, help=__doc__)
@click.argument("base")
@click.option("--head", metavar="REV", help="compare this version instead of the working tree")
def main(base: str, head: str | None) -> None:
    try:
        found = report.build(base, head)
    except (cli.InputError, OSError) as error:
        raise CannotCompareError(inert.line(str(error))) from error
    click.echo(report.render(found), nl=False)
    sys.exit(found.status)


if __name__ == "__main__":
    main()
