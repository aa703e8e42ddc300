"""Fair timing: candidates take turns in one process, medians are compared, the machine is named."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pvt_ext

Runs = dict[str, Callable[[], object]]  # what is compared, by name; one of them is "ours"


def processor() -> str:
    """Model name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def version() -> str:
    """Of this library, with the commit where there is one: what a result was measured on."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return pvt_ext.__version__
    return f"{pvt_ext.__version__} ({commit})"


def machine() -> str:
    """One line for the head of every table."""
    return (
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"CPU level {pvt_ext.cpu_level()}, torch {torch.__version__}, pvt_ext {version()}"
    )


def begin(parser: argparse.ArgumentParser, seconds: float) -> argparse.Namespace:
    """Read the options that every benchmark has, and its own; set threads and seed; say where."""
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"per row (default {seconds:g})"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(machine())
    return args


def interleaved(candidates: Runs, seconds: float, min_rounds: int = 7) -> dict[str, list[float]]:
    """Times of each candidate in milliseconds, one per round; in a round each runs once."""
    for run in candidates.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < min_rounds or time.perf_counter() < end:
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return times


def spread(values: list[float]) -> float:
    """Half the distance between the quartiles, relative to the median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle


def compared(runs: Runs, seconds: float) -> dict[str, Any]:
    """One row of a table: medians, their spread, and the ratio of the best peer to ours."""
    with torch.inference_mode():
        times = interleaved(runs, seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "milliseconds": median,
        "spread": {name: spread(values) for name, values in times.items()},
        "ratio": min(median[name] for name in median if name != "ours") / median["ours"],
    }


def row_text(row: dict[str, Any] | None = None) -> str:
    """The numbers of a row, or the headings above them."""
    if row is None:
        return "  ours ms     eager      sdpa  ratio"
    median = row["milliseconds"]
    cells = [f"{median[name]:9.3f}" if name in median else f"{'':9}" for name in _COLUMNS]
    return f"{' '.join(cells)} {row['ratio']:6.2f}"


_COLUMNS = ("ours", "eager", "sdpa")


def write_json(path: str | None, rows: list[dict[str, Any]]) -> None:
    """Rows and machine, if there is a ``path`` to write them to."""
    if path is not None:
        Path(path).write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
