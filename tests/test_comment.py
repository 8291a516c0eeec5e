"""The comment goes where GitHub says, holds what the schema lets through, and is one per pull request."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tools import comment

REPO = "owner/repo"
RUN: dict[str, Any] = {
    "id": 5,
    "head_sha": "a" * 40,
    "head_branch": "fix",
    "head_repository": {"owner": {"login": "stranger"}},
    "html_url": "https://github.example/owner/repo/actions/runs/5",
    "conclusion": "success",
}
PULLS = f"repos/{REPO}/pulls"
ARTIFACTS = f"repos/{REPO}/actions/runs/5/artifacts"
COMMENTS = f"repos/{REPO}/issues/7/comments"


def packed(report: bytes, name: str = "report.json") -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, report)
    return held.getvalue()


def answers(zipped: bytes, *, comments: list[Any] | None = None, sha: str = RUN["head_sha"]) -> dict[str, Any]:
    """GitHub with one open pull request, 7, and one artifact, 3 (2 is of an earlier attempt)."""
    listed = [{"id": one, "size_in_bytes": len(zipped), "expired": False} for one in (2, 3)]
    return {
        PULLS: [{"number": 7, "head": {"sha": sha}}],
        ARTIFACTS: {"artifacts": listed},
        f"repos/{REPO}/actions/artifacts/3/zip": zipped,
        COMMENTS: [comments or []],
    }


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the command against such answers; gives what it asked for and what it wrote."""

    def post(given: dict[str, Any], run: dict[str, Any] = RUN) -> list[tuple[str, tuple[str, ...], str]]:
        wrote = []

        def gh(endpoint: str, *options: str, send: dict[str, str] | None = None) -> bytes:
            if send:
                wrote.append((endpoint, options, send["body"]))
                return b"{}"
            answer = given[endpoint]
            return answer if isinstance(answer, bytes) else json.dumps(answer).encode()

        monkeypatch.setattr(comment, "gh", gh)
        monkeypatch.setattr(comment, "rendered", lambda report: "**holds**" if report == b"good" else None)
        event = tmp_path / "event.json"
        event.write_text(json.dumps({"workflow_run": run, "repository": {"full_name": REPO}}), encoding="utf-8")
        ran = CliRunner().invoke(comment.main, ["--event", str(event)], catch_exceptions=False)
        assert ran.exit_code == 0
        return wrote

    return post


def test_a_first_report_is_a_new_comment(posted: Any) -> None:
    [(endpoint, options, text)] = posted(answers(packed(b"good")))
    assert (endpoint, options) == (COMMENTS, ("--method", "POST"))
    assert text.startswith(f"{comment.MARK}\n**holds**\n")
    assert RUN["head_sha"] in text


def test_a_later_report_updates_our_comment_and_nobody_elses(posted: Any) -> None:
    texts = {"someone": f"{comment.MARK}\nfake", comment.AUTHOR: f"{comment.MARK}\nearlier"}
    theirs = [{"id": number, "user": {"login": who}, "body": text} for number, (who, text) in enumerate(texts.items())]
    other = {"id": 9, "user": {"login": comment.AUTHOR}, "body": "of another workflow"}
    [(endpoint, options, _)] = posted(answers(packed(b"good"), comments=[other, *theirs]))
    assert (endpoint, options) == (f"repos/{REPO}/issues/comments/1", ("--method", "PATCH"))


def test_a_run_of_an_older_commit_is_not_posted(posted: Any) -> None:
    assert posted(answers(packed(b"good"), sha="b" * 40)) == []


def test_a_run_of_a_deleted_fork_is_not_posted(posted: Any) -> None:
    assert posted(answers(packed(b"good")), RUN | {"head_repository": None}) == []


@pytest.mark.parametrize(
    "zipped",
    [
        b"no zip",
        packed(b"bad"),
        packed(b"good", "../report.json"),
        packed(b"0" * (comment.LARGEST + 1)),
        packed(b"good").replace(b"report.json", b"report\xff.jsn"),
    ],
    ids=["no zip", "breaks the schema", "no such file", "too large unpacked", "bad name"],
)
def test_an_artifact_that_is_no_report_says_so(posted: Any, zipped: bytes) -> None:
    [(_, _, text)] = posted(answers(zipped))
    assert comment.NO_REPORT in text


def test_no_artifact_says_so(posted: Any) -> None:
    [(_, _, text)] = posted(answers(b"") | {ARTIFACTS: {"artifacts": []}})
    assert comment.NO_REPORT in text


def test_a_large_artifact_is_not_downloaded(posted: Any) -> None:
    large = {"artifacts": [{"id": 4, "size_in_bytes": comment.LARGEST + 1, "expired": False}]}
    [(_, _, text)] = posted(answers(b"") | {ARTIFACTS: large})
    assert comment.NO_REPORT in text
