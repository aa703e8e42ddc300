"""Builds the operator library (pvt_ext/lib/libpvt_ops.so) and the Python module pvt_ext._C."""

import json
import os
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
VERSION = (ROOT / "VERSION").read_text().strip()
OPS = "pvt_ext.lib.libpvt_ops"
FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-Wall"]


def operator_sources() -> list[str]:
    """The C++ sources of csrc/sources.txt, as paths relative to this file."""
    lines = (ROOT / "csrc/sources.txt").read_text().splitlines()
    return [f"csrc/{line}" for line in lines if line.endswith(".cpp")]


def check_cuda_wish() -> None:
    """PVT_WITH_CUDA=auto|0|1, by toolkit and torch build, never by the presence of a GPU."""
    wish = os.environ.get("PVT_WITH_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"PVT_WITH_CUDA: expected auto, 0 or 1, got {wish!r}")
    if wish == "1":
        sys.exit(
            "PVT_WITH_CUDA=1: this version has no CUDA kernels of its own to compile (on a GPU its "
            "operators run through ATen); unset PVT_WITH_CUDA"
        )


def default_max_jobs() -> int:
    """As many compilers as there are cores, and memory for: one takes up to 1 GB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return cores or 1
    available = next(
        int(line.split()[1]) for line in meminfo.read_text().splitlines() if "MemAvailable" in line
    )
    return max(1, min(cores or 1, available // 2**20))  # available is in KiB


class BuildOperators(BuildExtension):
    """The operator library keeps its plain name: C++ programs load the same file."""

    def get_ext_filename(self, ext_name: str) -> str:
        path = Path(super().get_ext_filename(ext_name))
        return str(path.with_name("libpvt_ops.so") if path.stem.startswith("libpvt_ops") else path)

    def build_extensions(self) -> None:
        os.environ.setdefault("MAX_JOBS", str(default_max_jobs()))
        library = Path(self.get_ext_fullpath(OPS))
        for extension in self.extensions:
            if extension.name == "pvt_ext._C":
                extension.library_dirs.append(str(library.parent))
        super().build_extensions()
        built_with = {"version": VERSION, "torch": torch.__version__}
        (library.parent / "built_with.json").write_text(json.dumps(built_with) + "\n")

    def copy_extensions_to_source(self) -> None:
        """An editable install runs from the source tree."""
        library = Path(self.build_lib) / "pvt_ext/lib"
        target = ROOT / "pvt_ext/lib"
        target.mkdir(exist_ok=True)
        self.copy_file(str(library / "built_with.json"), str(target / "built_with.json"))
        super().copy_extensions_to_source()


check_cuda_wish()
setup(
    ext_modules=[
        CppExtension(
            OPS,
            operator_sources(),
            include_dirs=[str(ROOT / "csrc")],
            define_macros=[
                ("TORCH_TARGET_VERSION", "0x020a000000000000"),
                ("PVT_VERSION", f'"{VERSION}"'),
                ("PVT_TORCH_VERSION", f'"{torch.__version__}"'),
            ],
            extra_compile_args=[*FLAGS, "-std=c++17"],
            extra_link_args=["-Wl,-soname,libpvt_ops.so"],
            py_limited_api=True,
        ),
        Extension(
            "pvt_ext._C",
            ["csrc/python.cpp"],
            include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
            libraries=["pvt_ops"],
            runtime_library_dirs=["$ORIGIN/lib"],
            extra_compile_args=[*FLAGS, "-std=c++17"],
            language="c++",
        ),
    ],
    cmdclass={"build_ext": BuildOperators},
)
