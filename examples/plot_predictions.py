"""Draw photographs beside their most probable classes.

Reads the JSON lines of ``pvt_infer --format json`` or ``pvt predict --format json``, one object
``{"image": path, "topk": [{"index", "label", "prob", "logit"}, ...]}`` per line, and writes a PNG:

    pvt_infer --model pvt_small.pt --format json assets/photos | \\
        python examples/plot_predictions.py predictions.png --title pvt_small

Needs matplotlib and Pillow.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, TextIO

import matplotlib

matplotlib.use("Agg")  # files only, no window

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

INK, MUTED, BEST, OTHER, TRACK = "#1f2328", "#59636e", "#2f8f74", "#9fcfc0", "#eff2f5"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw photographs beside their top classes.")
    parser.add_argument("output", type=Path, help="PNG file to write")
    parser.add_argument("-i", "--input", type=Path, help="JSON lines; standard input if absent")
    parser.add_argument("--title", default="", help="line above the figure, usually the model")
    parser.add_argument("--columns", type=int, default=2, help="photographs in a row (default 2)")
    args = parser.parse_args()
    if args.columns < 1:
        parser.error(f"--columns: expected at least 1, got {args.columns}")
    return args


def read_predictions(stream: TextIO) -> list[dict[str, Any]]:
    """The predictions in ``stream``; lines without classes (failed images) are left out."""
    predictions = []
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: expected a JSON object, got {error}") from error
        if isinstance(record, dict) and record.get("topk"):
            predictions.append(record)
    if not predictions:
        raise ValueError("expected at least one line with a 'topk' list, got none")
    return predictions


def draw_photo(axes: Axes, path: str) -> None:
    with Image.open(path) as photo:
        axes.imshow(photo.convert("RGB"))
    axes.set_title(Path(path).name, loc="left", fontsize=9, color=MUTED)
    axes.axis("off")


def draw_bars(axes: Axes, topk: list[dict[str, Any]]) -> None:
    """Horizontal bars on a scale from 0 to 1, the most probable class on top."""
    rows = range(len(topk))
    probs = [float(entry["prob"]) for entry in topk]
    colours = [BEST] + [OTHER] * (len(topk) - 1)
    axes.barh(rows, [1.0] * len(topk), height=0.26, color=TRACK)
    axes.barh(rows, probs, height=0.26, color=colours)
    for row, entry, prob in zip(rows, topk, probs, strict=True):
        label = entry.get("label") or f"class {entry['index']}"
        weight = "bold" if row == 0 else "normal"
        axes.text(0, row - 0.25, label, fontsize=9, color=INK, weight=weight, va="bottom")
        axes.text(1, row - 0.25, f"{prob:.1%}", fontsize=9, color=MUTED, ha="right", va="bottom")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(topk) - 0.5, -0.9)  # first row on top
    axes.axis("off")


def draw(predictions: list[dict[str, Any]], output: Path, title: str, columns: int) -> None:
    columns = min(columns, len(predictions))
    rows = math.ceil(len(predictions) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)  # inches
    figure = plt.figure(figsize=(5.6 * columns, 2.3 * rows + 0.5), layout=layout)
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=[1.25, 1] * columns)
    for i, prediction in enumerate(predictions):
        row, column = divmod(i, columns)
        draw_photo(figure.add_subplot(grid[row, 2 * column]), prediction["image"])
        draw_bars(figure.add_subplot(grid[row, 2 * column + 1]), prediction["topk"])
    if title:
        figure.suptitle(title, fontsize=13, weight="bold", color=INK)
    figure.savefig(output, dpi=150)
    plt.close(figure)


def main() -> int:
    args = parse_args()
    try:
        if args.input is None:
            predictions = read_predictions(sys.stdin)
        else:
            with args.input.open(encoding="utf-8") as stream:
                predictions = read_predictions(stream)
        draw(predictions, args.output, args.title, args.columns)
    except (OSError, ValueError) as error:
        print(f"plot_predictions: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
