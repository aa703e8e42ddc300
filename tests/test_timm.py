"""PVT v2 beside timm's: the same weights, the same answers. Runs where timm is installed."""

import pytest
import torch
from models import lively, relative_error
from torch import Tensor

from pvt_ext.model import PVT, create_model
from pvt_ext.variants import list_models

timm = pytest.importorskip(
    "timm", reason="timm is not installed: agreement with its pvt_v2_* models was NOT tested"
)

TOLERANCE = 1e-5
SIZES = [(224, 224), (448, 320), (225, 227)]
V2 = [name for name in list_models() if name.startswith("pvt_v2_")]


def timm_name(name: str) -> str:
    """timm keeps the patch embedding of stage 1 before the stages, the others in them."""
    if name.startswith("stages.0.patch_embed."):
        return name.removeprefix("stages.0.")
    return name.replace(".patch_embed.", ".downsample.")


def timm_state(model: PVT) -> dict[str, Tensor]:
    return {timm_name(name): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("pvt_v2_b0", "pvt_v2_b2_li") else pytest.mark.slow)
        for name in V2
    ],
)
@pytest.mark.parametrize("use_fused", [True, False])
def test_logits_equal_timms(name: str, use_fused: bool) -> None:
    model = lively(name, fused=use_fused)
    peer = timm.create_model(name).eval()
    peer.load_state_dict(timm_state(model))
    for size in SIZES:
        x = torch.randn(2, 3, *size)
        with torch.inference_mode():
            assert relative_error(model(x), peer(x)) < TOLERANCE, size


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_v2_b2_li"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_features_equal_timms(name: str, size: tuple[int, int]) -> None:
    model = lively(name)
    peer = timm.create_model(name, features_only=True).eval()
    flat = {  # its feature wrapper names stages stages_0, stages_1, ...
        key.replace("stages.", "stages_", 1): tensor
        for key, tensor in timm_state(model).items()
        if not key.startswith("head.")
    }
    peer.load_state_dict(flat)
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        pairs = list(zip(model.features(x), peer(x), strict=True))
    for ours, theirs in pairs:
        assert relative_error(ours, theirs) < TOLERANCE
    assert [info["reduction"] for info in model.feature_info] == peer.feature_info.reduction()
    assert [info["num_chs"] for info in model.feature_info] == peer.feature_info.channels()


@pytest.mark.parametrize("name", V2)
def test_parameters_are_timms(name: str) -> None:
    with torch.device("meta"):
        ours = {key: tensor.shape for key, tensor in timm_state(create_model(name)).items()}
        theirs = timm.create_model(name).state_dict()
    assert ours == {key: tensor.shape for key, tensor in theirs.items()}
