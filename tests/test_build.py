"""The build: it finds the installed torch under isolation, and says what to do without one."""

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
import setuptools
import torch
from torch.utils import cpp_extension

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


def test_nvcc_that_does_not_run_is_a_reason(toolkit_path, tmp_path, monkeypatch):
    broken = fake_toolkit(tmp_path / "broken", "13.0")
    (broken / "bin/nvcc").write_text("neither a program nor a script")
    monkeypatch.setenv("CUDA_HOME", str(broken))
    found = cuda_toolkit.find_toolkit()
    reason = cuda_toolkit.reason_against("2.14.1", "13.0", found)
    assert reason == f"{broken}/bin/nvcc --version does not say of which CUDA it is"


def test_no_toolkit_is_a_reason():
    reason = cuda_toolkit.reason_against("2.14.1", "13.0", None)
    assert reason == "there is no CUDA 13.0 toolkit: no nvcc on PATH and no CUDA_HOME"


@pytest.fixture
def setup_module(monkeypatch):
    """setup.py, without the build."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("pvt_ext_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("wish", "architectures"),
    [(None, cuda_toolkit.ARCHITECTURES), ("", cuda_toolkit.ARCHITECTURES), ("8.0 9.0", "8.0;9.0")],
)
def test_cuda_architectures(setup_module, toolkit_path, monkeypatch, wish, architectures):
    monkeypatch.setattr(cuda_toolkit, "wanted_toolkit", lambda *_: toolkit_path)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wish or "")
    if wish is None:
        monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    (extension,) = setup_module.cuda_extensions()
    assert ("PVT_CUDA_ARCHITECTURES", f'"{architectures}"') in extension.define_macros
    assert os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";") == architectures
    assert all(source.endswith(".cu") for source in extension.sources)
    assert Path(cpp_extension.CUDA_HOME) == toolkit_path


@pytest.mark.parametrize("built", [True, False])
def test_cuda_kernels_of_an_earlier_build_are_removed(setup_module, tmp_path, built):
    library = tmp_path / "libpvt_ops_cuda.so"
    library.touch()
    names = [setup_module.OPS, setup_module.CUDA_OPS] if built else [setup_module.OPS]
    extensions = [setuptools.Extension(name, []) for name in names]
    command = setup_module.BuildOperators(setuptools.Distribution({"ext_modules": extensions}))
    command.extensions = extensions
    command.remove_old_kernels(tmp_path)
    assert library.exists() == built


# ---- what the CUDA kernels take ----

LOG = """\
[1/1] /usr/local/cuda-13.0/bin/nvcc -MD -c -c /somewhere/csrc/cuda/one.cu -o one.o
ptxas info    : Compiling entry function '_ZN3pvt4cuda6kernelIfEEv4Args' for 'sm_80'
ptxas info    : Function properties for _ZN3pvt4cuda6kernelIfEEv4Args
    {memory} bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 432 bytes cmem[0]
"""


@pytest.fixture
def resources(tmp_path):
    """Runs tools/kernel_resources.py, with a file of its own, on a log."""
    for folder in ("tools", "csrc/cuda"):
        (tmp_path / folder).mkdir(parents=True)
    tool = tmp_path / "tools" / "kernel_resources.py"
    tool.write_text((ROOT / "tools/kernel_resources.py").read_text())
    (tmp_path / "csrc/sources.txt").write_text("ops.cpp\ncuda/one.cu\ncuda/two.cu\n")

    def run(printed: str, *options: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "log").write_text(printed)
        command = [sys.executable, tool, tmp_path / "log", *options]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def log(registers: int = 100, memory: int = 16) -> str:
    return LOG.format(registers=registers, memory=memory)


def test_kernel_resources(resources, tmp_path):
    assert resources(log(), "--update").returncode == 0
    written = (tmp_path / "csrc/cuda/resources.txt").read_text().splitlines()
    assert written[-4:] == ["sm_80", "", "one.cu:", "100+16   kernel<float>"]
    assert resources(log()).returncode == 0
    assert resources(log(registers=99, memory=0)).returncode == 0

    more = resources(log(registers=101))
    assert more.returncode != 0
    assert more.stderr.startswith(
        "kernel<float>: 101 registers and 16 bytes of memory on sm_80, before 100 and 16\n"
    )
    assert "100 registers and 24 bytes of memory" in resources(log(memory=24)).stderr
    other = resources(log().replace("IfE", "IdE"))
    assert other.stderr.splitlines()[:2] == ["kernel<double>: new", "kernel<float>: gone"]
    assert "ptxas says nothing" in resources("").stderr


def test_kernel_resources_of_what_was_compiled_again(resources, tmp_path):
    two = log().replace("one", "two")
    assert resources(log() + two, "--update").returncode == 0
    some = resources(log())
    assert some.returncode == 0
    assert "two.cu: not compared, it was not compiled again" in some.stdout
    assert resources(log(registers=101)).returncode != 0
    assert resources(log(registers=101), "--update").returncode == 0
    assert resources(log(registers=101) + two).returncode == 0
    assert resources(log() + log(registers=102).replace("one", "two")).returncode != 0

    (tmp_path / "csrc/sources.txt").write_text("cuda/one.cu\n")
    assert "two.cu: gone" in resources(log()).stderr
    assert resources(log(), "--update").returncode == 0
    assert "two.cu" not in (tmp_path / "csrc/cuda/resources.txt").read_text()


def test_kernel_resources_are_recorded():
    """Of every CUDA source with a kernel."""
    names = (ROOT / "csrc/cuda/resources.txt").read_text()
    sources = [path.read_text() for path in (ROOT / "csrc/cuda").glob("*.*")]
    kernels = set(re.findall(r"\b(\w+_kernel)\(\w+Args args\)", "".join(sources)))
    assert len(kernels) >= 6
    assert all(f"  {kernel}<" in names for kernel in kernels)


# ---- how the CUDA kernels begin ----

SASS = """\
	code for sm_90a
		Function : {name}
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;           /* 0x00000a00ff017b82 */
                                                                    /* 0x000fe20000000800 */
{code}
        /*0200*/                   EXIT ;                           /* 0x000000000000794d */
"""


@pytest.fixture
def kernels_begin(tmp_path):
    """Runs tools/kernel_begin.py on kernels of a few instructions each."""

    def run(**kernels: list[str]) -> subprocess.CompletedProcess[str]:
        text = "".join(
            SASS.format(
                name=name,
                code="\n".join(
                    f"        /*{i:04x}*/   {c} ;  /* 0x0 */" for i, c in enumerate(code)
                ),
            )
            for name, code in kernels.items()
        )
        (tmp_path / "sass").write_text(text)
        cuobjdump = tmp_path / "cuobjdump"
        cuobjdump.write_text(f"#!/bin/sh\ncat {tmp_path}/sass\n")
        cuobjdump.chmod(0o755)
        command = [
            sys.executable,
            ROOT / "tools/kernel_begin.py",
            "lib.so",
            "--cuobjdump",
            cuobjdump,
        ]
        return subprocess.run(command, capture_output=True, text=True)

    return run


WAITS = ["ACQBULK", "PREEXIT"]


def test_kernels_begin(kernels_begin):
    right = [*WAITS, "LDG.E.128 R4, desc[UR4][R2.64]", "@!P0 STG.E [R2], R4"]
    passed = kernels_begin(one=right, two=[*WAITS, "LDGSTS.E [R9], desc[UR4][R2.64]"])
    assert passed.returncode == 0, passed.stderr
    assert passed.stdout.startswith("2 CUDA kernels wait")

    read = "@P0 LDG.E.128 R4, desc[UR4][R2.64]"
    wrong = kernels_begin(
        early=[read, *WAITS],
        never=[read],
        order=["PREEXIT", "ACQBULK"],
        last=["ACQBULK"],
        some=["@P0 ACQBULK", "PREEXIT"],
        one=right,
    )
    assert wrong.returncode != 0
    assert wrong.stderr.splitlines() == [
        "early: touches memory before it waits",
        "last: does not let the next one begin",
        "never: does not wait",
        "order: lets the next one begin before it waits",
        "some: does not wait",
    ]
    assert "finds no code" in kernels_begin().stderr
