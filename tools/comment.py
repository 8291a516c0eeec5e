"""Post the report of a finished `checks` run to its pull request: one comment, which later runs update.

In: the workflow_run event, which GitHub wrote, and the run's artifact `report`, which the pull request's code wrote.
The artifact is data and no more: read up to a size, checked against the report's schema and rendered in our own words
by `tools.report --render`. Where the comment goes is never read from it, but asked of GitHub. Needs `gh`, with a token
that may write to pull requests in GH_TOKEN. After GitHub's advice on `workflow_run`, 'preventing pwn requests'.
"""

import io
import json
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import click

from stages.shared.cli import InputError

MARK = "<!-- lockstep report -->"
AUTHOR = "github-actions[bot]"  # whose comments are ours to update
LARGEST = 5_000_000  # bytes of the artifact, packed or not
NO_REPORT = "**No report**: the checks of this commit left none that can be read."


def gh(endpoint: str, *options: str, send: dict[str, str] | None = None) -> bytes:
    """What GitHub's API answers; `send` goes along as JSON. InputError with gh's own words where it refuses."""
    command = ["gh", "api", endpoint, *options, *(["--input", "-"] if send else [])]
    given = json.dumps(send).encode() if send else None
    ran = subprocess.run(command, input=given, capture_output=True, check=False, timeout=120)
    if ran.returncode:
        raise InputError(f"gh api {endpoint}: {ran.stderr.decode(errors='replace').strip()}")
    return ran.stdout


def pull_requests(repository: str, run: dict[str, Any]) -> list[int]:
    """The open pull requests whose head is the commit that was checked; none when it has moved on.

    Asked for by branch, because the event names no pull request when the branch lies in a fork.
    """
    if run["head_repository"] is None:  # the fork is gone
        return []
    head = f"head={run['head_repository']['owner']['login']}:{run['head_branch']}"
    found = json.loads(gh(f"repos/{repository}/pulls", "--method", "GET", "-f", "state=open", "-f", head))
    return [pull["number"] for pull in found if pull["head"]["sha"] == run["head_sha"]]


def artifact(repository: str, run: int) -> bytes | None:
    """The run's latest artifact `report` as a zip file, None where there is none of a sensible size."""
    answer = gh(f"repos/{repository}/actions/runs/{run}/artifacts", "--method", "GET", "-f", "name=report")
    found = [one for one in json.loads(answer)["artifacts"] if one["size_in_bytes"] <= LARGEST and not one["expired"]]
    if not found:
        return None
    latest = max(one["id"] for one in found)
    return gh(f"repos/{repository}/actions/artifacts/{latest}/zip")


def unpacked(zipped: bytes) -> bytes | None:
    """The bytes of report.json, None where the zip file holds none of a sensible size."""
    try:
        with zipfile.ZipFile(io.BytesIO(zipped)) as archive, archive.open("report.json") as file:
            report = file.read(LARGEST + 1)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, RuntimeError, ValueError):
        return None
    return report if len(report) <= LARGEST else None


def rendered(report: bytes) -> str | None:
    """The report as Markdown, None where it breaks the schema."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        file.write_bytes(report)
        command = [sys.executable, "-m", "tools.report", "--render", str(file)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    # Its error messages may quote the file, so they go nowhere: a log line can be a command to the runner.
    return ran.stdout.strip() or None


def body(markdown: str | None, run: dict[str, Any]) -> str:
    footer = f"Commit {run['head_sha']}, [checks]({run['html_url']}): {run['conclusion']}."
    return f"{MARK}\n{markdown or NO_REPORT}\n\n{footer}\n"


def post(repository: str, number: int, text: str) -> None:
    """Update our comment on a pull request, or make it."""
    pages = json.loads(gh(f"repos/{repository}/issues/{number}/comments", "--paginate", "--slurp"))
    comments = [one for page in pages for one in page]
    ours = [one["id"] for one in comments if one["user"]["login"] == AUTHOR and one["body"].startswith(MARK)]
    if ours:
        gh(f"repos/{repository}/issues/comments/{ours[0]}", "--method", "PATCH", send={"body": text})
    else:
        gh(f"repos/{repository}/issues/{number}/comments", "--method", "POST", send={"body": text})


@click.command(help=__doc__)
@click.option("--event", type=click.Path(path_type=Path, exists=True), envvar="GITHUB_EVENT_PATH", required=True)
def main(event: Path) -> None:
    happened = json.loads(event.read_text(encoding="utf-8"))
    run, repository = happened["workflow_run"], happened["repository"]["full_name"]
    numbers = pull_requests(repository, run)
    zipped = artifact(repository, run["id"]) if numbers else None
    report = unpacked(zipped) if zipped else None
    text = body(rendered(report) if report else None, run)
    for number in numbers:
        post(repository, number, text)
    click.echo(f"run {run['id']}: posted to {', '.join(map(str, numbers)) or 'no open pull request'}", err=True)


if __name__ == "__main__":
    main()
