"""Fair timing: candidates take turns in one process, medians are compared, the machine is named."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import pvt_ext


def processor() -> str:
    """Model name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def machine() -> str:
    """One line for the head of every table."""
    return (
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"CPU level {pvt_ext.cpu_level()}, torch {torch.__version__}, pvt_ext {pvt_ext.__version__}"
    )


def interleaved(
    candidates: dict[str, Callable[[], object]], seconds: float, min_rounds: int = 7
) -> dict[str, list[float]]:
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
