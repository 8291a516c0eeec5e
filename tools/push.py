"""Push the models to the DVC remote, with all that another machine needs to take the runs over without repeating them.

`dvc push --run-cache` leaves out the files that Git holds (`cache: false`), metrics above all. Where the commit with
them is not there yet, say after a run on a rented card, `make repro PULL=1` finds them on the remote.
"""

import click

from stages.core import cli


@click.command(cls=cli.Command, help=__doc__)
def main() -> None:
    from dvc.repo import Repo, lock_repo

    try:
        repo = Repo()
        repo.push(run_cache=True)
        with lock_repo(repo):
            outs = [out for stage in repo.index.stages for out in stage.outs if out.hash_info and not out.use_cache]
            # What ran here is in the cache as well, for the run cache; what came with Git is not, and is not needed.
            beside = {out.hash_info for out in outs if repo.cache.local.exists(out.hash_info.value)}
            failed = repo.cloud.push(beside).failed
    except OSError:
        raise
    except Exception as error:  # the clients of the remotes share no base
        raise cli.InputError(f"DVC: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if failed:
        raise cli.InputError(f"{len(failed)} files that Git holds could not be pushed; push again")
    click.echo("push: the remote has the models, and the runs with their metrics", err=True)


if __name__ == "__main__":
    main()
