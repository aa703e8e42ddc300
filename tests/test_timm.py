"""PVT v2 beside timm's: the same weights, the same answers. Runs where timm is installed."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from models import enliven, lively, relative_error, same_weights

from pvt_ext import create_backbone, load_weights, save_weights
from pvt_ext.formats import to_timm
from pvt_ext.model import create_model
from pvt_ext.variants import list_models

timm = pytest.importorskip(
    "timm", reason="timm is not installed: agreement with its pvt_v2_* models was NOT tested"
)

TOLERANCE = 1e-5
SIZES = [(224, 224), (448, 320), (225, 227)]
V2 = [name for name in list_models() if name.startswith("pvt_v2_")]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("pvt_v2_b0", "pvt_v2_b2_li") else pytest.mark.slow)
        for name in V2
    ],
)
@pytest.mark.parametrize("use_fused", [True, False])
def test_logits_equal_timms(name: str, use_fused: bool) -> None:
    peer = timm.create_model(name).eval()
    enliven(peer)
    model = create_model(name, fused=use_fused).eval()
    assert load_weights(model, peer.state_dict()).format == "timm"
    for size in SIZES:
        x = torch.randn(2, 3, *size)
        with torch.inference_mode():
            assert relative_error(model(x), peer(x)) < TOLERANCE, size


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_v2_b2_li"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_features_equal_timms(name: str, size: tuple[int, int]) -> None:
    out_indices = (1, 3)
    peer = timm.create_model(name, features_only=True, out_indices=out_indices).eval()
    enliven(peer)
    model = create_backbone(name, out_indices=out_indices).eval()
    assert load_weights(model, peer.state_dict()).format == "timm"
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        pairs = list(zip(model(x), peer(x), strict=True))
    for ours, theirs in pairs:
        assert relative_error(ours, theirs) < TOLERANCE
    assert [info["reduction"] for info in model.feature_info] == peer.feature_info.reduction()
    assert [info["num_chs"] for info in model.feature_info] == peer.feature_info.channels()


@pytest.mark.parametrize("name", V2)
def test_parameters_are_timms(name: str) -> None:
    with torch.device("meta"):
        ours = to_timm(create_model(name).state_dict())
        theirs = timm.create_model(name).state_dict()
    assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in theirs.items()}


def test_timm_reads_what_is_written_for_it(tmp_path: Path) -> None:
    model = lively("pvt_v2_b0")
    path = tmp_path / "for_timm.safetensors"
    save_weights(model, path, format="timm")
    peer = timm.create_model("pvt_v2_b0", checkpoint_path=str(path)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert relative_error(model(x), peer(x)) < TOLERANCE
    # And what timm writes is read back.
    safetensors.torch.save_file(peer.state_dict(), tmp_path / "from_timm.safetensors")
    again = create_model("pvt_v2_b0")
    load_weights(again, tmp_path / "from_timm.safetensors")
    assert same_weights(again, model)
