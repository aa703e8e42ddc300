"""The picture of a comparison: images per second per runtime, one panel per model and batch.

    python -m benchmarks.plot FILE.json ... STEM

draws what `benchmarks.compare --json` wrote, as STEM.svg and STEM.png.
"""

import argparse
import json
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, told apart with every kind of colour vision; ours stands out, PyTorch's
# own three are greys.
COLOURS = {
    "eager": "#d9d9d9",
    "sdpa": "#b0b0b0",
    "inductor": "#808080",
    "onnxruntime": "#56b4e9",
    "openvino": "#0072b2",
    # on a GPU
    "sdpa flash": "#b0b0b0",
    "sdpa cudnn": "#999999",
    "sdpa efficient": "#8c8c8c",
    "sdpa math": "#c4c4c4",
    "max-autotune": "#56b4e9",
    "aotinductor": "#0072b2",
    "ours": "#d55e00",
    "ours, graph": "#a34700",
}
NAMES = {
    "eager": "PyTorch eager",
    "sdpa": "PyTorch SDPA",
    "inductor": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "sdpa flash": "SDPA, flash",
    "sdpa cudnn": "SDPA, cuDNN",
    "sdpa efficient": "SDPA, efficient",
    "sdpa math": "SDPA, math",
    "max-autotune": "torch.compile, max-autotune",
    "aotinductor": "AOTInductor",
    "ours": "pvt_ext",
    "ours, graph": "pvt_ext, CUDA graph",
}
WIDTH = 0.8  # of a group of bars, of 1


def plot(data: dict[str, Any], stem: Path) -> None:
    """Write ``stem``.svg and ``stem``.png of what ``compare`` measured."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "pvt",
        "font.family": "sans-serif",
        "font.size": 9,
    }
    from matplotlib import pyplot as plt

    rows = data["rows"]
    panels = list(dict.fromkeys((r["model"], r["batch"], *r["size"]) for r in rows))
    columns = len({batch for _, batch, *_ in panels})
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns + 0.6, 2.7 * lines + 0.7), squeeze=False
    )
    shown = [p for p in COLOURS if any(p in row["peers"] for row in rows)]
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        of_panel = [r for r in rows if (r["model"], r["batch"], *r["size"]) == panel]
        _panel(axis, of_panel, shown)
        name, batch, H, W = panel
        axis.set_title(f"{name}, {H}x{W}, batch {batch}", loc="left", fontsize=9)
    for line in axes:
        line[0].set_ylabel("images per second")
    per_line = min(len(shown), 3 * columns)
    legend_lines = -(-len(shown) // per_line)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[p]) for p in shown]
    figure.legend(
        handles, [NAMES[p] for p in shown], loc="lower center", ncols=per_line, frameon=False,
        columnspacing=1.2, handlelength=1,
    )  # fmt: skip
    facts = data["machine"]
    threads = f"{facts['threads']} threads, " if "threads" in facts else ""
    figure.suptitle(
        f"{facts['processor']}, {threads}{facts['date']}. "
        "Over ours: ratio to the best other; x: not available",
        fontsize=8, color="#555555", x=0.01, ha="left",
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.25 * legend_lines / figure.get_figheight(), 1, 1))
    stem.parent.mkdir(parents=True, exist_ok=True)
    # No date inside, so that the same numbers give the same file.
    figure.savefig(stem.with_name(stem.name + ".svg"), metadata={"Date": None})
    figure.savefig(stem.with_name(stem.name + ".png"), dpi=110)
    plt.close(figure)


def _panel(axis: Any, rows: list[dict[str, Any]], shown: list[str]) -> None:
    width = WIDTH / len(shown)
    for i, row in enumerate(rows):
        for j, peer in enumerate(shown):
            x = i - WIDTH / 2 + (j + 0.5) * width
            result = row["peers"].get(peer, {})
            speed = result.get("images_per_s")
            if speed is None:
                axis.text(x, 0, "x", ha="center", va="bottom", fontsize=7, color=COLOURS[peer])
                continue
            wrong = result["status"] != "ok"
            axis.bar(
                x, speed, width * 0.92, color=COLOURS[peer], hatch="///" if wrong else None,
                edgecolor="white", linewidth=0,
            )  # fmt: skip
            low, high = (1e3 * row["batch"] / result[k] for k in ("high_ms", "low_ms"))
            axis.plot([x, x], [low, high], color="#333333", linewidth=0.7)
            if peer.startswith("ours") and result.get("ratio") is not None:
                axis.annotate(
                    f"{result['ratio']:.2f}x", (x, max(speed, high)), (0, 2), fontsize=8,
                    textcoords="offset points", ha="center", va="bottom", weight="bold",
                    color=COLOURS["ours"],
                )  # fmt: skip
    axis.set_xticks(range(len(rows)), [row["dtype"] for row in rows])
    axis.tick_params(axis="x", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.margins(y=0.12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="what compare --json wrote")
    parser.add_argument("stem", type=Path, help="written: STEM.svg, STEM.png")
    args = parser.parse_args()
    data = [json.loads(file.read_text(encoding="utf-8")) for file in args.files]
    rows = [row for each in data for row in each["rows"]]
    plot({"machine": data[0]["machine"], "rows": rows}, args.stem)


if __name__ == "__main__":
    main()
