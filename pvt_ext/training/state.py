"""Files that survive a crash: each is complete under its name, or is what it was before."""

import io
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pvt_ext.checkpoint import read_checkpoint
from pvt_ext.training.processes import TrainingError

FORMAT = 1  # raised when a reader of last.pth must change


@dataclass
class Position:
    """How far a run has come; the next step is number ``step`` of ``epoch``."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0  # of the steps of this epoch
    best_top1: float = -1.0
    best_epoch: int = -1

    def __str__(self) -> str:
        return f"epoch {self.epoch}, step {self.step}"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file that then takes the place of ``path``.

    Raises:
        TrainingError: the disk is full, or the like; ``path`` is what it was before.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        kept = "what it held before is intact" if path.exists() else "there is no such file yet"
        raise TrainingError(f"{path} was not written ({error.strerror}); {kept}") from error


def save_state(path: Path, learner: dict[str, Any], position: Position, **facts: Any) -> None:
    """Write the whole state of a run; ``facts`` are plain values besides.

    Random numbers have no state but the seed and the position (:mod:`.randomness`).
    """
    state = {"format": FORMAT, **learner, "position": asdict(position), **facts}
    buffer = io.BytesIO()  # torch.save into a full disk does not say that it is full
    torch.save(state, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_state(path: Path) -> tuple[dict[str, Any], Position]:
    """What :func:`save_state` wrote, on the CPU.

    Raises:
        ValueError: there is no such file, or it is something else or damaged.
    """
    state = dict(read_checkpoint(path))
    if state.get("format") != FORMAT or "position" not in state:
        raise ValueError(f"{path}: expected a checkpoint of pvt train, got another one")
    return state, Position(**state["position"])


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the new name, too, survives a loss of power
    finally:
        os.close(descriptor)
