"""versions.history reads any version as it is, and nothing that a version holds makes it do anything else."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import toy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core.cli import InputError
from versions import history, names, record

SHARED = [HealthCheck.function_scoped_fixture]
FAST = settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=SHARED)
NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: (
        not set(name) & {0, ord("/")} and name.lower() not in (b".", b"..", b".git") and b"git~" not in name.lower()
    )
)


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository of Git alone."""
    toy.isolate(monkeypatch, tmp_path)
    folder = tmp_path / "plain"
    folder.mkdir()
    toy.run(folder, "git", "init", "--quiet")
    monkeypatch.chdir(folder)
    return folder


def added(folder: Path) -> str:
    """The tree that `git add .` would give, from an index of its own."""
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_INDEX_FILE", f"{place}/index")
        toy.run(folder, "git", "add", ".")
        return toy.run(folder, "git", "write-tree").strip()


@given(held=st.dictionaries(NAMES, st.binary(max_size=20), max_size=4))
@FAST
def test_the_working_tree_is_what_git_would_add_whatever_the_names(plain: Path, held: dict[bytes, bytes]) -> None:
    folder = plain / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in held.items():
        Path(folder / os.fsdecode(name)).write_bytes(content)
    tree = history.working_tree()
    assert tree == added(plain)
    paths = {f"data/{name.decode('utf-8', 'surrogateescape')}": content for name, content in held.items()}
    assert {path: history.read(tree, path) for path in history.files(tree)} == paths


def test_the_working_tree_has_no_links_and_nothing_behind_them(plain: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret", encoding="utf-8")
    (plain / "kept").write_text("kept", encoding="utf-8")
    (plain / "folder").mkdir()
    (plain / "folder" / "secret").write_text("mine", encoding="utf-8")
    toy.commit(plain, "folder")
    shutil.rmtree(plain / "folder")
    (plain / "folder").symlink_to(outside)
    (plain / "link").symlink_to(outside / "secret")
    before = (plain / ".git" / "index").read_bytes()
    assert list(history.files(history.working_tree())) == ["kept"]
    assert (plain / ".git" / "index").read_bytes() == before


def test_what_a_sparse_checkout_leaves_out_is_part_of_the_working_tree(plain: Path) -> None:
    for name in ("a", "b"):
        (plain / name).mkdir()
        (plain / name / "x").write_text(name, encoding="utf-8")
    (plain / "a/x").chmod(0o755)
    toy.commit(plain, "both")
    toy.run(plain, "git", "sparse-checkout", "set", "--no-cone", "/a/")
    assert not (plain / "b").exists()
    assert history.working_tree() == toy.run(plain, "git", "rev-parse", "HEAD^{tree}").strip()


def test_no_program_that_version_or_configuration_name_is_run(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain / ".gitattributes").write_text("* filter=evil diff=evil text eol=crlf\n", encoding="utf-8")
    (plain / "file").write_bytes(b"a\r\nb\n")
    for key in ("filter.evil.clean", "diff.evil.textconv", "diff.external", "core.fsmonitor"):
        toy.run(plain, "git", "config", key, "touch ran")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "touch ran")
    hook = plain / ".git/hooks/post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch ran\n", encoding="utf-8")
    hook.chmod(0o755)
    tree = history.working_tree()
    assert history.read(tree, "file") == b"a\r\nb\n"
    assert not (plain / "ran").exists()
    toy.run(plain, "git", "replace", *(history.files(tree)[name] for name in ("file", ".gitattributes")))
    assert history.read(tree, "file") == b"a\r\nb\n"


def test_another_repository_in_the_environment_is_not_read(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run(plain, "git", "commit", "--quiet", "--allow-empty", "--message", "here")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert len(history.commits("HEAD")) == 1


@pytest.mark.parametrize("name", ["..", ".GIT"])
def test_a_name_that_git_never_checks_out_is_refused(plain: Path, name: str) -> None:
    tree = history.git("mktree", "-z", "--missing", given=f"100644 blob {'1' * 40}\t{name}\0").decode().strip()
    with pytest.raises(InputError, match="never check out"):
        history.files(tree)


def test_an_object_that_is_missing_is_named(plain: Path) -> None:
    with pytest.raises(InputError, match=f"{'f' * 40} can't be read; try `git fsck`"):
        history.blobs(["f" * 40])


def test_links_of_a_version_are_named_and_never_read(repository: Path) -> None:
    commit = toy.forge(repository, {"data/raw/link.jsonl": Path("/etc/passwd"), "data/raw/new.jsonl": b"{}\n"})
    assert history.changed_files("HEAD", commit) == ["data/raw/link.jsonl", "data/raw/new.jsonl"]
    assert not history.files(commit).keys() & {"data/raw/link.jsonl"}
    assert history.read(commit, "data/raw/link.jsonl") is None


def test_a_table_in_a_page_does_not_decide_what_a_branch_is(repository: Path) -> None:
    page = Path("data/README.md")
    page.write_text(page.read_text(encoding="utf-8").replace("| first |", "| main |"), encoding="utf-8")
    with pytest.raises(InputError, match="name of another data version"):
        names.commit_of("main")


def test_a_name_without_its_data_in_the_history_is_said_to_be_one(repository: Path) -> None:
    page = Path("data/README.md")
    table = page.read_text(encoding="utf-8")
    page.write_text(f"{table}\n| gone | `{'0' * 32}.dir` |\n", encoding="utf-8")
    with pytest.raises(InputError, match="no commit in the history of HEAD has that data"):
        names.commit_of("gone")


def test_the_newest_commit_that_records_its_metrics_stands_for_a_version(repository: Path) -> None:
    with Path("data/README.md").open("a", encoding="utf-8") as page:
        page.write("other words\n")
    toy.commit(repository, "a page")
    newest = history.resolve("HEAD")
    Path("params.yaml").write_text("train: {epochs: 4}\n", encoding="utf-8")
    toy.commit(repository, "params without a run")
    assert names.recording(next(iter(names.holders().values()))) == newest == names.commit_of("last")


def test_a_commit_whose_pointer_can_not_be_read_takes_no_other_name_away(repository: Path) -> None:
    pointer = b"outs:\n- {md5: d41d8cd98f00b204e9800998ecf8427e, path: old.jsonl}\n"  # of DVC 2
    odd = toy.forge(repository, {"data/raw/old.jsonl.dvc": pointer})
    words = ["commit-tree", "-p", odd, "-m", "corrected", "HEAD^{tree}"]
    head = toy.run(repository, "git", *words).strip()
    toy.run(repository, "git", "reset", "--quiet", "--soft", head)
    assert names.data_hashes([odd]) == [None]
    assert names.commit_of("first") == history.resolve("v-first")


@pytest.mark.parametrize(
    "pointer",
    [
        "outs: [{path: ../evil.jsonl, md5: MD5, hash: md5}]",
        "outs: [{path: other.jsonl, md5: MD5, hash: md5}]",
        "outs: [{path: evil.jsonl, md5: MD5.dir, hash: md5}]",
        "outs: [{path: evil.jsonl, md5: ../../x, hash: md5}]",
        "outs: [{path: evil.jsonl, md5: MD5, hash: md5, files: [{relpath: ../x, md5: MD5}]}]",
        "outs: [{path: evil.jsonl, md5: MD5, hash: md5}, {path: more.jsonl, md5: MD5, hash: md5}]",
        "wdir: ../..\nouts: [{path: evil.jsonl, md5: MD5, hash: md5}]",
        "outs: [{path: evil.jsonl, md5: MD5}]",
        "outs: [{path: evil.jsonl, md5: MD5, hash: md5-dos2unix}]",
        "outs: evil.jsonl",
        "outs: [",
    ],
)
def test_a_pointer_to_anything_but_the_file_beside_it_is_refused(repository: Path, pointer: str) -> None:
    content = pointer.replace("MD5", "f" * 32).encode()
    commit = toy.forge(repository, {"data/raw/evil.jsonl.dvc": content})
    with pytest.raises(InputError, match=r"evil\.jsonl"):
        history.pointers(commit, "data/raw")


def test_a_file_is_in_git_or_in_dvc(repository: Path) -> None:
    content = f"outs: [{{path: a.jsonl, md5: {'f' * 32}, hash: md5}}]".encode()
    with pytest.raises(InputError, match="in Git as well"):
        history.pointers(toy.forge(repository, {"data/raw/a.jsonl.dvc": content}), "data/raw")


def test_yaml_that_grows_without_end_is_refused() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    for content in (bomb.encode(), b"a: &a [*a]"):
        with pytest.raises(InputError, match="more than"):
            history.parse_yaml(content, "it")


TAGS = ["", *(f"!!{name} " for name in ("binary", "bool", "float", "int", "merge", "null", "omap", "set", "timestamp"))]
SCALARS = ["", "''", "x", "~", "[x]", "{x: y}", "{[x]: y}", "1:x", "0x", "9" * 5000, '"\\Uffffffff"', "*x"]
PLACES = ["{}", "a: {}", "a: [{}]", "{}: a", "stages: {{a: {}}}", "stages: {{a: {{cmd: x, deps: [{}]}}}}"]


@given(tag=st.sampled_from(TAGS), scalar=st.sampled_from(SCALARS), place=st.sampled_from(PLACES))
@settings(FAST, max_examples=300)
def test_hostile_yaml_is_a_mapping_or_refused(tag: str, scalar: str, place: str) -> None:
    content = place.format(tag + scalar).encode()
    with contextlib.suppress(InputError):
        assert isinstance(history.parse_yaml(content, "it"), dict)
    with contextlib.suppress(InputError):
        record.pipeline(content)
