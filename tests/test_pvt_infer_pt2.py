"""``pvt_infer`` on packages of compiled code: Python's answers, and one line for all that fails."""

import json
import os
import platform
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import jpeg, photo, png
from infer_program import PHOTO_FILES, PHOTOS, Infer, errors
from models import relative_error
from packages import Entries, packaged_model, require_compiler, rewrite, with_metadata
from torch import Tensor
from typer.testing import CliRunner

import pvt_ext
from pvt_ext.cli import app
from pvt_ext.export import export_torchscript
from pvt_ext.preprocess import PRESETS, Preprocess, load_image
from pvt_ext.pt2 import load_pt2

CAT = PHOTOS / "cat.jpg"


@pytest.fixture(scope="module")
def run(binary: Path, package: Path) -> Infer:
    return Infer(binary, package)


def logits_of(infer: Infer, folder: Path, *arguments: object) -> Tensor:
    infer("--logits", folder / "logits.npy", *arguments)
    return torch.from_numpy(np.load(folder / "logits.npy"))


def test_input_and_logits_equal_pythons_and_torchscripts(
    binary: Path, run: Infer, package: Path, tmp_path: Path
) -> None:
    export_torchscript(packaged_model(), tmp_path / "a.pt")
    network, _ = load_pt2(package)
    x = torch.stack([network.preprocess(load_image(path)) for path in PHOTO_FILES])
    logits = logits_of(run, tmp_path, "--dump-input", tmp_path / "x.npy", PHOTOS)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "x.npy")), x)
    assert relative_error(logits, torch.cat([network(image[None]) for image in x])) < 1e-6
    script = Infer(binary, tmp_path / "a.pt")
    assert relative_error(logits, logits_of(script, tmp_path, PHOTOS)) < 1e-6
    for options in (("--batch", 3), ("--batch", 50), ("--threads", 1), ("--threads", 3)):
        assert relative_error(logits_of(run, tmp_path, *options, PHOTOS), logits) < 1e-6
    answers, expected = run.json(PHOTOS), script.json(PHOTOS)
    for answer, same in zip(answers, expected, strict=True):
        assert [best["label"] for best in answer["topk"]] == [c["label"] for c in same["topk"]]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("img_size", [64, (40, 64)], ids=str)
def test_network_input_equals_pythons(
    binary: Path, package: Path, tmp_path: Path, preset: str, img_size: int | tuple[int, int]
) -> None:
    """pvt.json alone tells the runtime how."""
    how = Preprocess(preset, img_size)
    fields = {"preset": preset, "mode": how.mode, "resize": how.resize, "crop": list(how.crop)}
    file = with_metadata(package, tmp_path / "a.pt2", preprocess=fields)
    images = {
        "wide.png": png(photo(50, 2000), 8, 2),
        "tall.jpg": jpeg(photo(2000, 50)),
        "odd.png": png(photo(31, 47), 8, 2),
        "tiny.png": png(photo(1, 1), 8, 2),
    }
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    network, _ = load_pt2(file)
    paths = [tmp_path / name for name in images]
    Infer(binary, file)("--dump-input", tmp_path / "x.npy", *paths)
    for path, actual in zip(paths, np.load(tmp_path / "x.npy"), strict=True):
        assert np.array_equal(actual, network.preprocess(load_image(path)).numpy()), path.name
        assert np.array_equal(actual, how(load_image(path)).numpy()), path.name


def test_the_content_counts_not_the_name(
    binary: Path, package: Path, model: Path, tmp_path: Path
) -> None:
    shutil.copy(package, tmp_path / "package.pt")
    shutil.copy(model, tmp_path / "script.pt2")
    for name, kind in (("package.pt", "package for "), ("script.pt2", "TorchScript\n")):
        result = Infer(binary, tmp_path / name)("--info", "--warmup", 1, "--repeat", 2, CAT)
        assert f"format      {kind}" in result.stdout
        assert "(2 runs)" in result.stderr


def test_info(run: Infer, package: Path) -> None:
    (metadata,) = run.json("--info")
    assert metadata == load_pt2(package)[1]


@pytest.mark.slow
def test_from_the_command_line_to_classes(binary: Path, tmp_path: Path) -> None:
    require_compiler()
    file = tmp_path / "b0.pt2"
    command = ["export", "pvt_v2_b0", "--weights", "random", "--dtype", "int8", "-o", str(file)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    result = CliRunner().invoke(app, ["predict", str(file), "--format", "json", str(CAT)])
    (expected,) = (json.loads(line) for line in result.stdout.splitlines())
    (answer,) = Infer(binary, file).json(CAT)
    for best, same in zip(answer["topk"], expected["topk"], strict=True):
        assert best["label"] == same["label"]
        assert best["logit"] == pytest.approx(same["logit"], rel=1e-5)


# ---- what is refused ----


def test_bad_packages_are_named_in_one_line(binary: Path, package: Path, tmp_path: Path) -> None:
    def broken_library(entries: Entries) -> None:
        metadata = json.loads(entries["extra/pvt.json"])
        entries[metadata["compiled"]["library"]] = b"not a library"
        metadata["compiled"]["crc32"] = zlib.crc32(b"not a library")
        entries["extra/pvt.json"] = json.dumps(metadata | {"torch": "9.9.9"}).encode()

    def other_library(entries: Entries) -> None:
        entries[json.loads(entries["extra/pvt.json"])["compiled"]["library"]] += b"!"

    def without_library(entries: Entries) -> None:
        entries.pop(json.loads(entries["extra/pvt.json"])["compiled"]["library"])

    def changed(name: str, **changes: object) -> Path:
        return with_metadata(package, tmp_path / name, **changes)

    content = bytearray(package.read_bytes())
    (tmp_path / "cut.pt2").write_bytes(content[:-1])
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.pt2").write_bytes(content)
    (tmp_path / "hole.pt2").write_bytes(package.read_bytes().replace(b"pt2PK", b"pt3PK"))
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "plain.pt2")
    bare = rewrite(package, tmp_path / "bare.pt2", lambda entries: entries.pop("extra/pvt.json"))
    found = pvt_ext.ops_version()
    cases = [
        (changed("arch.pt2", compiled={"machine": "riscv64"}), 4, "compiled for riscv64, this "),
        (changed("cuda.pt2", compiled={"device": "cuda"}), 2, "compiled for device cuda, not for"),
        (changed("ops.pt2", ops={"version": found + 1}), 5, f"needs operator version {found + 1}"),
        (changed("mode.pt2", preprocess={"mode": "x"}), 4, "preprocess is not understood"),
        (changed("huge.pt2", preprocess={"resize": 1 << 60}), 4, "preprocess is not understood"),
        (changed("crop.pt2", preprocess={"crop": [0, 64]}), 4, "preprocess is not understood"),
        (changed("small.pt2", preprocess={"crop": [31, 64]}), 1, "at least 32 x 32, got 31 x 64"),
        (changed("none.pt2", compiled=None), 4, "'compiled' is expected to be an object"),
        (tmp_path / "cut.pt2", 4, "truncated or damaged model file"),
        (tmp_path / "flipped.pt2", 4, "damaged (checksum of pvt_mini/data/aotinductor/"),
        (rewrite(package, tmp_path / "other.pt2", other_library), 4, "damaged (checksum of data/a"),
        (tmp_path / "hole.pt2", 4, "damaged (checksum of pvt_mini/archive_format)"),
        (rewrite(package, tmp_path / "lib.pt2", without_library), 4, "cannot be read)"),
        (
            rewrite(package, tmp_path / "torch.pt2", broken_library),
            4,
            "compiled with torch 9.9.9, cannot be loaded by torch",
        ),
        (tmp_path / "plain.pt2", 4, "is a package of torch.export without compiled code; make one"),
        (bare, 4, "is a package of compiled code (.pt2) without pvt.json; make one with: pvt exp"),
    ]
    for path, code, message in cases:
        result = Infer(binary, path)(CAT, code=code)
        assert result.stdout == ""
        (line,) = errors(result)
        assert line.startswith("forward failed: " if code == 1 else f"{path}: "), line
        assert message in line, line
    assert platform.machine() in errors(Infer(binary, tmp_path / "arch.pt2")(CAT, code=4))[0]


def test_no_operator_library(binary: Path, package: Path, tmp_path: Path) -> None:
    for part in ("bin/pvt_infer", "lib/libpvt_runtime.so"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        shutil.copy(binary.parent.parent / part, tmp_path / part)
    environment = {key: value for key, value in os.environ.items() if key != "PVT_OPS_LIB"}
    alone = Infer(tmp_path / "bin/pvt_infer", package)
    (message,) = errors(alone(CAT, code=5, env=environment))
    assert message.startswith(f"{package}: needs the operators pvt::attention_block_, ")
    library = pvt_ext.ops_library()
    assert len(alone.json("--ops-lib", library, CAT, env=environment)) == 1
