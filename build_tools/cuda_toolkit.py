"""Whether the CUDA kernels are built: as toolkit and torch say, never as a GPU is present."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# The last as PTX too: newer GPUs compile it when they first run.
ARCHITECTURES = "8.0;8.6;8.9+PTX;9.0a"


def find_toolkit() -> Path | None:
    """The CUDA toolkit: CUDA_HOME, CUDA_PATH, that of the nvcc on PATH, or /usr/local/cuda.

    The nvcc on PATH may be a script in another place than the toolkit, which the real one knows.
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        folder = os.environ.get(variable)
        if folder and Path(folder, "bin/nvcc").exists():
            return Path(folder)
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        printed = _printed(nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull)
        top = re.search(r"^#\$ TOP=(.+)$", printed, re.MULTILINE)
        if top is not None:
            return Path(top[1]).resolve()
    usual = Path("/usr/local/cuda")
    return usual if (usual / "bin/nvcc").exists() else None


def toolkit_version(toolkit: Path) -> str | None:
    """Such as ``13.0``; None if its nvcc does not run."""
    release = re.search(r"release (\d+\.\d+)", _printed(toolkit / "bin/nvcc", "--version"))
    return None if release is None else release[1]


def _printed(*command: str | Path) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout + done.stderr


def reason_against(torch_version: str, torch_cuda: str | None, toolkit: Path | None) -> str | None:
    """Why the kernels cannot be built, or None. ``torch_cuda``: torch.version.cuda."""
    if torch_cuda is None:
        return f"torch {torch_version} is not a CUDA build"
    if toolkit is None:
        return f"there is no CUDA {torch_cuda} toolkit: no nvcc on PATH and no CUDA_HOME"
    found = toolkit_version(toolkit)
    if found is None:
        return f"{toolkit}/bin/nvcc --version does not say of which CUDA it is"
    if found.split(".")[0] != torch_cuda.split(".")[0]:
        return (
            f"torch {torch_version} is built for CUDA {torch_cuda}, "
            f"and the toolkit in {toolkit} is of CUDA {found}"
        )
    return None


def wanted_toolkit(torch_version: str, torch_cuda: str | None) -> Path | None:
    """The toolkit to build with, or None, as PVT_WITH_CUDA=auto|0|1 says."""
    wish = os.environ.get("PVT_WITH_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"PVT_WITH_CUDA: expected auto, 0 or 1, got {wish!r}")
    if wish == "0":
        return None
    toolkit = find_toolkit()
    reason = reason_against(torch_version, torch_cuda, toolkit)
    if reason is None:
        return toolkit
    if wish == "1":
        sys.exit(f"PVT_WITH_CUDA=1: {reason}")
    print(f"the CUDA kernels are left out: {reason}")
    return None
