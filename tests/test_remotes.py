"""What one clone pushes, another takes without running a stage: a folder, S3 and SSH, set up as docs/sharing.md says.

The servers are real and on loopback: moto's S3, and sshd with keys made for the test. The pipeline is a toy that logs
each run, the configuration is the shipped one; what may stand in it, and what may be a secret, is tested below.
"""

import getpass
import hashlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from conftest import ROOT

from tools import push

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
STEP = """
import os, sys
from pathlib import Path
name, out, *deps = sys.argv[1:]
with open(os.environ["RUN_LOG"], "a") as log:
    log.write(name + "\\n")
Path(out).mkdir(parents=True)
Path(out, "file").write_text(name + "".join(Path(dep).read_text() for dep in deps))
if name == "train":
    Path("metrics.json").write_text("{}\\n")
"""
PIPELINE = """
stages:
  prepare:
    cmd: python step.py prepare data/ready data/raw
    deps: [step.py, data/raw]
    outs: [data/ready]
  train:
    cmd: python step.py train models/adapter data/ready/file
    deps: [step.py, data/ready]
    outs: [models/adapter]
    metrics:
      - metrics.json:
          cache: false
"""


@dataclass(frozen=True)
class Place:
    """A remote: what to put in place of the page's examples, and how to list and alter what it holds."""

    kind: str
    instead: dict[str, str]
    objects: Callable[[], list[str]]
    alter: Callable[[str], None]


def run(clone: Path, *command: str, status: int = 0) -> str:
    """Run a command with no settings but the clone's own; a remote that hangs is an error."""
    home = clone.parent / "home"
    env = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "RUN_LOG": f"{clone}.log",
        "DVC_SITE_CACHE_DIR": str(home / "site"),
        "AWS_EC2_METADATA_DISABLED": "true",
        **{f"GIT_{who}_{what}": "t@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    ran = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == status, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout + ran.stderr


def made(clone: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(clone)): path.read_bytes()
        for folder in ("data/ready", "models/adapter")
        for path in (clone / folder).glob("*")
    }


def commit(clone: Path, text: str) -> None:
    """A data version, run and committed with its dvc.lock."""
    (clone / "data" / "raw").write_text(text, encoding="utf-8")
    run(clone, "dvc", "repro")
    run(clone, "git", "add", ".")
    run(clone, "git", "commit", "-qm", text)


def set_up(clone: Path, place: Place) -> None:
    """Run the page's commands for this kind of remote."""
    page = (ROOT / "docs" / "sharing.md").read_text(encoding="utf-8")
    block = re.search(rf"\*\*{place.kind}\*\*.*?```sh\n(.*?)```", page, re.DOTALL)
    assert block
    for line in block[1].strip().split("\n"):
        words = shlex.split(line, comments=True)
        run(clone, *[place.instead.get(word, word) for word in words])


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A repository with the shipped configuration and one data version, run."""
    clone = tmp_path / "first"
    (clone / ".dvc").mkdir(parents=True)
    (clone / "data").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, clone / name)
    (clone / ".gitignore").write_text("/data/ready\n/models\n", encoding="utf-8")
    (clone / "step.py").write_text(STEP, encoding="utf-8")
    (clone / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    run(clone, "git", "init", "-q")
    commit(clone, "one")
    return clone


def folder(tmp_path: Path) -> Iterator[Place]:
    store = tmp_path / "share"
    yield in_folder("A folder", store, {"/mnt/share/lockstep": str(store)})


def in_folder(kind: str, store: Path, instead: dict[str, str]) -> Place:
    def alter(name: str) -> None:
        (store / name).chmod(0o600)
        (store / name).write_bytes(b"altered")

    return Place(
        kind, instead, lambda: [str(file.relative_to(store)) for file in store.rglob("*") if file.is_file()], alter
    )


def s3(_: Path) -> Iterator[Place]:
    import boto3
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="hidden"
    )
    bucket = f"models-{port}"  # moto's servers share their buckets
    client.create_bucket(Bucket=bucket)

    def objects() -> list[str]:
        return [held["Key"] for held in client.list_objects_v2(Bucket=bucket).get("Contents", [])]

    instead = {"s3://my-bucket/lockstep": f"s3://{bucket}/lockstep", "https://s3.example.com": endpoint}
    instead |= {"KEY_ID": "key", "SECRET": "hidden"}
    yield Place("S3", instead, objects, lambda key: client.put_object(Bucket=bucket, Key=key, Body=b"altered"))
    server.stop()


def ssh(tmp_path: Path) -> Iterator[Place]:
    if SSHD is None:
        pytest.skip("no sshd on this machine: apt-get install openssh-server")
    if os.getuid() == 0:  # sshd run by root wants this folder, which the service makes
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("host", "user"):
        generate = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)]
        subprocess.run(generate, check=True, timeout=30)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"Port": port, "ListenAddress": "127.0.0.1", "HostKey": keys / "host", "PidFile": "none"}
    settings |= {"AuthorizedKeysFile": keys / "user.pub", "Subsystem": "sftp internal-sftp"}
    settings |= dict.fromkeys(("PasswordAuthentication", "UsePAM", "StrictModes"), "no")
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    with (keys / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", "/dev/null", *options], stdin=subprocess.DEVNULL, stderr=log)
    try:
        wait_for(port, server, keys / "log")
        host = f"HostName 127.0.0.1\nPort {port}\nUser {getpass.getuser()}\nIdentityFile {keys / 'user'}\n"
        (tmp_path / "home" / ".ssh").mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / ".ssh" / "config").write_text(f"Host models\n{host}", encoding="utf-8")
        store = tmp_path / "far"
        yield in_folder("SSH", store, {"ssh://models.example.com/srv/lockstep": f"ssh://models{store}"})
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        assert server.poll() is None, log.read_text(encoding="utf-8")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail("sshd does not answer")


@pytest.fixture(params=[folder, s3, ssh], ids=lambda make: make.__name__)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from request.param(tmp_path)


def test_another_clone_has_it_all_without_running_a_stage(first: Path, place: Place) -> None:
    set_up(first, place)
    run(first, "git", "commit", "-qam", "Say where the remote is")
    second = first.parent / "second"
    run(first, "git", "clone", "-q", ".", str(second))
    if (first / ".dvc" / "config.local").exists():  # each clone has its own secrets
        shutil.copy(first / ".dvc" / "config.local", second / ".dvc")
    run(second, "dvc", "pull", "--run-cache", "--allow-missing")  # nothing is there yet
    assert made(second) == {}
    run(first, "dvc", "push", "--run-cache")
    commit(first, "two")
    run(first, "dvc", "push", "--run-cache")
    run(second, "git", "pull", "-q")
    run(second, "dvc", "pull", "--run-cache")
    run(second, "dvc", "repro")
    assert (len(made(second)), made(second)) == (2, made(first))
    records = [sorted(path.name for path in (clone / ".dvc/cache/runs").rglob("*")) for clone in (first, second)]
    assert records[0] == records[1] != []
    run(second, "git", "restore", "--source=HEAD^", "--staged", "--worktree", "--", "data", "dvc.lock", "metrics.json")
    run(second, "dvc", "pull", "--run-cache")
    run(second, "dvc", "repro")
    assert made(second)["models/adapter/file"] == b"trainprepareone"
    assert run(second, "git", "diff", "--stat", "HEAD^") == ""
    assert not Path(f"{second}.log").exists()


def test_a_machine_whose_commit_has_no_record_takes_the_run_over(first: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    (first / "data" / "raw").write_text("two", encoding="utf-8")
    run(first, "git", "commit", "-qam", "not run")
    run(first, "git", "clone", "-q", ".", str(second))
    run(first, "dvc", "repro")
    run(first, "python", "-m", "tools.push")
    run(second, "dvc", "pull", "--run-cache", "--allow-missing")
    run(second, "dvc", "repro", "--pull")
    assert (made(second), (second / "dvc.lock").read_bytes()) == (made(first), (first / "dvc.lock").read_bytes())
    assert not Path(f"{second}.log").exists()
    run(second, "python", "-m", "tools.push")  # where nothing ran there is nothing to add
    run(second, "dvc", "config", "--local", "remote.storage.url", "/proc/nowhere")
    assert "Error: " in run(second, "python", "-m", "tools.push", status=1)


def test_what_could_not_be_pushed_is_an_error(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvc.repo.Repo.push", lambda *_, **__: None)
    monkeypatch.setattr("dvc.data_cloud.DataCloud.push", lambda *_: SimpleNamespace(failed=[1]))
    ran = CliRunner().invoke(push.main, [])
    assert (ran.exit_code, "1 files that Git holds could not be pushed" in ran.output) == (1, True)


def test_what_was_altered_on_the_remote_is_refused(first: Path, place: Place) -> None:
    set_up(first, place)
    run(first, "dvc", "push", "--run-cache")
    good = made(first)
    md5 = hashlib.md5(b"trainprepareone", usedforsecurity=False).hexdigest()
    [model] = [name for name in place.objects() if name.endswith(f"files/md5/{md5[:2]}/{md5[2:]}")]
    place.alter(model)
    shutil.rmtree(first / ".dvc" / "cache")
    shutil.rmtree(first / "models")
    run(first, "dvc", "pull", status=1)
    assert made(first).items() <= good.items()
    assert not (first / "models" / "adapter" / "file").exists()


# What may stand in the configuration that Git tracks. Anything else may be a secret, and belongs into
# .dvc/config.local: dvc remote modify --local.
HARMLESS = {
    "core": {"analytics", "autostage", "check_update", "checksum_jobs", "remote"},
    "cache": {"shared", "type"},
    "remote": {"endpointurl", "jobs", "port", "region", "timeout", "type", "url", "user", "verify", "version_aware"},
}


def faults(config: Path) -> list[str]:
    """What is wrong with a tracked DVC configuration, a line each."""
    from configobj import ConfigObj

    parsed = ConfigObj(str(config), encoding="utf-8", list_values=False)
    read = {name: dict(options) for name, options in parsed.items()}
    remotes = {name: options for name, options in read.items() if name.startswith("remote ")}
    found = [
        f"{name}: {option} is not known to be harmless"
        for name, options in read.items()
        for option in options
        if option not in HARMLESS.get("remote" if name in remotes else name, set())
    ]
    found += [f"{name}: verify is not on" for name, options in remotes.items() if options.get("verify") != "true"]
    urls = {name: urlsplit(options.get("url", "")) for name, options in remotes.items()}
    found += [f"{name}: a secret in the url" for name, url in urls.items() if url.password is not None or url.query]
    return found + ([] if read["core"].get("analytics") == "false" else ["core: analytics is not off"])


def test_the_tracked_configuration_is_safe_to_share() -> None:
    assert faults(ROOT / ".dvc" / "config") == []
    ignored = ["git", "check-ignore", "-q", ".dvc/config.local"]
    assert subprocess.run(ignored, cwd=ROOT, check=False, timeout=30).returncode == 0


def test_nothing_that_sounds_like_a_secret_to_dvc_is_called_harmless() -> None:
    from dvc.config_schema import REMOTE_SCHEMAS

    sounds = re.compile("password|passphrase|secret|token|key|credential|connection_string|auth_header|cert")
    secrets = {str(option) for options in REMOTE_SCHEMAS.values() for option in options if sounds.search(str(option))}
    assert {"access_key_id", "secret_access_key", "password", "keyfile", "sas_token"} <= secrets
    assert not [name for names in HARMLESS.values() for name in names if name in secrets]


QUIET, FAR = "[core]\nanalytics = false\n", "['remote \"a\"']\nverify = true\n"


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ("[core]\n", "core: analytics is not off"),
        ("[core]\nanalytics = true\n", "core: analytics is not off"),
        (QUIET + "['remote \"a\"']\nurl = /mnt\n", 'remote "a": verify is not on'),
        (QUIET + FAR + "url = ssh://me:hidden@host/x\n", 'remote "a": a secret in the url'),
        (QUIET + FAR + "url = https://host/x?sig=hidden\n", 'remote "a": a secret in the url'),
        (QUIET + FAR + "url = s3://x\npassword = x\n", 'remote "a": password is not known to be harmless'),
        (QUIET + "[studio]\ntoken = hidden\n", "studio: token is not known to be harmless"),
    ],
)
def test_an_unsafe_configuration_is_found(tmp_path: Path, config: str, fault: str) -> None:
    (tmp_path / "config").write_text(config, encoding="utf-8")
    assert faults(tmp_path / "config") == [fault]
