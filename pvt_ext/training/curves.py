"""A picture of a run's log: loss, accuracy and learning rate over the epochs."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pvt_ext.training.log import read_log


def plot_curves(log: Path, picture: Path, title: str) -> None:
    """Draw the log ``log.jsonl`` of a run as ``picture``, in the format of its suffix."""
    records = read_log(log)
    steps = [record for record in records if record["kind"] == "step"]
    epochs = [record for record in records if record["kind"] == "epoch"]
    figure = Figure(figsize=(13, 4), layout="tight")
    losses, accuracies, rates = figure.subplots(1, 3)
    losses.plot(*_steps(steps, "loss"), color="0.8", linewidth=0.8, label="step")
    losses.plot(*_epochs(epochs, "train_loss"), color="C0", label="training")
    for name, color, label in (("val", "C1", "validation"), ("ema", "C2", "moving average")):
        if any(f"{name}_loss" in record for record in epochs):
            losses.plot(*_epochs(epochs, f"{name}_loss"), color=color, label=label)
            accuracies.plot(*_epochs(epochs, f"{name}_top1"), ".-", color=color, label=label)
            accuracies.legend(frameon=False)
    rates.plot(*_epochs(epochs, "lr"))
    for axes, name in ((losses, "loss"), (accuracies, "top-1, %"), (rates, "learning rate")):
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
    losses.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(picture, dpi=120)


def _steps(records: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    return [r["epoch"] + r["step"] / r["steps"] for r in records], [r[key] for r in records]


def _epochs(records: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    known = [record for record in records if key in record]
    return [record["epoch"] + 1 for record in known], [record[key] for record in known]
