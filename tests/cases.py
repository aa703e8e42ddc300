"""The shapes that operators are tested and measured on, and how close they have to come.

Real shapes are those of the published models; awkward ones have odd grids, a single key, more keys
than a block, channels that fill no vector.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@dataclass(frozen=True)
class AttentionCase:
    B: int
    N: int
    C: int
    num_heads: int
    kv_len: int
    real: bool = False

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, int, float]:
        q = torch.randn(self.B, self.N, self.C, dtype=dtype)
        kv = torch.randn(self.B, self.kv_len, 2 * self.C, dtype=dtype)
        return q, kv, self.num_heads, (self.C // self.num_heads) ** -0.5


@dataclass(frozen=True)
class ReductionCase:
    B: int
    H: int
    W: int
    C: int
    sr_ratio: int
    real: bool = False

    def inputs(
        self, dtype: torch.dtype
    ) -> tuple[Tensor, int, int, Tensor, Tensor, Tensor, Tensor, int, float]:
        C, R = self.C, self.sr_ratio
        x = torch.randn(self.B, self.H * self.W, C, dtype=dtype)
        weight = (torch.randn(C, C, R, R) * (C * R * R) ** -0.5).to(dtype)
        bias, norm_weight, norm_bias = (torch.randn(C, dtype=dtype) for _ in range(3))
        return x, self.H, self.W, weight, bias, norm_weight, norm_bias, R, 1e-5


ATTENTION = [
    # the four stages at 224 x 224
    AttentionCase(1, 3136, 64, 1, 49, real=True),
    AttentionCase(1, 784, 128, 2, 49, real=True),
    AttentionCase(1, 196, 320, 5, 49, real=True),
    AttentionCase(2, 50, 512, 8, 50, real=True),
    # stage 1 at 800 x 1280: 1000 keys
    AttentionCase(1, 2000, 64, 1, 1000, real=True),
    # awkward
    AttentionCase(2, 7, 24, 2, 1),
    AttentionCase(3, 1, 32, 1, 3),
    AttentionCase(1, 13, 30, 3, 50),
    AttentionCase(1, 100, 5, 5, 17),  # head_dim 1
    AttentionCase(2, 9, 160, 1, 130),  # head_dim beyond a panel
    AttentionCase(1, 11, 64, 2, 513),  # one key beyond a block
]

REDUCTION = [
    ReductionCase(1, 56, 56, 64, 8, real=True),
    ReductionCase(1, 28, 28, 128, 4, real=True),
    ReductionCase(2, 14, 14, 320, 2, real=True),
    # awkward
    ReductionCase(2, 9, 11, 24, 2),
    ReductionCase(1, 5, 5, 10, 5),
    ReductionCase(1, 17, 8, 7, 8),
    ReductionCase(3, 4, 3, 65, 3),
    ReductionCase(1, 6, 7, 3, 1),
]

# By operator; the tests of test_ops.py run every operator that has cases here.
CASES: dict[str, list[AttentionCase] | list[ReductionCase]] = {
    "sra_attention": ATTENTION,
    "spatial_reduction": REDUCTION,
}


def assert_as_exact(ours: Tensor, torchs: Tensor, truth: Tensor) -> None:
    """Our error against float64 is at most twice PyTorch's own at the same dtype.

    ``torchs`` is the reference at the dtype of ``ours``, ``truth`` the reference in float64. One
    unit in the last place of the largest value is granted where PyTorch happens to be exact, and
    in float64, where the truth itself is rounded, 64 of them.
    """
    assert ours.shape == truth.shape
    assert ours.dtype == torchs.dtype
    if truth.numel() == 0:
        return
    error = (ours.double() - truth).abs().max().item()
    torch_error = (torchs.double() - truth).abs().max().item()
    ulps = 64 if ours.dtype == torch.float64 else 1
    grant = ulps * torch.finfo(ours.dtype).eps * truth.abs().max().item()
    assert error <= 2 * torch_error + grant, (error, torch_error)
