"""ONNX files, run by ONNX Runtime: as close to float64 as PyTorch itself, at any size."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import MINI, MINI_V2, MINI_V2_LI, mini
from torch import Tensor

from pvt_ext.model import PVT
from pvt_ext.onnx import export_onnx

onnx = pytest.importorskip("onnx", reason="NOT TESTED: pip install onnx onnxscript onnxruntime")
pytest.importorskip("onnxscript", reason="NOT TESTED: pip install onnx onnxscript onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="NOT TESTED: pip install onnxruntime")


def run(path: Path, x: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"image": x.numpy()})[0])


def assert_as_exact_as_torch(path: Path, model: PVT, x: Tensor) -> None:
    """Twice PyTorch's own error against float64, or two roundings where it happens to be lucky."""
    with torch.inference_mode():
        truth = model.double()(x.double())
        torch_error = (model.float()(x) - truth).abs().max().item()
    error = (run(path, x) - truth).abs().max().item()
    rounding = 2 * torch.finfo(torch.float32).eps * truth.abs().max().item()
    assert error <= 2 * torch_error + rounding, (error, torch_error)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "pvt_mini.onnx"
    model = mini(num_classes=1000, variant="pvt_mini")
    export_onnx(model, path, weights_source="random", seed=0, command="made by a test")
    assert model.fused  # the model is as it was
    return path


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (33, 65), (96, 72), (45, 200), (224, 224)])
def test_any_batch_and_size(file: Path, size: tuple[int, int]) -> None:
    model = mini(num_classes=1000, fused=False)
    for batch in (1, 3):
        x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
        assert_as_exact_as_torch(file, model, x)


@pytest.mark.slow
@pytest.mark.parametrize("specs", [MINI_V2, MINI_V2_LI], ids=["v2", "v2-li"])
def test_other_versions(specs: Any, tmp_path: Path) -> None:
    metadata = export_onnx(mini(specs), tmp_path / "a.onnx")
    fixed = metadata["onnx"]["fixed_size"]
    assert fixed == ([64, 64] if specs is MINI_V2_LI else None)
    sizes = [(64, 64)] if fixed else [(64, 64), (29, 29), (41, 90)]
    for size in sizes:
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        assert_as_exact_as_torch(tmp_path / "a.onnx", mini(specs, fused=False), x)
    if fixed:  # ONNX Runtime itself refuses others
        with pytest.raises(Exception, match="Got: 96 Expected: 64"):
            run(tmp_path / "a.onnx", torch.zeros(1, 3, 64, 96))


def test_metadata(file: Path) -> None:
    onnx.checker.check_model(file)
    proto = onnx.load(file)
    assert {operator.domain for operator in proto.opset_import} <= {""}  # nobody's but ONNX's
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    metadata = json.loads(properties["pvt.json"])
    assert metadata["weights"] == {"source": "random", "seed": 0, "sha256": None}
    assert metadata["ops"]["required"] == []
    assert metadata["onnx"]["min_size"] == [32, 32]
    assert properties["variant"] == "pvt_mini"
    assert properties["labels"].splitlines() == metadata["labels"]
    assert len(metadata["labels"]) == 1000
    assert json.loads(properties["preprocess.crop"]) == [64, 64]
    assert np.allclose(json.loads(properties["preprocess.mean"]), metadata["preprocess"]["mean"])
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 3, "height", "width"]
    assert math.prod(proto.graph.initializer[0].dims) > 0  # weights are in the file
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "pil"}, "preset: expected one of paper, timm, hf, got 'pil'"),
        ({"labels": ["cat"]}, "labels: expected 10 names, got 1"),
        ({"model": mini(in_chans=1)}, "expected in_chans 3"),
    ],
)
def test_refused_export_writes_nothing(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(**{"model": mini(), "path": tmp_path / "a.onnx", **options})
    assert not any(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pvt_ext.onnx.find_spec", lambda name: None if name == "onnxscript" else name
    )
    with pytest.raises(RuntimeError) as caught:
        export_onnx(mini(MINI), tmp_path / "a.onnx")
    expected = "onnx: onnxscript not installed; run: pip install onnx onnxscript"
    assert str(caught.value) == expected
