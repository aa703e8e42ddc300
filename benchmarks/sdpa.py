"""Plain PyTorch as one would write it today: the model with ``scaled_dot_product_attention``."""

from torch import Tensor

from benchmarks.ops import sdpa
from pvt_ext import PVT
from pvt_ext.nn import Attention


class SdpaAttention(Attention):
    """The published block as one would write it today: no operator of this library."""

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        out = sdpa(self.q(x), self.kv(self._reduce(x, H, W)), self.num_heads, self.scale)
        return self.proj(out)


def with_sdpa(model: PVT) -> PVT:
    """``model``, an unfused one, with every attention replaced."""
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = SdpaAttention
    return model
