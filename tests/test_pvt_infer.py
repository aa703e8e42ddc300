"""``pvt_infer`` as a program: inputs, options, and one clear line for all that goes wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import PNG_SIGNATURE, chunk, jpeg, photo, png
from infer_program import PHOTO_FILES, PHOTOS, ROOT, Infer, errors
from models import mini
from safetensors.torch import save_file
from torch import Tensor, nn

import pvt_ext
from pvt_ext.export import load_torchscript
from pvt_ext.preprocess import load_image

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


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_overlap_changes_nothing_but_the_time(infer: Infer, tmp_path: Path, batch: int) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"hello")
    images = [*PHOTO_FILES, tmp_path / "bad.jpg", *PHOTO_FILES, tmp_path / "bad.jpg"]
    files = ("--dump-input", tmp_path / "x.npy", "--logits", tmp_path / "y.npy")

    def outcome(*arguments: object) -> tuple[str, list[str], bytes, bytes]:
        result = infer("--batch", batch, *files, *arguments, *images, code=3)
        written = [(tmp_path / name).read_bytes() for name in ("x.npy", "y.npy")]
        return result.stdout, errors(result), written[0], written[1]

    assert outcome("--overlap") == outcome()
    assert not infer("--overlap", tmp_path / "bad.jpg", code=3).stdout


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


def test_a_list_without_images_is_no_answer(infer: Infer, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n")
    for arguments in (["-"], ["list.txt"]):
        result = infer(*arguments, code=3, cwd=tmp_path, input="")
        assert errors(result)[0] == f"{arguments[0]}: no image in this list; skipped"
        assert result.stdout == ""


def test_a_list_that_is_separated_by_nul_bytes_is_no_answer(infer: Infer, tmp_path: Path) -> None:
    """As of ``find -print0``: the first path is not the whole list."""
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(PHOTOS / "cat.jpg", tmp_path / name)
    result = infer("-", code=3, cwd=tmp_path, input="a.jpg\0b.jpg\0")
    assert errors(result)[0] == "-: line 1: expected a path, got text with NUL bytes; skipped"
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["[x]", "[a,b]", "[]"])
def test_names_in_brackets_are_files(binary: Path, model: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(PHOTOS / "cat.jpg", tmp_path / name)
    (tmp_path / "[photos]").mkdir()
    shutil.copy(PHOTOS / "cat.jpg", tmp_path / "[photos]" / "a.jpg")
    shutil.copy(model, tmp_path / "[m]")
    infer = Infer(binary, Path("[m]"))
    answers = infer.json("--logits", "[o]", name, "[photos]", cwd=tmp_path)
    assert [answer["image"] for answer in answers] == [f"./{name}", "./[photos]/a.jpg"]
    assert len(np.load(tmp_path / "[o]")) == 2


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
        f"{model}: needs the operators pvt::attention_block_, pvt::head, pvt::mlp_block_, "
        "pvt::patch_embed, pvt::reduce_kv, pvt::resize; "
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


def test_a_library_under_another_name_is_the_one_in_use(
    binary: Path, model: Path, tmp_path: Path
) -> None:
    library = binary.parent.parent / "lib" / "libpvt_ops.so"
    mine, other = tmp_path / "my_ops.so", tmp_path / "other.so"
    for path in (mine, other):
        shutil.copy(library, path)
    image = PHOTOS / "cat.jpg"
    infer = Infer(binary, model)
    assert len(infer.json("--ops-lib", "my_ops.so", image, cwd=tmp_path)) == 1
    preloaded = os.environ | {"LD_PRELOAD": str(mine)}
    assert len(infer.json(image, env=preloaded)) == 1
    assert len(infer.json("--ops-lib", mine, image, env=preloaded)) == 1
    (message,) = errors(infer("--ops-lib", other, image, code=5, env=preloaded))
    assert message.endswith(f"{other}: cannot be loaded, this program has loaded {mine} already")


def test_operators_of_an_unknown_library_are_not_registered_again(
    binary: Path, model: Path, tmp_path: Path
) -> None:
    """As in a program that contains the operators and keeps the library's functions to itself."""
    library = binary.parent.parent / "lib" / "libpvt_ops.so"
    renamed = library.read_bytes().replace(b"\0pvt_ops_version\0", b"\0pvt_ops_private\0")
    (tmp_path / "unknown.so").write_bytes(renamed)
    environment = os.environ | {"LD_PRELOAD": str(tmp_path / "unknown.so")}
    (message,) = errors(Infer(binary, model)(PHOTOS / "cat.jpg", code=5, env=environment))
    assert "this program has registered pvt::resize by other means" in message


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
    assert message.endswith(f"has version {pvt_ext.ops_version()}")
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
    torch.save(nn.Linear(2, 2), folder / "pickled.pt")
    checkpoint = "is a checkpoint (weights only), not an exported model; make one with: pvt export"
    saved = (
        "is a file of torch.save (a checkpoint or a pickled model), not an exported model; "
        "make one from a checkpoint (weights only) with: pvt export NAME --weights FILE"
    )
    return [
        (folder / "gone.pt", "cannot be opened: No such file or directory"),
        (folder, "is a directory, not an exported model"),
        (write("empty.pt", b""), "is empty (0 bytes)"),
        (write("photo.pt", jpeg(photo(8, 8))), "is not an exported model (no zip archive)"),
        (write("cut.pt", model.read_bytes()[:-1]), "truncated or damaged model file"),
        (resave_without(model, folder / "no_ops.pt", "ops"), "'ops' is absent"),
        (folder / "new.pth", saved),
        (folder / "old.pth", saved),
        (folder / "pickled.pt", saved),
        (Path("/dev/null"), "is a pipe, device or socket, expected a regular file"),
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


def test_a_model_with_a_hole_gives_no_answer(binary: Path, model: Path, tmp_path: Path) -> None:
    """As Python says it; torch itself would load zeros."""
    with zipfile.ZipFile(model) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
        content = archive.read(entry)
    whole = model.read_bytes()
    path = tmp_path / "hole.pt"
    path.write_bytes(whole.replace(content, bytes(64) + content[64:]))
    message = f"{path}: damaged (checksum of {entry.filename})"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_torchscript(path)
    for arguments in ([PHOTOS / "cat.jpg"], ["--info"]):
        result = Infer(binary, path)(*arguments, code=4)
        assert errors(result) == [message]
        assert result.stdout == ""
    path.write_bytes(whole)
    assert len(Infer(binary, path).json(PHOTOS / "cat.jpg")) == 1


class OtherRows(nn.Module):
    """Answers of another number than there are images."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x) + self.more, 5)

    @torch.jit.export
    def preprocess(self, image: Tensor) -> Tensor:
        return image.float()


@pytest.mark.parametrize("more", [-1, 1])
def test_a_row_of_logits_belongs_to_an_image(binary: Path, tmp_path: Path, more: int) -> None:
    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(OtherRows(more)), path)
    image = PHOTOS / "cat.jpg"
    result = Infer(binary, path)("--batch", 2, image, image, code=4)
    assert errors(result) == [
        f"forward failed: expected logits [2, num_classes], got [{2 + more}, 5]"
    ]
    assert result.stdout == ""


@pytest.mark.parametrize("count", [3, 1001])
def test_labels_that_do_not_fit_the_network(
    binary: Path, model: Path, tmp_path: Path, count: int
) -> None:
    path = resave(model, tmp_path / "m.pt", num_classes=count, labels=["a"] * count)
    result = Infer(binary, path)(PHOTOS / "cat.jpg", code=4)
    assert errors(result) == [f"forward failed: expected logits [1, {count}], got [1, 1000]"]
    assert result.stdout == ""


def test_deeply_nested_metadata_is_refused(binary: Path, model: Path, tmp_path: Path) -> None:
    depth = 300_000
    with zipfile.ZipFile(model) as old, zipfile.ZipFile(tmp_path / "m.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("extra/pvt.json"):
                content = content[:-1] + b', "x": ' + b"[" * depth + b"]" * depth + b"}"
            new.writestr(name, content)
    (line,) = errors(Infer(binary, tmp_path / "m.pt")("--info", "--format", "json", code=4))
    assert "expected at most 64 levels of objects and lists in each other, got 300001" in line


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
        (("--cuda-graph", image), "--cuda-graph: expected --device cuda, got cpu"),
        (("--logits", "", image), "--logits: expected a file name, got an empty one"),
        (("--logits=", image), "--logits: expected a file name, got an empty one"),
        (("--dump-input=", image), "--dump-input: expected a file name, got an empty one"),
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
    assert "pvt::attention_block_" in text


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_ends_the_run_at_once(infer: Infer) -> None:
    def errors_of(*arguments: object) -> str:
        command = [str(infer.binary), "--model", str(infer.model), *map(str, arguments)]
        with open("/dev/full", "w") as full:
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert result.returncode == 1
        assert "pvt_infer: stdout: cannot be written" in result.stderr
        return result.stderr

    # The second path is not looked at any more.
    assert "gone.jpg" not in errors_of(PHOTOS / "cat.jpg", "gone.jpg")
    errors_of("--info")


def test_a_closed_stdout_is_not_lent_to_a_file(infer: Infer, tmp_path: Path) -> None:
    """The answers would be in logits.npy, and nobody would be told."""
    for option in ("--logits", "--dump-input"):
        file = tmp_path / f"{option}.npy"
        command = [infer.binary, "--model", infer.model, option, file, PHOTOS / "cat.jpg"]
        closed = ["sh", "-c", 'exec "$@" >&-', "sh", *map(str, command)]
        result = subprocess.run(closed, stderr=subprocess.PIPE, text=True)
        assert result.returncode == 1
        assert "pvt_infer: stdout: cannot be written" in result.stderr
        assert b"cat.jpg" not in file.read_bytes()


def test_closed_stdin_and_stderr_are_empty(infer: Infer, tmp_path: Path) -> None:
    command = [infer.binary, "--model", infer.model, "--logits", tmp_path / "a.npy"]
    closed = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", *map(str, command)]
    assert subprocess.run([*closed, "-"]).returncode == 3
    assert np.load(tmp_path / "a.npy").shape == (0,)
    result = subprocess.run([*closed, str(PHOTOS / "cat.jpg")], stdout=subprocess.PIPE)
    assert result.returncode == 0
    assert b"cat.jpg" in result.stdout
    assert np.load(tmp_path / "a.npy").shape == (1, 1000)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_array_of_a_run_that_failed_cannot_be_loaded(infer: Infer, tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    command = [infer.binary, "--model", infer.model, "--logits", file, PHOTOS / "cat.jpg"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(list(map(str, command)), stdout=full).returncode == 1
    with pytest.raises(ValueError, match="unfinished"):
        np.load(file)


def test_outputs_do_not_overwrite_what_is_read(binary: Path, model: Path, tmp_path: Path) -> None:
    library = binary.parent.parent / "lib" / "libpvt_ops.so"
    for source, name in ((PHOTOS / "cat.jpg", "cat.jpg"), (model, "m.pt"), (library, "ops.so")):
        shutil.copy(source, tmp_path / name)
    (tmp_path / "photos").mkdir()
    shutil.copy(PHOTOS / "cat.jpg", tmp_path / "photos" / "in.jpg")
    (tmp_path / "list.txt").write_text("cat.jpg\n")
    (tmp_path / "link.npy").symlink_to("cat.jpg")
    (tmp_path / "hard.npy").hardlink_to(tmp_path / "m.pt")
    (tmp_path / "old.npy").write_text("left alone when the other one is wrong")
    os.mkfifo(tmp_path / "pipe")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    infer = Infer(binary, Path("m.pt"))

    cases: list[tuple[Sequence[str], str]] = [
        (("--logits", "cat.jpg", "cat.jpg"), "got cat.jpg, one of the inputs"),
        (("--dump-input", "cat.jpg", "./cat.jpg"), "got cat.jpg, one of the inputs"),
        (("--logits", "link.npy", "cat.jpg"), "got link.npy, one of the inputs"),
        (("--logits", "photos/in.jpg", "photos"), "got photos/in.jpg, one of the inputs"),
        (("--logits", "cat.jpg", "list.txt"), "got cat.jpg, one of the inputs"),
        (("--logits", "list.txt", "list.txt"), "got list.txt, one of the inputs"),
        (("--logits", "m.pt", "cat.jpg"), "got m.pt, the model"),
        (("--logits", "hard.npy", "cat.jpg"), "got hard.npy, the model"),
        (("--dump-input", "m.pt", "--logits", "old.npy", "cat.jpg"), "got m.pt, the model"),
        (("--ops-lib", "ops.so", "--logits", "ops.so", "cat.jpg"), "the operator library"),
        (("--logits", "photos", "cat.jpg"), "got photos, which is no regular file"),
        (("--logits", "pipe", "cat.jpg"), "got pipe, which is no regular file"),
        (("--logits", "a.npy", "--dump-input", "a.npy", "cat.jpg"), "got a.npy, the same file"),
        (
            ("--logits", "a.npy", "--dump-input", "photos/../a.npy", "cat.jpg"),
            "got a.npy and photos/../a.npy, the same file",
        ),
    ]
    for arguments, message in cases:
        result = infer(*arguments, code=2, cwd=tmp_path)
        assert result.stdout == ""
        (error,) = errors(result)
        assert error.startswith(("--logits", "--dump-input")), error
        assert message in error
    with open(tmp_path / "old.npy", "a") as redirected:
        command = [str(binary), "--model", "m.pt", "--logits", "old.npy", "cat.jpg"]
        assert subprocess.run(command, stdout=redirected, cwd=tmp_path).returncode == 2
    now = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert now == files

    # An older result is no input.
    infer("--logits", "old.npy", "--dump-input", "new.npy", "cat.jpg", cwd=tmp_path)
    assert len(np.load(tmp_path / "old.npy")) == len(np.load(tmp_path / "new.npy")) == 1


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
