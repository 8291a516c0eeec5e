"""Kill anything at any time: afterwards there is the old state or the new one, and the next run finishes."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import toy
from click.testing import CliRunner
from conftest import ROOT

from stages.core import cli, yaml12
from stages.data import writing
from tools import mend
from versions import history, record

MOMENTS = random.Random(0)  # noqa: S311  # the same ones every time


def file_of(path: Path, mark: str) -> None:
    writing.write_jsonl(path, ([mark] * 9 for _ in range(3000)))


def folder_of(path: Path, mark: str) -> None:
    with writing.replacing_folder(path, "0") as folder:
        for number in range(30):
            (folder / str(number)).write_text(mark * 30_000, encoding="utf-8")


def content(path: Path) -> list[tuple[str, bytes]]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []
    return [(file.name, file.read_bytes()) for file in files]


def child(work: Callable[[], None]) -> int:
    """Start `work` in a process of its own; its id."""
    if pid := os.fork():
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001  # the other copy of pytest must not go on
        os._exit(1)


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("write", [file_of, folder_of])
def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    path, allowed = tmp_path / "result", []
    for mark in "ab":
        started = time.monotonic()
        write(path, mark)
        seconds = time.monotonic() - started
        allowed.append(content(path))
    allowed += [[]] if write is folder_of else []  # between two renames there is none
    killed = 0
    for mark in "ab" * 10:
        pid = child(partial(write, path, mark))
        time.sleep(MOMENTS.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        killed += status(pid) != 0
        assert content(path) in allowed
    assert killed
    write(path, "b")
    assert content(path) == allowed[1]
    assert [file.name for file in tmp_path.iterdir()] == ["result"], "what killed writers left is gone"


@pytest.mark.parametrize("write", [file_of, folder_of])
def test_two_writers_at_once_mix_nothing(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    path, allowed = tmp_path / "result", []
    for mark in "ab":
        write(path, mark)
        allowed.append(content(path))
    for _ in range(5):
        pids = [child(partial(write, path, mark)) for mark in "ab"]
        assert 0 in [status(pid) for pid in pids], "one of them is through"
        assert content(path) in allowed


def test_a_writer_leaves_what_another_one_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with writing.replacing_folder(path, "0") as folder:
        (folder / "first").write_text("a", encoding="utf-8")
        assert status(child(partial(folder_of, path, "b"))) == 0
        assert (folder / "first").is_file()


@pytest.mark.parametrize("is_file", [True, False])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, is_file: bool) -> None:
    mine = tmp_path / "mine"
    thesis = mine if is_file else mine / "thesis.txt"
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("mine", encoding="utf-8")
    with (
        pytest.raises(cli.InputError, match="would be deleted, and has no mark"),
        writing.replacing_folder(mine, "mark"),
    ):
        pass
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [thesis]


def full_disk() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.parametrize("write", [file_of, folder_of])
def test_a_full_disk_leaves_the_old(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    path = tmp_path / "result"
    write(path, "a")
    before = content(path)

    def work() -> None:
        full_disk()
        write(path, "b")

    assert status(child(work)) == 1
    assert content(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["result"]


@pytest.mark.parametrize(
    ("module", "options", "limit"),
    [
        ("tools.table", ["--metrics", "m", "--write", "page.md"], full_disk),
        ("stages.gguf", ["--merged", "merged", "--out", "gguf"], full_disk),
        ("stages.gguf", ["--merged", "merged", "--out", "/proc/gguf"], None),
    ],
)
def test_a_refused_write_ends_in_one_line(
    here: Path, merged: Path, module: str, options: list[str], limit: Callable[[], None] | None
) -> None:
    (here / "merged").symlink_to(merged)
    shutil.copytree(ROOT / "metrics", here / "m")
    (here / "page.md").write_text((ROOT / "README.md").read_text(encoding="utf-8") * 9, encoding="utf-8")
    before = (here / "page.md").read_bytes()
    command = [sys.executable, "-m", module, *options]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(command, env=env, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stderr.rstrip().split("\n")[-1].startswith("Error: " if limit else "Error: /proc/"), ran.stderr
    assert (here / "page.md").read_bytes() == before
    assert not (here / "gguf").exists()


@pytest.mark.parametrize(
    "command", [["dvc", "repro"], ["make", "repro"], ["python", "-m", "tools.rollback", "v-grown"]]
)
def test_what_was_killed_is_unsound_or_whole_and_the_next_run_finishes_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (repository / "Makefile").write_text("repro:\n\tdvc repro\n", encoding="utf-8")
    if "repro" in command:
        toy.write_rows(repository / "data/raw/new.jsonl", [toy.row("n1")])
    old, other = toy.state(repository), tmp_path / "other"
    shutil.copytree(repository, other, symlinks=True)
    started = time.monotonic()
    toy.run(other, *command)
    seconds, new = time.monotonic() - started, toy.state(other)
    for _ in range(3):
        running = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(MOMENTS.uniform(0.2, 1) * seconds)
        below = psutil.Process(running.pid).children(recursive=True)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        psutil.wait_procs(below, 10)  # DVC takes a killed process for a running one until init has noticed its end
        # Git sees data and metrics, DVC the models.
        sound = record.is_recorded(history.working_tree())
        if sound and not subprocess.run([sys.executable, "-m", "dvc", "status", "-q"], check=False).returncode:
            assert toy.state(repository) in (old, new)
    toy.run(repository, "python", "-m", "tools.mend")
    toy.run(repository, *command)
    assert toy.state(repository) == new


@pytest.mark.parametrize(
    ("path", "content", "mended"),
    [
        (".dvc/tmp/rwlock", b"", None),
        ("dvc.lock", b"", "as in HEAD"),
        ("dvc.lock", b"schema: '2.0'\nstages:\n  fetch:\n    cmd:\n", "as in HEAD"),
        ("dvc.lock", b"<<<<<<< ours\n", "untouched"),
        ("dvc.lock", b"a: b\n=======\n>>>>>>> theirs\n", "untouched"),  # half resolved
    ],
)
def test_what_dvc_can_not_read_is_mended(repository: Path, path: str, content: bytes, mended: str | None) -> None:
    before = (repository / "dvc.lock").read_bytes()
    (repository / path).write_bytes(content)
    done = list(mend.mend())
    now = (repository / path).read_bytes() if (repository / path).exists() else None
    assert now == {"as in HEAD": before, "untouched": content, None: None}[mended]
    assert [f" it is {mended or 'gone'}, " in line for line in done] == [True] * (mended != "untouched")
    kept = repository / ".dvc/tmp" / f"{Path(path).name}.half"
    assert (kept.read_bytes() if kept.exists() else None) == (content if done else None)


def test_what_a_live_dvc_is_writing_is_left(repository: Path) -> None:
    from dvc.lock import Lock

    mend.LOCK.write_bytes(b"")
    with Lock(str(mend.BUSY)):
        assert (list(mend.mend()), mend.LOCK.read_bytes()) == ([], b"")


def test_a_copy_without_history_needs_no_mending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toy.run(tmp_path, "git", "init", "--quiet")
    Path(".dvc").mkdir()
    assert CliRunner().invoke(mend.main, []).exit_code == 0


def descendants(process: psutil.Process, name: str) -> list[psutil.Process]:
    return [part for part in process.children(recursive=True) if name in " ".join(part.cmdline())]


STAGE = """
import signal, sys, time
from stages.core import cli
def keep(*_): sys.stderr.write("saving\\n"); open("kept", "w").close(); sys.exit(1)
signal.signal(signal.SIGTERM, {handler})
cli.time = type("", (), {{"sleep": lambda seconds: time.sleep(min(seconds, 1))}})
cli.end_with_caller()
open("began", "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("caller", "handler"),
    [("make", "signal.SIG_DFL"), ("dvc", "signal.SIG_DFL"), ("dvc", "keep"), ("dvc", "signal.SIG_IGN")],
)
def test_a_stage_ends_when_its_caller_is_killed(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caller: str, handler: str
) -> None:
    """Also where nobody reads what it says. It may leave a checkpoint; what handles no signal ends all the same."""
    Path("stage.py").write_text(STAGE.format(handler=handler), encoding="utf-8")
    Path("Makefile").write_text("repro:\n\tdvc repro slow\n", encoding="utf-8")
    declared = yaml12.parse(Path("dvc.yaml").read_text(encoding="utf-8"), "dvc.yaml")
    declared["stages"]["slow"] = {"cmd": f"{sys.executable} stage.py"}
    writing.write_json(Path("dvc.yaml"), declared)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    unread, stderr = os.pipe()
    running = psutil.Popen(["make", "repro"], stdout=subprocess.DEVNULL, stderr=stderr)
    os.close(stderr)
    deadline = time.monotonic() + 60
    while not Path("began").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    (stage,) = [part for part in descendants(running, "stage.py") if "dvc" not in part.name() and part.name() != "sh"]
    everyone = running.children(recursive=True)
    victim = running if caller == "make" else descendants(running, "dvc")[0]
    os.close(unread)
    victim.kill()
    try:
        assert stage.wait(10) in (1, -signal.SIGTERM, None)
        assert Path("kept").exists() == (handler == "keep")
    finally:
        for part in psutil.wait_procs(everyone, 5)[1]:
            part.kill()
        running.wait()


def test_every_stage_that_takes_long_ends_with_its_caller() -> None:
    for file in (ROOT / "stages").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        if "loading.device(" in text or file.stem == "gguf":
            assert "    cli.end_with_caller()\n" in text, file


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["/usr/bin/make", "repro"], True),
        (["python", "/bin/dvc", "repro"], True),
        (["python", "-m", "dvc", "repro"], True),
        (["python", "-m", "pytest", "dvc"], False),
        (["python", "train.py", "make"], False),
        ([], False),
    ],
)
def test_a_caller_is_known_by_its_command(words: list[str], known: bool) -> None:
    assert cli._is_caller(SimpleNamespace(cmdline=lambda: words)) is known
