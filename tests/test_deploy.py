"""``pvt_infer``, the C++ program, beside Python: same pixels, same answers, and clear errors.

The binary is $PVT_INFER, or what CMake built in ``build/``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import PNG_SIGNATURE, chunk, image_files, jpeg, photo, png
from models import mini, relative_error
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import pvt_ext
from pvt_ext.export import export_torchscript
from pvt_ext.preprocess import PRESETS, Preprocess, load_image

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "assets" / "photos"
PHOTO_FILES = sorted(path for path in PHOTOS.iterdir() if path.suffix in (".jpg", ".png"))
BUILD = "cmake -S . -B build/cpp && cmake --build build/cpp -j2"

Result = subprocess.CompletedProcess[str]

# Pillow's remark on palette images with transparency, which are among the files on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")


@pytest.fixture(scope="session")
def binary() -> Path:
    if "PVT_INFER" in os.environ:
        path = Path(os.environ["PVT_INFER"])
        assert path.is_file(), f"PVT_INFER: {path} does not exist"
        return path.resolve()
    built = sorted(ROOT.glob("build/*/bin/pvt_infer"), key=lambda path: path.stat().st_mtime)
    if built:
        return built[-1]
    if shutil.which("cmake") is None:
        pytest.skip(f"NOT TESTED: the C++ program. Install CMake, then: {BUILD}")
    pytest.fail(f"pvt_infer is not built. Run: {BUILD}")


class Infer:
    """Runs the binary on a model."""

    def __init__(self, binary: Path, model: Path | None) -> None:
        self.binary = binary
        self.model = model

    def __call__(self, *arguments: object, code: int = 0, **options: Any) -> Result:
        command = [str(self.binary)]
        if self.model is not None:
            command += ["--model", str(self.model)]
        command += [str(argument) for argument in arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
        assert result.returncode == code, f"{command}\n{result.stdout}\n{result.stderr}"
        return result

    def json(self, *arguments: object, **options: Any) -> list[dict[str, Any]]:
        lines = self("--format", "json", *arguments, **options).stdout.splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "pvt_mini.pt"
    export_torchscript(mini(num_classes=1000, variant="pvt_mini"), path, weights_source="random")
    return path


@pytest.fixture(scope="session")
def infer(binary: Path, model: Path) -> Infer:
    return Infer(binary, model)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every kind of file that is decoded, and sizes at the edge of sense."""
    folder = tmp_path_factory.mktemp("images")
    contents = image_files() | {
        "wide.png": png(photo(50, 20000), 8, 2),
        "tall.jpg": jpeg(photo(20000, 50)),
        "misnamed.png": jpeg(photo(30, 40)),
        "misnamed.jpg": png(photo(30, 40), 8, 2),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return sorted(folder.iterdir())


def errors(result: Result) -> list[str]:
    """What the program said went wrong, without the name it puts in front."""
    lines = result.stderr.splitlines()
    prefix = "pvt_infer: "
    return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]


# ---- the same pixels, the same answers ----


class RawPixels(nn.Module):
    """A model of another make, whose "preprocessing" shows the decoded pixels as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3])

    @torch.jit.export
    def preprocess(self, image: Tensor) -> Tensor:
        values = image.reshape(-1).float()
        padded = torch.zeros(640 * 480 * 3 + 2)
        padded[0] = image.shape[0]
        padded[1] = image.shape[1]
        padded[2 : 2 + len(values)] = values
        return padded.reshape(1, 1, -1)


def test_decoded_pixels_equal_pillows(binary: Path, images: list[Path], tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(RawPixels()), tmp_path / "raw.pt")
    small = [path for path in images if path.stem not in ("wide", "tall")]
    Infer(binary, tmp_path / "raw.pt")("--dump-input", tmp_path / "raw.npy", *small)
    decoded = np.load(tmp_path / "raw.npy").reshape(len(small), -1)
    for path, (height, width, *values) in zip(small, decoded.astype(int).tolist(), strict=True):
        with Image.open(path) as image:
            expected = np.array(image.convert("RGB"))
        assert (height, width) == expected.shape[:2], path.name
        actual = np.array(values[: expected.size]).reshape(expected.shape)
        assert (actual != expected).sum() == 0, path.name


@pytest.mark.parametrize("preset", PRESETS)
def test_network_input_equals_pythons(
    binary: Path, images: list[Path], tmp_path: Path, preset: str
) -> None:
    file, dump = tmp_path / "model.pt", tmp_path / "input.npy"
    export_torchscript(mini(), file, preset=preset)
    Infer(binary, file)("--dump-input", dump, "--batch", 32, *images)
    preprocess = Preprocess(preset, 64)
    for path, actual in zip(images, np.load(dump), strict=True):
        assert np.array_equal(actual, preprocess(load_image(path)).numpy()), path.name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_logits_and_classes_equal_pythons(binary: Path, tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "model.pt"
    export_torchscript(mini(num_classes=1000, img_size=224), file, dtype=dtype)
    loaded = torch.jit.load(file)
    batch = torch.stack([loaded.preprocess(load_image(path)) for path in PHOTO_FILES])
    with torch.inference_mode():
        expected = loaded(batch)
    answers = Infer(binary, file).json(
        "--logits", tmp_path / "logits.npy", "--batch", len(PHOTO_FILES), "--topk", 7, PHOTOS
    )
    logits = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    assert logits.dtype == torch.float32
    assert relative_error(logits, expected) <= 1e-5
    assert [answer["image"] for answer in answers] == [str(path) for path in PHOTO_FILES]
    for answer, row in zip(answers, logits, strict=True):
        values, indices = row.double().sort(descending=True, stable=True)
        assert [best["index"] for best in answer["topk"]] == indices[:7].tolist()
        assert [best["logit"] for best in answer["topk"]] == values[:7].tolist()
        probabilities = row.double().softmax(0)[indices[:7]]
        found = torch.tensor([best["prob"] for best in answer["topk"]], dtype=torch.float64)
        torch.testing.assert_close(found, probabilities)


def test_labels_come_from_the_model(binary: Path, tmp_path: Path) -> None:
    names = [f"café {i}" for i in range(10)]
    export_torchscript(mini(), tmp_path / "named.pt", labels=names)
    export_torchscript(mini(), tmp_path / "unnamed.pt")
    image = PHOTOS / "cat.jpg"
    (named,) = Infer(binary, tmp_path / "named.pt").json("--topk", 99, image)
    (unnamed,) = Infer(binary, tmp_path / "unnamed.pt").json("--topk", 99, image)
    assert len(named["topk"]) == 10  # no more than there are
    assert all(best["label"] == names[best["index"]] for best in named["topk"])
    assert all(best["label"] is None for best in unnamed["topk"])
    text = Infer(binary, tmp_path / "named.pt")("--topk", 1, image).stdout
    best = named["topk"][0]
    row = f"1  {best['prob']:.4f}  {best['logit']:8.3f}  {best['index']:4}  {best['label']}"
    assert text == f"{image}\n  {row}\n"


@pytest.mark.parametrize("size", [2, 3, 4, 50])
def test_batches_equal_single_images(infer: Infer, tmp_path: Path, size: int) -> None:
    single, batched = tmp_path / "single.npy", tmp_path / "batched.npy"
    infer("--logits", single, PHOTOS)
    infer("--logits", batched, "--batch", size, PHOTOS)
    expected = torch.from_numpy(np.load(single))
    assert relative_error(torch.from_numpy(np.load(batched)), expected) <= 1e-5


def test_threads_do_not_change_the_answer(infer: Infer, tmp_path: Path) -> None:
    logits = []
    for threads in (1, 2, 3):
        file = tmp_path / f"{threads}.npy"
        result = infer("--threads", threads, "--logits", file, PHOTOS)
        assert f"threads {threads}" in result.stderr.splitlines()[0]
        logits.append(torch.from_numpy(np.load(file)))
    assert relative_error(logits[1], logits[0]) <= 1e-5
    assert relative_error(logits[2], logits[0]) <= 1e-5


# ---- inputs ----


def test_directories_lists_and_files_in_order(infer: Infer, tmp_path: Path) -> None:
    data = jpeg(photo(20, 20))
    for name in ("b.JPG", "a.png", "deep/c.jpeg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    (tmp_path / "photos" / "notes.md").write_text("not an image")
    (tmp_path / "odd.name").write_bytes(data)
    (tmp_path / "list.txt").write_text("photos/deep/c.jpeg\n\nodd.name\n")

    def names(*arguments: object, **options: Any) -> list[str]:
        return [answer["image"] for answer in infer.json(*arguments, cwd=tmp_path, **options)]

    assert names("photos") == ["photos/a.png", "photos/b.JPG"]
    assert names("--recursive", "photos") == ["photos/a.png", "photos/b.JPG", "photos/deep/c.jpeg"]
    assert names("list.txt", "photos/a.png") == ["photos/deep/c.jpeg", "odd.name", "photos/a.png"]
    assert names("-", input="odd.name\nphotos/a.png") == ["odd.name", "photos/a.png"]


def test_a_bad_image_is_skipped_and_nothing_else(infer: Infer, tmp_path: Path) -> None:
    folder, logits = tmp_path / "photos", tmp_path / "logits.npy"
    folder.mkdir()
    good = jpeg(photo(40, 40))
    truncated_png = png(photo(40, 40), 8, 2)[:-2000]
    contents = {
        "0_good.jpg": good,
        "1_truncated.jpg": good[:-200],
        "2_text.png": b"hello, world",
        "3_empty.jpg": b"",
        "4_truncated.png": truncated_png,
        "5_good.png": png(photo(9, 9), 8, 2),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    result = infer("--format", "json", "--batch", 2, "--logits", logits, folder, "gone.jpg", code=3)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(answer["image"]).name for answer in answers] == ["0_good.jpg", "5_good.png"]
    assert len(np.load(logits)) == 2
    assert errors(result) == [
        f"{folder}/1_truncated.jpg: truncated JPEG: the file ends inside the image; skipped",
        f"{folder}/2_text.png: not a JPEG or PNG image: "
        "the first bytes are 68 65 6c 6c 6f 2c 20 77; skipped",
        f"{folder}/3_empty.jpg: the file is empty (0 bytes); skipped",
        f"{folder}/4_truncated.png: truncated PNG: the file ends inside the image; skipped",
        "gone.jpg: cannot be opened: No such file or directory; skipped",
        "2 answered, 5 could not be read",
    ]
    # Pillow refuses the same ones.
    for name in contents:
        if "good" not in name:
            with pytest.raises(ValueError, match="cannot be read as an image"):
                load_image(folder / name)


def test_too_many_pixels_are_refused_as_by_pillow(infer: Infer, tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    start = png(np.zeros((1, 1, 1), np.uint8), 8, 0)
    header = (20000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    file.write_bytes(PNG_SIGNATURE + chunk(b"IHDR", header) + start[33:])
    with pytest.raises(ValueError, match="exceeds limit of 178956970 pixels"):
        load_image(file)
    result = infer(file, code=3)
    assert "20000 x 20000 pixels, the limit is 178956970 in all" in errors(result)[0]


def test_an_empty_directory_is_no_answer(infer: Infer, tmp_path: Path) -> None:
    result = infer(tmp_path, code=3)
    assert (
        errors(result)[0] == f"{tmp_path}: no .jpg, .jpeg or .png file in this directory; skipped"
    )
    assert result.stdout == ""


# ---- models and operators ----


def test_no_operator_library(binary: Path, model: Path, tmp_path: Path) -> None:
    """A copy of the program without libpvt_ops.so beside it."""
    for part in ("bin/pvt_infer", "lib/libpvt_runtime.so"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        shutil.copy(binary.parent.parent / part, tmp_path / part)
    environment = {key: value for key, value in os.environ.items() if key != "PVT_OPS_LIB"}
    alone = Infer(tmp_path / "bin/pvt_infer", model)
    image = PHOTOS / "cat.jpg"

    (message,) = errors(alone(image, code=5, env=environment))
    assert message.startswith(
        f"{model}: needs the operators pvt::resize, pvt::spatial_reduction, pvt::sra_attention; "
    )
    assert "--ops-lib" in message
    library = binary.parent.parent / "lib" / "libpvt_ops.so"
    assert len(alone.json("--ops-lib", library, image, env=environment)) == 1
    assert len(alone.json(image, env=environment | {"PVT_OPS_LIB": str(library)})) == 1

    # The one that the Python package loads serves as well.
    assert len(alone.json("--ops-lib", pvt_ext.ops_library(), image, env=environment)) == 1

    (message,) = errors(alone("--ops-lib", tmp_path / "gone.so", image, code=5, env=environment))
    assert "gone.so: cannot open shared object file" in message
    (tmp_path / "text.so").write_text("no library")
    (message,) = errors(alone("--ops-lib", tmp_path / "text.so", image, code=5, env=environment))
    assert "text.so" in message
    (message,) = errors(
        alone("--ops-lib", tmp_path / "lib/libpvt_runtime.so", image, code=5, env=environment)
    )
    assert "not the operator library of pvt_ext" in message


def resave(model: Path, path: Path, **changes: Any) -> Path:
    """The same model with another pvt.json."""
    extra = {"pvt.json": ""}
    module = torch.jit.load(model, _extra_files=extra)
    metadata = json.loads(extra["pvt.json"]) | changes
    torch.jit.save(module, path, _extra_files={"pvt.json": json.dumps(metadata)})
    return path


def test_operators_newer_than_the_library(binary: Path, model: Path, tmp_path: Path) -> None:
    image = PHOTOS / "cat.jpg"
    newer = resave(
        model, tmp_path / "newer.pt", version="9.0", ops={"version": 9, "required": ["pvt::resize"]}
    )
    (message,) = errors(Infer(binary, newer)(image, code=5))
    assert message.startswith(f"{newer}: needs operator version 9 (exported by pvt_ext 9.0), "), (
        message
    )
    assert message.endswith("has version 1")
    other = resave(model, tmp_path / "other.pt", ops={"version": 1, "required": ["pvt::teleport"]})
    (message,) = errors(Infer(binary, other)(image, code=5))
    assert "needs the operators pvt::teleport" in message


def resave_without(model: Path, path: Path, key: str) -> Path:
    """The same model with an entry of pvt.json left out."""
    extra = {"pvt.json": ""}
    module = torch.jit.load(model, _extra_files=extra)
    metadata = json.loads(extra["pvt.json"])
    del metadata[key]
    torch.jit.save(module, path, _extra_files={"pvt.json": json.dumps(metadata)})
    return path


def bad_models(model: Path, folder: Path) -> list[tuple[Path, str]]:
    """Files that are no usable model, and what must be said about each."""

    def write(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    state = mini().state_dict()
    torch.save(state, folder / "new.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file({"weight": torch.ones(3)}, folder / "weights.safetensors")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "plain.pt")
    checkpoint = "is a checkpoint (weights only), not an exported model; make one with: pvt export"
    return [
        (folder / "gone.pt", "cannot be opened: No such file or directory"),
        (folder, "is a directory, not an exported model"),
        (write("empty.pt", b""), "is empty (0 bytes)"),
        (write("photo.pt", jpeg(photo(8, 8))), "is not an exported model (no zip archive)"),
        (write("cut.pt", model.read_bytes()[:-1]), "truncated or damaged model file"),
        (resave_without(model, folder / "no_ops.pt", "ops"), "'ops' is absent"),
        (folder / "new.pth", checkpoint),
        (folder / "old.pth", checkpoint),
        (folder / "weights.safetensors", checkpoint),
        (folder / "plain.pt", "without pvt.json and without a method 'preprocess'"),
    ]


def test_bad_models_are_named_in_one_line(binary: Path, model: Path, tmp_path: Path) -> None:
    for path, message in bad_models(model, tmp_path):
        result = Infer(binary, path)(PHOTOS / "cat.jpg", code=4)
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 2  # system_info, and what is wrong
        (line,) = errors(result)
        assert line.startswith(f"{path}: ")
        assert message in line


def test_every_truncation_of_a_model_is_one_line(binary: Path, model: Path, tmp_path: Path) -> None:
    content = model.read_bytes()
    for size in np.linspace(1, len(content) - 1, 12).astype(int).tolist():
        (tmp_path / "cut.pt").write_bytes(content[:size])
        (line,) = errors(Infer(binary, tmp_path / "cut.pt")(PHOTOS / "cat.jpg", code=4))
        assert "cut.pt: " in line


# ---- the command line ----


def test_bad_arguments_explain_themselves(infer: Infer, binary: Path) -> None:
    image = PHOTOS / "cat.jpg"
    cases: list[tuple[Sequence[object], str]] = [
        (("--no-such-flag", image), "--no-such-flag"),
        (("--topk", "0", image), "--topk"),
        (("--topk", "many", image), "--topk"),
        (("--batch", "0", image), "--batch"),
        (("--batch", "-1", image), "--batch"),
        (("--threads", "-1", image), "--threads"),
        (("--format", "xml", image), "--format"),
        (("--device", "gpu", image), "device: expected cpu, cuda or cuda:<index>, got gpu"),
        ((), "images: expected at least one"),
    ]
    for arguments, message in cases:
        result = infer(*arguments, code=2)
        assert result.stdout == ""
        assert message in result.stderr
    assert "--model is required" in Infer(binary, None)(image, code=2).stderr


def test_a_missing_cuda_device_is_one_line(infer: Infer) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    for device in ("cuda", "cuda:1"):
        (message,) = errors(infer("--device", device, PHOTOS / "cat.jpg", code=2))
        assert message.startswith(f"device {device}: there is no CUDA device")


def test_help_and_version(binary: Path) -> None:
    run = Infer(binary, None)
    text = run("--help").stdout
    for option in ("--model", "--ops-lib", "--topk N=5", "--batch N=1", "--repeat N=1", "--info"):
        assert option in text
    assert all(f"\n  {code}  " in text for code in range(6))
    version = (ROOT / "VERSION").read_text().strip()
    assert re.fullmatch(rf"pvt_infer {version} \(torch [\d.]+\)\n", run("--version").stdout)


def test_info(infer: Infer, model: Path) -> None:
    extra = {"pvt.json": ""}
    torch.jit.load(model, _extra_files=extra)
    (metadata,) = infer.json("--info")
    assert metadata == json.loads(extra["pvt.json"])
    text = infer("--info").stdout
    assert "pvt_mini, 1000 classes, float32" in text
    assert "pvt::sra_attention" in text


def test_first_line_and_times_go_to_stderr(infer: Infer) -> None:
    result = infer("--repeat", 3, "--warmup", 1, "--batch", 3, PHOTOS)
    lines = result.stderr.splitlines()
    pattern = r"system_info: pvt_ext \S+, torch \S+, CPU level \w+, device cpu, threads \d+"
    assert re.fullmatch(pattern, lines[0])
    number = r"\d+\.\d+"
    times = rf"first {number} ms, p50 {number} ms, p95 {number} ms, {number} images/s"
    count = len(PHOTO_FILES)
    assert re.fullmatch(
        rf"timing: decode \+ preprocess, per image: {times} \({3 * count} runs\)", lines[-2]
    )
    assert re.fullmatch(
        rf"timing: network, batch 3: {times} \({3 * ((count + 2) // 3)} runs\)", lines[-1]
    )
    assert "timing" not in result.stdout


def test_output_that_cannot_be_written_is_an_error(infer: Infer, tmp_path: Path) -> None:
    image = PHOTOS / "cat.jpg"
    (message,) = errors(infer("--logits", tmp_path / "no/folder.npy", image, code=1))
    assert "no/folder.npy: cannot be written: No such file or directory" in message
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            command = [infer.binary, "--model", str(infer.model), str(image)]
            assert subprocess.run(command, stdout=full, stderr=subprocess.DEVNULL).returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in KiB")
def test_memory_does_not_grow_with_the_number_of_images(infer: Infer, tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(jpeg(photo(400, 400)))

    def peak(count: int) -> int:
        (tmp_path / "list.txt").write_text(f"{tmp_path}/image.jpg\n" * count)
        command = [str(infer.binary), "--model", str(infer.model), "--batch", "4"]
        command += ["--logits", str(tmp_path / "logits.npy"), str(tmp_path / "list.txt")]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert len(np.load(tmp_path / "logits.npy")) == count
        return usage.ru_maxrss

    # A kept image or input is 48 KiB or more: 500 of them would be 24 MiB.
    assert peak(520) - peak(20) < 12 * 1024


# ---- the libraries ----


def dynamic(path: Path) -> str:
    command = ["readelf", "-d", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_operator_library_needs_no_python(binary: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("NOT TESTED: readelf (binutils) is not installed")
    library = binary.parent.parent / "lib" / "libpvt_ops.so"
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic(library)))
    assert {name for name in needed if "torch" in name or "c10" in name} <= {
        "libtorch_cpu.so",
        "libc10.so",
    }
    assert not [name for name in needed if "python" in name]
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], check=True, capture_output=True, text=True
    ).stdout
    assert not re.search(r"\b_?Py[A-Z_]", symbols)
    for path in (library, binary, library.with_name("libpvt_runtime.so")):
        assert "python" not in " ".join(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic(path)))
