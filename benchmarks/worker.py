"""A process that holds one peer and one job, and runs it when told to.

Messages to it: ("time", n), ("logits",), ("stop",). The first two are answered once each; another
answer comes unasked, when the peer is prepared and warm, or cannot be.
"""

import gc
import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.job import Job, NotAvailableError, batches
from benchmarks.peers import PACKAGES, PEERS, Run

WARMUP = 3  # runs: TorchScript optimises in the second, the others are ready after the first


def serve(connection: Connection, peer: str, job: Job) -> None:
    """Target of the process."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        # Converters talk a lot. What they say is shown only if they fail.
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        try:
            _answer(connection, peer, job)
        except (EOFError, KeyboardInterrupt):
            pass
        except (NotAvailableError, ImportError) as error:
            connection.send({"status": "not available", "reason": _one_line(error)})
        except Exception as error:
            log.flush()
            log.seek(0)
            tail = log.read()[-2000:]
            reason = f"{type(error).__name__}: {_one_line(error)}"
            connection.send({"status": "failed", "reason": reason, "log": tail})


def _answer(connection: Connection, peer: str, job: Job) -> None:
    torch.set_num_threads(job.threads)
    at_start = reset_peak_memory()
    start = time.perf_counter()
    with torch.no_grad():  # not inference mode, whose tensors exporters refuse
        run, config = PEERS[peer](job)
    gc.collect()
    with torch.inference_mode():
        _serve_runs(connection, peer, job, run, config, start, at_start)


def _serve_runs(
    connection: Connection,
    peer: str,
    job: Job,
    run: Run,
    config: str,
    start: float,
    at_start: float,
) -> None:
    x = job.input()
    before = reset_peak_memory()
    warm = timed(lambda: run(x), WARMUP)
    connection.send(
        {
            "status": "ok",
            "config": config,
            "versions": versions(peer),
            "prepare_s": time.perf_counter() - start - sum(warm) / 1e3,
            "first_run_ms": warm[0],
            "warm_ms": warm[-1],
            "memory": {"start_mb": at_start, "before_mb": before, "peak_mb": peak_memory()},
        }
    )
    while (message := connection.recv())[0] != "stop":
        if message[0] == "time":
            connection.send(timed(lambda: run(x), message[1]))
        elif message[0] == "logits":
            test = job.images()["test"]
            parts = [run(part).clone() for part in batches(test, job.batch)]
            connection.send(torch.cat(parts)[: len(test)].double().numpy())


def timed(run: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of each of ``count`` runs."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def reset_peak_memory() -> float:
    """Start the peak anew, where Linux allows it; returns the resident memory now, in MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_memory()  # differences are then those of the peaks
    return _status("VmRSS")


def peak_memory() -> float:
    """Highest resident memory of this process, in MB."""
    return _status("VmHWM")


def _status(field: str) -> float:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(match.group(1)) / 1024 if match else float("nan")


def versions(peer: str) -> dict[str, str]:
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES.get(peer, []):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:240]
