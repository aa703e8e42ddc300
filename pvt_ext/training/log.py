"""What a run says: JSON lines, a progress bar, TensorBoard.

``log.jsonl`` holds one object a line: ``{"kind": "step" | "epoch" | "start", ...}``. On a resume,
lines from after the checkpoint are removed, since their steps come again.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pvt_ext.training.state import Position, write_atomically

Record = dict[str, Any]


def read_log(path: Path) -> list[Record]:
    """The records of a log; a line that was cut off by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Log:
    """The log of the main process; in the others it does nothing.

    Args:
        folder: of the run.
        position: where the run begins; what the log says from there on is removed.
        enabled: whether this is the main process.
        tensorboard: write the same numbers for TensorBoard.
    """

    def __init__(
        self, folder: Path, position: Position, *, enabled: bool, tensorboard: bool
    ) -> None:
        self.path = folder / "log.jsonl"
        self.enabled = enabled
        self._mark, self._steps = time.monotonic(), 0
        self._board: Any = None
        self._bar: Progress | None = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = read_log(self.path) if self.path.exists() else []
        lines = [json.dumps(record) + "\n" for record in kept if _is_before(record, position)]
        write_atomically(self.path, lambda file: file.write("".join(lines).encode()))
        if tensorboard:
            self._board = _summary_writer(folder)
        if Console(stderr=True).is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[numbers]}"),
            )  # fmt: skip
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=None, numbers="")

    def write(self, kind: str, **values: Any) -> None:
        """Add one line."""
        if not self.enabled:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")
        if self._board is not None and kind != "start":
            count = values["epoch"]
            if kind == "step":
                count = count * values["steps"] + values["step"]
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{kind}/{name}", value, count)

    def say(self, text: str) -> None:
        """A line on stderr."""
        if not self.enabled:
            return
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def begin_epoch(self, epoch: int, step: int, steps: int) -> None:
        """Start the bar of an epoch."""
        self._mark, self._steps = time.monotonic(), 0
        if self._bar:
            self._bar.start()
            self._bar.reset(self._task, total=steps, completed=step, description=f"epoch {epoch}")

    def advance(self, loss: float, rate: float) -> None:
        """Move the bar by a step."""
        self._steps += 1
        if self._bar:
            self._bar.update(self._task, advance=1, numbers=f"loss {loss:.4f}  lr {rate:.2e}")

    def steps_per_second(self) -> float:
        """Of the steps since this was asked last, or since the beginning of the epoch."""
        now = time.monotonic()
        speed = self._steps / (now - self._mark)
        self._mark, self._steps = now, 0
        return speed

    def end(self) -> None:
        if self._bar:
            self._bar.stop()
        if self._board is not None:
            self._board.close()


def _is_before(record: Record, position: Position) -> bool:
    if record["kind"] == "step":
        return (record["epoch"], record["step"]) < (position.epoch, position.step)
    return record["kind"] == "start" or record["epoch"] < position.epoch


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "run.tensorboard: tensorboard is not installed; run: pip install tensorboard"
        ) from error
    return SummaryWriter(folder / "tensorboard")
