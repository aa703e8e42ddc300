"""Ways to run something: with other numbers of threads, in many threads, in another process."""

import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

CPU_LEVELS = ["baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"]


def same_bits_for_any_number_of_threads(call: Callable[[], Tensor]) -> bool:
    threads = torch.get_num_threads()
    outputs = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            outputs.append(call())
    finally:
        torch.set_num_threads(threads)
    return all(torch.equal(outputs[0], out) for out in outputs)


def in_eight_threads(work: Callable[[], None]) -> None:
    """``work`` eight times at once; the first exception of any is raised here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=run) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]


def in_a_process(module: str, code: str, **env: str) -> str:
    """What ``<module>.<code>`` of this folder prints in a Python process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}; {module}.{code}"],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cpu_runs(level: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flag = {"baseline": "", "avx2": " avx2 ", "avx512": " avx512vl ", "amx": " amx_bf16 "}
    linux = tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2])
    if level == "amx" and linux < (5, 16):  # which names the flag, and has no permission to give
        return False
    return flag.get(level, level) in flags


def at_cpu_level(level: str, module: str, code: str) -> None:
    """``<module>.<code>`` with the kernels of ``level``; it prints the level in use first."""
    if not cpu_runs(level):
        pytest.skip(f"NOT TESTED: operators at {level}, which this processor lacks")
    out = in_a_process(module, code, PVT_CPU_LEVEL=level)
    assert out.split()[0] == level
