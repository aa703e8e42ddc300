"""Numbers to rows, rows to a table: the parts of the comparison that need no clock."""

import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Largest difference of a logit from the float64 reference, relative to the largest logit, above
# which an answer counts as wrong. Rounding alone gives 1e-6, 1e-2 and, for int8, 0.05 to 0.2.
ERROR_LIMIT = {"fp32": 1e-4, "bf16": 5e-2, "int8": 0.5}


def summarise(times: list[float]) -> dict[str, float]:
    """Median, quartiles and spread (half their distance, relative to the median)."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {
        "median_ms": middle,
        "low_ms": low,
        "high_ms": high,
        "min_ms": min(times),
        "spread": (high - low) / 2 / middle,
    }


def accuracy(logits: Array, reference: Array) -> dict[str, float]:
    """Relative errors of ``logits [images, classes]`` and how often the first class is the same."""
    difference = logits - reference
    return {
        "error": float(np.abs(difference).max() / np.abs(reference).max()),
        "error_rms": float(np.sqrt((difference**2).mean() / (reference**2).mean())),
        "top1_agreement": float((logits.argmax(1) == reference.argmax(1)).mean()),
    }


def is_right(numbers: dict[str, float], dtype: str) -> bool:
    """Also False for what is not a number."""
    return numbers["error"] <= ERROR_LIMIT[dtype]


def finish(row: dict[str, Any]) -> None:
    """Add to ``row`` what follows from its times: throughput, share of the peak, ratios.

    The best peer is the fastest with right logits, ours aside; a ratio above 1 is faster than it.
    """
    peers: dict[str, dict[str, Any]] = row["peers"]
    rivals = [p for p, r in peers.items() if not p.startswith("ours") and r["status"] == "ok"]
    best = min(rivals, key=lambda p: peers[p]["median_ms"], default=None)
    row["best_peer"] = best
    for result in peers.values():
        if "median_ms" not in result:
            continue
        result["images_per_s"] = 1e3 * row["batch"] / result["median_ms"]
        peak = row["peak"]["gflops"]
        achieved = row["gflop"] / result["median_ms"] * 1e3
        result["share_of_peak"] = achieved / peak if peak else None
        result["ratio"] = peers[best]["median_ms"] / result["median_ms"] if best else None


COLUMNS = (
    f"  {'peer':12}{'median ms':>10}{'quartiles':>17}{'images/s':>10}{'of peak':>9}"
    f"{'ratio':>7}{'error':>9}{'top-1':>7}{'memory':>9}"
)


def table(row: dict[str, Any]) -> str:
    """One row of the comparison as lines for a terminal, the fastest first."""
    H, W = row["size"]
    peak = row["peak"]
    above = (
        f"peak {peak['gflops']:.0f} GFLOP/s ({peak['instruction']})"
        if peak["gflops"]
        else f"peak not measured: {peak['reason']}"
    )
    lines = [
        f"{row['model']} {row['dtype']} batch {row['batch']}, {H}x{W}: "
        f"{row['gflop']:.1f} GFLOP, {above}",
        COLUMNS,
    ]
    timed = {p: r for p, r in row["peers"].items() if "median_ms" in r}
    for peer in sorted(timed, key=lambda p: timed[p]["median_ms"]):
        lines.append(_line(peer, timed[peer], peer == row["best_peer"]))
    for peer, result in row["peers"].items():
        if peer not in timed:
            lines.append(f"  {peer:12}!! {result['status']}: {result['reason']}")
    for who, name in (("waiting", "waiting peers"), ("others", "other programs")):
        if row["disturbed"][who] > 0.1:
            lines.append(f"  !! meanwhile {name} used {row['disturbed'][who]:.2f} processors")
    return "\n".join(lines)


def _line(peer: str, r: dict[str, Any], best: bool) -> str:
    quartiles = f"{r['low_ms']:.1f}..{r['high_ms']:.1f}"
    share = f"{r['share_of_peak']:.0%}" if r["share_of_peak"] is not None else "-"
    ratio = f"{r['ratio']:.2f}" if r["ratio"] is not None else "-"
    memory = r["memory"]["peak_mb"] - r["memory"]["before_mb"]
    note = "  best peer" if best else ""
    if r["status"] != "ok":
        note = f"  !! {r['status'].upper()}: {r['reason']}"
    return (
        f"  {peer:12}{r['median_ms']:10.1f}{quartiles:>17}{r['images_per_s']:10.1f}{share:>9}"
        f"{ratio:>7}{r['error']:9.1e}{r['top1_agreement']:7.0%}{memory:6.0f} MB{note}"
    )
