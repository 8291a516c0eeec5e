"""Answers outlive a kill, and any number of runs and processes gives the bytes of one."""

import itertools
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from conftest import KNOBS, SCHEMA, configure, write_rows
from test_checkpoints import PROCESSES

from stages import predict
from stages.answers import generate, processes
from stages.answers.generate import Answer
from stages.answers.kept import Kept
from stages.core.cli import InputError

BATCHES = 5  # 4 of the first file, 1 of the second
OUTS = ["out.jsonl", "more-out.jsonl"]


def inputs(folder: Path, count: int = 7) -> Path:
    (folder / "params.yaml").write_bytes(KNOBS.read_bytes())
    configure(folder, compute={"device": "cpu-fp32"}, predict={"batch_size": 2, "max_new_tokens": 12})
    for name, numbers in {"rows": range(count), "more": range(100, 102)}.items():
        said = [{"id": f"t{n}", "prompt": [{"role": "user", "content": f"buy {n} " * (n % 5)}]} for n in numbers]
        write_rows(folder / f"{name}.jsonl", [row | {"answer": "{}"} for row in said])
    return folder


def words(base: Path, *options: str) -> list[str]:
    files = ["--rows", "rows.jsonl", "--out", OUTS[0], "--rows", "more.jsonl", "--out", OUTS[1]]
    return ["--model", str(base), *files, "--answered", "kept", "--timings", "timing.json", *options]


def stage(folder: Path, given: list[str], at: int | None, how: signal.Signals) -> None:
    """In a process of its own: the command. The batch of that number begins with a signal; each that ends is marked."""
    os.chdir(folder)
    true, numbers = generate._batch, itertools.count()

    def batch(*of: Any) -> Any:
        if next(numbers) == at:
            os.kill(os.getpid(), how)
        written = true(*of)
        with (folder / "answered").open("a", encoding="utf-8") as file:
            file.write("x")
        return written

    vars(generate)["_batch"] = batch
    predict.main(given)


def start(folder: Path, given: list[str], at: int | None = None, how: signal.Signals = signal.SIGKILL) -> Any:
    process = PROCESSES.Process(target=stage, args=(folder, given, at, how))
    process.start()
    return process


def finish(folder: Path, given: list[str]) -> list[bytes]:
    process = start(folder, given)
    process.join()
    assert process.exitcode == 0
    assert list((folder / "kept").iterdir()) == []
    return [(folder / name).read_bytes() for name in OUTS]


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return finish(inputs(tmp_path_factory.mktemp("whole")), words(base))


@pytest.mark.parametrize(
    ("at", "how"),
    [(0, signal.SIGKILL), (BATCHES - 1, signal.SIGKILL), (1, signal.SIGTERM)],
    ids=["killed before the first answer", "killed in the last batch", "terminated after one batch"],
)
def test_a_killed_run_ends_alike(tmp_path: Path, base: Path, whole: list[bytes], at: int, how: signal.Signals) -> None:
    killed = start(inputs(tmp_path), words(base), at, how)
    killed.join()
    assert (killed.exitcode, (tmp_path / OUTS[0]).exists()) == (-how, False)
    assert finish(tmp_path, words(base)) == whole
    assert len((tmp_path / "answered").read_bytes()) == BATCHES, "none twice"


def test_two_processes_killed_and_going_on_give_the_bytes_of_one(tmp_path: Path, base: Path) -> None:
    alone, folder = tmp_path / "alone", tmp_path / "folder"
    alone.mkdir()
    folder.mkdir()
    expected = finish(inputs(alone, 99), words(base, "--schema", str(SCHEMA)))
    two = words(base, "--schema", str(SCHEMA), "--processes", "2")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as where a script starts it with `&`
    try:
        parent = start(inputs(folder, 99), two)
    finally:
        signal.signal(signal.SIGINT, before)
    while not any(file.stat().st_size for file in (folder / "kept").glob("*.jsonl")):
        assert parent.exitcode is None
        time.sleep(0.005)
    children = psutil.Process(parent.pid).children()
    parent.kill()
    parent.join()
    assert not psutil.wait_procs(children, 30)[1], "they end with their parent"
    lines = sum(file.read_bytes().count(b"\n") for file in (folder / "kept").iterdir())
    assert lines > 0  # of 101; on a busy machine the kill may come after the last one
    assert finish(folder, two) == expected


class StopError(Exception):
    """Instead of a kill, where what is left behind is the same."""


def change_rows(folder: Path, field: str, value: Any) -> None:
    write_rows(folder / "more.jsonl", [{"id": "m", "prompt": [{"role": "user", "content": "hm"}], "answer": "{}"}])
    row = {"id": "t0", "prompt": [{"role": "user", "content": ""}], "answer": "{}"} | {field: value}
    write_rows(folder / "rows.jsonl", [row, row | {"id": "t1"}])


HELD = ["--schema", "schema.json"]


@pytest.mark.parametrize(
    ("change", "options", "again"),
    [
        (lambda _: None, HELD, 1),
        (lambda folder: change_rows(folder, "answer", "{ }"), HELD, 1),
        (lambda folder: change_rows(folder, "prompt", [{"role": "user", "content": "h"}]), HELD, 2),
        (lambda folder: configure(folder, predict={"max_new_tokens": 11}), HELD, 2),
        (lambda folder: configure(folder, compute={"device": "cpu-bf16"}), HELD, 2),
        (lambda folder: (folder / "model/note").write_text("other weights", encoding="utf-8"), HELD, 2),
        (lambda folder: (folder / "schema.json").write_text(SCHEMA.read_text("utf-8") + "\n", "utf-8"), HELD, 2),
        (lambda folder: (folder / "own.py").write_text("2", encoding="utf-8"), HELD, 2),
        (lambda folder: (folder / "main.py").write_text("2", encoding="utf-8"), HELD, 2),
        (None, HELD, 2),
        (lambda _: None, [], 2),
        (lambda _: None, [*HELD, "--grounded", "rules.yaml"], 2),
    ],
    ids=[
        "nothing",
        "expected answer",
        "request",
        "params",
        "device",
        "model",
        "schema",
        "code",
        "main",
        "threads",
        "no schema",
        "fields",
    ],
)
def test_only_answers_of_the_same_inputs_are_taken(
    here: Path, base: Path, monkeypatch: pytest.MonkeyPatch, change: Any, options: list[str], again: int
) -> None:
    inputs(here)
    shutil.copytree(base, here / "model")
    change_rows(here, "answer", "{}")
    shutil.copyfile(SCHEMA, here / "schema.json")
    (here / "rules.yaml").write_text("copied_fields: [title]\n", encoding="utf-8")
    own = ModuleType("stages.own")  # a module whose code changes
    own.__file__ = str(here / "own.py")
    (here / "own.py").write_text("1", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "stages.own", own)
    (here / "main.py").write_text("1", encoding="utf-8")  # as `python -m` runs a stage
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(here / "main.py"), raising=False)
    true, begun, stop = generate._batch, [0], [True]

    def batch(*of: Any) -> Any:
        begun[0] += 1
        if stop[0] and begun[0] == 2:
            raise StopError
        return true(*of)

    monkeypatch.setattr(generate, "_batch", batch)
    assert isinstance(CliRunner().invoke(predict.main, words(Path("model"), *HELD)).exception, StopError)
    begun[0], stop[0] = 0, False
    if change is None:
        monkeypatch.setattr("torch.get_num_threads", lambda: 99)
    else:
        change(here)
    ran = CliRunner().invoke(predict.main, words(Path("model"), *options))
    assert (ran.exit_code, "going on after 1 of 2 batches" in ran.stderr) == (0, again == 1)
    assert begun[0] == again


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    kept, answer = Kept(tmp_path, {"model": "a"}, [[1, 0], [2]]), Answer("é\n", 1, 2, False)
    kept.add(0, 1, 1.5, answer)
    assert kept.todo() == [[1, 0], [2]]
    kept.add(1, 0, 0.5, answer)
    (tmp_path / f"{kept.name}.0.jsonl").rename(tmp_path / f"{kept.name}.2.jsonl")
    kept.add(0, 2, 2.0, answer)
    file = tmp_path / f"{kept.name}.0.jsonl"
    whole = file.read_bytes()
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        assert (kept.todo(), kept.read()) == ([[2]], {0: (0.5, answer), 1: (1.5, answer)})
        kept.add(0, 2, 3.0, answer)
        assert (kept.todo(), kept.read()[2], list(kept.read())) == ([], (3.0, answer), [0, 1, 2])
    kept.clear()
    assert (list(tmp_path.iterdir()), kept.todo()) == ([], [[1, 0], [2]])


@pytest.mark.parametrize("error", [InputError("a\x1b is missing"), OSError(28, "No space left on device")])
def test_a_process_says_in_one_line_what_it_can_not_use(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    def work(number: int, count: int, given: str) -> None:
        assert (number, count, given) == (1, 2, "job")
        raise error

    with pytest.raises(SystemExit, match="1"):
        processes._begin(1, work, 2, "job")
    said = capsys.readouterr().err
    assert (said.startswith("Error: "), said.count("\n"), "\x1b" in said) == (True, 1, False)


def ends(number: int, count: int, code: int) -> None:
    sys.exit(code * number)


def test_a_process_that_ends_early_ends_the_command() -> None:
    with pytest.raises(InputError, match="of 2 processes, process 1 terminated with exit code 3"):
        processes.run(ends, 2, 3)
