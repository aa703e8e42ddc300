"""The operators of a packed model: half a transformer block each, and the head, for inference.

They take weight matrices in panels (:mod:`pvt_ext.packing`), of the dtype of ``x`` or, beside a
float32 ``x``, of bfloat16, float16 or int8. What is multiplied by such a weight is rounded first:
to the 16 bits (bfloat16 only on processors whose instructions multiply that faster than floats),
or to integers from -127 to 127 with one scale for every 256 inputs of a token, found as it is
computed, so that there is nothing to calibrate. Attention itself runs in bfloat16 beside both.

Vectors (biases, norms) are float32 or of the dtype of ``x``. float32 tokens run in the library's
own CPU kernels, which accumulate, normalise and take the softmax in float32 and keep every
intermediate of a tile of tokens in the processor's caches; other dtypes and devices run in ATen, on
weights unpacked at every call. The weight of :func:`head` is not packed.

Results do not depend on the number of threads, and those of a batch are those of its images one by
one, bit for bit. There are no gradients. Names that end in ``_`` overwrite ``x``, which must be
contiguous, and return it.

:mod:`pvt_ext.inference` uses them; this module gives them types, documentation, shape functions for
tracing and floating-point operation counts, in the order of csrc/ops.cpp.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pvt_ext.packing import PANEL


def patch_embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    position: Tensor | None,
    kernel_size: int,
    stride: int,
    padding: int,
) -> Tensor:
    """Patches of an image or feature map as tokens: convolution, LayerNorm, positions.

    Args:
        x: ``[B, C_in, H, W]``; any strides, so tokens seen as a feature map are read in place.
        weight: convolution, packed ``[C, kernel_size * kernel_size * C_in]``
            (:func:`~pvt_ext.packing.pack_convolution`).
        bias, norm_weight, norm_bias: ``[C]``.
        eps: epsilon of the LayerNorm (1e-5 in the published models).
        position: ``[H' * W', C]``, added to the tokens of every image; None: nothing is.
        kernel_size, stride, padding: of the convolution, equal in both directions.

    Returns:
        ``[B, H' * W', C]`` with ``H' = (H + 2 * padding - kernel_size) // stride + 1``.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the message names the argument.

    Source: PVT v1, section 3.2; PVT v2, "Overlapping Patch Embedding".
    """
    return torch.ops.pvt.patch_embed(
        x, weight, bias, norm_weight, norm_bias, eps, position, kernel_size, stride, padding
    )


def reduce_kv(
    x: Tensor,
    H: int,
    W: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    sr_weight: Tensor | None,
    sr_bias: Tensor | None,
    sr_norm_weight: Tensor | None,
    sr_norm_bias: Tensor | None,
    sr_eps: float,
    kv_weight: Tensor,
    kv_bias: Tensor,
    sr_ratio: int,
) -> Tensor:
    """Keys and values of a block: ``kv(norm(x))``, on a grid shrunk by a strided convolution.

    Args:
        x: tokens ``[B, H * W, C]``; without reduction ``[B, N, C]``, and the grid plays no part.
        H, W: the token grid, each at least ``sr_ratio``.
        norm_weight, norm_bias, eps: the block's first LayerNorm, ``[C]``.
        sr_weight: convolution, packed ``[C, sr_ratio * sr_ratio * C]``
            (:func:`~pvt_ext.packing.pack_convolution`). None, like the next three: no reduction.
        sr_bias, sr_norm_weight, sr_norm_bias, sr_eps: ``[C]``, and the LayerNorm after it.
        kv_weight, kv_bias: packed ``[2 * C, C]`` and ``[2 * C]``.
        sr_ratio: kernel size and stride; 1 without reduction.

    Returns:
        keys then values, ``[B, kv_len, 2 * C]``.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the message names the argument.

    Source: PVT v1, section 3.3, equation (3) and the projections of equation (2).
    """
    return torch.ops.pvt.reduce_kv(
        x,
        H,
        W,
        norm_weight,
        norm_bias,
        eps,
        sr_weight,
        sr_bias,
        sr_norm_weight,
        sr_norm_bias,
        sr_eps,
        kv_weight,
        kv_bias,
        sr_ratio,
    )


def pool_kv(
    x: Tensor,
    H: int,
    W: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    pool_size: int,
    sr_weight: Tensor,
    sr_bias: Tensor,
    sr_norm_weight: Tensor,
    sr_norm_bias: Tensor,
    sr_eps: float,
    kv_weight: Tensor,
    kv_bias: Tensor,
) -> Tensor:
    """Keys and values of PVT v2's linear attention: ``kv(gelu(sr_norm(sr(pool(norm(x))))))``.

    Args:
        x: tokens ``[B, H * W, C]``.
        H, W: the token grid.
        norm_weight, norm_bias, eps: the block's first LayerNorm, ``[C]``.
        pool_size: side of the grid that tokens are averaged to, as
            :func:`torch.nn.functional.adaptive_avg_pool2d` does (7 in the published models).
        sr_weight, sr_bias: 1 x 1 convolution, packed ``[C, C]``, and ``[C]``.
        sr_norm_weight, sr_norm_bias, sr_eps: the LayerNorm after it, ``[C]``.
        kv_weight, kv_bias: packed ``[2 * C, C]`` and ``[2 * C]``.

    Returns:
        keys then values, ``[B, pool_size ** 2, 2 * C]``.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the message names the argument.

    Source: PVT v2, "Linear Spatial Reduction Attention".
    """
    return torch.ops.pvt.pool_kv(
        x,
        H,
        W,
        norm_weight,
        norm_bias,
        eps,
        pool_size,
        sr_weight,
        sr_bias,
        sr_norm_weight,
        sr_norm_bias,
        sr_eps,
        kv_weight,
        kv_bias,
    )


def attention_block_(
    x: Tensor,
    kv: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    q_weight: Tensor,
    q_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    num_heads: int,
    scale: float,
) -> Tensor:
    """``x + proj(attention(q(norm(x)), kv))``, in place.

    Args:
        x: tokens ``[B, N, C]``, contiguous; overwritten.
        kv: keys then values, ``[B, kv_len, 2 * C]``, from :func:`reduce_kv`; any strides.
        norm_weight, norm_bias, eps: the block's first LayerNorm, ``[C]``.
        q_weight, q_bias: packed ``[C, C]`` and ``[C]``.
        proj_weight, proj_bias: packed ``[C, C]`` and ``[C]``.
        num_heads: number of heads, a divisor of ``C``.
        scale: multiplier of the scores, usually ``head_dim ** -0.5``.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the message names the argument and
            ``x`` is as it was.

    Source: PVT v1, section 3.3, equations (1), (2) and (4).
    """
    torch.ops.pvt.attention_block_(
        x,
        kv,
        norm_weight,
        norm_bias,
        eps,
        q_weight,
        q_bias,
        proj_weight,
        proj_bias,
        num_heads,
        scale,
    )
    return x


def mlp_block_(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
) -> Tensor:
    """``x + fc2(gelu(fc1(norm(x))))``, in place, with the exact GELU.

    Args:
        x: tokens ``[B, N, C]``, contiguous; overwritten.
        norm_weight, norm_bias, eps: the block's second LayerNorm, ``[C]``.
        fc1_weight, fc1_bias: packed ``[hidden, C]`` and ``[hidden]``.
        fc2_weight, fc2_bias: packed ``[C, hidden]`` and ``[C]``.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the message names the argument and
            ``x`` is as it was.

    Source: PVT v1, section 3.1 (the feed-forward layer of an encoder).
    """
    torch.ops.pvt.mlp_block_(
        x, norm_weight, norm_bias, eps, fc1_weight, fc1_bias, fc2_weight, fc2_bias
    )
    return x


def conv_mlp_block_(
    x: Tensor,
    H: int,
    W: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    relu: bool,
    dwconv_weight: Tensor,
    dwconv_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
) -> Tensor:
    """``x + fc2(gelu(dwconv(fc1(norm(x)))))``, in place: the MLP of PVT v2.

    Between the two layers each hidden channel is mixed over 3 x 3 neighbouring tokens, with zeros
    around the grid.

    Args:
        x: tokens ``[B, H * W, C]``, contiguous; overwritten.
        H, W: the token grid.
        norm_weight, norm_bias, eps: the block's second LayerNorm, ``[C]``.
        fc1_weight, fc1_bias: packed ``[hidden, C]`` and ``[hidden]``.
        relu: a ReLU before the convolution, which the linear variant has.
        dwconv_weight: depthwise convolution, ``[3, 3, hidden]``: rows, columns, channels.
        dwconv_bias: ``[hidden]``.
        fc2_weight, fc2_bias: packed ``[C, hidden]`` and ``[C]``.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the message names the argument and
            ``x`` is as it was.

    Source: PVT v2, "Convolutional Feed-Forward".
    """
    torch.ops.pvt.conv_mlp_block_(
        x,
        H,
        W,
        norm_weight,
        norm_bias,
        eps,
        fc1_weight,
        fc1_bias,
        relu,
        dwconv_weight,
        dwconv_bias,
        fc2_weight,
        fc2_bias,
    )
    return x


def head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Scores of every class, ``x @ weight.T + bias``; in float32 on a CPU the same in any batch.

    Args:
        x: what the head sees of each image, ``[B, C]``.
        weight: ``[num_classes, C]``, of the dtype of ``x``, as in :class:`torch.nn.Linear`.
        bias: ``[num_classes]``.

    Returns:
        ``[B, num_classes]``.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the message names the argument.

    Source: PVT v1, section 3.1 (the classifier after the last stage).
    """
    return torch.ops.pvt.head(x, weight, bias)


# ---- shapes ----


def _check_packed(op: str, name: str, weight: Tensor, rows: int, columns: int) -> None:
    torch._check(
        weight.dim() == 4 and weight.shape[2] == PANEL,
        lambda: f"{op}: expected {name} packed (pvt_ext.packing), got shape {list(weight.shape)}",
    )
    quantised = weight.dtype == torch.uint8
    group = 4 if quantised else weight.shape[3]
    expected = [-(-rows // PANEL), -(-columns // group) + int(quantised), PANEL, group]
    torch._check(
        list(weight.shape) == expected,
        lambda: (
            f"{op}: expected {name} packed from [{rows}, {columns}], which is {expected}, "
            f"got {list(weight.shape)}"
        ),
    )


def _check_tokens(op: str, x: Tensor) -> None:
    torch._check(x.dim() == 3, lambda: f"{op}: expected x [B, N, C], got {list(x.shape)}")


def _check_grid(op: str, x: Tensor, H: int, W: int) -> None:
    _check_tokens(op, x)
    torch._check(
        x.shape[1] == H * W,
        lambda: (
            f"{op}: expected x of shape [B, H * W, C] with H = {H}, W = {W}, got {list(x.shape)}"
        ),
    )


@torch.library.register_fake("pvt::patch_embed")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    position: Tensor | None,
    kernel_size: int,
    stride: int,
    padding: int,
) -> Tensor:
    torch._check(
        x.dim() == 4, lambda: f"patch_embed: expected x [B, C_in, H, W], got {list(x.shape)}"
    )
    B, C_in, H, W = x.shape
    C = bias.shape[0]
    _check_packed("patch_embed", "weight", weight, C, kernel_size * kernel_size * C_in)
    out_H, out_W = ((side + 2 * padding - kernel_size) // stride + 1 for side in (H, W))
    return x.new_empty((B, out_H * out_W, C))


@torch.library.register_fake("pvt::reduce_kv")
def _(
    x: Tensor,
    H: int,
    W: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    sr_weight: Tensor | None,
    sr_bias: Tensor | None,
    sr_norm_weight: Tensor | None,
    sr_norm_bias: Tensor | None,
    sr_eps: float,
    kv_weight: Tensor,
    kv_bias: Tensor,
    sr_ratio: int,
) -> Tensor:
    _check_tokens("reduce_kv", x)
    B, N, C = x.shape
    _check_packed("reduce_kv", "kv_weight", kv_weight, 2 * C, C)
    if sr_weight is None:
        return x.new_empty((B, N, 2 * C))
    torch._check(
        N == H * W, lambda: f"reduce_kv: expected x [B, {H} * {W}, C], got {list(x.shape)}"
    )
    _check_packed("reduce_kv", "sr_weight", sr_weight, C, sr_ratio * sr_ratio * C)
    return x.new_empty((B, (H // sr_ratio) * (W // sr_ratio), 2 * C))


@torch.library.register_fake("pvt::pool_kv")
def _(
    x: Tensor,
    H: int,
    W: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    pool_size: int,
    sr_weight: Tensor,
    sr_bias: Tensor,
    sr_norm_weight: Tensor,
    sr_norm_bias: Tensor,
    sr_eps: float,
    kv_weight: Tensor,
    kv_bias: Tensor,
) -> Tensor:
    _check_grid("pool_kv", x, H, W)
    C = x.shape[2]
    _check_packed("pool_kv", "sr_weight", sr_weight, C, C)
    _check_packed("pool_kv", "kv_weight", kv_weight, 2 * C, C)
    return x.new_empty(x.shape[0], pool_size * pool_size, 2 * C)


@torch.library.register_fake("pvt::attention_block_")
def _(
    x: Tensor,
    kv: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    q_weight: Tensor,
    q_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    num_heads: int,
    scale: float,
) -> None:
    _check_tokens("attention_block_", x)
    B, _, C = x.shape
    torch._check(
        kv.dim() == 3 and kv.shape[0] == B and kv.shape[2] == 2 * C,
        lambda: f"attention_block_: expected kv [{B}, kv_len, {2 * C}], got {list(kv.shape)}",
    )
    torch._check(
        num_heads >= 1 and C % num_heads == 0,
        lambda: f"attention_block_: expected num_heads to divide C = {C}, got {num_heads}",
    )
    _check_packed("attention_block_", "q_weight", q_weight, C, C)
    _check_packed("attention_block_", "proj_weight", proj_weight, C, C)


@torch.library.register_fake("pvt::mlp_block_")
def _(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
) -> None:
    _check_tokens("mlp_block_", x)
    C, hidden = x.shape[2], fc1_bias.shape[0]
    _check_packed("mlp_block_", "fc1_weight", fc1_weight, hidden, C)
    _check_packed("mlp_block_", "fc2_weight", fc2_weight, C, hidden)


@torch.library.register_fake("pvt::conv_mlp_block_")
def _(
    x: Tensor,
    H: int,
    W: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    relu: bool,
    dwconv_weight: Tensor,
    dwconv_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
) -> None:
    _check_grid("conv_mlp_block_", x, H, W)
    C, hidden = x.shape[2], fc1_bias.shape[0]
    _check_packed("conv_mlp_block_", "fc1_weight", fc1_weight, hidden, C)
    _check_packed("conv_mlp_block_", "fc2_weight", fc2_weight, C, hidden)


@torch.library.register_fake("pvt::head")
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    torch._check(
        x.dim() == 2 and weight.dim() == 2 and weight.shape[1] == x.shape[1],
        lambda: (
            "head: expected x [B, C] and weight [num_classes, C], "
            f"got {list(x.shape)} and {list(weight.shape)}"
        ),
    )
    return x.new_empty((x.shape[0], weight.shape[0]))


# ---- gradients: refused, rather than silently absent ----

_autograd_rules = torch.library.Library("pvt", "IMPL")


def _refuse_gradients(name: str) -> None:
    def rule(*args: Any) -> Any:
        wanted = any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
        if wanted and torch.is_grad_enabled():
            raise RuntimeError(
                f"pvt::{name} has no gradient: a packed model is for inference. Run it under "
                "torch.no_grad(), or use the model it was packed from"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.pvt, name)(*args)

    _autograd_rules.impl(name, rule, "Autograd")


for _name in (
    "patch_embed",
    "reduce_kv",
    "pool_kv",
    "attention_block_",
    "mlp_block_",
    "conv_mlp_block_",
    "head",
):
    _refuse_gradients(_name)


# ---- floating-point operations, two per multiply-accumulate ----


@register_flop_formula(torch.ops.pvt.patch_embed)
def _(x: list[int], weight: list[int], bias: list[int], *args: Any, out_shape: Any = None) -> int:
    C_in, kernel_size = x[1], args[-3]
    B, N, C = out_shape
    return 2 * B * N * C * kernel_size * kernel_size * C_in


@register_flop_formula(torch.ops.pvt.reduce_kv)
def _(x: list[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    C, sr_ratio = x[2], args[-1]
    B, kv_len, _ = out_shape
    reduction = 0 if args[5] is None else sr_ratio * sr_ratio
    return 2 * B * kv_len * C * C * (reduction + 2)


@register_flop_formula(torch.ops.pvt.pool_kv)
def _(x: list[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    B, kv_len, _ = out_shape
    return 2 * B * kv_len * x[2] * x[2] * 3


@register_flop_formula(torch.ops.pvt.attention_block_)
def _(x: list[int], kv: list[int], *args: Any, **kwargs: Any) -> int:
    B, N, C = x
    return 2 * B * N * C * 2 * (C + kv[1])  # q and projection; q k^T and the product with v


@register_flop_formula(torch.ops.pvt.mlp_block_)
def _(
    x: list[int],
    norm_weight: list[int],
    norm_bias: list[int],
    eps: float,
    fc1_weight: list[int],
    fc1_bias: list[int],
    *args: Any,
    **kwargs: Any,
) -> int:
    B, N, C = x
    return 2 * 2 * B * N * C * fc1_bias[0]


@register_flop_formula(torch.ops.pvt.conv_mlp_block_)
def _(
    x: list[int],
    H: int,
    W: int,
    norm_weight: list[int],
    norm_bias: list[int],
    eps: float,
    fc1_weight: list[int],
    fc1_bias: list[int],
    *args: Any,
    **kwargs: Any,
) -> int:
    B, N, C = x
    return 2 * B * N * fc1_bias[0] * (2 * C + 9)


@register_flop_formula(torch.ops.pvt.head)
def _(x: list[int], weight: list[int], *args: Any, **kwargs: Any) -> int:
    return 2 * x[0] * weight[0] * weight[1]
