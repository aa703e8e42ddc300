"""The build: it finds the installed torch under isolation, and says what to do without one."""

import os
import re
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "build_tools"))
import cuda_toolkit  # noqa: E402


def isolated_python(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` as pip runs a build backend: with setuptools in sight and nothing else."""
    for package in ("setuptools", "_distutils_hack"):
        (tmp_path / package).symlink_to(distribution("setuptools").locate_file(package))
    metadata = f"setuptools-{version('setuptools')}.dist-info"
    (tmp_path / metadata).symlink_to(distribution("setuptools").locate_file(metadata))
    return python_without_packages(code, tmp_path)


def python_without_packages(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with the packages in ``tmp_path`` and the build backend, and no others."""
    path = os.pathsep.join([str(tmp_path), str(ROOT / "build_tools")])
    hide = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
    return subprocess.run(
        [sys.executable, "-c", hide + code],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )


def test_isolated_build_uses_the_installed_torch(tmp_path):
    code = (
        "import importlib.util, backend\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "backend._find_torch()\n"
        "print(importlib.util.find_spec('torch').origin)\n"
        "import setuptools; print(setuptools.__file__)"
    )
    done = isolated_python(tmp_path, code)
    assert done.returncode == 0, done.stderr
    torch_file, setuptools_file = done.stdout.splitlines()
    assert Path(torch_file).name == "__init__.py"
    assert setuptools_file.startswith(str(tmp_path))  # what is isolated stays in front


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "build_wheel"])
def test_no_torch_ends_in_one_line(tmp_path, hook):
    arguments = "'.'" if hook == "build_wheel" else ""
    code = f"import backend; backend._installed_packages = list; backend.{hook}({arguments})"
    done = isolated_python(tmp_path, code)
    assert done.returncode != 0
    assert "pip install torch" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("found", ["none", "old"])
def test_missing_build_tools_end_in_one_line(tmp_path, found):
    if found == "old":
        (tmp_path / "setuptools").mkdir()
        (tmp_path / "setuptools" / "__init__.py").write_text('__version__ = "65.5.0"')
        for module in ("build_meta.py", "dist.py"):
            (tmp_path / "setuptools" / module).write_text(
                "build_sdist = get_requires_for_build_sdist = None"
            )
    done = python_without_packages("import backend", tmp_path)
    assert done.returncode != 0
    assert "pip install 'setuptools>=77' pybind11 ninja" in done.stderr
    assert ("found setuptools 65.5.0" in done.stderr) == (found == "old")
    assert len(done.stderr.splitlines()) == 1


def test_cuda_wish_is_checked():
    done = run_setup({"PVT_WITH_CUDA": "yes"})
    assert done.returncode != 0
    assert done.stderr == "PVT_WITH_CUDA: expected auto, 0 or 1, got 'yes'\n"


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
@pytest.mark.parametrize(("wish", "status"), [("1", 1), ("auto", 0), ("0", 0)])
def test_cuda_kernels_beside_a_cpu_build_of_torch(wish, status):
    done = run_setup({"PVT_WITH_CUDA": wish})
    reason = f"torch {torch.__version__} is not a CUDA build"
    assert done.returncode == status
    assert (f"PVT_WITH_CUDA=1: {reason}" in done.stderr) == (wish == "1")
    assert (f"the CUDA kernels are left out: {reason}" in done.stdout) == (wish == "auto")


def run_setup(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def fake_toolkit(folder: Path, release: str) -> Path:
    """A toolkit whose nvcc answers what the real one does, apart from compiling."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        f"""#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release {release}, V{release}.88"
else echo "#\\$ _CUDART_=cudart" >&2; echo "#\\$ TOP={folder}/bin/.." >&2; fi
"""
    )
    nvcc.chmod(0o755)
    return folder


@pytest.fixture
def toolkit_path(tmp_path, monkeypatch):
    """A PATH whose nvcc is a script elsewhere that calls the one of a toolkit 13.0."""
    real = fake_toolkit(tmp_path / "cuda-13.0", "13.0")
    script = tmp_path / "local" / "nvcc"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {real}/bin/nvcc "$@"\n')
    script.chmod(0o755)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    return real


def test_toolkit_is_found_behind_a_script(toolkit_path):
    assert cuda_toolkit.find_toolkit() == toolkit_path


def test_cuda_home_goes_first(toolkit_path, tmp_path, monkeypatch):
    other = fake_toolkit(tmp_path / "other", "12.8")
    monkeypatch.setenv("CUDA_HOME", str(other))
    assert cuda_toolkit.find_toolkit() == other
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nothing"))
    assert cuda_toolkit.find_toolkit() == toolkit_path


@pytest.mark.parametrize(
    ("torch_cuda", "reason"),
    [
        ("13.0", None),
        ("13.2", None),
        (None, "torch 2.14.1 is not a CUDA build"),
        ("12.8", "torch 2.14.1 is built for CUDA 12.8, and the toolkit in .*13.0 is of CUDA 13.0"),
    ],
)
def test_reasons_against_cuda_kernels(toolkit_path, torch_cuda, reason):
    found = cuda_toolkit.reason_against("2.14.1", torch_cuda, toolkit_path)
    assert found is None if reason is None else re.fullmatch(reason, found)


def test_no_toolkit_is_a_reason():
    reason = cuda_toolkit.reason_against("2.14.1", "13.0", None)
    assert reason == "there is no CUDA 13.0 toolkit: no nvcc on PATH and no CUDA_HOME"


# ---- what the CUDA kernels take ----

LOG = """\
ptxas info    : Compiling entry function '_ZN3pvt4cuda6kernelIfEEv4Args' for 'sm_80'
ptxas info    : Function properties for _ZN3pvt4cuda6kernelIfEEv4Args
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 432 bytes cmem[0]
"""


@pytest.fixture
def resources(tmp_path):
    """Runs tools/kernel_resources.py, with a file of its own, on a log."""
    for folder in ("tools", "csrc/cuda"):
        (tmp_path / folder).mkdir(parents=True)
    tool = tmp_path / "tools" / "kernel_resources.py"
    tool.write_text((ROOT / "tools/kernel_resources.py").read_text())

    def run(log: str, *options: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "log").write_text(log)
        command = [sys.executable, tool, tmp_path / "log", *options]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def test_kernel_resources(resources, tmp_path):
    assert resources(LOG.format(registers=100), "--update").returncode == 0
    written = (tmp_path / "csrc/cuda/resources.txt").read_text().splitlines()
    assert written[-2:] == ["sm_80", "100+12   kernel<float>"]
    assert resources(LOG.format(registers=100)).returncode == 0
    assert resources(LOG.format(registers=99)).returncode == 0

    more = resources(LOG.format(registers=101))
    assert more.returncode != 0
    assert more.stderr.startswith(
        "kernel<float>: 101 registers and 12 spilled bytes on sm_80, before 100 and 12\n"
    )
    other = resources(LOG.format(registers=100).replace("IfE", "IdE"))
    assert other.stderr.splitlines()[:2] == ["kernel<double>: new", "kernel<float>: gone"]
    assert "ptxas says nothing" in resources("").stderr


def test_kernel_resources_are_recorded():
    """Of every CUDA source with a kernel."""
    names = (ROOT / "csrc/cuda/resources.txt").read_text()
    sources = [path.read_text() for path in (ROOT / "csrc/cuda").glob("*.*")]
    kernels = set(re.findall(r"\b(\w+_kernel)\(\w+Args args\)", "".join(sources)))
    assert len(kernels) >= 6
    assert all(f"  {kernel}<" in names for kernel in kernels)
