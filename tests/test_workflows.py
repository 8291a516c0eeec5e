"""Every `run:` block of .github/workflows, run as GitHub would, in temporary clones with two branches.

Real: bash with GitHub's options and variables, git with a server in a folder, .ci/run, DVC with the shipped remote, and
tools.report with the packages that its job installs, alone in an environment. Standing in, as programs on PATH that
note how they were called: gh, apt-get, pip (links what is installed already), and make, which links this environment
and runs `dvc repro`. Names of branches and folders are as awkward as git and the shell allow.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

# BaseLoader: `on` is a word, as it is to GitHub.
WORKFLOWS = {
    file.name: yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
    for file in sorted((ROOT / ".github/workflows").glob("*.yml"))
}
JOBS = [(name, job) for name, workflow in WORKFLOWS.items() for job in workflow["jobs"]]
# What the tests below run; a new job needs a test before it passes.
TRIED = [("checks.yml", "gate"), ("checks.yml", "tests"), ("report.yml", "post"), ("report.yml", "verdict")]
TRIED += [("train.yml", job) for job in ("checks", "label", "train")] + [("mutants.yml", "mutants")]
TRUNK, BRANCH = "tr;unk", "fix/it's$(touch${IFS}pwned)&more"
REPO, URL = "owner/repo", "https://github.example"
WHO = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
NO_PIP = '[ "$2" = pip ] && exit'  # of a program that stands for python
# Notes its arguments and the file that it is given; `pr list` answers with one pull request.
GH = """\
import json, os, sys
words = sys.argv[1:]
sent = open(words[words.index("--body-file") + 1]).read() if "--body-file" in words else None
with open(os.environ["CALLS"], "a") as log:
    log.write(json.dumps(["gh", *words, sent]) + "\\n")
if words[:2] == ["pr", "list"]:
    print("7 main")
"""
# Links a package that is installed here, and what it needs, into the environment at sys.argv[1].
PIP = """\
import sys
from importlib.metadata import distribution
from pathlib import Path
from packaging.requirements import Requirement
site, command, option, constraints, *todo = sys.argv[1:]
assert (command, option) == ("install", "--constraint"), sys.argv
lines = Path(constraints).read_text().splitlines()
pinned = {Requirement(line).name.lower().replace("_", "-") for line in lines if line and not line.startswith("#")}
done = set()
while todo:
    wanted = Requirement(todo.pop())
    name = wanted.name.lower().replace("_", "-")
    if name in done or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
        continue
    assert name in pinned, name
    done.add(name)
    found = distribution(name)
    todo += found.requires or []
    for top in {file.parts[0] for file in found.files if file.parts[0] != ".."}:
        if not (Path(site) / top).exists():
            (Path(site) / top).symlink_to(found.locate_file(top))
"""


@dataclass
class Runner:
    """A machine of GitHub's: a folder, programs on PATH, and what the blocks of a job left."""

    folder: Path
    expressions: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    output: str = ""

    def __post_init__(self) -> None:
        for name in ("bin", "runner temp", "home"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.program("gh", f"#!{sys.executable}\n{GH}")

    def program(self, name: str, script: str) -> None:
        file = self.folder / "bin" / name
        file.write_text(script, encoding="utf-8")
        file.chmod(0o755)

    def noting(self, name: str, then: str = "") -> None:
        note = f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))'"
        self.program(name, f'#!/bin/bash\n{note} {name} "$@" >> "$CALLS"\n{then}\n')

    def calls(self, program: str) -> list[list[Any]]:
        log = self.folder / "calls"
        lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []
        return [call[1:] for call in map(json.loads, lines) if call[0] == program]

    def outputs(self) -> dict[str, str]:
        """What a job wrote to GITHUB_OUTPUT, as GitHub reads it."""
        text = (self.folder / "output").read_text(encoding="utf-8")
        found = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
        return found | {name: body for name, _, body in re.findall(r"^(\w+)<<(.+)\n((?s:.*))\2$", text, re.MULTILINE)}

    def run(self, workflow: str, job: str, clone: Path) -> None:
        """Run the blocks of a job in order; after one that failed, those that say so."""
        assert (workflow, job) in TRIED
        assert WORKFLOWS[workflow]["defaults"]["run"] == {"shell": "bash"}
        for step in WORKFLOWS[workflow]["jobs"][job]["steps"]:
            assert step.get("if") in (None, "${{ !cancelled() && steps.setup.outcome == 'success' }}")
            if "if" in step and self.status.get("Set up the environment"):
                continue
            if "run" in step and ("if" in step or not any(self.status.values())):
                self.status[step["name"]] = self.block(step, clone)

    def block(self, step: dict[str, Any], clone: Path) -> int:
        script = self.folder / "block.sh"
        script.write_text(step["run"], encoding="utf-8")
        given = {name: re.sub(r"\$\{\{ (.*?) \}\}", self.value, text) for name, text in step.get("env", {}).items()}
        env = {
            "PATH": f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GITHUB_REPOSITORY": REPO,
            "GITHUB_OUTPUT": str(self.folder / "output"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
            "RUNNER_TEMP": str(self.folder / "runner temp"),
            "CALLS": str(self.folder / "calls"),
            "DVC_SITE_CACHE_DIR": str(self.folder / "home" / "site"),
            **self.env,
            **given,
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        ran = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False, timeout=900)
        self.output += ran.stdout + ran.stderr
        return ran.returncode

    def value(self, expression: re.Match[str]) -> str:
        """The first known name of an expression `a || b`; every name has to be known or stood in for."""
        return next(self.expressions[name] for name in expression[1].split(" || ") if name in self.expressions)


def git(folder: Path, *words: str) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", *WHO, *words]
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{words}\n{ran.stderr}"
    return ran.stdout.strip()


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def server(tmp_path: Path, files: Path) -> Path:
    """A folder that stands for GitHub: a trunk that moved on after a branch left, which is pull request 7."""
    git(files, "init", "-q", "-b", TRUNK)
    git(files, "add", ".")
    git(files, "commit", "-qm", "where the branch leaves")
    git(files, "checkout", "-q", "-b", BRANCH)
    write(files / "CHANGELOG.md", "a change\n")
    git(files, "commit", "-qam", "the change")
    git(files, "checkout", "-q", TRUNK)
    write(files / "LICENSE", "another\n")
    git(files, "commit", "-qam", "the trunk moves on")
    bare = tmp_path / "github" / REPO
    bare.parent.mkdir(parents=True)
    git(tmp_path, "clone", "-q", "--bare", str(files), str(bare))
    git(bare, "update-ref", "refs/pull/7/head", f"refs/heads/{BRANCH}")
    return bare


def checked_out(bare: Path, folder: Path, branch: str) -> Path:
    """A clone in a folder with a space in its name, on a branch, as actions/checkout leaves it."""
    clone = folder / "work tree"
    git(bare, "clone", "-q", "--branch", branch, str(bare), str(clone))
    return clone


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A server whose repository holds only what the blocks touch."""
    files = tmp_path / "files"
    (files / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", files / ".ci/run")
    for name in ("CHANGELOG.md", "LICENSE", "constraints.txt"):
        write(files / name, "first\n")
    return server(tmp_path, files)


# The files themselves.


def test_every_job_is_tried_here() -> None:
    assert sorted(JOBS) == sorted(TRIED)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_by_hash_with_their_version(name: str) -> None:
    text = (ROOT / ".github/workflows" / name).read_text(encoding="utf-8")
    for line in re.findall(r"^\s+uses: .*", text, re.MULTILINE):
        assert re.fullmatch(r"\s+uses: actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_secrets_and_own_runners_need_the_button_and_the_environment(name: str, job: str) -> None:
    described = WORKFLOWS[name]["jobs"][job]
    if "secrets." in json.dumps(described) or described["runs-on"] != "ubuntu-24.04":
        assert described["environment"] == "gpu"
        assert described["if"].startswith("${{ github.event_name == 'workflow_dispatch' && ")


def test_the_verdict_reads_the_default_branch_and_writes_nothing_and_the_post_has_no_code() -> None:
    verdict, post = (WORKFLOWS["report.yml"]["jobs"][job] for job in ("verdict", "post"))
    [checkout] = [step["with"] for step in verdict["steps"] if "checkout" in step.get("uses", "")]
    assert checkout["ref"] == "${{ github.event.repository.default_branch }}"
    assert checkout["persist-credentials"] == "false"
    assert verdict["permissions"] == {"contents": "read"}
    assert post["permissions"] == {"pull-requests": "write", "statuses": "write"}
    assert not [step for step in post["steps"] if "uses" in step]
    told = {name: f"${{{{ steps.report.outputs.{name} }}}}" for name in ("head", "status", "report")}
    assert (verdict["outputs"], verdict["steps"][-1]["id"], post["needs"]) == (told, "report", "verdict")
    assert post["if"] == "${{ !cancelled() }}"
    head = post["steps"][0]["env"]["HEAD"]
    assert head == "${{ needs.verdict.outputs.head || github.event.pull_request.head.sha }}", "also after a crash"
    assert "pull_request.number || inputs.number" in WORKFLOWS["report.yml"]["concurrency"]["group"]
    assert {"opened", "synchronize", "edited"} <= set(WORKFLOWS["report.yml"]["on"]["pull_request_target"]["types"])


def test_what_judges_has_the_whole_history_and_each_push_to_the_default_branch_is_judged() -> None:
    verdict, gate = WORKFLOWS["report.yml"]["jobs"]["verdict"], WORKFLOWS["checks.yml"]["jobs"]["gate"]
    assert [job["steps"][0]["with"]["fetch-depth"] for job in (verdict, gate)] == ["0", "0"]
    checks = WORKFLOWS["checks.yml"]
    assert set(checks["on"]) == {"push", "pull_request", "workflow_dispatch"}
    assert checks["concurrency"]["group"].endswith("== 'pull_request' && github.ref || github.sha }}")
    assert gate["steps"][2]["run"] == verdict["steps"][2]["run"], "both install what the report needs"
    default = "github.ref_name == github.event.repository.default_branch"
    assert gate["if"] == f"${{{{ github.event_name == 'push' && {default} }}}}"


def test_what_asks_for_the_token_has_it_and_hands_it_to_git_in_one_way() -> None:
    steps = [step for name, job in JOBS for step in WORKFLOWS[name]["jobs"][job]["steps"]]
    asking = [step for step in steps if re.search(r"GH_TOKEN|\bgh ", step.get("run", ""))]
    assert {step.get("env", {}).get("GH_TOKEN") for step in asking} == {"${{ github.token }}"}
    helpers = [found for step in asking for found in re.findall(r"credential\.helper='(.+)'", step["run"])]
    assert (len(helpers), set(helpers)) == (3, {'!f() { echo username=x-access-token; echo "password=$GH_TOKEN"; }; f'})


# checks


@pytest.mark.parametrize("status", [0, 3])
def test_checks_test_with_the_python_of_the_matrix(small: Path, tmp_path: Path, status: int) -> None:
    runner = Runner(tmp_path / "runner")
    runner.noting("make", f'[ "$*" = test ] && [ "$PYTHON" = python ] && exit {status}')
    for name in ("chromium", "sshd"):
        runner.program(name, "")
    clone = checked_out(small, runner.folder, BRANCH)
    runner.run("checks.yml", "tests", clone)
    assert (runner.status, runner.calls("make")) == ({"Test": status}, [["test"]]), runner.output
    assert not (clone / "pwned").exists()
    assert WORKFLOWS["checks.yml"]["jobs"]["tests"]["strategy"]["matrix"] == {"python": ["3.11", "3.13"]}


@pytest.mark.parametrize(
    ("only", "status"), [("stages.core.yaml12.xǁLoaderǁ_float__mutmut_9", 0), ("", 0), ("$(touch pwned)", 1)]
)
def test_mutants_are_chosen_by_name(tmp_path: Path, only: str, status: int) -> None:
    runner = Runner(tmp_path / "runner", expressions={"inputs.only": only, "inputs.tests": "test_stats or test_a"})
    runner.noting("make", f'[ "$ONLY" = "{only}" ] && [ "$TESTS" = "test_stats or test_a" ]')
    runner.run("mutants.yml", "mutants", tmp_path)
    assert (runner.status, runner.calls("make")) == ({"Mutate": status}, [["mutants"]] * (not status))
    assert list(WORKFLOWS["mutants.yml"]["on"]) == ["workflow_dispatch"]


def test_checks_install_what_tests_would_skip_without(small: Path, tmp_path: Path) -> None:
    runner = Runner(tmp_path / "runner")
    for name in ("apt-get", "make"):
        runner.noting(name)
    runner.noting("sudo", 'exec "$@"')
    runner.program("id", "#!/bin/sh\necho 1000\n")  # not root
    for name in ("bash", "dirname", "env"):  # a machine with these programs only
        runner.program(name, f'#!/bin/sh\nexec {shutil.which(name)} "$@"\n')
    runner.env["PATH"] = str(runner.folder / "bin")
    clone = checked_out(small, runner.folder, TRUNK)
    write(clone / ".ci/run", (clone / ".ci/run").read_text(encoding="utf-8").replace(":/usr/sbin", ""))
    runner.run("checks.yml", "tests", clone)
    assert runner.status == {"Test": 0}, runner.output
    update, install = runner.calls("apt-get")
    assert (update[0], len(runner.calls("sudo"))) == ("update", 2)
    assert {"chromium", "openssh-server"} < set(install)


@pytest.mark.parametrize(("before", "base"), [("HEAD~1", "HEAD~1"), ("0" * 40, "HEAD")])
@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_push_is_judged_by_what_was_there(small: Path, tmp_path: Path, before: str, base: str, status: int) -> None:
    runner = Runner(tmp_path / "runner", {"github.token": "token"})
    runner.program("python", f'#!/bin/bash\n{NO_PIP}\necho "$@"\nexit {status}\n')
    clone = checked_out(small, runner.folder, TRUNK)
    nothing = before.startswith("0")
    runner.expressions["github.event.before"] = before if nothing else git(clone, "rev-parse", before)
    runner.run("checks.yml", "gate", clone)
    assert runner.status["Report"] == status
    compared = base if nothing else git(clone, "rev-parse", base)
    assert (runner.folder / "summary").read_text(encoding="utf-8") == f"-m tools.report {compared} --head HEAD\n"


def test_a_forced_push_is_judged_by_what_it_replaced(small: Path, tmp_path: Path) -> None:
    runner = Runner(tmp_path / "runner", {"github.token": "token"})
    runner.program("python", f'#!/bin/bash\n{NO_PIP}\necho "$@"\n')
    clone = checked_out(small, runner.folder, TRUNK)
    replaced = git(small, "commit-tree", "-p", TRUNK, "-m", "replaced", f"{TRUNK}^{{tree}}")  # on the server only
    runner.expressions["github.event.before"] = replaced
    runner.run("checks.yml", "gate", clone)
    assert (runner.folder / "summary").read_text(encoding="utf-8") == f"-m tools.report {replaced} --head HEAD\n"
    assert git(clone, "cat-file", "-t", replaced) == "commit"


def test_a_push_over_a_commit_that_is_nowhere_any_more_is_not_compared_with_itself(small: Path, tmp_path: Path) -> None:
    runner = Runner(tmp_path / "runner", {"github.event.before": "f" * 40, "github.token": "token"})
    runner.program("python", f"#!/bin/bash\n{NO_PIP}\necho compared\n")
    runner.run("checks.yml", "gate", checked_out(small, runner.folder, TRUNK))
    assert runner.status["Report"] == 128
    assert not (runner.folder / "summary").exists() or not (runner.folder / "summary").read_text(encoding="utf-8")


# report


def judging(folder: Path) -> Runner:
    request = "github.event.pull_request"
    return Runner(folder, {f"{request}.base.ref": TRUNK, f"{request}.number": "7", "github.token": "token"})


def verdict(bare: Path, folder: Path, python: str) -> tuple[Runner, Path]:
    """The job with a script in place of Python, and the clone that it ran in."""
    runner = judging(folder)
    runner.program("python", f"#!/bin/bash\n{python}\n")
    clone = checked_out(bare, folder, TRUNK)
    runner.run("report.yml", "verdict", clone)
    assert set(runner.status.values()) == {0}, runner.output
    return runner, clone


def test_a_pull_request_is_judged_by_what_merging_it_would_do(small: Path, tmp_path: Path) -> None:
    runner, clone = verdict(small, tmp_path / "runner", f'{NO_PIP}\necho "$@"\nexit 1')
    found = runner.outputs()
    base, head = (git(small, "rev-parse", name) for name in (TRUNK, BRANCH))
    assert (found["status"], found["head"]) == ("1", head)
    compared, merge = re.fullmatch(r"-m tools.report (\w+) --head (\w+)\n", found["report"]).groups()  # type: ignore[union-attr]
    assert compared == base
    assert git(clone, "rev-parse", f"{merge}^1", f"{merge}^2").split() == [base, head]
    assert git(clone, "show", f"{merge}:LICENSE", f"{merge}:CHANGELOG.md") == "another\na change"
    assert (clone / "CHANGELOG.md").read_text(encoding="utf-8") == "first\n"
    assert not (clone / "pwned").exists()


def test_a_report_that_a_training_asks_for_is_of_that_pull_request(small: Path, tmp_path: Path) -> None:
    runner = Runner(tmp_path / "runner", {"inputs.base": TRUNK, "inputs.number": "7", "github.token": "token"})
    runner.program("python", f"#!/bin/bash\n{NO_PIP}\n")
    runner.run("report.yml", "verdict", checked_out(small, runner.folder, TRUNK))
    assert runner.outputs()["head"] == git(small, "rev-parse", BRANCH)
    asked, told = (WORKFLOWS["report.yml"]["jobs"][job]["steps"][-1]["env"] for job in ("verdict", "post"))
    assert [told[name] for name in ("BASE", "NUMBER")] == [asked[name] for name in ("BASE", "NUMBER")]


def test_a_branch_that_conflicts_is_not_compared(small: Path, tmp_path: Path) -> None:
    other = checked_out(small, tmp_path / "other", BRANCH)
    write(other / "LICENSE", "a third\n")
    git(other, "commit", "-qam", "conflict")
    git(other, "push", "-q", "origin", "HEAD:refs/pull/7/head")
    found = verdict(small, tmp_path / "runner", "")[0].outputs()
    assert (found["status"], found["report"][:18]) == ("2", "## ⚪ Not compared:")


def test_what_a_crash_prints_directs_no_runner_and_ends_no_output(small: Path, tmp_path: Path) -> None:
    text = r"echo status=0; echo 'report<<x'; printf '::error::a\n##[group]b\n' >&2; exit 70"
    runner, _ = verdict(small, tmp_path / "runner", f"{NO_PIP}\n{text}")
    assert runner.output == "| ::error::a\n| ## [group]b\n"
    written = (runner.folder / "output").read_text(encoding="utf-8")
    assert re.search(r"\nstatus=70\nreport<<(end-[0-9a-f]{32})\nstatus=0\nreport<<x\n\1\n$", written)


def test_a_pull_request_can_not_judge_itself(tmp_path: Path) -> None:
    """The real report on the real repository: a stranger's branch edits a metric, the gate and the judge."""
    files = tmp_path / "files"
    for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0"):
        if (ROOT / name).is_file():
            (files / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, files / name)
    bare = server(tmp_path, files)
    other = checked_out(bare, tmp_path / "other", BRANCH)
    figures = json.loads((other / "metrics/evaluate.json").read_text(encoding="utf-8"))
    figures["tuned"]["exact_match"] = 1.0
    write(other / "metrics/evaluate.json", json.dumps(figures))
    for name in ("tools/report.py", "review/compare.py", "versions/history.py", "sitecustomize.py", "scipy.py"):
        write(other / name, "open('pwned', 'w')\nprint('## ✅ The gate holds')\nraise SystemExit(0)\n")
    write(other / "gate.yaml", "rules: []\n")
    git(other, "add", ".")
    git(other, "commit", "-qm", "better")
    git(other, "push", "-q", "origin", "HEAD:refs/pull/7/head")
    own = tmp_path / "environment"
    venv.create(own)
    write(tmp_path / "pip.py", PIP)
    site = next(own.glob("lib/python*/site-packages"))
    pip = f'if [ "$1 $2" = "-m pip" ]; then exec {sys.executable} {tmp_path}/pip.py {site} "${{@:3}}"; fi'
    runner, clone = verdict(bare, tmp_path / "runner", f'{pip}\nexec {own}/bin/python "$@"')
    found = runner.outputs()
    assert (found["status"], found["report"].startswith("## ❌ The gate fails:")) == ("1", True), runner.output
    assert "**What the gate goes by was changed**; it takes effect once this is merged: `gate.yaml`" in found["report"]
    assert not (clone / "pwned").exists()


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [("0", "success", "The gate holds"), ("1", "failure", "The gate fails"), ("2", "failure", "Not compared")]
    + [(other, "error", "No report") for other in ("70", "")],
)
def test_the_verdict_becomes_a_status_and_one_comment(tmp_path: Path, status: str, state: str, words: str) -> None:
    runner = judging(tmp_path / "runner")
    report = "## A `$(touch pwned)` report\n@x" if status in ("0", "1", "2") else ""
    found = {"report": report, "status": status, "head": "a" * 40}
    runner.expressions |= {f"needs.verdict.outputs.{name}": text for name, text in found.items()}
    runner.expressions |= {"github.server_url": URL, "github.repository": REPO, "github.run_id": "5"}
    runner.run("report.yml", "post", tmp_path)
    assert runner.status == {"Post": 0}, runner.output
    set_status, comment = runner.calls("gh")
    link = f"{URL}/{REPO}/actions/runs/5"
    fields = [f"state={state}", f"context=gate: {TRUNK}", f"description={words}", f"target_url={link}"]
    assert set_status[1:3] == [f"repos/{REPO}/statuses/{'a' * 40}", "--silent"]
    assert [field for field in set_status if field and "=" in field] == fields
    assert comment[:7] == ["pr", "comment", "7", "--repo", REPO, "--edit-last", "--create-if-none"]
    assert comment[-1] == f"{report or '## ⚪ No report: see the run.'}\n\nCommit {'a' * 40}, [run]({link}).\n"
    assert not (tmp_path / "pwned").exists()


# train

TOY = """\
stages:
  fetch:
    cmd: python step.py models/base metrics/base.json
    deps: [step.py]
    outs: [{models/base: {push: false}}]
    metrics: [{metrics/base.json: {cache: false}}]
  train:
    cmd: python step.py models/adapter metrics/evaluate.json CHANGELOG.md
    deps: [step.py, CHANGELOG.md]
    outs: [models/adapter]
    metrics: [{metrics/evaluate.json: {cache: false}}]
  merge:
    cmd: python step.py models/merged metrics/merge.json models/adapter/file
    deps: [step.py, models/adapter]
    outs: [models/merged]
    metrics: [{metrics/merge.json: {cache: false}}]
"""
STEP = """\
import json, os, sys
from pathlib import Path
model, metrics, *deps = sys.argv[1:]
if model == os.environ.get("FAILS"):
    sys.exit("no room")
with open(os.environ["CALLS"], "a") as log:
    log.write(json.dumps(["step", model]) + "\\n")
Path(model).mkdir(parents=True)
Path(model, "file").write_text(model + "".join(Path(dep).read_text() for dep in deps))
Path(metrics).parent.mkdir(exist_ok=True)
Path(metrics).write_text("{}\\n")
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A server with the project's DVC settings, and a pipeline that takes no time."""
    files = tmp_path / "files"
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in (".dvc/config", ".dvc/.gitignore")}
    texts |= {"README.md": "old\n", "LICENSE": "x\n", "CHANGELOG.md": "x\n", "docs/page.md": "old\n"}
    texts |= {".gitignore": "/.venv\n/models\n", "dvc.yaml": TOY, "step.py": STEP}
    for name, text in texts.items():
        write(files / name, text)
    return server(tmp_path, files)


def trained(toy: Path, folder: Path, home: Path, fails: bool = False) -> Runner:
    """A run of the job on a machine whose home folder outlives it; `fails`: in the stage after the training."""
    runner = Runner(folder, expressions={"github.token": "token"})
    runner.expressions |= {"secrets.AWS_ACCESS_KEY_ID": "", "secrets.AWS_SECRET_ACCESS_KEY": ""}  # as when not set
    runner.env = {"HOME": str(home), "GITHUB_REF": f"refs/heads/{BRANCH}", "PYTHONPATH": str(ROOT)}
    runner.env["GITHUB_SERVER_URL"] = f"file://{toy.parent.parent}"
    link, repro = f"exec ln -s {sys.prefix} .venv", 'PATH="$PWD/.venv/bin:$PATH" dvc repro -q --pull'
    repro += " && echo new > README.md && echo new > docs/page.md && exit 0"
    runner.env |= {"FAILS": "models/merged"} if fails else {}
    runner.program(
        "make", f'#!/bin/bash\nif [ "$*" = .venv/installed ]; then {link}; fi\n[ "$*" = "repro PULL=1" ] && {repro}\n'
    )
    runner.run("train.yml", "train", checked_out(toy, runner.folder, BRANCH))
    assert {name for name, code in runner.status.items() if code} == ({"Run the pipeline"} if fails else set())
    return runner


def test_training_pushes_the_models_and_commits_the_rest(toy: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = git(toy, "rev-parse", TRUNK, BRANCH).split()
    first = trained(toy, tmp_path / "first", home)
    assert first.calls("step") == [["models/base"], ["models/adapter"], ["models/merged"]]
    assert first.outputs() == {"pushed": "true"}
    assert git(toy, "rev-parse", TRUNK, f"{BRANCH}~1").split() == before
    changed = git(toy, "diff", "--name-only", f"{BRANCH}~1", BRANCH).split()
    pages = ["README.md", "docs/page.md", "dvc.lock"]
    assert changed == [*pages, "metrics/base.json", "metrics/evaluate.json", "metrics/merge.json"]
    stored = [file.read_text(encoding="utf-8") for file in home.glob("lockstep-storage/files/**/*") if file.is_file()]
    assert "models/adaptera change\n" in stored
    assert "models/base" not in stored
    # Once more on a new machine, with what the first left: only the base model, which is not pushed, is made again.
    second = trained(toy, tmp_path / "second", home)
    assert second.calls("step") == [["models/base"]]
    assert not (second.folder / "output").exists()
    assert "results are those of the commit" in second.output
    # Where the branch has no record of that run, say since its push was refused, the run cache has it.
    git(toy, "update-ref", f"refs/heads/{BRANCH}", before[1])
    assert trained(toy, tmp_path / "third", home).calls("step") == [["models/base"]]
    assert WORKFLOWS["train.yml"]["jobs"]["train"]["concurrency"]["cancel-in-progress"] == "false"


def test_a_training_before_a_stage_that_fails_is_not_lost(toy: Path, tmp_path: Path) -> None:
    before, home = git(toy, "rev-parse", BRANCH), tmp_path / "home"
    trained(toy, tmp_path / "first", home, fails=True)
    assert git(toy, "rev-parse", BRANCH) == before
    assert trained(toy, tmp_path / "second", home).calls("step") == [["models/base"], ["models/merged"]]


def test_where_the_set_up_fails_nothing_else_is_tried(toy: Path, tmp_path: Path) -> None:
    runner = Runner(tmp_path / "runner", {"github.token": "token"})
    runner.program("make", "#!/bin/bash\nexit 2\n")
    runner.run("train.yml", "train", checked_out(toy, runner.folder, BRANCH))
    assert runner.status == {"Set up the environment": 2}


def test_what_reaches_the_remote_has_its_keys() -> None:
    for step in WORKFLOWS["train.yml"]["jobs"]["train"]["steps"]:
        if re.search(r"dvc pull|PULL=1|tools\.push", step.get("run", "")):
            keys = {name: f"${{{{ secrets.{name} }}}}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
            assert step["env"] == keys, step["name"]


def test_the_label_presses_the_button(tmp_path: Path) -> None:
    runner = Runner(tmp_path / "runner", {"github.token": "token", "github.event.pull_request.head.ref": BRANCH})
    runner.run("train.yml", "label", tmp_path)
    assert runner.calls("gh") == [["workflow", "run", "train.yml", "--repo", REPO, "--ref", BRANCH, None]]
    assert WORKFLOWS["train.yml"]["on"] == {"workflow_dispatch": "", "pull_request": {"types": ["labeled"]}}
    allowed = [job["permissions"] for job in WORKFLOWS["train.yml"]["jobs"].values()]
    assert allowed == [{"actions": "write"}, {"contents": "write"}, {"actions": "write", "pull-requests": "read"}]
    condition = WORKFLOWS["train.yml"]["jobs"]["label"]["if"]
    assert "event.label.name == 'train'" in condition
    assert "head.repo.full_name == github.repository" in condition
    assert not (tmp_path / "pwned").exists()


def test_training_starts_the_checks_and_the_report_of_its_commit(tmp_path: Path) -> None:
    runner = Runner(tmp_path / "runner", {"github.token": "token"}, {"GITHUB_REF_NAME": BRANCH})
    runner.run("train.yml", "checks", tmp_path)
    checks, pulls, report = runner.calls("gh")
    assert checks == ["workflow", "run", "checks.yml", "--repo", REPO, "--ref", BRANCH, None]
    assert pulls[:6] == ["pr", "list", "--repo", REPO, "--head", BRANCH]
    assert report == ["workflow", "run", "report.yml", "--repo", REPO, "-f", "number=7", "-f", "base=main", None]
    assert set(WORKFLOWS["report.yml"]["on"]["workflow_dispatch"]["inputs"]) == {"number", "base"}
    jobs = WORKFLOWS["train.yml"]["jobs"]
    assert (jobs["checks"]["needs"], jobs["checks"]["if"]) == ("train", "${{ needs.train.outputs.pushed == 'true' }}")
    assert jobs["train"]["outputs"] == {"pushed": "${{ steps.commit.outputs.pushed }}"}
    named = {step["id"]: step["name"] for step in jobs["train"]["steps"] if "id" in step}
    assert named == {"setup": "Set up the environment", "commit": "Commit the results"}
    assert not (tmp_path / "pwned").exists()
