"""Builds the operator libraries in pvt_ext/lib and the Python module pvt_ext._C.

libpvt_ops.so runs beside any torch. libpvt_ops_cuda.so has the CUDA kernels and is built beside a
CUDA build of torch if there is a CUDA toolkit (build_tools/cuda_toolkit.py).
"""

import json
import os
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
sys.path.append(str(ROOT / "build_tools"))
import cuda_toolkit  # noqa: E402

VERSION = (ROOT / "VERSION").read_text().strip()
OPS = "pvt_ext.lib.libpvt_ops"
CUDA_OPS = "pvt_ext.lib.libpvt_ops_cuda"
STABLE_ABI = ("TORCH_TARGET_VERSION", "0x020a000000000000")
FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-Wall"]


def operator_sources(suffix: str) -> list[str]:
    """The sources of csrc/sources.txt that end so, as paths relative to this file."""
    lines = (ROOT / "csrc/sources.txt").read_text().splitlines()
    return [f"csrc/{line}" for line in lines if line.endswith(suffix)]


def cuda_extensions() -> list[Extension]:
    """The library of CUDA kernels, if it can be built and is wanted.

    It has CUDA's runtime in itself, so that it runs beside any CUDA build of torch.
    """
    toolkit = cuda_toolkit.wanted_toolkit(torch.__version__, torch.version.cuda)
    if toolkit is None:
        return []
    cpp_extension.CUDA_HOME = str(toolkit)  # torch's own guess fails for an nvcc that is a script
    # Not set, and set to nothing, would mean to torch the GPU of this machine.
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or cuda_toolkit.ARCHITECTURES
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
    return [
        CppExtension(
            CUDA_OPS,
            operator_sources(".cu"),
            include_dirs=[str(ROOT / "csrc"), *cpp_extension.include_paths("cuda")],
            define_macros=[
                STABLE_ABI,
                ("USE_CUDA", None),
                ("PVT_CUDA_ARCHITECTURES", f'"{architectures.replace(" ", ";")}"'),
            ],
            library_dirs=cpp_extension.library_paths("cuda"),
            libraries=["pvt_ops", "torch_cuda", "cudart_static", "rt", "dl", "pthread"],
            runtime_library_dirs=["$ORIGIN"],
            # tools/kernel_resources.py reads what ptxas says.
            extra_compile_args={
                "cxx": [*FLAGS, "-std=c++17"],
                "nvcc": ["-O3", "-std=c++17", "-Xcompiler=-fvisibility=hidden", "-Xptxas=-v"],
            },
            extra_link_args=["-Wl,-soname,libpvt_ops_cuda.so"],
            py_limited_api=True,
        )
    ]


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
    """The operator libraries keep their plain names: C++ programs load the same files."""

    def get_ext_filename(self, ext_name: str) -> str:
        path = Path(super().get_ext_filename(ext_name))
        is_library = path.name.startswith("libpvt_ops")
        return str(path.with_name(path.name.split(".")[0] + ".so") if is_library else path)

    def build_extensions(self) -> None:
        os.environ.setdefault("MAX_JOBS", str(default_max_jobs()))
        library = Path(self.get_ext_fullpath(OPS))
        for extension in self.extensions:
            if extension.name != OPS:
                extension.library_dirs.append(str(library.parent))
        self.remove_old_kernels(library.parent)
        super().build_extensions()
        built_with = {"version": VERSION, "torch": torch.__version__}
        if self.has_kernels():
            built_with["cuda"] = torch.version.cuda
        (library.parent / "built_with.json").write_text(json.dumps(built_with) + "\n")

    def has_kernels(self) -> bool:
        return any(extension.name == CUDA_OPS for extension in self.extensions)

    def remove_old_kernels(self, folder: Path) -> None:
        """Those of an earlier build would be installed, and loaded, with a build that has none."""
        if not self.has_kernels():
            (folder / "libpvt_ops_cuda.so").unlink(missing_ok=True)

    def copy_extensions_to_source(self) -> None:
        """An editable install runs from the source tree."""
        library = Path(self.build_lib) / "pvt_ext/lib"
        target = ROOT / "pvt_ext/lib"
        target.mkdir(exist_ok=True)
        self.remove_old_kernels(target)
        self.copy_file(str(library / "built_with.json"), str(target / "built_with.json"))
        super().copy_extensions_to_source()


setup(
    ext_modules=[
        CppExtension(
            OPS,
            operator_sources(".cpp"),
            include_dirs=[str(ROOT / "csrc")],
            define_macros=[
                STABLE_ABI,
                ("PVT_VERSION", f'"{VERSION}"'),
                ("PVT_TORCH_VERSION", f'"{torch.__version__}"'),
            ],
            extra_compile_args=[*FLAGS, "-std=c++17"],
            extra_link_args=["-Wl,-soname,libpvt_ops.so"],
            py_limited_api=True,
        ),
        *cuda_extensions(),
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
