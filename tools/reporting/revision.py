"""What Git holds of a revision, laid out in a folder, so that every reader takes a path and no file is read twice over.

In: a revision's name, or the working tree. Out: a folder with exactly its files: for the working tree those that are
tracked or could be added, so the result is what a commit would give. Links are not followed: the folder may come from
a stranger's pull request.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from stages.shared.cli import InputError
from tools import history

WORKING_TREE = "working tree"


class CannotCompareError(InputError):
    """The two sides can't be compared at all; the command exits with 2."""

    exit_code = 2


@dataclass(frozen=True)
class Revision:
    """`commit` is the full hash, of HEAD for the working tree; `date` is its commit date, ISO 8601."""

    name: str
    commit: str
    date: str
    folder: Path


def git(*words: str, index: Path | None = None) -> str:
    """Run git here and return what it prints. Raises CannotCompareError with git's reason."""
    try:
        return history.git(*words, index=index).decode("utf-8", "surrogateescape")
    except InputError as error:
        raise CannotCompareError(error.message) from error


def commit_of(name: str) -> str:
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").strip()
    except CannotCompareError:
        raise CannotCompareError(f"{name!r} is not a commit here (a shallow clone? `git fetch --unshallow`)") from None


def date_of(commit: str) -> str:
    return git("show", "--no-patch", "--format=%cI", commit).strip()


def of_commit(name: str, folder: Path) -> Revision:
    """Write the files of a commit into `folder`. A link becomes a file that holds its target's name."""
    commit, index = commit_of(name), folder.with_name(f"{folder.name}.index")
    folder.mkdir()
    git("-c", "core.sparseCheckout=false", "read-tree", commit, index=index)
    git("-c", "core.symlinks=false", "checkout-index", "--all", f"--prefix={folder}/", index=index)
    return Revision(name, commit, date_of(commit), folder)


def of_working_tree(folder: Path) -> Revision:
    """Copy the files that are tracked, or would be by `git add .`, into `folder`."""
    commit = commit_of("HEAD")
    folder.mkdir()
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in sorted(set(listed) - {""}):
        if Path(name).is_file() and not Path(name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, folder / name)
    return Revision(WORKING_TREE, commit, date_of(commit), folder)


def pair(base: str, head: str | None, scratch: Path) -> tuple[Revision, Revision]:
    """Base and head, each in a folder of its own below `scratch`. Raises CannotCompareError."""
    if git("rev-parse", "--show-prefix").strip():
        raise CannotCompareError("run this in the repository's top folder")
    before = of_commit(base, scratch / "base")
    return before, of_commit(head, scratch / "head") if head else of_working_tree(scratch / "head")
