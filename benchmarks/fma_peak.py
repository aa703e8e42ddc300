"""The multiply-add peak of this processor, measured by `fma_peak.cpp`, compiled on first use."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("fma_peak.cpp")
CACHE = SOURCE.parents[1] / "build" / "benchmarks"
KINDS = {"fp32": 0, "bf16": 1, "int8": 2}


class CannotCompileError(Exception):
    """No compiler, or it failed."""


def _compiled() -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise CannotCompileError("no C++ compiler found; set CXX")
    flags = ["-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"]
    key = hashlib.sha256(f"{compiler} {flags} {SOURCE.read_text()}".encode()).hexdigest()[:16]
    library = CACHE / f"fma_peak-{key}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        # Compiled beside its place and renamed, so that two processes do not meet in one file.
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            new = Path(folder) / library.name
            command = [*compiler.split(), *flags, str(SOURCE), "-o", str(new)]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode != 0:
                raise CannotCompileError(f"{compiler}: {result.stderr.strip()[:200]}")
            new.replace(library)
    return library


@dataclass(frozen=True)
class FmaPeak:
    """Peak of one dtype on a number of threads. ``instruction`` is "" if the processor has none.

    Of bfloat16 it is that of the faster instruction: the one for its pairs, or the one for floats,
    which multiplies them as well.
    """

    dtype: str
    threads: int

    def __post_init__(self) -> None:
        library = ctypes.CDLL(str(_compiled()))
        library.fma_peak.restype = ctypes.c_double
        library.fma_peak.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_double)
        library.fma_instruction.restype = ctypes.c_char_p
        object.__setattr__(self, "_library", library)
        kinds = [KINDS["bf16"], KINDS["fp32"]] if self.dtype == "bf16" else [KINDS[self.dtype]]
        fastest = max(kinds, key=lambda kind: library.fma_peak(kind, self.threads, 0.05))
        object.__setattr__(self, "_kind", fastest)

    @property
    def instruction(self) -> str:
        return self._library.fma_instruction(self._kind).decode()  # type: ignore[attr-defined]

    def measure(self, seconds: float = 0.1) -> float:
        """GFLOP/s (for int8 10^9 integer operations per second); 0 without the instruction."""
        return self._library.fma_peak(self._kind, self.threads, seconds)  # type: ignore[attr-defined]
