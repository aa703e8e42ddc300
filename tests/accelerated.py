"""Models to accelerate, and how to tell what ran in them."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from models import MINI, MINI_V2, MINI_V2_LI, enliven, mini
from published_modules import PyramidVisionTransformer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

TOLERANCE = 1e-5
SIZES = [(64, 64), (96, 64), (33, 65), (130, 51)]
WIDTHS, HEADS, DEPTHS = (32, 64, 160, 256), (1, 2, 5, 8), (1, 2, 1, 1)
OPERATORS = ("pvt::attention_block_", "pvt::mlp_block_", "pvt::conv_mlp_block_")


# ---- models ----


def authors(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = PyramidVisionTransformer(**options)  # type: ignore[arg-type]
    enliven(model)
    return model.eval()


def timms(linear: bool = False) -> nn.Module:
    pvt_v2 = pytest.importorskip(
        "timm.models.pvt_v2", reason="timm is not installed: its PVT v2 was NOT accelerated"
    )
    model = pvt_v2.PyramidVisionTransformerV2(
        depths=DEPTHS, embed_dims=WIDTHS, num_heads=HEADS, linear=linear, num_classes=10
    )
    enliven(model)
    return model.eval()


def transformers(name: str, kind: str, **options: object) -> nn.Module:
    library = pytest.importorskip(
        "transformers", reason="transformers is not installed: its models were NOT accelerated"
    )
    sizes = {"hidden_sizes": WIDTHS, "num_attention_heads": HEADS, "depths": DEPTHS}
    if name == "Pvt":
        sizes["image_size"] = 64
    options = {
        key: list(value) if isinstance(value, tuple) else value for key, value in sizes.items()
    } | options
    if name == "GLPN":
        options["decoder_hidden_size"] = 32
    model = getattr(library, name + kind)(getattr(library, name + "Config")(**options))
    enliven(model)
    return model.eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "authors-v1": partial(authors, version=1),
    "authors-v2": authors,
    "authors-linear": partial(authors, linear=True),
    "authors-no-bias": partial(authors, qkv_bias=False, drop_path=0.0),
    "pvt_ext-v1": partial(mini, MINI),
    "pvt_ext-v2": partial(mini, MINI_V2),
    "pvt_ext-linear-plain": partial(mini, MINI_V2_LI, fused=False),
    "timm": timms,
    "timm-linear": partial(timms, linear=True),
    "transformers-v1": partial(transformers, "Pvt", "ForImageClassification"),
    "transformers-v1-no-bias": partial(
        transformers, "Pvt", "ForImageClassification", qkv_bias=False, layer_norm_eps=1e-3
    ),
    "transformers-v2": partial(transformers, "PvtV2", "ForImageClassification"),
    "transformers-v2-linear": partial(
        transformers, "PvtV2", "ForImageClassification", linear_attention=True, drop_path_rate=0.1
    ),
    "transformers-segformer": partial(transformers, "Segformer", "ForImageClassification"),
    "transformers-segmentation": partial(transformers, "Segformer", "ForSemanticSegmentation"),
    "transformers-glpn": partial(transformers, "GLPN", "ForDepthEstimation"),
}


def answer(model: nn.Module, x: Tensor, **options: object) -> Tensor:
    out = model(x, **options)
    return out if isinstance(out, Tensor) else out[0]


def image(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


# ---- what ran ----


class Operators(TorchDispatchMode):
    """Counts the operators of a packed block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func.name() in OPERATORS
        return func(*args, **(kwargs or {}))


def blocks_run(call: Callable[[], object]) -> float:
    """How many blocks ran as operators in ``call()``."""
    with Operators() as operators:
        call()
    return operators.count / 2
