"""Every `run:` block of .github/workflows, run as GitHub would, in temporary clones with two branches.

Real: bash with GitHub's options and variables, git with a server in a folder, .ci/run, the Makefile's `repro`, DVC with
the shipped remote, tools.report, tools.table, tools.comment, and the packages that the report job installs, alone in an
environment of their own. Standing in, as programs on PATH that note how they were called: `gh` and apt-get (there is no
GitHub here, and no installing), pip (links what is installed already), `make test` (this would run itself) and `make
.venv/installed` (links this environment); an empty file stands in for tools.advise, which wants more metrics. Names of
branches and folders are as awkward as git and the shell allow.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

WORKFLOWS = {file.name: YAML(typ="safe").load(file) for file in sorted((ROOT / ".github/workflows").glob("*.yml"))}
JOBS = [(name, job) for name, workflow in WORKFLOWS.items() for job in workflow["jobs"]]
# What the tests below run; a new job needs a test before it passes.
TRIED = [("checks.yml", "checks"), ("report.yml", "report")] + [
    ("train.yml", job) for job in ("label", "train", "checks")
]
TRUNK, BRANCH = "tr;unk", "fix/it's$(touch${IFS}pwned)&more"
REPO = "owner/repo"
WHO = ["-c", "user.name=t", "-c", "user.email=t@localhost"]

# Notes its arguments and input, and answers a call of the API with the file of that method and endpoint.
GH = """\
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
sent = json.load(sys.stdin) if "--input" in words else None
with open(os.environ["CALLS"], "a") as log:
    log.write(json.dumps(["gh", *words, sent]) + "\\n")
if words[0] == "api":
    method = words[words.index("--method") + 1] if "--method" in words else "GET"
    answer = Path(os.environ["ANSWERS"], method, words[1])
    if not answer.is_file():
        sys.exit(f"gh: {method} {words[1]}: Not Found (HTTP 404)")
    sys.stdout.buffer.write(answer.read_bytes())
"""
# Links a package that is installed here, and what it needs, into the environment at sys.argv[1].
PIP = """\
import os, sys
from importlib.metadata import distribution
from pathlib import Path
from packaging.requirements import Requirement
site, command, option, constraints, *todo = sys.argv[1:]
assert (command, option) == ("install", "--constraint"), sys.argv
pinned = {line.split("==")[0].lower().replace("_", "-") for line in Path(constraints).read_text().split()}
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
        for name in ("bin", "runner temp", "home", "answers"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def program(self, name: str, script: str) -> None:
        file = self.folder / "bin" / name
        file.write_text(script, encoding="utf-8")
        file.chmod(0o755)

    def calls(self) -> list[list[Any]]:
        log = self.folder / "calls"
        return [json.loads(line) for line in log.read_text(encoding="utf-8").split("\n")[:-1]] if log.exists() else []

    def summary(self) -> str:
        return (self.folder / "summary").read_text(encoding="utf-8")

    def variables(self) -> dict[str, str]:
        return {
            "PATH": f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "CI": "true",
            "GITHUB_REPOSITORY": REPO,
            "GITHUB_OUTPUT": str(self.folder / "output"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
            "RUNNER_TEMP": str(self.folder / "runner temp"),
            "CALLS": str(self.folder / "calls"),
            "ANSWERS": str(self.folder / "answers"),
            "DVC_SITE_CACHE_DIR": str(self.folder / "home" / "site"),
            **self.env,
        }

    def run(self, workflow: str, job: str, clone: Path) -> None:
        """Run the blocks of a job in order; after one that fails, only those that ask for it."""
        assert (workflow, job) in TRIED
        assert WORKFLOWS[workflow]["defaults"]["run"] == {"shell": "bash"}
        for step in WORKFLOWS[workflow]["jobs"][job]["steps"]:
            always = step.get("if") == "${{ !cancelled() }}"
            assert always or "if" not in step or "uses" in step
            if "run" in step and (always or not any(self.status.values())):
                self.status[step["name"]] = self.block(step, clone)

    def block(self, step: dict[str, Any], clone: Path) -> int:
        script = self.folder / "block.sh"
        script.write_text(step["run"], encoding="utf-8")
        given = {name: re.sub(r"\$\{\{ (.*?) \}\}", self.value, text) for name, text in step.get("env", {}).items()}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        env = self.variables() | given
        ran = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False, timeout=300)
        self.output += ran.stdout + ran.stderr
        return ran.returncode

    def value(self, expression: re.Match[str]) -> str:
        return self.expressions[expression[1]]


def git(folder: Path, *words: str) -> str:
    command = ["git", *WHO, *words]
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, f"{words}\n{ran.stderr}"
    return ran.stdout.strip()


def server(tmp_path: Path, files: Path) -> Path:
    """A folder that stands for GitHub, with the repository's two branches: the trunk moved on after the other left."""
    git(files, "init", "-q", "-b", TRUNK)
    git(files, "add", ".")
    git(files, "commit", "-qm", "where the branch leaves")
    git(files, "checkout", "-q", "-b", BRANCH)
    (files / "CHANGELOG.md").write_text("a change\n", encoding="utf-8")
    git(files, "commit", "-qam", "the change")
    git(files, "checkout", "-q", TRUNK)
    (files / "LICENSE").write_text("another\n", encoding="utf-8")
    git(files, "commit", "-qam", "the trunk moves on")
    bare = tmp_path / "github" / REPO
    bare.parent.mkdir(parents=True)
    git(tmp_path, "clone", "-q", "--bare", str(files), str(bare))
    return bare


def checked_out(bare: Path, folder: Path, branch: str) -> Path:
    """A clone in a folder with a space in its name, on a branch, as actions/checkout leaves it."""
    clone = folder / "work tree"
    git(bare, "clone", "-q", "--branch", branch, str(bare), str(clone))
    return clone


def merged(clone: Path) -> None:
    """What GitHub makes of a pull request: the branch merged into the trunk, checked out by its hash."""
    git(clone, "checkout", "-q", "--detach", f"origin/{TRUNK}")
    git(clone, "merge", "-q", "--no-ff", "-m", "pull request", f"origin/{BRANCH}")


def copy_of_the_project(folder: Path) -> Path:
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def calls_of(runner: Runner, program: str) -> list[list[Any]]:
    return [call[1:] for call in runner.calls() if call[0] == program]


# The files themselves.


def test_every_job_is_tried_here() -> None:
    assert sorted(JOBS) == sorted(TRIED)


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_no_expression_stands_in_a_block(name: str, job: str) -> None:
    for step in WORKFLOWS[name]["jobs"][job]["steps"]:
        assert "${{" not in step.get("run", ""), step["name"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_by_hash_with_their_version(name: str) -> None:
    text = (ROOT / ".github/workflows" / name).read_text(encoding="utf-8")
    for line in re.findall(r"uses:.*", text):
        assert re.fullmatch(r"uses: actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_secrets_and_own_runners_need_the_button_and_the_environment(name: str, job: str) -> None:
    described = WORKFLOWS[name]["jobs"][job]
    if "secrets." in json.dumps(described) or described["runs-on"] != "ubuntu-24.04":
        assert described["environment"] == "gpu"
        assert described["if"].startswith("${{ github.event_name == 'workflow_dispatch' && ")


def test_the_report_never_checks_out_the_pull_request() -> None:
    [checkout] = [
        step for step in WORKFLOWS["report.yml"]["jobs"]["report"]["steps"] if "checkout" in step.get("uses", "")
    ]
    assert checkout["with"]["ref"] == "${{ github.event.repository.default_branch }}"


# checks


def checks_runner(folder: Path, *, python: str) -> Runner:
    """`make test` leaves an environment whose python is the given script."""
    runner = Runner(folder)
    note = f'{sys.executable} -c \'import json, sys; print(json.dumps(sys.argv[1:]))\' {{}} "$@" >> "$CALLS"\n'
    runner.program("make", f'#!/bin/bash\nset -e\n{note.format("make")}[ "$*" = test ]\nmkdir -p .venv/bin\n{python}')
    runner.program("apt-get", f"#!/bin/bash\n{note.format('apt-get')}")
    runner.program("sudo", '#!/bin/bash\nexec "$@"\n')
    runner.expressions = {"github.event.before": "0" * 40, "github.event.repository.default_branch": TRUNK}
    return runner


ECHO = "printf '#!/bin/bash\\necho \"$@\"\\n' > .venv/bin/python; chmod +x .venv/bin/python\n"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A server whose repository holds only what the blocks of checks touch."""
    files = tmp_path / "files"
    (files / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", files / ".ci/run")
    for name in ("CHANGELOG.md", "LICENSE"):
        (files / name).write_text("first\n", encoding="utf-8")
    return server(tmp_path, files)


@pytest.mark.parametrize(
    ("event", "base"),
    [
        ("pull request", f"origin/{TRUNK}"),  # what the merge changes
        ("push to the branch", f"origin/{TRUNK}~1"),  # where it left
        ("push to the trunk", f"origin/{TRUNK}~1"),  # what was there before
        ("first push to the trunk", f"origin/{TRUNK}"),
    ],
)
def test_checks_compare_with_the_merge_base(small: Path, tmp_path: Path, event: str, base: str) -> None:
    runner = checks_runner(tmp_path / "runner", python=ECHO)
    clone = checked_out(small, runner.folder, TRUNK if "trunk" in event else BRANCH)
    if event == "pull request":
        merged(clone)
        runner.env["GITHUB_BASE_REF"] = TRUNK
    if event == "push to the trunk":
        runner.expressions["github.event.before"] = git(clone, "rev-parse", f"origin/{TRUNK}~1")
    runner.run("checks.yml", "checks", clone)
    assert (runner.status, runner.output) == ({"Test": 0, "Report": 0}, "")
    assert calls_of(runner, "make") == [["test"]]
    compared = git(clone, "rev-parse", base)
    assert runner.summary() == f"-m tools.report {compared}\n"
    written = (runner.folder / "runner temp" / "report.json").read_text(encoding="utf-8")
    assert written == f"-m tools.report {compared} --json\n"
    assert not (clone / "pwned").exists()


def test_checks_install_what_tests_would_skip_without(small: Path, tmp_path: Path) -> None:
    runner = checks_runner(tmp_path / "runner", python=ECHO)
    for name in ("bash", "dirname", "env", "id", "git", "mkdir", "chmod"):  # a machine with these programs only
        runner.program(name, f'#!/bin/sh\nexec {shutil.which(name)} "$@"\n')
    runner.env["PATH"] = str(runner.folder / "bin")
    clone = checked_out(small, runner.folder, TRUNK)
    script = (clone / ".ci/run").read_text(encoding="utf-8").replace(":/usr/sbin", "")
    (clone / ".ci/run").write_text(script, encoding="utf-8")
    runner.run("checks.yml", "checks", clone)
    assert runner.status["Test"] == 0, runner.output
    update, install = calls_of(runner, "apt-get")
    assert update[0] == "update"
    assert {"chromium", "openssh-server"} < set(install)


def test_a_failing_gate_fails_the_checks_and_still_reports(checked: Runner) -> None:
    assert checked.status["Test"] == 0
    assert checked.status["Report"] in (1, 2), checked.output  # 2: the task at hand has too few test rows
    assert checked.summary().strip()
    json.loads((checked.folder / "runner temp" / "report.json").read_text(encoding="utf-8"))


def test_a_failing_test_fails_the_checks(small: Path, tmp_path: Path) -> None:
    runner = checks_runner(tmp_path / "runner", python="exit 3\n")
    runner.run("checks.yml", "checks", checked_out(small, runner.folder, BRANCH))
    assert runner.status["Test"] != 0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    return server(folder, copy_of_the_project(folder / "files"))


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Runner:
    """The checks of a pull request that edits a metric by hand, with the real report."""
    runner = checks_runner(
        tmp_path_factory.mktemp("runner") / "checks", python=f"rmdir -p .venv/bin; ln -s {sys.prefix} .venv\n"
    )
    clone = checked_out(project, runner.folder, BRANCH)
    metrics = clone / "metrics" / "evaluate.json"
    figures = json.loads(metrics.read_text(encoding="utf-8"))
    figures["tuned"]["exact_match"] = 1.0
    metrics.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    git(clone, "commit", "-qam", "better")
    runner.run("checks.yml", "checks", clone)
    return runner


# report


def test_the_report_becomes_a_comment(project: Path, checked: Runner, tmp_path: Path) -> None:
    runner = Runner(tmp_path / "runner", expressions={"github.token": "token"})
    own = runner.folder / "environment"
    venv.create(own)
    site = next(own.glob("lib/python*/site-packages"))
    (runner.folder / "pip.py").write_text(PIP, encoding="utf-8")
    runner.program("gh", f"#!{sys.executable}\n{GH}")
    pip = f'if [ "$1 $2" = "-m pip" ]; then exec {sys.executable} {runner.folder}/pip.py {site} "${{@:3}}"; fi'
    runner.program("python", f'#!/bin/bash\n{pip}\nexec {own}/bin/python "$@"\n')
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(checked.folder / "runner temp" / "report.json", "report.json")
    event = {
        "repository": {"full_name": REPO},
        "workflow_run": {
            "id": 5,
            "head_sha": "a" * 40,
            "head_branch": BRANCH,
            "head_repository": {"owner": {"login": "stranger"}},
            "html_url": "https://github.example/run/5",
            "conclusion": "failure",
        },
    }
    answers = {
        f"GET/repos/{REPO}/pulls": json.dumps([{"number": 7, "head": {"sha": "a" * 40}}]).encode(),
        f"GET/repos/{REPO}/actions/runs/5/artifacts": json.dumps(
            {"artifacts": [{"id": 3, "size_in_bytes": 1000, "expired": False}]}
        ).encode(),
        f"GET/repos/{REPO}/actions/artifacts/3/zip": packed.getvalue(),
        f"GET/repos/{REPO}/issues/7/comments": b"[[]]",
        f"POST/repos/{REPO}/issues/7/comments": b"{}",
    }
    for name, answer in answers.items():
        file = runner.folder / "answers" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(answer)
    (runner.folder / "event.json").write_text(json.dumps(event), encoding="utf-8")
    runner.env["GITHUB_EVENT_PATH"] = str(runner.folder / "event.json")
    runner.run("report.yml", "report", checked_out(project, runner.folder, TRUNK))
    assert set(runner.status.values()) == {0}, runner.output
    assert [
        "api",
        f"repos/{REPO}/pulls",
        "--method",
        "GET",
        "-f",
        "state=open",
        "-f",
        f"head=stranger:{BRANCH}",
        None,
    ] in (calls_of(runner, "gh"))
    *_, comment = calls_of(runner, "gh")
    assert comment[:4] == ["api", f"repos/{REPO}/issues/7/comments", "--method", "POST"]
    report = checked.summary().strip()
    assert report
    assert report in comment[-1]["body"]


# train

TOY = """\
stages:
  fetch:
    cmd: python step.py models/base metrics/base.json
    deps: [step.py]
    outs:
      - models/base:
          push: false
    metrics:
      - metrics/base.json:
          cache: false
  train:
    cmd: python step.py models/adapter metrics/evaluate.json CHANGELOG.md
    deps: [step.py, CHANGELOG.md]
    outs: [models/adapter]
    metrics:
      - metrics/evaluate.json:
          cache: false
"""
# Logs its run, and writes a model of what it reads and the metrics that tools.table wants.
STEP = """\
import json, os, sys
from pathlib import Path
model, metrics, *deps = sys.argv[1:]
with open(os.environ["CALLS"], "a") as log:
    log.write(json.dumps(["step", model]) + "\\n")
Path(model).mkdir(parents=True)
Path(model, "file").write_text(model + "".join(Path(dep).read_text() for dep in deps))
Path(metrics).parent.mkdir(exist_ok=True)
names = ("json_valid", "schema_valid", "exact_match", "exact_match_normalised", "action_accuracy", "field_f1")
rates = {name + end: 0.5 for name in names for end in ("", "_low", "_high")} | {"n": 3}
gain = {"exact_match": 0.1, "low": 0.0, "high": 0.2, "p_value": 0.5, "n": 3}
systems = {"zero_shot": rates, "few_shot": rates, "tuned": rates, "validation": {"tuned": rates}}
Path(metrics).write_text(json.dumps(systems | {"gain_over_few_shot": gain}) + "\\n")
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A server with the project's Makefile, tools and DVC settings, and a pipeline that takes no time."""
    files = tmp_path / "files"
    for name in (
        "Makefile",
        "constraints.txt",
        "README.md",
        "docs/deciding.md",
        "LICENSE",
        "CHANGELOG.md",
        ".dvc/config",
        ".dvc/.gitignore",
    ):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, files / name)
    for folder in ("tools", "stages"):
        shutil.copytree(ROOT / folder, files / folder, ignore=shutil.ignore_patterns("__pycache__"))
    # tools.advise reads metrics that this pipeline does not make; tests/test_docs.py runs it on the real ones.
    (files / "tools" / "advise.py").write_text("", encoding="utf-8")
    (files / ".gitignore").write_text("/.venv\n/models\n__pycache__/\n", encoding="utf-8")
    (files / "dvc.yaml").write_text(TOY, encoding="utf-8")
    (files / "step.py").write_text(STEP, encoding="utf-8")
    return server(tmp_path, files)


def trained(toy: Path, folder: Path, home: Path) -> Runner:
    """A run of the job on a machine whose home folder outlives it."""
    runner = Runner(folder, expressions={"github.token": "token"})
    runner.expressions |= {"secrets.AWS_ACCESS_KEY_ID": "", "secrets.AWS_SECRET_ACCESS_KEY": ""}  # as when not set
    runner.env = {
        "HOME": str(home),
        "GITHUB_REF": f"refs/heads/{BRANCH}",
        "GITHUB_SERVER_URL": f"file://{toy.parent.parent}",
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    # Everything but the environment, which it links, is left to the real make.
    runner.program(
        "make",
        f'#!/bin/bash\nif [ "$1" = .venv/installed ]; then exec ln -s {sys.prefix} .venv; fi\n'
        f'exec {shutil.which("make")} --old-file=.venv/installed "$@"\n',
    )
    runner.run("train.yml", "train", checked_out(toy, runner.folder, BRANCH))
    assert set(runner.status.values()) == {0}, runner.output
    return runner


def test_training_pushes_the_models_and_commits_the_rest(toy: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = git(toy, "rev-parse", TRUNK, BRANCH).split()
    first = trained(toy, tmp_path / "first", home)
    assert calls_of(first, "step") == [["models/base"], ["models/adapter"]]
    assert (first.folder / "output").read_text(encoding="utf-8") == "pushed=true\n"
    assert git(toy, "rev-parse", TRUNK, f"{BRANCH}~1").split() == before
    changed = git(toy, "diff", "--name-only", f"{BRANCH}~1", BRANCH).split()
    assert changed == ["README.md", "dvc.lock", "metrics/base.json", "metrics/evaluate.json"]
    assert "| tuned | 3 |" in git(toy, "show", f"{BRANCH}:README.md")
    stored = [
        file.read_text(encoding="utf-8") for file in (home / "lockstep-storage/files").rglob("*") if file.is_file()
    ]
    assert "models/adaptera change\n" in stored
    assert "models/base" not in stored
    # Once more on a new machine, with what the first left: only the base model, which is not pushed, is made again.
    second = trained(toy, tmp_path / "second", home)
    assert calls_of(second, "step") == [["models/base"]]
    records = [
        sorted(file.name for file in (one.folder / "work tree/.dvc/cache/runs").rglob("*")) for one in (first, second)
    ]
    assert records[0] == records[1] != []
    assert not (second.folder / "output").exists()
    assert "results are those of the commit" in second.output


@pytest.mark.parametrize(
    ("job", "step", "started"),
    [("label", "Start training", "train.yml"), ("checks", "Start the checks of the new commit", "checks.yml")],
)
def test_training_starts_other_workflows_on_the_branch(tmp_path: Path, job: str, step: str, started: str) -> None:
    runner = Runner(tmp_path / "runner", env={"GITHUB_REF_NAME": BRANCH})
    runner.expressions = {"github.token": "token", "github.event.pull_request.head.ref": BRANCH}
    runner.program("gh", f"#!{sys.executable}\n{GH}")
    runner.run("train.yml", job, tmp_path)
    assert runner.status == {step: 0}, runner.output
    assert calls_of(runner, "gh") == [["workflow", "run", started, "--repo", REPO, "--ref", BRANCH, None]]
    assert "workflow_dispatch" in WORKFLOWS[started]["on"]
    assert not (tmp_path / "pwned").exists()
