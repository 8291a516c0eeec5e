"""Every command explains itself at once, and answers bad input with one line and a documented exit status."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import KNOBS, ROOT

HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "pandas", "numpy", "scipy"}
HEAVY |= {"great_expectations", "pydantic"}
COMMANDS = [
    f"{folder}.{file.stem}"
    for folder in ("stages", "tools", "review", "versions", "experiments")
    for file in sorted((ROOT / folder).glob("*.py"))
    if "click.command" in file.read_text(encoding="utf-8")
]
HELP = """
import sys, runpy, time
try: runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
except SystemExit as end: assert not end.code
print("HEAVY", sorted(set(sys.argv[2].split(",")) & set(sys.modules)), time.process_time())
"""


@pytest.mark.parametrize("module", COMMANDS)
def test_help_loads_nothing_heavy_and_takes_less_than_half_a_second(module: str) -> None:
    code = HELP.replace("sys.argv[2]", repr(",".join(HEAVY))).replace("sys.argv[1]", repr(module))
    ran = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "Usage:" in ran.stdout
    heavy, seconds = ran.stdout.rstrip().split("\n")[-1].removeprefix("HEAVY ").rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 0.5  # of CPU time, which other work on the machine does not change


NUMBER = "9" * 400
# What stands in the place of every file that is read.
FILES: dict[str, tuple[str, bytes]] = {
    "empty": ("empty.json", b""),
    "binary": ("binary.json", bytes(range(256)) * 40),
    "not UTF-8": ("latin.jsonl", '{"id": "é"}\n'.encode("latin-1")),
    "NUL bytes": ("nul.json", b'{"id":\0"a"}\n'),
    "half of a JSON text": ("half.json", b'{"id": '),
    "another JSON value": ("list.json", b"[]\n"),
    "fields of the wrong type": (
        "type.jsonl",
        b'{"id":1,"prompt":"a","answer":[],"turns":3,"text":{},"model_type":7,"copied_fields":7}\n',
    ),
    "a huge number": ("huge.json", f'{{"id":{NUMBER},"copied_fields":{NUMBER}}}\n'.encode()),
    "deep nesting": ("deep.json", b"[" * 100_000),
    "a name that is not UTF-8": ("\udcff.json", b"[]\n"),
    "a line break in the name": ("two\nlines\x1b[1m.json", b"[]\n"),
}
VALUES = {"wrong type": "abc", "huge number": NUMBER, "unknown option": "--nonsense"}
KINDS = [*FILES, "missing", "a folder", "a link to nowhere", *VALUES]


def bad_path(kind: str, folder: Path) -> str:
    """The path that every option gets which takes one."""
    if kind in FILES:
        name, content = FILES[kind]
        (folder / name).write_bytes(content)
        return name
    if kind == "a folder":
        (folder / "folder.json").mkdir()
        return "folder.json"
    if kind == "a link to nowhere":
        (folder / "link.json").symlink_to("nowhere")
        return "link.json"
    return "missing/file.json"


def words(command: click.Command, kind: str, path: str) -> list[str]:
    """The command line: `path` for each path, `kind`'s value for each text and number that has no choice of its own."""
    line: list[str] = []
    value = VALUES.get(kind, path)
    for param in command.params:
        is_path, is_text = isinstance(param.type, click.Path), isinstance(param.type, click.types.StringParamType)
        if param.name == "help" or getattr(param, "is_flag", False) or kind == "unknown option":
            continue
        if not is_path and not is_text and kind not in VALUES:
            continue  # a number keeps its default
        given = path if is_path else value
        line += [given] if isinstance(param, click.Argument) else [f"{param.opts[0]}={given}"]
    return ["--nonsense"] if kind == "unknown option" else line


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's settings, without Git, DVC, data or a model; nothing is fetched from a network."""
    for name in ("advise.yaml", "catalogue.yaml", "gate.yaml"):
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, tmp_path / name)
    text = KNOBS.read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("source: wheel", "source: path"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", COMMANDS)
def test_bad_input_is_answered_in_one_line(module: str, kind: str, empty: Path) -> None:
    if (module, kind) == ("stages.predict", "empty"):
        pytest.skip("blank rules ground no field, so nothing is read and nothing answered")
    command = importlib.import_module(module).main
    result = CliRunner().invoke(command, words(command, kind, bad_path(kind, empty)), standalone_mode=True)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in statuses(command), result.output
    _, error, message = result.stderr.partition("Error: ")
    assert error, result.output
    assert message.strip().count("\n") == 0, message
    assert not [char for char in message.strip() if not char.isprintable()], message


def statuses(command: click.Command) -> set[int]:
    """1, 2 for a command line that can't be read, and what the help names beside them."""
    return {1, 2, *map(int, re.findall(r"\b([3-9]):", command.help or ""))}
