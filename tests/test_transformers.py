"""Beside Hugging Face transformers: its files, and its models with the same weights."""

import os
from pathlib import Path

import pytest
import torch
from foreign_names import hf_state
from models import enliven, relative_error
from torch import nn

from pvt_ext import create_backbone, load_weights
from pvt_ext.model import create_model
from pvt_ext.variants import VARIANTS

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: agreement with its models was NOT tested"
)

TOLERANCE = 2e-6
V1 = ("pvt_tiny", "pvt_small")
NAMES = [
    "pvt_tiny",
    "pvt_v2_b0",
    "pvt_v2_b2_li",
    pytest.param("pvt_small", marks=pytest.mark.slow),
    pytest.param("pvt_v2_b2", marks=pytest.mark.slow),
]


def hf_config(name: str) -> object:
    specs = VARIANTS[name]
    shape = {
        "hidden_sizes": [spec.embed_dim for spec in specs],
        "depths": [spec.depth for spec in specs],
        "num_attention_heads": [spec.num_heads for spec in specs],
        "mlp_ratios": [int(spec.mlp_ratio) for spec in specs],
        "num_labels": 1000,
    }
    if specs[0].overlap:
        return transformers.PvtV2Config(**shape, linear_attention=specs[0].linear)
    return transformers.PvtConfig(**shape)


def hf_model(name: str) -> nn.Module:
    """Hugging Face's classifier with weights that matter."""
    torch.manual_seed(0)
    config = hf_config(name)
    v2 = isinstance(config, transformers.PvtV2Config)
    cls = transformers.PvtV2ForImageClassification if v2 else transformers.PvtForImageClassification
    model = cls(config).eval()
    enliven(model)
    with torch.no_grad():  # positions and class token, which it calls otherwise
        for name, parameter in model.named_parameters():
            if "position_embeddings" in name or "cls_token" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model


def with_published_eps(peer: nn.Module) -> nn.Module:
    """Its norms have one eps, 1e-6; published are 1e-5 after patch embedding and reduction."""
    for name, module in peer.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
            if "patch_embedding" in name or ".attention" in name:
                module.eps = 1e-5
    return peer


@pytest.mark.parametrize("name", NAMES)
def test_logits_differ_by_its_epsilon_alone(name: str) -> None:
    peer, model = hf_model(name), create_model(name).eval()
    assert load_weights(model, peer.state_dict()).format == "hf"
    sizes = [(224, 224)] if name in V1 else [(224, 224), (96, 160)]  # its v1 takes no other
    with torch.inference_mode():
        pairs = [(x, peer(x).logits) for x in (torch.randn(1, 3, *size) for size in sizes)]
        with_published_eps(peer)
        for x, one_eps in pairs:
            ours = model(x)
            difference = relative_error(ours, peer(x).logits)
            assert difference < TOLERANCE
            assert difference < relative_error(ours, one_eps) / 2


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li"])
def test_names_and_shapes_are_theirs(name: str) -> None:
    with torch.device("meta"):
        ours = hf_state(create_model(name).state_dict())
    theirs = hf_model(name).state_dict()
    assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in theirs.items()}


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0"])
def test_what_save_pretrained_writes(name: str, tmp_path: Path) -> None:
    peer, model = hf_model(name), create_model(name)
    peer.save_pretrained(tmp_path)
    report = load_weights(model, tmp_path / "model.safetensors")
    assert (report.format, report.loaded) == ("hf", len(model.state_dict()))


def test_their_backbone() -> None:
    config = hf_config("pvt_v2_b0")
    config.out_features = ["stage2", "stage4"]
    torch.manual_seed(0)
    peer = with_published_eps(transformers.PvtV2Backbone(config).eval())
    enliven(peer)
    model = create_backbone("pvt_v2_b0", out_indices=(1, 3)).eval()
    assert load_weights(model, peer.state_dict()).format == "hf"
    x = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        for ours, theirs in zip(model(x), peer(x).feature_maps, strict=True):
            assert relative_error(ours, theirs) < TOLERANCE
