"""The model whose weights are in the package: they are there, and they are good."""

import json
from importlib.metadata import files
from pathlib import Path

import pytest
import safetensors.torch
import torch
from infer_program import PHOTOS
from models import same_weights
from typer.testing import CliRunner

import pvt_ext
from pvt_ext.checkpoint import recorded
from pvt_ext.cli import app
from pvt_ext.export import load_torchscript
from pvt_ext.published import PACKAGED
from pvt_ext.training.models import open_candidate

KNOWN = ("airplane", "cat", "horse")  # of the photos, those of CIFAR-10's classes


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise AssertionError("a download was attempted")

    monkeypatch.setattr("pvt_ext.weights.download", fail)


@pytest.mark.parametrize("name", PACKAGED)
def test_the_file_is_small_and_says_what_it_is(name: str) -> None:
    variant, size, preset, labels = recorded(PACKAGED[name])
    assert (variant, size, preset) == (name, (32, 32), "hf")
    assert labels is not None
    assert len(labels) == 10
    tensors = safetensors.torch.load_file(PACKAGED[name])
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert sum(tensor.numel() for tensor in tensors.values()) < 3e6


def test_pretrained_is_that_file() -> None:
    model = pvt_ext.create_model("pvt_nano", pretrained=True)
    expected = safetensors.torch.load_file(PACKAGED["pvt_nano"])
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name].float()) for name in state)

    other = pvt_ext.create_model("pvt_nano", pretrained=True, num_classes=3, in_chans=1)
    assert same_weights(other.stages[1], model.stages[1])
    assert other(torch.zeros(1, 1, 64, 48)).shape == (1, 3)
    backbone = pvt_ext.create_backbone("pvt_nano", pretrained=True)
    maps = backbone(torch.zeros(1, 3, 32, 32))
    assert [tuple(c.shape[1:]) for c in maps] == [(32, 16, 16), (96, 8, 8), (192, 4, 4)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_it_knows_what_is_on_the_photos(tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "pvt_nano.pt"
    runner = CliRunner()
    export = ["export", "pvt_nano", "--dtype", dtype, "-o", str(file)]
    assert runner.invoke(app, export, catch_exceptions=False).exit_code == 0
    _, metadata = load_torchscript(file)
    assert metadata["labels"] == recorded(PACKAGED["pvt_nano"]).labels
    assert (metadata["img_size"], metadata["preprocess"]["preset"]) == ([32, 32], "hf")
    assert metadata["weights"]["source"] == "official"
    photos = [str(PHOTOS / f"{name}.jpg") for name in KNOWN]
    result = runner.invoke(app, ["predict", str(file), *photos, "--format", "json"])
    best = [json.loads(line)["topk"][0] for line in result.stdout.splitlines()]
    assert tuple(answer["label"] for answer in best) == KNOWN
    assert min(answer["prob"] for answer in best) > 0.6


def test_it_can_be_evaluated_by_name() -> None:
    candidate = open_candidate("pvt_nano")
    assert candidate.classes == recorded(PACKAGED["pvt_nano"]).labels
    assert (candidate.preprocess.preset, candidate.preprocess.crop) == ("hf", (32, 32))


def test_an_installed_package_has_the_file() -> None:
    if not Path(pvt_ext.__file__).is_relative_to(Path(torch.__file__).parents[1]):
        pytest.skip("an editable install has the file anyway")
    assert any(path.name == PACKAGED["pvt_nano"].name for path in files("pvt_ext") or ())
