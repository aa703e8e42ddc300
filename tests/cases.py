"""The shapes that operators are tested and measured on, and how close they have to come.

Real shapes are those of the published models; awkward ones have odd grids, a single key, more keys
than a block, channels that fill no vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvt_ext.packing import pack_weight, unpack_weight

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

# dtypes of the tokens and of the packed weights of an operator: those that the CPU kernels take,
# and all
PACKED = [(torch.float32, dtype) for dtype in (torch.float32, torch.bfloat16, torch.int8)]
PACKED_DTYPES = PACKED + [(dtype, dtype) for dtype in DTYPES[1:]]


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


def huge_scores(B: int, N: int, C: int, kv_len: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Queries and keys [B, N, C], [B, kv_len, C] for one head: the first key's scores are the
    greatest, the last one's the least, and the others clearly between them."""
    size = min(133120.0, torch.finfo(dtype).max / 2)
    q = (size * (1 + torch.rand(B, N, 1)) / 2).expand(B, N, C).to(dtype).contiguous()
    factors = torch.linspace(0.9, 0.1, kv_len)
    factors[0], factors[-1] = 1, 0.05
    return q, (size * factors)[None, :, None].expand(B, kv_len, C).to(dtype).contiguous()


@dataclass(frozen=True)
class ReductionCase:
    B: int
    H: int
    W: int
    C: int
    sr_ratio: int
    real: bool = False
    eps: float = 1e-5

    def inputs(
        self, dtype: torch.dtype
    ) -> tuple[Tensor, int, int, Tensor, Tensor, Tensor, Tensor, int, float]:
        C, R = self.C, self.sr_ratio
        x = torch.randn(self.B, self.H * self.W, C, dtype=dtype)
        weight = (torch.randn(C, C, R, R) * (C * R * R) ** -0.5).to(dtype)
        bias, norm_weight, norm_bias = (torch.randn(C, dtype=dtype) for _ in range(3))
        return x, self.H, self.W, weight, bias, norm_weight, norm_bias, R, self.eps


def well_conditioned(C: int) -> float:
    """An epsilon for random cases: of few channels, a LayerNorm with the published one divides
    rounding errors by a difference that may be as small."""
    return 1e-5 if C >= 8 else 1.0


@dataclass(frozen=True)
class DepthwiseCase:
    B: int
    H: int
    W: int
    C: int
    relu: bool = False
    real: bool = False

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, int, int, Tensor, Tensor, bool]:
        x = torch.randn(self.B, self.H * self.W, self.C, dtype=dtype)
        weight = (torch.randn(self.C, 1, 3, 3) / 3).to(dtype)
        (bias,) = vectors(dtype, self.C)
        return x, self.H, self.W, weight, bias, self.relu


def vectors(dtype: torch.dtype, *sizes: int) -> list[Tensor]:
    return [torch.randn(size).to(dtype) for size in sizes]


def packed(dtype: torch.dtype, rows: int, columns: int) -> Tensor:
    return pack_weight(torch.randn(rows, columns) * columns**-0.5, dtype)


@dataclass(frozen=True)
class PatchCase:
    B: int
    C_in: int
    H: int
    W: int
    C: int
    kernel_size: int
    stride: int
    padding: int = 0
    position: bool = True
    tokens: bool = False  # the input is a view of tokens, as between stages
    eps: float = 1e-5

    def inputs(
        self, dtype: torch.dtype = torch.float32, weight: torch.dtype = torch.float32
    ) -> tuple[Any, ...]:
        K = self.kernel_size
        shape = (self.B, self.C_in, self.H, self.W)
        x = torch.randn(shape, dtype=dtype)
        if self.tokens:
            x = x.to(memory_format=torch.channels_last)
        out_H, out_W = ((n + 2 * self.padding - K) // self.stride + 1 for n in (self.H, self.W))
        position = torch.randn(out_H * out_W, self.C).to(dtype) if self.position else None
        matrix = packed(weight, self.C, K * K * self.C_in)
        bias, norm_weight, norm_bias = vectors(dtype, self.C, self.C, self.C)
        rest = (position, K, self.stride, self.padding)
        return x, matrix, bias, norm_weight, norm_bias, self.eps, *rest


@dataclass(frozen=True)
class KvCase:
    B: int
    H: int
    W: int
    C: int
    sr_ratio: int  # 0: no reduction at all
    eps: float = 1e-6
    sr_eps: float = 1e-5

    def inputs(
        self, dtype: torch.dtype = torch.float32, weight: torch.dtype = torch.float32
    ) -> tuple[Any, ...]:
        C, R = self.C, self.sr_ratio
        x = torch.randn(self.B, self.H * self.W, C, dtype=dtype)
        norm = (*vectors(dtype, C, C), self.eps)
        reduction = (packed(weight, C, R * R * C), *vectors(dtype, C, C, C)) if R else 4 * (None,)
        kv = (packed(weight, 2 * C, C), *vectors(dtype, 2 * C))
        return x, self.H, self.W, *norm, *reduction, self.sr_eps, *kv, max(R, 1)


@dataclass(frozen=True)
class PoolCase:
    B: int
    H: int
    W: int
    C: int
    pool_size: int
    eps: float = 1e-6
    sr_eps: float = 1e-5

    def inputs(
        self, dtype: torch.dtype = torch.float32, weight: torch.dtype = torch.float32
    ) -> tuple[Any, ...]:
        C = self.C
        x = torch.randn(self.B, self.H * self.W, C, dtype=dtype)
        norm = (*vectors(dtype, C, C), self.eps)
        reduction = (packed(weight, C, C), *vectors(dtype, C, C, C), self.sr_eps)
        kv = (packed(weight, 2 * C, C), *vectors(dtype, 2 * C))
        return x, self.H, self.W, *norm, self.pool_size, *reduction, *kv


@dataclass(frozen=True)
class AttentionBlockCase:
    B: int
    N: int
    C: int
    num_heads: int
    kv_len: int
    eps: float = 1e-6

    def inputs(
        self, dtype: torch.dtype = torch.float32, weight: torch.dtype = torch.float32
    ) -> tuple[Any, ...]:
        C = self.C
        x = torch.randn(self.B, self.N, C, dtype=dtype)
        kv = torch.randn(self.B, self.kv_len, 2 * C, dtype=dtype)
        layers = [(packed(weight, C, C), *vectors(dtype, C)) for _ in range(2)]
        scale = (C // self.num_heads) ** -0.5
        return x, kv, *vectors(dtype, C, C), self.eps, *layers[0], *layers[1], self.num_heads, scale


@dataclass(frozen=True)
class MlpCase:
    B: int
    N: int
    C: int
    hidden: int
    real: bool = False

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        x = torch.randn(self.B, self.N, self.C, dtype=dtype)
        fc1 = (torch.randn(self.hidden, self.C) * self.C**-0.5).to(dtype)
        fc2 = (torch.randn(self.C, self.hidden) * self.hidden**-0.5).to(dtype)
        fc1_bias, fc2_bias = vectors(dtype, self.hidden, self.C)
        return x, fc1, fc1_bias, fc2, fc2_bias


@dataclass(frozen=True)
class MlpBlockCase:
    B: int
    N: int
    C: int
    hidden: int
    eps: float = 1e-6

    def inputs(
        self, dtype: torch.dtype = torch.float32, weight: torch.dtype = torch.float32
    ) -> tuple[Any, ...]:
        C, hidden = self.C, self.hidden
        x = torch.randn(self.B, self.N, C, dtype=dtype)
        fc1 = (packed(weight, hidden, C), *vectors(dtype, hidden))
        fc2 = (packed(weight, C, hidden), *vectors(dtype, C))
        return x, *vectors(dtype, C, C), self.eps, *fc1, *fc2


@dataclass(frozen=True)
class ConvMlpCase:
    B: int
    H: int
    W: int
    C: int
    hidden: int
    relu: bool = False
    eps: float = 1e-6

    def inputs(
        self, dtype: torch.dtype = torch.float32, weight: torch.dtype = torch.float32
    ) -> tuple[Any, ...]:
        mlp = MlpBlockCase(self.B, self.H * self.W, self.C, self.hidden, self.eps)
        x, *before, fc2_weight, fc2_bias = mlp.inputs(dtype, weight)
        taps = (torch.randn(3, 3, self.hidden) / 3).to(dtype)
        conv = (self.relu, taps, *vectors(dtype, self.hidden))
        return x, self.H, self.W, *before, *conv, fc2_weight, fc2_bias


@dataclass(frozen=True)
class HeadCase:
    B: int
    C: int
    num_classes: int

    def inputs(
        self, dtype: torch.dtype = torch.float32, weight: torch.dtype = torch.float32
    ) -> tuple[Any, ...]:
        """``weight`` is of no account: the head's has the dtype of the tokens in every model."""
        matrix = (torch.randn(self.num_classes, self.C) * self.C**-0.5).to(dtype)
        return torch.randn(self.B, self.C, dtype=dtype), matrix, *vectors(dtype, self.num_classes)


# The operators of a packed model. Few rows and many, so that work is divided by rows and by
# columns; sizes beside a panel, a tile, a block of sums.
BLOCK_CASES: dict[str, list[Any]] = {
    "patch_embed": [
        PatchCase(1, 3, 224, 224, 64, 4, 4),
        PatchCase(2, 64, 20, 28, 128, 2, 2, tokens=True),
        PatchCase(1, 320, 14, 14, 512, 2, 2, tokens=True),
        PatchCase(1, 3, 61, 47, 32, 7, 4, 3, position=False),
        PatchCase(2, 32, 9, 10, 70, 3, 2, 1, position=False, tokens=True),
        PatchCase(2, 5, 9, 7, 3, 2, 3),
        PatchCase(1, 131, 6, 6, 17, 3, 1, 2),
    ],
    "reduce_kv": [
        KvCase(1, 56, 56, 64, 8),
        KvCase(3, 28, 28, 128, 4),
        KvCase(1, 14, 14, 320, 2),
        KvCase(2, 7, 7, 512, 0),
        KvCase(2, 9, 11, 24, 2),
        KvCase(1, 17, 8, 7, 8),
        KvCase(9, 4, 5, 66, 0),
        KvCase(11, 20, 20, 320, 0),  # more images than share working memory
        KvCase(1, 5, 3, 131, 3),
    ],
    "pool_kv": [
        PoolCase(1, 56, 56, 64, 7),
        PoolCase(2, 14, 14, 320, 7),
        PoolCase(1, 7, 7, 512, 7),
        PoolCase(2, 25, 40, 24, 7),  # windows that share rows and columns
        PoolCase(3, 3, 2, 7, 7),  # windows smaller than a token
        PoolCase(1, 9, 1, 131, 4),
    ],
    "attention_block_": [
        AttentionBlockCase(1, 784, 64, 1, 49),
        AttentionBlockCase(2, 784, 128, 2, 49),
        AttentionBlockCase(2, 500, 70, 5, 3),
        AttentionBlockCase(21, 160, 64, 2, 400),  # more images than share working memory
        AttentionBlockCase(2, 196, 320, 5, 49),
        AttentionBlockCase(1, 50, 512, 8, 50),
        AttentionBlockCase(1, 300, 64, 1, 1000),
        AttentionBlockCase(3, 100, 160, 5, 20),
        AttentionBlockCase(2, 7, 30, 3, 1),
        AttentionBlockCase(5, 33, 70, 2, 17),
    ],
    "mlp_block_": [
        MlpBlockCase(1, 784, 64, 512),
        MlpBlockCase(2, 196, 320, 1280),
        MlpBlockCase(1, 50, 512, 2048),
        MlpBlockCase(1, 33, 70, 300),
        MlpBlockCase(3, 101, 24, 95),
        MlpBlockCase(2, 1, 7, 5),
    ],
    "conv_mlp_block_": [
        ConvMlpCase(1, 56, 56, 64, 512),
        ConvMlpCase(3, 28, 28, 128, 1024),
        ConvMlpCase(3, 14, 14, 320, 1280, relu=True),
        ConvMlpCase(1, 7, 7, 512, 2048),
        ConvMlpCase(1, 3, 150, 24, 300),  # rows longer than a step
        ConvMlpCase(2, 17, 19, 70, 95, relu=True),
        ConvMlpCase(2, 300, 1, 7, 17),
        ConvMlpCase(3, 1, 1, 33, 70),
        ConvMlpCase(5, 2, 2, 20, 131),
    ],
    "head": [
        HeadCase(1, 512, 1000),
        HeadCase(8, 512, 1000),
        HeadCase(5, 256, 10),
        HeadCase(2, 70, 33),
        HeadCase(3, 3, 1),
    ],
}

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
    ReductionCase(1, 6, 7, 3, 1, eps=well_conditioned(3)),
]

MLP = [
    MlpCase(1, 784, 64, 512, real=True),
    MlpCase(2, 196, 320, 1280, real=True),
    MlpCase(1, 50, 512, 2048, real=True),
    # awkward
    MlpCase(2, 700, 24, 95),  # more rows than a chunk of the gradient's
    MlpCase(3, 11, 7, 5),
    MlpCase(1, 1, 33, 130),
    MlpCase(2, 5, 1, 1),
]

DEPTHWISE = [
    DepthwiseCase(1, 56, 56, 256, real=True),
    DepthwiseCase(2, 14, 14, 1280, real=True),
    DepthwiseCase(2, 7, 7, 256, relu=True, real=True),
    # awkward
    DepthwiseCase(3, 9, 11, 70),
    DepthwiseCase(2, 1, 5, 7, relu=True),
    DepthwiseCase(1, 6, 1, 33),
    DepthwiseCase(2, 1, 1, 9),
]

# By operator; the tests of test_ops.py run every operator that has cases here.
CASES: dict[str, Sequence[AttentionCase | ReductionCase | MlpCase | DepthwiseCase]] = {
    "sra_attention": ATTENTION,
    "spatial_reduction": REDUCTION,
    "mlp": MLP,
    "dwconv_gelu": DEPTHWISE,
}


def assert_as_exact(
    op: Callable[..., Tensor], formula: Callable[..., Tensor], *draws: Sequence[Any]
) -> None:
    """The error of ``op`` against float64 is at most twice PyTorch's own at the same dtype.

    PyTorch's is that of ``formula``, the reference; in float64, with weights as they are rounded
    but nothing else, it is the truth. Errors are root mean squares over all values of all draws.
    The largest single error is a matter of luck (one score that is rounded badly), so of it eight
    times PyTorch's are allowed: it finds a value that is wrong among many that are right. Where
    PyTorch happens to be exact, what rounding the result takes is granted, in float64, where the
    truth itself is rounded, 64 times that.
    """
    results = []
    for inputs in draws:
        (torchs,) = finite(lambda inputs=inputs: (formula(*inputs),))
        results.append((op(*inputs), torchs, formula(*(in_double(x) for x in inputs))))
    assert_errors(results)


def finite(calculate: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What PyTorch calculates, again without oneDNN if that gave NaN.

    On AMX its convolution of 3 or 5 bfloat16 channels multiplies what lies beyond them by zero,
    which is NaN if memory happens to hold one there (seen with torch 2.13).
    """
    results = calculate()
    if all(torch.isfinite(x).all() for x in results):
        return results
    with torch.backends.mkldnn.flags(enabled=False):
        return calculate()


def assert_gradients_as_exact(
    op: Callable[..., Tensor], formula: Callable[..., Tensor], *draws: Sequence[Any]
) -> None:
    """The same of the gradients of ``op``, one tensor of ``draws`` after another."""
    results: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    for inputs in draws:
        ours = gradients(op, inputs)
        torchs = finite(lambda inputs=inputs: gradients(formula, inputs))
        truths = gradients(formula, [in_double(x) for x in inputs])
        results.append(list(zip(ours, torchs, truths, strict=True)))
    for of_one_input in zip(*results, strict=True):
        assert_errors(of_one_input)


def gradients(function: Callable[..., Tensor], inputs: Sequence[Any]) -> tuple[Tensor, ...]:
    """Gradients of all tensors among ``inputs``, for the same random gradient at every call."""
    inputs = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in inputs]
    out = function(*inputs)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randint(-16, 17, out.shape, generator=generator) / 8  # exact in every dtype
    wanted = [x for x in inputs if isinstance(x, Tensor)]
    return torch.autograd.grad(out, wanted, grad.to(out.dtype))


def assert_errors(results: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    """See :func:`assert_as_exact`; a result is ours, PyTorch's and the truth."""
    for ours, torchs, truth in results:
        assert ours.shape == truth.shape
        assert ours.dtype == torchs.dtype
    error, torch_error, truth = (
        torch.cat([x.flatten() for x in columns])
        for columns in (
            [ours.double() - truth for ours, _, truth in results],
            [torchs.double() - truth for _, torchs, truth in results],
            [truth for _, _, truth in results],
        )
    )
    if truth.numel() == 0:
        return
    dtype = results[0][0].dtype
    ulps = 64 if dtype == torch.float64 else 1
    eps = ulps * torch.finfo(dtype).eps
    assert rms(error) <= 2 * rms(torch_error) + eps / 4 * rms(truth), (rms(error), rms(torch_error))
    largest, torch_largest = error.abs().max().item(), torch_error.abs().max().item()
    assert largest <= 8 * torch_largest + eps * truth.abs().max().item(), (largest, torch_largest)


def restrided(x: Any, layout: str) -> Any:
    """The same values in other strides; numbers as they are."""
    if not isinstance(x, Tensor):
        return x
    if layout == "sliced":  # as q or kv are when cut out of one larger projection
        return torch.cat([x, x], dim=-1)[..., : x.shape[-1]]
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "every second":
        return x.repeat_interleave(2, dim=-1)[..., ::2]
    return x[:1].expand_as(x) if x.dim() == 3 else x


def in_double(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    if x.dtype != torch.uint8:
        return x.double()
    rows, columns = x.shape[0] * x.shape[2], (x.shape[1] - 1) * x.shape[3]
    return pack_weight(unpack_weight(x, rows, columns).double())


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
