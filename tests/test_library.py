"""The built library: what it links, what it says of itself, how its import fails."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import torch
from torch.utils.flop_counter import flop_registry

import pvt_ext
from pvt_ext import _library, block_ops, ops, reference

ROOT = Path(__file__).parents[1]


def run_python(code: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True
    )


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (binutils)")
def test_operator_library_has_no_python():
    dynamic = subprocess.check_output(["readelf", "-d", pvt_ext.ops_library()], text=True)
    needed = [line for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert any("libtorch_cpu" in line for line in needed)
    assert not any("python" in line for line in needed)
    symbols = subprocess.check_output(["readelf", "-Ws", pvt_ext.ops_library()], text=True)
    assert not any(line.split()[-1].startswith("Py") for line in symbols.splitlines() if line)


def test_build_info():
    info = pvt_ext.build_info()
    assert info["version"] == pvt_ext.__version__ == (ROOT / "VERSION").read_text().strip()
    assert info["ops_version"] == pvt_ext.ops_version()
    assert info["cpu_levels"][0] == "baseline"
    assert pvt_ext.cpu_level() in info["cpu_levels"]
    assert info["torch"].startswith("2.")
    assert info["compiler"].split()[0] in ("gcc", "clang")
    json.dumps(info)


def test_cuda_kernels_are_there_if_they_were_built():
    has_kernels = torch.version.cuda is not None and _library.CUDA_LIBRARY.is_file()
    architectures = pvt_ext.build_info()["cuda_architectures"]
    assert bool(architectures) == has_kernels
    for name in ("patch_embed", "reduce_kv", "attention_block_", "mlp_block_"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pvt::{name}", "CUDA") == has_kernels


def test_cuda_kernels_that_do_not_load_are_left_out(tmp_path, monkeypatch):
    broken = tmp_path / "libpvt_ops_cuda.so"
    broken.write_text("not a library")
    monkeypatch.setattr(_library, "CUDA_LIBRARY", broken)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_library, "_record", lambda: {"cuda": "13.0"})
    with pytest.warns(UserWarning, match="CUDA kernels of pvt_ext do not load .* run: pip install"):
        _library._load_cuda()
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    wrong = r"built with CUDA 13\.0, and it is a build for CUDA 12\.8"
    with pytest.warns(UserWarning, match=wrong):
        _library._load_cuda()
    monkeypatch.setattr(torch.version, "cuda", None)
    _library._load_cuda()  # a CPU build has no use for it


def test_sources_that_are_not_built_are_named(tmp_path, monkeypatch):
    """Python started in a checkout finds its sources before the package that is installed."""
    (tmp_path / "csrc").mkdir()
    monkeypatch.setattr(_library, "LIBRARY", tmp_path / "pvt_ext" / "lib" / "libpvt_ops.so")
    expected = f"{tmp_path}/pvt_ext is the source of pvt_ext.*pip install --editable {tmp_path} "
    with pytest.raises(ImportError, match=expected):
        _library.load()
    (tmp_path / "csrc").rmdir()
    with pytest.raises(ImportError, match=r"libpvt_ops.so is missing; run: pip install"):
        _library.load()


def test_unknown_cpu_level_is_refused():
    done = run_python("import pvt_ext; pvt_ext.cpu_level()", PVT_CPU_LEVEL="avx9000")
    assert "PVT_CPU_LEVEL: expected one of baseline" in done.stderr
    assert "got 'avx9000'" in done.stderr


@pytest.mark.parametrize("version", ["2.9.1", "2.9.1+cu128", "1.13.0"])
def test_old_torch_is_named(version):
    with pytest.raises(ImportError, match=rf"needs torch >= 2\.10, found torch {version[:3]}") as e:
        _library.check_torch_version(version)
    assert "was built with torch" in str(e.value)
    assert "pip install" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.14.0a0+git1234", "3.0.0"])
def test_new_torch_is_accepted(version):
    _library.check_torch_version(version)


@pytest.mark.parametrize("damage", ["missing", "not a library"])
def test_broken_library_ends_in_one_sentence(tmp_path, damage):
    package = tmp_path / "pvt_ext"
    shutil.copytree(Path(pvt_ext.__file__).parent, package)
    library = package / "lib" / "libpvt_ops.so"
    library.unlink()
    if damage == "not a library":
        library.write_bytes(b"not an ELF file")
    done = run_python("import pvt_ext", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: pvt_ext ")
    assert "was built with torch" in message
    assert "run: pip install" in message


def test_every_listed_source_exists_and_every_source_is_listed():
    """sources.txt is what both builds read: a kernel that is not in it is not built."""
    listed = {
        line
        for line in (ROOT / "csrc/sources.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    found = {
        path.relative_to(ROOT / "csrc").as_posix()
        for pattern in ("*.cpp", "*.cu")
        for path in (ROOT / "csrc").rglob(pattern)
    }
    elsewhere = {"python.cpp"}  # setup.py's own module; image/decode*.cpp is the C++ runtime's
    assert {s for s in found - elsewhere if not s.startswith("image/decode")} == listed


OPERATORS = re.findall(r'"(\w+)\(', (ROOT / "csrc/ops.cpp").read_text())


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_complete(name):
    """The recipe of CONTRIBUTING.md, step by step."""

    def has_kernel(key: str) -> bool:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"pvt::{name}", key)

    differentiated = name.removesuffix("_backward")
    assert callable(getattr(ops, differentiated, None) or getattr(block_ops, name))
    assert callable(getattr(reference, differentiated.rstrip("_")))
    assert has_kernel("CPU")
    assert has_kernel("Meta")
    if name == "resize":  # integers, on the CPU: no gradient; cases in test_resize.py
        return
    assert (cases.CASES | cases.BLOCK_CASES)[differentiated]
    assert has_kernel("CompositeExplicitAutograd")
    assert has_kernel("Autograd")
    if name in cases.CASES:  # a packed operator runs in the dtype of its weights
        assert has_kernel("AutocastCPU")
    assert getattr(torch.ops.pvt, name) in flop_registry
