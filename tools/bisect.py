"""Name the data version that made a metric worse between two commits.

GOOD is an ancestor of BAD; both may be names from data/README.md. A version is named when it is worse than GOOD on
paired evidence, with a stricter level the more versions there are; what its own step changed is shown beside it.

Exit status 0: a version is named; 1: the question can't be asked; 3: no data made it worse; 4: metrics are missing.
"""

import click

from stages.shared import cli
from versions import bisect, history


@click.command(cls=cli.Command, help=__doc__)
@click.argument("good")
@click.argument("bad", default="HEAD")
@click.option("--metric", default="tuned.exact_match", show_default=True, help="a system, and a rate of its answers")
def main(good: str, bad: str, metric: str) -> None:
    history.require_root()
    for line in bisect.search(history.commit_of(good), history.commit_of(bad), metric):
        click.echo(line)


if __name__ == "__main__":
    main()
