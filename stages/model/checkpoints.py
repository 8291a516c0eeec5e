"""Checkpoints of a training: one that was killed goes on from its last, one of other inputs is never taken for it.

transformers' Trainer writes and reads them: adapter, optimizer, schedule, random states, position in the data. Here is
what it leaves open: when to save, which folder belongs to which inputs, and whether it is whole. `sound.json` is
written last, with the hash of every file, so a folder that a kill tore has none or one that doesn't hold. The Trainer
reads tensors with `weights_only`, which runs no code, and only from the folder given here, which Git and DVC ignore.

transformers' own `enable_jit_checkpoint` isn't used: it waits three seconds after a SIGTERM, and saves at the end of an
epoch before the evaluation, which a resumed training then leaves out.
"""

import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from stages.core import hashes
from stages.core.cli import InputError

FOLDER = Path(__file__).parent
SEAL = "sound.json"
SO_FAR = "so_far.json"  # what the stage itself must know to go on


def code(*more: Path) -> str:
    """Hex sha256 over this project's code and the files `more`: other code would go on differently.

    The modules that are loaded, and those of stages/core and stages/model that will be, as stages/model/trainer.py.
    """
    files = {getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("stages.")}
    files.add(getattr(sys.modules["__main__"], "__file__", None))
    files |= {*more, *FOLDER.glob("*.py"), *FOLDER.with_name("core").glob("*.py")}
    found = sorted({Path(file).resolve() for file in files if file})
    return _hash("".join(f"{hashes.of_file(path)}  {path.name}\n" for path in found if path.is_file()))


class Store:
    """The checkpoints below `root` that were made from `inputs`, a JSON object of whatever decides the result."""

    def __init__(self, root: Path, inputs: dict[str, Any]) -> None:
        self.root, self.inputs = root, json.loads(json.dumps(inputs))
        self.folder = root / _hash(json.dumps(inputs, sort_keys=True))[:16]

    def seal(self, checkpoint: Path) -> None:
        """Mark it whole. Written beside and renamed: the seal itself is never half there."""
        files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != SEAL)
        made = {file.relative_to(checkpoint).as_posix(): hashes.of_file(file) for file in files}
        text = json.dumps({"inputs": self.inputs, "files": made})
        (checkpoint / f"{SEAL}.part").write_text(text, encoding="utf-8")
        (checkpoint / f"{SEAL}.part").replace(checkpoint / SEAL)

    def latest(self) -> Path | None:
        """The newest that is whole and of these inputs. Says on stderr which it refuses; a torn one is removed."""
        own = sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
        for checkpoint in own:
            if not (problem := self._problem(checkpoint)):
                return checkpoint
            click.echo(f"train: checkpoint {checkpoint} {problem}: removed", err=True)
            shutil.rmtree(checkpoint)
        others = {path.parent.parent: path.parent for path in sorted(self.root.glob(f"*/checkpoint-*/{SEAL}"))}
        for checkpoint in others.values():
            with suppress(OSError):  # it would not be taken anyway
                click.echo(f"train: checkpoint {checkpoint} {self._problem(checkpoint)}: starting anew", err=True)
        return None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _problem(self, checkpoint: Path) -> str | None:
        try:
            seal = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
            inputs, files = seal["inputs"], seal["files"]
            torn = [name for name, made in files.items() if hashes.of_file(checkpoint / name) != made]
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return "is torn (not all of it was written)"
        except OSError as error:  # it may be whole: the disk or the rights may be mended
            error.filename = error.filename or str(checkpoint)
            raise
        if inputs != self.inputs:
            return f"is of other inputs ({', '.join(_differences(inputs, self.inputs))})"
        return f"is torn ({', '.join(torn)})" if torn else None


def callback(store: Store, minutes: float, accelerator: Any, so_far: Callable[[], dict[str, Any]]) -> Any:
    """A callback for the Trainer that saves every so many minutes, and at once after a SIGTERM, which then ends it.

    `so_far` is written along; every process calls it. Saves between two steps or after an evaluation, so that nothing
    is done twice or left out; never after the last step, which leaves nothing to go on with.
    """
    from transformers import TrainerCallback

    class Saver(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.saved, self.terminated = time.monotonic(), False

        def due(self, state: Any) -> bool:
            """Agreed between all processes: they have to save together."""
            import torch

            wanted = self.terminated or time.monotonic() - self.saved >= 60 * minutes
            votes = accelerator.reduce(torch.tensor(float(wanted), device=accelerator.device), "sum")
            return bool(votes > 0) and state.global_step < state.max_steps

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.saved = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not float(state.epoch).is_integer() and self.due(state):
                control.should_save = True

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.due(state):
                control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoint, figures = store.folder / f"checkpoint-{state.global_step}", so_far()
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                (checkpoint / SO_FAR).write_text(json.dumps(figures), encoding="utf-8")
                store.seal(checkpoint)
            self.saved = time.monotonic()
            if self.terminated:
                at = f"{state.global_step} of {state.max_steps}"
                raise InputError(f"ended by SIGTERM at step {at}; the next run goes on from there")

    return Saver()


@contextmanager
def kept_on_sigterm(saver: Any) -> Iterator[None]:
    """Within it, a SIGTERM asks for a last checkpoint."""

    def asked(*_: Any) -> None:
        saver.terminated = True

    before = signal.signal(signal.SIGTERM, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def so_far(checkpoint: Path | None) -> dict[str, Any]:
    """What the stage wrote along with a checkpoint; nothing without one."""
    return json.loads((checkpoint / SO_FAR).read_text(encoding="utf-8")) if checkpoint else {}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _differences(one: dict[str, Any], other: dict[str, Any], at: str = "") -> list[str]:
    """Names of the values that are not the same."""
    found: list[str] = []
    for name in sorted({*one, *other}):
        first, second = one.get(name), other.get(name)
        if isinstance(first, dict) and isinstance(second, dict):
            found += _differences(first, second, f"{at}{name}.")
        elif first != second:
            found.append(f"{at}{name}")
    return found
