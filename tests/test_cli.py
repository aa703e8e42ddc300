"""The command ``pvt``: output on stdout, one line per error on stderr, exit codes."""

import json
import shlex
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from models import lively, published_state, same_weights
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

import pvt_ext
from pvt_ext.bench import bench
from pvt_ext.checkpoint import recorded, recorded_metadata
from pvt_ext.cli import app, main
from pvt_ext.export import load_torchscript, read_metadata
from pvt_ext.inference import pack
from pvt_ext.model import PVT, create_model
from pvt_ext.preprocess import load_image
from pvt_ext.published import PUBLISHED
from pvt_ext.weights import load_weights, save_weights


def pvt(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)


def failure(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    """Exit code and the one line on stderr of a command that fails."""
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pvt: ")
    assert err.count("\n") == 1
    assert isinstance(caught.value.code, int)
    return caught.value.code, err.removeprefix("pvt: ").strip()


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "tiny.pt"
    result = pvt("export", "pvt_tiny", "--weights", "random", "--seed", 3, "-o", path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert "pvt_tiny, fp32, random weights" in result.stderr
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((300, 260)).save(path)
    return paths


def test_list() -> None:
    rows = {line.split()[0]: line.split()[1:] for line in pvt("list").stdout.splitlines()}
    assert rows["pvt_small"] == ["24,485,864", "224", "3.816", "79.8", "93", "ImageNet-1k"]
    assert rows["pvt_huge_v2"] == ["304,945,512", "224", "50.493", "-", "-", "-"]
    assert rows["pvt_nano"] == ["1,439,146", "32", "0.037", "85.3", "3", "CIFAR-10"]
    assert set(rows) == {"model", *pvt_ext.model.list_models()}


def test_weights() -> None:
    lines = [line.split() for line in pvt("weights").stdout.splitlines()]
    rows = {line[0]: line[1:] for line in lines}
    assert set(rows) == {"name", *PUBLISHED}
    assert rows["official/pvt_small"] == ["pvt_small", "79.8", "-", "93", "not", "recorded"]
    assert rows["mmdet/retinanet_pvt-t_fpn_1x_coco"] == [
        "pvt_tiny",
        "-",
        "36.6",
        "-",
        "17b566bd...",
    ]


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = lively("pvt_v2_b0", num_classes=5)
    save_weights(source, tmp_path / "ours.pth")
    result = pvt(
        "convert", "pvt_v2_b0", tmp_path / "ours.pth", tmp_path / "timm.safetensors",
        "--to", "timm", "--num-classes", 5,
    )  # fmt: skip
    assert result.exit_code == 0
    assert "ours.pth (pvt_ext): 178 tensors loaded; written to" in result.stderr
    target = create_model("pvt_v2_b0", num_classes=5)
    assert load_weights(target, tmp_path / "timm.safetensors").format == "timm"
    assert same_weights(target, source)

    backbone = tmp_path / "backbone.pth"
    pvt("convert", "pvt_v2_b0", tmp_path / "ours.pth", backbone, "--to", "official", "--backbone")
    names = set(torch.load(backbone))
    assert names == set(published_state(source)) - {"head.weight", "head.bias"}

    # What is converted is not changed: positions stay those of their size.
    larger = lively("pvt_tiny", img_size=64)
    save_weights(larger, tmp_path / "larger.pth")
    args = ("convert", "pvt_tiny", tmp_path / "larger.pth", tmp_path / "again.pth")
    code, message = failure(capsys, *args)
    assert (code, "of another shape: stages.0.pos_embed" in message) == (1, True)
    assert pvt(*args, "--img-size", 64).exit_code == 0
    target = create_model("pvt_tiny", img_size=64)
    load_weights(target, tmp_path / "again.pth", adapt=())
    assert same_weights(target, larger)
    code, message = failure(capsys, "convert", "pvt_v2_b0", "timm/pvt_v2_b0", tmp_path / "a.pth")
    assert (code, "did you mean timm/pvt_v2_b0.in1k" in message) == (1, True)

    other = ("convert", "pvt_v2_b1", tmp_path / "ours.pth", tmp_path / "other.pth")
    code, message = failure(capsys, *other)
    assert (code, "does not fit pvt_v2_b1, nothing was loaded" in message) == (1, True)
    assert not (tmp_path / "other.pth").exists()
    onto = ("convert", "pvt_v2_b0", tmp_path / "ours.pth", tmp_path / "ours.pth")
    assert pvt(*onto).exit_code == 2


def test_convert_keeps_what_the_file_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = lively("pvt_v2_b0", num_classes=2)
    before, after = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    facts = {"variant": "pvt_v2_b0", "preset": "hf", "labels": '["cat", "dog"]'}
    save_weights(source, before, metadata=facts)
    assert pvt("convert", "pvt_v2_b0", before, after, "--dtype", "fp16").exit_code == 0
    assert recorded_metadata(after) == recorded_metadata(before)
    assert after.stat().st_size < 0.51 * before.stat().st_size
    target = create_model("pvt_v2_b0", num_classes=2)
    load_weights(target, after)
    assert same_weights(target, source.half().float())

    source = lively("pvt_v2_b0", num_classes=2)
    source.head.weight.data[0, 0] = 1e5  # beyond float16
    save_weights(source, before, metadata=facts)
    code, line = failure(capsys, "convert", "pvt_v2_b0", before, after, "--dtype", "fp16")
    assert (code, "head.weight (NaN or infinite in torch.float16)" in line) == (1, True)


def test_export_takes_what_the_weights_say(tmp_path: Path) -> None:
    weights, path = tmp_path / "a.safetensors", tmp_path / "a.pt"
    facts = {"preset": "timm", "labels": '["cat", "dog"]'}
    save_weights(lively("pvt_tiny", num_classes=2, img_size=(64, 96)), weights, metadata=facts)
    assert pvt("export", "pvt_tiny", "--weights", weights, "-o", path).exit_code == 0
    metadata = read_metadata(path)
    assert (metadata["labels"], metadata["img_size"]) == (["cat", "dog"], [64, 96])
    assert metadata["preprocess"]["preset"] == "timm"

    names = tmp_path / "names.txt"
    names.write_text("Katze\nHund\n")
    others = ["--labels", names, "--img-size", 64, "--preset", "hf"]
    assert pvt("export", "pvt_tiny", "--weights", weights, *others, "-o", path).exit_code == 0
    metadata = read_metadata(path)
    assert (metadata["labels"], metadata["img_size"]) == (["Katze", "Hund"], [64, 64])
    assert metadata["preprocess"]["preset"] == "hf"


@pytest.mark.parametrize("labels", ["cat, dog", "{}", "[1, 2]", "[" * 100_000])
def test_labels_of_another_library_are_not_ours(tmp_path: Path, labels: str) -> None:
    weights = tmp_path / "a.safetensors"
    save_weights(lively("pvt_v2_b0"), weights, metadata={"labels": labels})
    assert recorded(weights).labels is None


def test_summary() -> None:
    result = pvt("summary", "pvt_tiny", "--size", "448x224")
    assert result.stdout.startswith("pvt_tiny at 448 x 224\n")
    assert "13,229,288" in result.stdout


def test_info() -> None:
    facts = dict(line.split(": ", 1) for line in pvt("info").stdout.splitlines())
    assert facts["version"] == pvt_ext.__version__
    assert facts["cpu_level"] == pvt_ext.cpu_level()
    assert Path(facts["ops_library"]).is_file()


def test_bench() -> None:
    options = ("--size", "64", "--seconds", 0, "--dtype", "fp32", "--dtype", "int8")
    result = pvt("bench", "pvt_v2_b0", "--batch", 2, *options, "--format", "json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["name"] for row in rows] == ["pytorch fp32", "pvt fp32", "pvt int8"]
    plain, exact, coarse = rows
    assert plain["ratio"] == 1
    assert plain["error"] == 0
    assert exact["error"] < 1e-5 < coarse["error"] < 0.1
    for row in rows:
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["images_per_s"] == pytest.approx(2e3 / row["median_ms"])
        assert row["ratio"] == pytest.approx(plain["median_ms"] / row["median_ms"])
    text = pvt("bench", "pvt_v2_b0", *options).stdout
    assert [line.split()[:2] for line in text.splitlines()[1:]] == [
        ["pytorch", "fp32"],
        ["pvt", "fp32"],
        ["pvt", "int8"],
    ]


def test_export_random_weights_follow_the_seed(model_file: Path) -> None:
    network, metadata = load_torchscript(model_file)
    torch.manual_seed(3)
    expected = pack(create_model("pvt_tiny"))
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network(x), expected(x))
    assert metadata["weights"] == {"source": "random", "seed": 3, "sha256": None}


def test_recorded_command_makes_the_file_again(tmp_path: Path) -> None:
    labels = tmp_path / "my labels.txt"
    labels.write_text("cat\ndog\n")
    path = tmp_path / "a.pt"
    args = ["export", "pvt_tiny", "--weights", "random", "--img-size", "64x96", "--dtype", "bf16"]
    args += ["--preset", "hf", "--num-classes", 2, "--labels", labels, "-o", path]
    assert pvt(*args).exit_code == 0
    metadata = read_metadata(path)
    assert metadata["labels"] == ["cat", "dog"]
    assert (metadata["img_size"], metadata["dtype"]) == ([64, 96], "bfloat16")
    weights = torch.jit.load(path).state_dict()
    path.unlink()
    program, *again = shlex.split(metadata["command"])
    assert program == "pvt"
    assert pvt(*again).exit_code == 0
    assert read_metadata(path) == metadata
    made_again = torch.jit.load(path).state_dict()
    assert made_again.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(made_again[name], weight)


def test_export_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "weights.pth"
    torch.save(create_model("pvt_tiny").state_dict(), checkpoint)
    path = tmp_path / "a.pt"
    assert pvt("export", "pvt_tiny", "--weights", checkpoint, "-o", path).exit_code == 0
    weights = read_metadata(path)["weights"]
    assert weights["source"] == "file"
    assert weights["seed"] is None
    assert len(weights["sha256"]) == 64
    path.unlink()
    code, line = failure(capsys, "export", "pvt_small", "--weights", checkpoint, "-o", path)
    assert code == 1
    assert "does not fit pvt_small, nothing was loaded: 140 missing" in line
    assert not path.exists()


def test_export_official_without_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PVT_CACHE", str(tmp_path / "cache"))
    nowhere = PUBLISHED["official/pvt_tiny"]._replace(url="http://127.0.0.1:1/pvt_tiny.pth")
    monkeypatch.setitem(PUBLISHED, "official/pvt_tiny", nowhere)
    code, line = failure(capsys, "export", "pvt_tiny", "-o", tmp_path / "a.pt")
    assert code == 1
    assert "could not download http://127.0.0.1:1/pvt_tiny.pth" in line
    assert f"put it at {tmp_path / 'cache' / 'pvt_tiny.pth'}" in line
    assert line.endswith("or try it with --weights random")


def test_predict_json(model_file: Path, photos: list[Path], tmp_path: Path) -> None:
    logits, inputs = tmp_path / "logits.npy", tmp_path / "input.bin"
    result = pvt("predict", model_file, *photos, "--topk", 3, "--format", "json",
                 "--logits", logits, "--dump-input", inputs)  # fmt: skip
    assert result.exit_code == 0
    assert result.stderr == ""
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == [str(path) for path in photos]

    network, metadata = load_torchscript(model_file)
    for i, (path, answer) in enumerate(zip(photos, answers, strict=True)):
        with torch.inference_mode():
            x = network.preprocess(load_image(path))
            expected = network(x[None])[0]
        assert np.array_equal(np.load(inputs)[i], x.numpy())
        assert np.array_equal(np.load(logits)[i], expected.numpy())
        order = expected.argsort(descending=True)[:3].tolist()
        assert [row["index"] for row in answer["topk"]] == order
        for row in answer["topk"]:
            assert set(row) == {"index", "label", "prob", "logit"}
            assert row["label"] == metadata["labels"][row["index"]]
            assert row["logit"] == expected[row["index"]].item()
            assert row["prob"] == pytest.approx(expected.softmax(0)[row["index"]].item())


def test_predict_text(model_file: Path, photos: list[Path]) -> None:
    lines = pvt("predict", model_file, photos[0]).stdout.splitlines()
    assert lines[0] == str(photos[0])
    assert len(lines) == 6
    rank, probability, logit, index, label = lines[1].split(maxsplit=4)
    assert rank == "1"
    assert 0 < float(probability) < 1
    assert float(logit) > 0
    assert read_metadata(model_file)["labels"][int(index)] == label


def test_predict_reports_and_skips_a_bad_image(model_file: Path, photos: list[Path]) -> None:
    bad = photos[0].with_name("bad.jpg")
    bad.touch()
    result = pvt("predict", model_file, bad, photos[0], "--format", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["image"] == str(photos[0])
    assert result.stderr.startswith(f"pvt: {bad}: cannot be read as an image")
    assert result.stderr.count("\n") == 1


def test_predict_without_a_readable_image(model_file: Path, tmp_path: Path) -> None:
    logits = tmp_path / "logits.npy"
    assert pvt("predict", model_file, tmp_path / "absent.jpg", "--logits", logits).exit_code == 1
    assert np.load(logits).shape == (0,)


@pytest.mark.parametrize("option", ["--logits", "--dump-input"])
def test_predict_opens_its_files_before_any_work(
    option: str, model_file: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing on stdout, so no image was classified.
    folder = photos[0].parent
    code, line = failure(capsys, "predict", model_file, photos[0], option, folder / "absent" / "a")
    assert (code, "No such file" in line) == (1, True)


def test_predict_keeps_no_tensors_that_nobody_asked_for(
    model_file: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Tensor]] = []
    counts = []

    def watch(path: Path) -> Tensor:
        counts.append(sum(reference() is not None for reference in alive))
        return load_image(path)

    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.metadata = load_torchscript(model_file)

        def preprocess(self, image: Tensor) -> Tensor:
            x: Tensor = self.network.preprocess(image)
            alive.append(weakref.ref(x))
            return x

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.network(x)
            alive.append(weakref.ref(y))
            return y

    watched = Watched()
    monkeypatch.setattr("pvt_ext.cli.load_image", watch)
    monkeypatch.setattr("pvt_ext.cli.load_exported", lambda path: (watched, watched.metadata))
    assert pvt("predict", model_file, *photos * 3).exit_code == 0
    assert len(alive) == 12
    assert max(counts) <= 2  # the input and the logits of the image before, at most


def test_predict_overwrites_nothing_it_needs(model_file: Path, photos: list[Path]) -> None:
    link, hard = photos[0].with_name("link"), photos[0].with_name("hard")
    link.symlink_to(model_file)
    hard.hardlink_to(photos[0])
    new = photos[0].with_name("new.npy")
    before = [path.read_bytes() for path in (model_file, *photos)]
    for options in (
        ["--logits", model_file], ["--dump-input", link], ["--logits", photos[1]],
        ["--dump-input", hard], ["--logits", new, "--dump-input", new],
    ):  # fmt: skip
        result = pvt("predict", model_file, *photos, *options)
        assert result.exit_code == 2
        assert "expected a file of its own" in " ".join(result.stderr.split())
        assert result.stdout == ""
    assert [path.read_bytes() for path in (model_file, *photos)] == before
    assert not new.exists()


def test_predict_with_other_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.pt"
    for text in ("{}", "[1, 2]"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/extra/pvt.json", text)
        code, line = failure(capsys, "predict", path, "a.jpg")
        assert code == 1
        assert line.startswith(f"{path}: not an exported model, or damaged (pvt.json: expected ")


def test_predict_with_labels_that_do_not_fit(
    model_file: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(model_file) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("extra/pvt.json"):
                metadata = json.loads(content)
                classes = metadata["num_classes"]
                metadata |= {"num_classes": 3, "labels": ["a"] * 3}
                content = json.dumps(metadata).encode()
            new.writestr(name, content)
    code, line = failure(capsys, "predict", path, photos[0])
    assert code == 1
    assert line == f"{path}: expected 3 scores per image (num_classes), got [{classes}]"


def test_export_refuses_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export = ["export", "pvt_tiny", "--weights", "random", "-o"]
    result = pvt(*export, "-")
    assert result.exit_code == 2
    assert "expected the name of a file, got - (stdout)" in result.stderr
    assert failure(capsys, *export, ".pt") == (
        1, "path: expected a name before the suffix, got .pt",
    )  # fmt: skip
    code, line = failure(capsys, *export, "\udcff.pt")
    assert code == 1
    assert line.startswith("path: expected text in UTF-8")
    assert list(tmp_path.iterdir()) == []


def test_failures_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "weights.pth"
    torch.save({"x": torch.zeros(1)}, checkpoint)
    assert failure(capsys, "predict", checkpoint, "a.jpg")[1].startswith(
        f"{checkpoint}: a checkpoint (weights only), not an exported model"
    )
    assert failure(capsys, "summary", "pvt_tiny", "--size", "16") == (
        1, "PVT: expected an image of at least 32 x 32, got 16 x 16",
    )  # fmt: skip
    with pytest.raises(ValueError, match="dtypes: expected some of fp32, bf16, int8, got 'fp8'"):
        bench("pvt_tiny", dtypes=["fp8"])
    with pytest.raises(ValueError, match="batch: expected at least 1 image, got 0"):
        bench("pvt_tiny", batch=0)
    code, line = failure(capsys, "export", "pvt_tiny", "--labels", tmp_path / "absent.txt")
    assert code == 1
    assert "No such file" in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["summary", "pvt_tin"], "unknown model 'pvt_tin'; there are pvt_tiny,"),
        (["summary", "pvt_tiny", "--size", "224x"], "got '224x'"),
        (["summary", "pvt_tiny", "--size", "0"], "got '0'"),
        (["export", "pvt_tiny", "--dtype", "fp8"], "'--dtype'"),  # the rest is typer's wording
        (["predict", "a.pt", "b.jpg", "--topk", "0"], "'--topk'"),
        (["bench", "pvt_tiny", "--dtype", "fp8"], "'--dtype'"),
        (["bench", "pvt_tiny", "--batch", "0"], "'--batch'"),
        (["fly"], "'fly'"),
    ],
)
def test_bad_arguments(args: list[str], message: str) -> None:
    result = pvt(*args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_as_a_program(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "pvt_ext.cli", "predict", str(tmp_path / "absent.pt"), "a.jpg"]
    result = subprocess.run(run, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == f"pvt: {tmp_path / 'absent.pt'}: no such file\n"


def test_without_the_extra() -> None:
    code = "import sys; sys.modules['typer'] = None; import pvt_ext.cli"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "pvt: typer is not installed; run: pip install typer rich\n"


def test_export_of_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onxx"
    result = pvt("export", "pvt_tiny", "--weights", "random", "-o", path)
    assert result.exit_code == 2
    assert "-o: expected the suffix .pt, .pt2, .onnx or --format, got" in result.stderr
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "form", "name"),
    [
        (["-o", "a.pt2"], "pt2", "a.pt2"),
        (["-o", "a.onnx"], "onnx", "a.onnx"),
        (["--format", "pt2"], "pt2", "pvt_tiny.pt2"),
        (["--format", "onnx"], "onnx", "pvt_tiny.onnx"),
        (["--format", "pt2", "-o", "a.model"], "pt2", "a.model"),
    ],
)
def test_export_format_follows_option_or_suffix(
    arguments: list[str],
    form: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = {}

    def record(kind: str) -> Callable[..., None]:
        def write(model: PVT, path: Path, *, command: str, **options: object) -> None:
            path.write_bytes(b"")
            commands[kind] = command
            assert ("dtype" in options) == (kind == "pt2")  # ONNX files are float32

        return write

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pvt_ext.cli.export_pt2", record("pt2"))
    monkeypatch.setattr("pvt_ext.cli.export_onnx", record("onnx"))
    result = pvt("export", "pvt_tiny", "--weights", "random", *arguments)
    assert result.exit_code == 0, result.stderr
    assert list(commands) == [form]
    assert commands[form].endswith(f"--format {form} -o {name}")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_onnx_file_is_float32() -> None:
    result = pvt("export", "pvt_tiny", "--dtype", "bf16", "-o", "a.onnx")
    assert result.exit_code == 2
    assert "expected fp32 for an ONNX file, got bf16" in result.stderr
