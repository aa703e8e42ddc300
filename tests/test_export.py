"""The exported file: runs after a plain ``torch.jit.load``, and says what it is."""

import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from models import mini

import pvt_ext
from pvt_ext.export import export_torchscript, load_torchscript, read_metadata
from pvt_ext.inference import pack
from pvt_ext.model import PVT
from pvt_ext.preprocess import Preprocess


@pytest.fixture(scope="module")
def model() -> PVT:
    return mini(num_classes=1000, variant="pvt_mini").train()


@pytest.fixture(scope="module")
def file(model: PVT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "pvt_mini.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # TorchScript's own notice must not reach the user
        export_torchscript(model, path, weights_source="random", seed=0, command="made by a test")
        load_torchscript(path)
    return path


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_plain_load_gives_the_models_answer(model: PVT, file: Path) -> None:
    loaded = torch.jit.load(file)
    assert not loaded.training
    with torch.inference_mode():
        for size in ((64, 64), (224, 224), (33, 65)):
            x = batch(2, 3, *size)
            assert torch.equal(loaded(x), pack(model)(x))
            torch.testing.assert_close(loaded(x), model.eval()(x), rtol=1e-5, atol=1e-5)
    image = torch.randint(0, 256, (90, 70, 3), dtype=torch.uint8)
    assert torch.equal(loaded.preprocess(image), Preprocess("paper", 64)(image))
    with pytest.raises(torch.jit.Error, match="at least 32 x 32, got 31 x 64"):
        loaded(batch(1, 3, 31, 64))


def test_a_fresh_process_needs_only_the_import(file: Path) -> None:
    run = "import torch, sys; print(torch.jit.load(sys.argv[1])(torch.zeros(1, 3, 64, 64)).shape)"
    command = [sys.executable, "-W", "ignore", "-c", f"import pvt_ext; {run}", str(file)]
    assert "[1, 1000]" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    without = [part.removeprefix("import pvt_ext; ") for part in command]
    failed = subprocess.run(without, capture_output=True, text=True)
    assert failed.returncode != 0
    assert "pvt::" in failed.stderr


def test_metadata(file: Path) -> None:
    metadata = read_metadata(file)
    labels = metadata.pop("labels")
    assert len(labels) == 1000
    assert (labels[0], labels[999]) == ("tench", "toilet tissue")
    assert metadata == {
        "format": 1,
        "library": "pvt_ext",
        "version": pvt_ext.__version__,
        "torch": torch.__version__.split("+")[0],
        "variant": "pvt_mini",
        "num_classes": 1000,
        "in_chans": 3,
        "img_size": [64, 64],
        "dtype": "float32",
        "ops": {
            "version": pvt_ext.ops_version(),
            "required": [
                "pvt::attention_block_",
                "pvt::head",
                "pvt::mlp_block_",
                "pvt::patch_embed",
                "pvt::reduce_kv",
                "pvt::resize",
            ],
        },
        "preprocess": {
            "preset": "paper",
            "mode": "shorter",
            "resize": 73,
            "crop": [64, 64],
            "interpolation": "bicubic",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "weights": {"source": "random", "seed": 0, "sha256": None},
        "command": "made by a test",
    }
    extra = {"pvt.json": ""}  # as a C++ program reads it
    torch.jit.load(file, _extra_files=extra)
    assert json.loads(extra["pvt.json"]) == read_metadata(file)


def test_export_leaves_the_model_alone(tmp_path: Path) -> None:
    model = mini().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_torchscript(model, tmp_path / "a.pt", dtype="bf16")
    assert model.training
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("dtype", "torch_dtype", "stored"),
    [
        ("bf16", torch.bfloat16, {torch.bfloat16}),
        ("fp16", torch.float16, {torch.float16}),
        ("int8", torch.int8, {torch.bfloat16, torch.uint8}),
    ],
)
def test_narrow_files_take_and_give_float32(
    tmp_path: Path, dtype: str, torch_dtype: torch.dtype, stored: set[torch.dtype]
) -> None:
    model = mini()
    metadata = export_torchscript(model, tmp_path / "a.pt", dtype=dtype)
    assert metadata["dtype"] == str(torch_dtype).removeprefix("torch.")
    loaded = torch.jit.load(tmp_path / "a.pt")
    matrices = [weight for weight in loaded.state_dict().values() if weight.dim() == 4]
    assert {weight.dtype for weight in matrices} == stored
    x = batch(2, 3, 64, 64)
    with torch.inference_mode():
        out, exact = loaded(x), model(x)
        assert out.dtype == torch.float32
        assert torch.equal(out, pack(model, torch_dtype)(x))
    assert 0 < (out - exact).abs().max() < 0.1 * exact.abs().max()


def test_dtype_of_a_loaded_file_can_change(model: PVT, file: Path) -> None:
    """The file is not frozen: ``.to`` reaches its weights."""
    loaded = torch.jit.load(file).to(torch.float64)
    x = batch(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    assert loaded(x).dtype == torch.float32


def test_without_fused_operators_only_resize_is_required(tmp_path: Path) -> None:
    metadata = export_torchscript(mini(fused=False), tmp_path / "a.pt", preset="hf")
    assert metadata["ops"]["required"] == ["pvt::resize"]
    assert metadata["preprocess"]["mode"] == "squash"


def test_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert export_torchscript(mini(), path)["labels"] is None
    names = [f"class ä{i}" for i in range(10)]
    export_torchscript(mini(), path, labels=names)
    assert read_metadata(path)["labels"] == names
    assert list(tmp_path.iterdir()) == [path]  # replaced, and nothing beside it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp8"}, "dtype: expected one of fp32, bf16, fp16, int8, got 'fp8'"),
        ({"preset": "pil"}, "preset: expected one of paper, timm, hf, got 'pil'"),
        ({"labels": ["cat"]}, "labels: expected 10 names, got 1"),
        ({"labels": "ten labels"}, "labels: expected a list of names, got str"),
        ({"labels": list(range(10))}, r"labels: expected names \(str\), got 0"),
        (
            {"labels": ["\udcff"] * 10},
            r"labels, command: expected text in UTF-8, got '.udcff' in it",
        ),
        ({"command": "\udcff"}, r"labels, command: expected text in UTF-8"),
        ({"path": "absent/a.pt"}, "path: expected a file name in an existing folder, got absent"),
        ({"path": ".pt"}, r"path: expected a name before the suffix, got \.pt"),
        ({"path": "\udcff.pt"}, r"path: expected text in UTF-8, got '.udcff' in it"),
    ],
)
def test_refused_export_keeps_the_old_file(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pt").write_text("old")
    with pytest.raises(ValueError, match=message):
        export_torchscript(mini(), **{"path": "a.pt", **options})
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [("a.pt", "old")]


def test_refuses_what_is_no_regular_file(tmp_path: Path) -> None:
    pipe, link, loop = tmp_path / "pipe.pt", tmp_path / "link.pt", tmp_path / "loop.pt"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    loop.symlink_to(loop)
    for path in (pipe, link, loop):
        with pytest.raises(
            ValueError, match=f"path: expected a regular file or a new one, got {path}"
        ):
            export_torchscript(mini(), path)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert loop.is_symlink()


def test_writes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    link, file = tmp_path / "link.pt", tmp_path / "models" / "a.pt"
    link.symlink_to(file)
    for _ in range(2):  # the first creates what the link points to, the second replaces it
        export_torchscript(mini(), link)
        assert link.is_symlink()
        assert read_metadata(file)["num_classes"] == 10
    assert list(file.parent.iterdir()) == [file]


def test_refuses_a_head_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    model = mini(num_classes=1000)
    model.head = torch.nn.Linear(48, 3)
    with pytest.raises(
        ValueError, match=r"model: expected 1000 scores .* got \[3\]; .*reset_class"
    ):
        export_torchscript(model, path)
    with pytest.raises(ValueError, match="model: expected a classifier, got one without a head"):
        export_torchscript(mini(num_classes=0), path)
    assert not path.exists()
    model.num_classes = 3
    assert export_torchscript(model, path)["labels"] is None
    assert load_torchscript(path)[0](batch(1, 3, 64, 64)).shape == (1, 3)


def test_refuses_other_channels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected in_chans 3 \(RGB images\), got 1"):
        export_torchscript(mini(in_chans=1), tmp_path / "a.pt")


def test_read_metadata_says_what_a_file_is(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.pt").touch()
    Path("text.pt").write_text("hello")
    Path("cut.pt").write_bytes(file.read_bytes()[:-500])
    Path("folder.pt").mkdir()
    torch.save(mini().state_dict(), "weights.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save("other.pt")
    with zipfile.ZipFile("archive.pt", "w") as archive:
        archive.writestr("readme", "hello")
    messages = {
        "absent.pt": "no such file",
        "folder.pt": "is a folder",
        "empty.pt": "not an exported model, or damaged",
        "text.pt": "not an exported model, or damaged",
        "cut.pt": "not an exported model, or damaged",
        "weights.pth": r"a checkpoint .*pvt export NAME --weights weights\.pth",
        "other.pt": r"a TorchScript file without pvt\.json",
        "archive.pt": "a zip archive, but not an exported model",
    }
    for name, message in messages.items():
        for read in (read_metadata, load_torchscript):
            with pytest.raises(ValueError, match=f"{name}: {message}") as caught:
                read(name)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([1, 2], r"expected an object \(dict\), got \[1, 2\]"),
        ([], r"expected an object \(dict\), got \[\]"),
        ({"format": None}, r"expected format \(int\), got None"),
        ({"format": 2}, "expected format 1, got 2"),
        ({"version": 1}, r"expected version \(str\), got 1"),
        ({"num_classes": "3"}, r"expected num_classes \(int\), got '3'"),
        ({"ops": {}}, r"expected ops.version \(int\), got None"),
        ({"ops": [1]}, r"expected ops \(dict\), got \[1\]"),
        ({"labels": ["cat"]}, "labels: expected 1000 names, got 1"),
        ({"labels": "x" * 1000}, "labels: expected a list of names, got str"),
        ({"labels": [1] * 1000}, r"labels: expected names \(str\), got 1"),
    ],
)
def test_refuses_other_metadata(changes: Any, message: str, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    changed = read_metadata(file) | changes if isinstance(changes, dict) else changes
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/extra/pvt.json", json.dumps(changed))
    for read in (read_metadata, load_torchscript):
        with pytest.raises(
            ValueError, match=r"a\.pt: not an exported model, or damaged \(.*" + message
        ) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_notices_a_flipped_bit(model: PVT, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "pvt_mini.pt"
    content = bytearray(file.read_bytes())
    content[content.index(model.head.weight.detach().numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    torch.jit.load(path)  # torch takes it
    with pytest.raises(ValueError, match=r"pt: damaged \(checksum of pvt_mini/data/\d+\)$"):
        load_torchscript(path)


def test_refuses_a_path_that_torch_cannot_read(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path: expected text in UTF-8"):
        load_torchscript(tmp_path / "\udcff.pt")


def test_refuses_a_file_for_newer_operators(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "pvt_mini.pt"
    newer = read_metadata(file)
    found = newer["ops"]["version"]
    newer["ops"]["version"] += 1
    loaded = torch.jit.load(file)
    torch.jit.save(loaded, path, _extra_files={"pvt.json": json.dumps(newer)})
    with pytest.raises(ValueError, match=rf"version {found + 1} .* with version {found}$"):
        load_torchscript(path)
