"""Packages of compiled code: the answers of the packed model, and one line for all that fails."""

import json
import os
import platform
import re
import shutil
import subprocess
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from models import MINI_V2, MINI_V2_LI, mini, relative_error
from packages import Entries, packaged_model, require_compiler, rewrite, with_metadata
from running import in_eight_threads, same_bits_for_any_number_of_threads
from torch import Tensor

import pvt_ext
from pvt_ext.export import export_torchscript, load_torchscript
from pvt_ext.exported import load_exported
from pvt_ext.inference import pack
from pvt_ext.model import PVT
from pvt_ext.model_file import read_metadata
from pvt_ext.preprocess import Preprocess
from pvt_ext.pt2 import Package, export_pt2, load_pt2

# Code that AOTInductor makes rounds in another order than ATen; measured up to 4e-7.
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def model() -> PVT:
    return packaged_model()


@pytest.fixture(scope="module")
def loaded(package: Path) -> Package:
    return load_pt2(package)[0]


def batch(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_answers_as_the_packed_model(model: PVT, loaded: Package, size: int) -> None:
    x = batch(size, 3, 64, 64)
    with torch.inference_mode():
        expected = pack(model)(x)
    assert relative_error(loaded(x), expected) < ROUNDING


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (96, 72), (45, 200), (224, 224)])
def test_any_batch_and_size(model: PVT, loaded: Package, size: tuple[int, int]) -> None:
    for count in (1, 2):
        x = batch(count, 3, *size)
        with torch.inference_mode():
            assert relative_error(loaded(x), pack(model)(x)) < ROUNDING


def test_refuses_what_is_no_such_batch(loaded: Package) -> None:
    for shape in ((3, 64, 64), (1, 1, 64, 64)):
        with pytest.raises(ValueError, match=r"expected an image batch \[B, 3, H, W\]"):
            loaded(torch.zeros(shape))
    with pytest.raises(ValueError, match="at least 32 x 32, got 31 x 64"):
        loaded(torch.zeros(1, 3, 31, 64))


def test_any_layout_and_dtype_of_the_input(loaded: Package) -> None:
    x = batch(2, 3, 64, 64)
    expected = loaded(x)
    assert torch.equal(loaded(x.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(loaded(x.double()), expected)
    assert torch.equal(loaded(torch.cat([x, x], 3)[..., :64]), expected)


def test_preprocesses_as_torchscript_does(loaded: Package, model: PVT, tmp_path: Path) -> None:
    export_torchscript(model, tmp_path / "a.pt")
    script, _ = load_torchscript(tmp_path / "a.pt")
    for shape in ((90, 70, 3), (64, 64, 3), (5, 200, 3)):
        image = torch.randint(0, 256, shape, dtype=torch.uint8)
        assert torch.equal(loaded.preprocess(image), script.preprocess(image))


def test_preprocesses_as_the_file_says(package: Path, tmp_path: Path) -> None:
    """By the numbers in it, not by the name of the preset."""
    fields = {"mode": "squash", "resize": 64, "mean": [0.0] * 3, "std": [0.5] * 3}
    file = with_metadata(package, tmp_path / "a.pt2", preprocess=fields)
    how = Preprocess("hf", 64)
    how.mean, how.std = fields["mean"], fields["std"]
    image = torch.randint(0, 256, (90, 70, 3), dtype=torch.uint8)
    assert torch.equal(load_pt2(file)[0].preprocess(image), how(image))


def test_threads_do_not_change_the_answer(loaded: Package) -> None:
    x = batch(3, 3, 64, 64)
    assert same_bits_for_any_number_of_threads(lambda: loaded(x))
    expected = loaded(x)

    def work() -> None:
        for _ in range(5):
            assert torch.equal(loaded(x), expected)

    in_eight_threads(work)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("specs", "dtype"), [(MINI_V2, "bf16"), (MINI_V2_LI, "int8")], ids=["v2-bf16", "v2-li-int8"]
)
def test_other_versions_and_dtypes(specs: Any, dtype: str, tmp_path: Path) -> None:
    require_compiler()
    model = mini(specs)
    metadata = export_pt2(model, tmp_path / "a.pt2", dtype=dtype)
    narrow = {"bf16": torch.bfloat16, "int8": torch.int8}[dtype]
    assert metadata["dtype"] == str(narrow).removeprefix("torch.")
    loaded, _ = load_pt2(tmp_path / "a.pt2")
    for size in ((64, 64), (41, 90)):
        x = batch(3, 3, *size)
        with torch.inference_mode():
            exact, packed = model(x), pack(model, narrow)(x)
        # Another rounding of a norm can move a value to the next step of the narrow type.
        assert relative_error(loaded(x), packed) < relative_error(packed, exact)
        assert relative_error(loaded(x), exact) < 1.5 * relative_error(packed, exact)


def test_metadata(package: Path, model: PVT, tmp_path: Path) -> None:
    metadata = read_metadata(package)
    export_torchscript(
        model, tmp_path / "a.pt", weights_source="random", seed=0, command="made by a test"
    )
    compiled = metadata.pop("compiled")
    assert metadata == read_metadata(tmp_path / "a.pt")
    with zipfile.ZipFile(package) as archive:
        (library,) = (name for name in archive.namelist() if name.endswith(".so"))
        checksum = archive.getinfo(library).CRC
    assert compiled == {
        "machine": platform.machine(),
        "device": "cpu",
        "min_size": [32, 32],
        "library": library.partition("/")[2],
        "crc32": checksum,
    }


def test_export_leaves_one_file_and_the_model_alone(package: Path) -> None:
    assert list(package.parent.iterdir()) == [package]
    assert package.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_runs_on_every_processor_of_its_architecture(package: Path, tmp_path: Path) -> None:
    """No instruction beyond the baseline, no library that a C++ program would not have."""
    if shutil.which("objdump") is None or platform.machine() != "x86_64":
        pytest.skip("NOT TESTED: needs objdump (binutils) and x86_64")
    library = tmp_path / "model.so"
    with zipfile.ZipFile(package) as archive:
        entry = next(name for name in archive.namelist() if name.endswith(".so"))
        library.write_bytes(archive.read(entry))
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "%xmm" in code
    assert not re.search(r"%[yz]mm|\tv[a-z0-9]+[ps][sd]\b", code)
    command = ["objdump", "-p", str(library)]
    headers = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED +(\S+?)\.so", headers)
    system = {"libstdc++", "libm", "libgcc_s", "libc", "ld-linux-x86-64"}
    assert set(needed) <= {"libtorch", "libtorch_cpu", "libc10"} | system


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp8"}, "dtype: expected one of fp32, bf16, fp16, int8, got 'fp8'"),
        ({"dtype": "fp16"}, "dtype: packages are for the CPU, where fp16 has no kernels"),
        ({"preset": "pil"}, "preset: expected one of paper, timm, hf, got 'pil'"),
        ({"labels": ["cat"]}, "labels: expected 10 names, got 1"),
        ({"path": "absent/a.pt2"}, "path: expected a file name in an existing folder, got absent"),
        ({"model": mini(fused=False)}, "model: pt2 needs the fused operators"),
    ],
)
def test_refused_export_keeps_the_old_file(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pt2").write_text("old")
    with pytest.raises(ValueError, match=message):
        export_pt2(**{"model": mini(), "path": "a.pt2", **options})
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [("a.pt2", "old")]


def test_needs_a_newer_torch_and_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler; install one \(apt-get install g"):
        export_pt2(mini(), tmp_path / "a.pt2")
    monkeypatch.setattr(torch, "__version__", "2.12.1+cpu")
    with pytest.raises(ValueError, match=r"expected torch 2\.13 or newer to export, got 2\.12\.1"):
        export_pt2(mini(), tmp_path / "a.pt2")
    assert not any(tmp_path.iterdir())


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(f"{path}: ")) as caught:
        load_pt2(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_refuses_another_architecture(package: Path, tmp_path: Path) -> None:
    path = with_metadata(package, tmp_path / "a.pt2", compiled={"machine": "riscv64"})
    assert refusal(path).startswith(
        f"compiled for riscv64, this machine is {platform.machine()}; export it again"
    )


def test_refuses_a_damaged_description(package: Path, tmp_path: Path) -> None:
    for changes, message in (
        (None, "expected compiled (dict), got None"),
        ({"machine": 1}, "expected compiled.machine (str), got 1"),
        ({"min_size": None}, "expected compiled.min_size (list), got None"),
    ):
        path = with_metadata(package, tmp_path / "a.pt2", compiled=changes)
        assert message in refusal(path)


def test_refuses_newer_operators(package: Path, tmp_path: Path) -> None:
    found = pvt_ext.ops_version()
    path = with_metadata(package, tmp_path / "a.pt2", ops={"version": found + 1})
    assert re.match(rf"needs operator version {found + 1} .* with version {found}$", refusal(path))


def test_says_which_torch_it_was_compiled_with(package: Path, tmp_path: Path) -> None:
    def change(entries: Entries) -> None:
        metadata = json.loads(entries["extra/pvt.json"])
        library = b"not a library"
        entries[metadata["compiled"]["library"]] = library
        metadata["compiled"]["crc32"] = zlib.crc32(library)
        entries["extra/pvt.json"] = json.dumps(metadata | {"torch": "9.9.9"}).encode()

    path = rewrite(package, tmp_path / "a.pt2", change)
    assert re.match(
        r"compiled with torch 9\.9\.9, cannot be loaded by torch [\d.]+ \(", refusal(path)
    )


def test_notices_a_flipped_bit(package: Path, tmp_path: Path) -> None:
    path = tmp_path / "pvt_mini.pt2"
    content = bytearray(package.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert re.match(r"damaged \(checksum of pvt_mini/data/aotinductor/", refusal(path))


def test_tells_files_apart(package: Path, tmp_path: Path) -> None:
    torch.export.save(
        torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "plain.pt2"
    )
    assert "torch.export without compiled code" in refusal(tmp_path / "plain.pt2")
    bare = rewrite(package, tmp_path / "bare.pt2", lambda entries: entries.pop("extra/pvt.json"))
    assert refusal(bare) == "a package (.pt2) without pvt.json; pvt export did not write it"
    script = tmp_path / "script.pt2"  # the content counts, not the name
    export_torchscript(mini(), script)
    assert "load it with load_torchscript" in refusal(script)
    with pytest.raises(ValueError, match="load it with load_pt2"):
        load_torchscript(package)
    assert isinstance(load_exported(script)[0], torch.jit.ScriptModule)
    shutil.copy(package, tmp_path / "package.pt")
    assert isinstance(load_exported(tmp_path / "package.pt")[0], Package)
