"""The build: it finds the installed torch under isolation, and says what to do without one."""

import os
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize(
    ("wish", "message"),
    [("yes", "PVT_WITH_CUDA: expected auto, 0 or 1, got 'yes'"), ("1", "no CUDA kernels")],
)
def test_cuda_wish_is_checked(wish, message):
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "PVT_WITH_CUDA": wish},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert message in done.stderr
