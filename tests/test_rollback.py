"""tools.rollback keeps its promises on a toy repository: byte for byte, nothing run, nothing lost, nothing corrupt."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import small
import toy
from click.testing import CliRunner, Result
from conftest import ROOT

from tools.rollback import main
from versions import dvc_cache, history, record, rollback


def back(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def restored(*arguments: str) -> str:
    result = back(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(code: int, *arguments: str) -> str:
    """The message of a refusal, after which the working tree must be as it was."""
    before, index = toy.state(Path.cwd()), history.git("ls-files", "--stage")
    result = back(*arguments)
    assert result.exit_code == code, result.output
    assert (toy.state(Path.cwd()), history.git("ls-files", "--stage")) == (before, index)
    return result.output


def alter(file: Path) -> None:
    """Flip a bit of a cache object, which DVC keeps read-only."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(0o444)


def ran(folder: Path) -> str:
    return (folder / "ran.log").read_text(encoding="utf-8")


@pytest.fixture
def states(repository: Path) -> dict[str, dict[str, bytes]]:
    """What each version is, from plain Git and DVC."""
    found = {}
    for name in ("first", "large", "last"):
        toy.run(repository, "git", "checkout", "--quiet", f"v-{name}")
        toy.run(repository, "git", "clean", "--quiet", "--force", "data/raw")  # DVC may leave its file of rows behind
        toy.run(repository, "dvc", "checkout", "--quiet")
        found[name] = toy.state(repository)
    toy.run(repository, "git", "checkout", "--quiet", "main")
    toy.run(repository, "dvc", "checkout", "--quiet")
    assert toy.state(repository) == found["last"]
    return found


def test_back_and_forth_restores_all_and_runs_nothing(repository: Path, states: dict[str, dict[str, bytes]]) -> None:
    before = ran(repository)
    for name in ("first", "last", "large", "first", "large", "last"):
        assert "`dvc repro` has nothing to do" in restored(name)
        assert toy.state(repository) == states[name], name
    assert ran(repository) == before


def test_what_comes_back_is_staged_and_clean_for_dvc(repository: Path) -> None:
    assert ": 9 files from Git, 5 of DVC in 4 outputs, every hash as recorded." in restored("first")
    status = toy.run(repository, "git", "status", "--porcelain")
    assert {line[1] for line in status.split("\n") if line} == {" "}
    assert {"D  data/raw/c.jsonl", "D  data/raw/big.jsonl.dvc", "M  dvc.lock"} <= set(status.split("\n"))
    assert "up to date" in toy.run(repository, "dvc", "status")


def test_a_file_of_the_same_size_is_hashed_again(tmp_path: Path) -> None:
    file, found = tmp_path / "file", set()
    for number in range(2):
        file.write_text(str(number), encoding="utf-8")
        os.utime(file, ns=(number, number))
        found.add(dvc_cache.digest(file))
    assert len(found) == 2


def kinds(repository: Path) -> dict[str, Path]:
    """One cache object of each kind that version 'large' needs and the working tree, at 'last', may hold too."""
    md5s = toy.md5s(repository, "large")
    adapter = toy.inside(repository, md5s["models/adapter"])
    rows = history.pointers("v-large", "data/raw")["data/raw/big.jsonl"]
    found = {
        "file": md5s["data/predictions.txt"],
        "folder": md5s["models/adapter"],
        "adapter": adapter["adapter.bin"],
        "base": toy.inside(repository, md5s["models/base"])["weights.bin"],
        "rows": rows,
    }
    return {name: toy.stored(repository, md5) for name, md5 in found.items()}


@pytest.mark.parametrize("kind", ["file", "folder", "adapter", "base", "rows"])
def test_an_altered_cache_object_is_named_and_refused(repository: Path, kind: str) -> None:
    file = kinds(repository)[kind]
    alter(file)
    message = refused(4, "large")
    assert str(file) in message
    assert f"expected {file.parent.name}{file.name}" in message
    assert "Remove these files" in message


def test_an_altered_object_that_gets_past_the_first_look_is_found_in_the_working_tree(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter(kinds(repository)["adapter"])
    monkeypatch.setattr(dvc_cache, "inspect", lambda store, outs: [])
    result = back("large")
    assert (result.exit_code, "models/adapter: expected" in result.output) == (4, True)


def test_a_missing_output_is_named_with_what_makes_it(repository: Path, states: dict[str, dict[str, bytes]]) -> None:
    kinds(repository)["adapter"].unlink()
    message = refused(3, "large")
    assert "models/adapter/adapter.bin" in message
    assert "python -m tools.rollback large --allow-missing && dvc repro train" in message
    assert "Missing: models/adapter" in restored("large", "--allow-missing")
    assert not Path("models/adapter").exists()
    toy.run(repository, "dvc", "repro", "train")
    assert toy.state(repository) == states["large"]


def test_a_missing_output_comes_from_the_remote_which_may_be_altered(repository: Path, tmp_path: Path) -> None:
    toy.run(repository, "dvc", "remote", "add", "--quiet", "--default", "--local", "store", str(tmp_path / "store"))
    toy.run(repository, "dvc", "push", "--quiet", "--all-commits")
    folder, file = kinds(repository)["folder"], kinds(repository)["adapter"]
    folder.unlink()
    file.unlink()
    restored("large")
    assert file.exists()
    restored("HEAD")
    file.unlink()
    alter(tmp_path / "store" / file.relative_to(repository / ".dvc" / "cache"))
    assert "altered" in refused(4, "large")


def test_a_remote_that_fails_hides_no_advice(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("no route to host")

    toy.run(repository, "dvc", "remote", "add", "--quiet", "--default", "--local", "store", "/nowhere")
    monkeypatch.setattr("dvc.data_cloud.DataCloud.pull", broken)
    kinds(repository)["adapter"].unlink()
    message = refused(3, "large")
    assert "the remote could not give everything: no route to host" in message
    assert "dvc repro train" in message


def added(path: str, text: str = "\n") -> Callable[[], object]:
    return lambda: Path(path).write_bytes((Path(path).read_bytes() if Path(path).exists() else b"") + text.encode())


def staged() -> None:
    before = Path("params.yaml").read_bytes()
    added("params.yaml")()
    toy.run(Path.cwd(), "git", "add", "params.yaml")
    Path("params.yaml").write_bytes(before)


def ignored() -> None:
    added(".git/info/exclude", "*.ignored\n")()
    added("data/raw/mine.ignored")()


def replaced() -> None:
    Path("data/raw/big.jsonl").unlink()
    added("data/raw/big.jsonl", "mine\n")()


def rotten() -> None:
    """The cache's copy of what only today's version holds is altered."""
    here = Path.cwd()
    alter(toy.stored(here, toy.inside(here, toy.md5s(here, "last")["models/adapter"])["adapter.bin"]))


WORK: dict[str, Callable[[], object]] = {
    **{path: added(path) for path in ("data/raw/a.jsonl", "metrics/evaluate.json", "dvc.lock")},
    **{path: added(path) for path in ("data/raw/mine.jsonl", "data/raw/ä b.jsonl")},
    "data/raw/c.jsonl": lambda: Path("data/raw/c.jsonl").unlink(),
    "data/raw/d.jsonl": lambda: history.git("rm", "--quiet", "data/raw/d.jsonl"),
    "data/raw/m09.jsonl and 1 more; commit it": lambda: [added(f"data/raw/m{n:02}.jsonl")() for n in range(11)],
    "params.yaml": staged,
    "data/raw/mine.ignored": ignored,
    "data/raw/link is a link": lambda: Path("data/raw/link").symlink_to("a.jsonl"),
    "data/raw/big.jsonl is not in the DVC cache": replaced,
    "models/adapter/adapter.bin is not in the DVC cache": rotten,
    "index.lock': File exists": lambda: Path(".git/index.lock").touch(),  # another git is at work
    "models/adapter/.notes.tmp is not in the DVC cache": added("models/adapter/.notes.tmp"),
    "models/adapter/link is a link": lambda: Path("models/adapter/link").symlink_to("nowhere"),
    "data/raw/sub is a link, a submodule": lambda: history.git(
        "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},data/raw/sub"
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_work_that_is_nowhere_else_is_named_and_never_lost(repository: Path, name: str) -> None:
    WORK[name]()
    assert name in refused(1, "first")


def test_the_real_note_of_a_running_stage_is_understood(repository: Path) -> None:
    Path("params.yaml").write_text("train: {epochs: 9}\n", encoding="utf-8")
    Path("stages/toy.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n", encoding="utf-8")
    command = [str(toy.BIN / "dvc"), "repro", "train"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as running:
        try:
            assert running.stdout is not None
            next(line for line in running.stdout if "begun" in line)
            toy.run(repository, "git", "checkout", "--quiet", "params.yaml")
            assert "dvc repro train" in refused(1, "first")
        finally:
            os.killpg(running.pid, signal.SIGKILL)


def test_a_dvc_that_holds_the_lock_is_left_alone(repository: Path) -> None:
    from dvc.repo import Repo

    with Repo().lock:
        assert "Unable to acquire lock" in refused(1, "first")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_rollback_that_breaks_off_has_a_status_of_its_own(
    repository: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(rollback, "put", broken)
    result = back("first")
    assert (result.exit_code, "broken off half-way" in result.output) == (4, True)


def test_a_broken_object_of_git_is_found_before_anything_is_touched(repository: Path) -> None:
    Path("params.yaml").write_text("train: {epochs: 3}  # as ever\n", encoding="utf-8")
    toy.commit(repository, "remark")
    oid = history.files("HEAD")["params.yaml"]
    Path("params.yaml").write_text("train: {epochs: 3}\n", encoding="utf-8")
    toy.commit(repository, "no remark")
    alter(repository / ".git" / "objects" / oid[:2] / oid[2:])
    assert "git cat-file" in refused(1, "HEAD~1")


def test_code_stays_and_what_todays_pipeline_does_not_make_is_left_out(repository: Path) -> None:
    Path("stages/toy.py").write_text(toy.STAGE + "# mine\n", encoding="utf-8")
    Path("dvc.yaml").write_text(toy.PIPELINE.replace("models/adapter", "models/lora"), encoding="utf-8")
    output = restored("first")
    assert Path("stages/toy.py").read_text(encoding="utf-8").endswith("# mine\n")
    assert "today's dvc.yaml has no such output of the same stage: models/adapter" in output
    assert re.search(r"\n  train \(.*stages/toy.py", output)


def test_a_rollback_may_follow_a_rollback_but_no_edit_of_one(repository: Path) -> None:
    restored("first")
    before = Path("data/raw/a.jsonl").read_bytes()
    added("data/raw/a.jsonl")()
    assert "data/raw/a.jsonl" in refused(1, "large")
    Path("data/raw/a.jsonl").write_bytes(before)
    restored("large")
    toy.commit(repository, "back at large")
    restored("first")
    toy.run(repository, "git", "update-ref", "HEAD", toy.forge(repository, {}))
    assert "data/raw/b.jsonl" in refused(1, "large")  # HEAD has moved: what is staged may be the user's own


def test_what_an_earlier_rollback_brought_does_not_stay(repository: Path) -> None:
    with_rules = toy.forge(repository, {"data/rules.yaml": b"{}\n"})
    for rev in (with_rules, "first", "HEAD"):
        restored(rev, "--data-only")
        assert Path("data/rules.yaml").exists() == (rev == with_rules)
    assert toy.run(repository, "git", "status", "--porcelain") == ""


def test_only_outputs_below_data_and_models_and_no_rows_are_written(repository: Path) -> None:
    outs = (
        "[stages/made, data, data/raw/made.jsonl, models/mine, {data/n.json: {cache: false}}, {n.json: {cache: false}}]"
    )
    Path("dvc.yaml").write_text(f"stages: {{x: {{cmd: x, outs: {outs}}}}}", encoding="utf-8")
    assert rollback.todays_outs() == ({"models/mine": "x"}, ["data/n.json"])


def test_rows_of_the_test_set_may_be_held_by_dvc_too(repository: Path) -> None:
    pointer = f"outs: [{{path: more.jsonl, md5: {'f' * 32}, hash: md5}}]".encode()
    commit = toy.forge(repository, {"data/test/more.jsonl.dvc": pointer})
    assert rollback.goal_of(commit, data_only=True).outs["data/test/more.jsonl"] == "f" * 32


def test_half_a_lock_is_mended_first(repository: Path) -> None:
    Path("dvc.lock").write_bytes(b"")
    assert "was half written" in restored("first")


def test_half_a_copy_and_a_link_to_the_cache_are_no_work_of_the_user(repository: Path) -> None:
    file, md5s = Path("models/adapter/adapter.bin"), toy.md5s(repository, "last")
    file.with_name(f".{'a' * 22}.tmp").write_text("half", encoding="utf-8")  # of a DVC that was killed
    file.unlink()  # and a link, as with DVC's cache.type symlink
    file.symlink_to(toy.stored(repository, toy.inside(repository, md5s["models/adapter"])["adapter.bin"]))
    restored("first")
    assert sorted(path.name for path in Path("models/adapter").iterdir()) == ["adapter.bin", "made_from.json"]


def test_what_a_sparse_checkout_leaves_out_is_no_lost_work(repository: Path) -> None:
    toy.run(repository, "git", "sparse-checkout", "set", "--no-cone", "/*", "!/expectations/")
    assert not Path("expectations/train.json").exists()
    restored("first")


def test_pages_alone_may_be_missing(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollback, "PAGES", ("models/adapter",))
    kinds(repository)["adapter"].unlink()
    assert "Missing: models/adapter" in restored("large")


def test_what_the_version_has_no_record_of_is_named(repository: Path) -> None:
    Path("dvc.yaml").write_text(toy.PIPELINE.replace("[models/adapter]", "[models/adapter, models/more]"), "utf-8")
    Path("models/more").mkdir()
    assert "Not of this version, which has no record of them: models/more" in restored("first")


def test_params_of_an_older_pipeline_make_nothing_again(repository: Path) -> None:
    Path("dvc.yaml").write_text(toy.PIPELINE.replace("params: [train]", "params: [train, replay]"), "utf-8")
    kinds(repository)["adapter"].unlink()
    assert " lacks replay. If dvc repro stops there, only" in refused(3, "large")


KILL = """
import os, signal, sys
from versions import rollback
calls, real = [], getattr(rollback, sys.argv[1])
def kill(*arguments):
    calls.append(arguments)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(rollback, sys.argv[1], kill)
list(rollback.roll_back("large", False, False))
"""


@pytest.mark.parametrize(("at", "call"), [("bring_back", 1), ("put", 2), ("put", 8), ("verify", 1)])
def test_a_killed_rollback_does_not_pass_for_sound_and_the_next_one_repairs_it(
    repository: Path, states: dict[str, dict[str, bytes]], at: str, call: int
) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [str(toy.BIN / "python"), "-c", KILL, at, str(call)]
    restored("first")  # the note then has more than one commit
    killed = subprocess.run(command, cwd=repository, env=env, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    sound = not record.problems(history.working_tree()) and "up to date" in toy.run(repository, "dvc", "status")
    assert sound == (toy.state(repository) in (states["large"], states["first"]))
    for name in ("first", "last"):
        restored(name)
        assert toy.state(repository) == states[name]


# Commits that mean harm


@pytest.mark.parametrize(
    ("path", "md5"), [("../../stages/toy.py", ""), ("/astray", ""), ("adapter.bin", "../../../../stages/toy.py")]
)
def test_a_list_in_the_cache_that_reaches_elsewhere_is_refused(repository: Path, path: str, md5: str) -> None:
    whole = toy.md5s(repository, "first")["models/adapter"]
    entry = {"md5": md5 or toy.inside(repository, whole)["adapter.bin"], "relpath": path}
    text = json.dumps([entry]).encode()
    forged = hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"
    toy.stored(repository, forged).parent.mkdir(exist_ok=True)
    toy.stored(repository, forged).write_bytes(text)
    lock = (history.read("v-first", "dvc.lock") or b"").replace(whole.encode(), forged.encode())
    assert "lies elsewhere" in refused(1, toy.forge(repository, {"dvc.lock": lock}, "v-first"))


def everything(*folders: Path) -> dict[str, bytes | None]:
    """Every file and folder, but for what Git and DVC keep of their own."""
    own = [f".git/{name}" for name in ("objects", "index", "forged-index", "lockstep-rollback", "COMMIT_EDITMSG")]
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for folder in folders
        for path in folder.rglob("*")
        if not history.within(path.relative_to(folder).as_posix(), [*own, ".dvc/tmp"])
    }


def lock_with(paths: list[str], md5: str) -> bytes:
    """The dvc.lock of version 'first', where validate made more than it did."""
    lock = (history.read("v-first", "dvc.lock") or b"").decode()
    entries = [f"    - path: {json.dumps(path)}\n      hash: md5\n      md5: {md5}\n" for path in paths]
    before, mark, after = lock.partition("    - path: data/validated\n")
    assert mark
    return "".join([before, *entries, mark, after]).encode()


@pytest.fixture
def victim(repository: Path, tmp_path: Path) -> Path:
    """Folders outside of the repository, with nothing in them that a cache might lack."""
    (tmp_path / "victim" / "inner").mkdir(parents=True)
    return tmp_path / "victim"


STEERING = """data/raw/dvc.yaml data/raw/astray.dvc data/test/.dvcignore data/test/.hidden/a.json
data/raw/.dvc/.gitignore metrics/.gitattributes metrics/a.jsonl.dvc"""


@pytest.mark.parametrize("path", [*STEERING.split(), "data/raw/line\nbreak.jsonl", "data/raw/\udcff.jsonl"])
def test_a_file_that_steers_or_can_not_be_named_is_refused(repository: Path, path: str) -> None:
    data_only = history.within(path, rollback.DATA)  # what lies in metrics is out of step with the lock as well
    commit = toy.forge(repository, {path: b"stages: {}\n"})
    assert history.printable(path) in refused(1, commit, *(["--data-only"] if data_only else []))


def test_a_pointer_to_a_file_that_steers_is_refused(repository: Path) -> None:
    md5 = history.pointers("v-large", "data/raw")["data/raw/big.jsonl"]
    pointer = f"outs: [{{path: dvc.yaml, hash: md5, md5: {md5}}}]".encode()
    commit = toy.forge(repository, {"data/raw/dvc.yaml.dvc": pointer})
    assert "data/raw/dvc.yaml is no file" in refused(1, commit, "--data-only")


def test_nothing_is_written_through_a_link(repository: Path, victim: Path) -> None:
    shutil.move(repository / "models", victim / "models")
    Path("models").symlink_to(victim / "models")
    before = everything(victim)
    assert "models is a link" in refused(1, "first")
    assert everything(victim) == before


CLAIMS = """stages/toy.py Makefile .git/hooks/post-checkout .git/config .dvc/config .dvc/cache/files dvc.yaml ../victim
VICTIM . .. data data/raw data/README.md models models/mine models/../stages/toy.py ./stages data/raw/../../stages
data/validated/x metrics/../Makefile"""
EVIL = "stages/toy.py Makefile .gitattributes .dvc/config .github/workflows/ci.yml data/README.md metrics/timing/x.json"


@pytest.mark.parametrize("output", ["models/adapter", "data/predictions.txt"])
def test_whatever_a_commit_claims_nothing_changes_but_a_version(repository: Path, victim: Path, output: str) -> None:
    claims = CLAIMS.replace("VICTIM", str(victim)).split()
    changes: dict[str, bytes | Path | None] = dict.fromkeys(EVIL.split(), b"{}")
    changes |= {"data/raw/link.jsonl": victim, "models/mine": b"{}"}
    changes["dvc.lock"] = lock_with(claims, toy.md5s(repository, "first")[output])
    before = everything(repository, victim)
    assert "today's dvc.yaml has no such output of the same stage: ., .., ../victim" in restored(
        toy.forge(repository, changes, "v-first")
    )
    after = everything(repository, victim)
    own = (*rollback.DATA, *rollback.RESULTS, *toy.OUTS)
    changed = {path for path in before.keys() | after.keys() if before.get(path, 0) != after.get(path, 0)}
    assert [path for path in changed if not history.within(os.path.relpath(path, repository), own)] == []
    restored("HEAD")
    assert everything(repository, victim) == before


def test_the_experiments_stay_as_they_are(repository: Path) -> None:
    file = Path("metrics/experiments/learning_curve.json")
    file.parent.mkdir()
    for result, rev in (("{}", "first"), ("[]", "HEAD~1")):  # which has no such file, and another
        file.write_text(result, encoding="utf-8")
        toy.commit(repository, "an experiment")
        restored(rev)
        assert file.read_text(encoding="utf-8") == result


def test_an_output_in_git_outside_metrics_comes_back_too(repository: Path) -> None:
    for file, text in {"dvc.yaml": toy.PIPELINE, "stages/toy.py": toy.STAGE}.items():
        Path(file).write_text(text.replace("metrics/validate.json", "data/notes.json"), encoding="utf-8")
    Path("metrics/validate.json").unlink()  # no stage writes it any more
    toy.record(repository, "notes")
    notes = Path("data/notes.json").read_bytes()
    (repository / "data" / "raw" / "d.jsonl").unlink()
    toy.record(repository, "fewer")
    assert Path("data/notes.json").read_bytes() != notes
    restored("v-notes")
    assert Path("data/notes.json").read_bytes() == notes


def test_data_only_takes_the_data_and_repro_runs_on_it(repository: Path) -> None:
    Path("params.yaml").write_text("train: {epochs: 5}\n", encoding="utf-8")
    kept = {path: Path(path).read_bytes() for path in ("params.yaml", "dvc.lock", "metrics/evaluate.json")}
    before = ran(repository)
    restored("large", "--data-only")
    assert {path: Path(path).read_bytes() for path in kept} == kept
    assert sorted(path.name for path in Path("data/raw").glob("*.jsonl")) == ["a.jsonl", "b.jsonl", "big.jsonl"]
    toy.run(repository, "dvc", "repro", "--quiet")
    assert ran(repository).removeprefix(before) == "train\n"  # the new params; the rest is in the run cache
    assert '"exact_match": 1.0' in Path("metrics/evaluate.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("data/raw/new.jsonl", b"{}\n", "out of step: data/raw"),
        ("metrics/evaluate.json", b"{}", "out of step: metrics/evaluate.json"),
        ("params.yaml", b"train: {epochs: 9}\n", "out of step: params.yaml: train"),
        ("dvc.lock", None, "has no dvc.lock"),
        ("dvc.lock", b"<<<<<<< HEAD\n", "dvc.lock of"),
        ("dvc.yaml", b"stages: {train: {foreach: [x], do: {cmd: x}}}\n", "dvc.yaml can't be followed"),
    ],
)
def test_a_commit_whose_record_is_of_something_else_is_refused_but_its_data_can_be_had(
    repository: Path, path: str, content: bytes | None, reason: str
) -> None:
    commit = toy.forge(repository, {path: content})
    assert reason in refused(1, commit)
    assert "to undo: python -m tools.rollback HEAD --data-only" in restored(commit, "--data-only")
    restored("HEAD", "--data-only")
    assert toy.run(repository, "git", "status", "--porcelain") == ""


def test_where_head_has_no_sound_record_git_and_dvc_undo_it(repository: Path) -> None:
    Path("data/raw/new.jsonl").write_text("{}\n", encoding="utf-8")
    results = Path("metrics/experiments/seeds.json")
    results.parent.mkdir()
    results.write_text("{}", encoding="utf-8")
    toy.commit(repository, "rows without a run")
    results.write_text("[]", encoding="utf-8")  # hours of work, of no stage, not committed yet
    before = toy.state(repository)
    [undo] = re.findall("to undo: (.*)", restored("first"))
    toy.run(repository, "sh", "-c", undo)
    assert toy.state(repository) == before
    toy.run(repository, "dvc", "repro", "--quiet", "validate")
    toy.commit(repository, "half a run")
    assert "out of step: data/validated" in refused(1, "HEAD")


def test_what_a_stage_of_another_name_made_is_left_out(repository: Path) -> None:
    Path("dvc.yaml").write_text(toy.PIPELINE.replace("  train:", "  fit:"), encoding="utf-8")
    assert "today's dvc.yaml has no such output of the same stage: models/adapter" in restored("first")


def test_data_may_be_on_a_disk_of_its_own(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def elsewhere(path: Path, target: Path) -> None:
        if Path(path).name == "lockstep.part":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(path, target)

    monkeypatch.setattr(os, "rename", elsewhere)
    restored("first")
    assert Path("data/raw/a.jsonl").read_bytes() == history.read("v-first", "data/raw/a.jsonl")


def test_a_folder_gives_way_to_a_file_of_its_name_twice_in_a_row(repository: Path) -> None:
    suite = history.read("HEAD", "expectations/train.json") or b""
    commit = toy.forge(repository, {"expectations/train.json": None, "expectations/train": suite})
    Path("expectations/train.json").unlink()
    Path("expectations/train").mkdir()
    Path("expectations/train/a.json").write_bytes(suite)
    toy.commit(repository, "a folder")
    for _ in range(2):
        restored(commit, "--data-only")
        assert Path("expectations/train").is_dir()


@pytest.mark.parametrize("ignored", [True, False])
def test_rows_move_from_git_to_dvc_and_back_whether_or_not_git_ignores_them(repository: Path, ignored: bool) -> None:
    toy.run(repository, "git", "rm", "--quiet", "--cached", "data/raw/a.jsonl")
    toy.run(repository, "dvc", "add", "--quiet", "data/raw/a.jsonl")
    if not ignored:
        Path("data/raw/.gitignore").unlink()
    assert "data/raw/a.jsonl" not in history.files(history.working_tree())
    toy.run(repository, "git", "add", "--all", "data/raw/a.jsonl.dvc", "data/raw/.gitignore")
    toy.run(repository, "git", "commit", "--quiet", "--message", "in DVC")
    rows = Path("data/raw/a.jsonl").read_bytes()
    for rev in ("HEAD~1", "HEAD"):
        restored(rev, "--data-only")
        assert Path("data/raw/a.jsonl").read_bytes() == rows
        assert Path("data/raw/a.jsonl.dvc").exists() == (rev == "HEAD")
        # What is right in the working tree needs no cache.
        toy.stored(repository, history.pointers("HEAD")["data/raw/a.jsonl"]).unlink(missing_ok=True)


def test_the_list_names_each_version_with_commit_rows_and_metrics(repository: Path) -> None:
    lines = [line.split() for line in restored("--list").strip().split("\n")]
    assert [line[0] for line in lines] == ["name", *reversed(toy.NAMES)]
    assert [line[3] for line in lines[1:]] == ["4+", "3+", "3+", "3", "2"]
    assert [line[5] for line in lines[1:]] == ["0.700", "0.700", "1.000", "1.000", "1.000"]
    assert lines[1][6:] == ["[0.650,", "0.700],", "n", "=", "40"]
    assert lines[-1][1] == history.resolve("v-first")[:7]
    assert (back().exit_code, back("first", "--list").exit_code) == (2, 2)


def test_metrics_without_an_interval_are_listed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.start(tmp_path, monkeypatch)
    assert "can't be read" in restored("--list")


def test_the_list_needs_no_names_and_says_where_nothing_is_recorded(repository: Path) -> None:
    (repository / "data" / "README.md").unlink()
    (repository / "data" / "raw" / "new.jsonl").write_text("{}\n", encoding="utf-8")
    toy.commit(repository, "rows without a run")
    newest = restored("--list").split("\n")[1].split()
    assert (newest[0], newest[-2:]) == ("-", ["not", "recorded"])


@pytest.mark.parametrize("rev", ["nowhere", "--all"])
def test_what_is_no_revision_is_named_in_one_line(repository: Path, rev: str) -> None:
    message = refused(1, "--", rev)
    assert f"{rev!r} is neither a commit here" in message
    assert message.count("\n") == 1


def test_a_shallow_clone_names_the_command(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run(tmp_path, "git", "clone", "--quiet", "--depth=1", repository.as_uri(), "shallow")
    monkeypatch.chdir(tmp_path / "shallow")
    assert "git fetch --unshallow" in refused(1, "v-first")
    assert "git fetch --unshallow" in back("--list").output


def test_any_folder_but_the_root_is_refused(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository / "data")
    assert "cd ../" in back("first").output
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert "not a git repository" in back("first").output
