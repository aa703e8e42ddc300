"""The operators ``torch.ops.pvt.*`` with types and documentation, in the order of csrc/ops.cpp.

Beside each wrapper stands what only Python needs: the shape function for tracing and export
("fake"), the autocast rule, the count of floating-point operations; gradients are in
:mod:`pvt_ext.gradients`. Scripted code calls ``torch.ops.pvt.<name>`` itself.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pvt_ext import gradients as gradients  # registers them


def sra_attention(q: Tensor, kv: Tensor, num_heads: int, scale: float) -> Tensor:
    """Multi-head attention over spatially reduced keys and values, without a probability matrix.

    float32, bfloat16 and float16 run in the library's own CPU kernel, accumulating in float32, and
    the latter two, with heads of 32 or 64 and up to 256 keys, in its CUDA kernel. Everything else
    runs in ``scaled_dot_product_attention``.

    Args:
        q: queries, ``[B, N, C]``; any strides.
        kv: keys then values along the last dimension, ``[B, kv_len, 2 * C]``, dtype and device
            of ``q``; any strides, ``kv_len >= 1``.
        num_heads: number of heads; ``C`` is ``num_heads * head_dim``.
        scale: multiplier of the scores, usually ``head_dim ** -0.5``.

    Returns:
        ``[B, N, C]``, heads concatenated, ready for the output projection.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the message names the argument.

    Source: PVT v1, section 3.3, equations (1), (2) and (4).
    """
    return torch.ops.pvt.sra_attention(q, kv, num_heads, scale)


def spatial_reduction(
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    sr_ratio: int,
    eps: float,
) -> Tensor:
    """Shrink a token grid by a strided convolution, then normalise each token.

    Reads the tokens where they are: nothing is transposed to a feature map. Rows and columns that
    do not fill a whole patch are dropped, as in the published code.

    Args:
        x: tokens in row-major order, ``[B, H * W, C]``; any strides.
        H, W: height and width of the token grid, each at least ``sr_ratio``.
        weight, bias: convolution, ``[C, C, sr_ratio, sr_ratio]`` and ``[C]``.
        norm_weight, norm_bias: LayerNorm, ``[C]`` each.
        sr_ratio: kernel size and stride.
        eps: epsilon of the LayerNorm (1e-5 in the published models).

    Returns:
        ``[B, (H // sr_ratio) * (W // sr_ratio), C]``.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the message names the argument.

    Source: PVT v1, section 3.3, equation (3).
    """
    return torch.ops.pvt.spatial_reduction(
        x, H, W, weight, bias, norm_weight, norm_bias, sr_ratio, eps
    )


def mlp(
    x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor
) -> Tensor:
    """Two linear layers with the exact GELU between them, whose hidden tensor is never in memory.

    Its gradient computes the hidden tensor again, block by block: beside the weights, training
    keeps nothing but ``x``.

    Args:
        x: tokens, ``[B, N, C]``; any strides.
        fc1_weight, fc1_bias: ``[hidden, C]`` and ``[hidden]``, dtype and device of ``x``.
        fc2_weight, fc2_bias: ``[C, hidden]`` and ``[C]``.

    Returns:
        ``[B, N, C]``.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the message names the argument.

    Source: PVT v1, section 3.3, the feed-forward layer.
    """
    return torch.ops.pvt.mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)


def dwconv_gelu(
    x: Tensor, H: int, W: int, weight: Tensor, bias: Tensor, relu: bool = False
) -> Tensor:
    """The depthwise convolution and the GELU between the two layers of PVT v2's MLP.

    Reads the tokens where they are; training keeps nothing but ``x``.

    Args:
        x: tokens in row-major order, ``[B, H * W, C]``; any strides.
        H, W: height and width of the token grid.
        weight, bias: convolution of 3 x 3 tokens, zeros around the grid, ``[C, 1, 3, 3]`` and
            ``[C]``, dtype and device of ``x``.
        relu: a ReLU before it, which the linear variant has.

    Returns:
        ``[B, H * W, C]``.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; the message names the argument.

    Source: PVT v2, "Convolutional Feed-Forward".
    """
    return torch.ops.pvt.dwconv_gelu(x, H, W, weight, bias, relu)


def resize(
    image: Tensor, size: list[int], interpolation: str = "bicubic", crop: list[int] | None = None
) -> Tensor:
    """Resize an image to the very values that Pillow's ``Image.resize`` gives.

    Args:
        image: uint8 ``[H, W, channels]``, 1 to 4 channels, on the CPU or, where this library was
            built with CUDA kernels, on a GPU.
        size: ``[height, width]`` of the resized image.
        interpolation: ``"bicubic"`` or ``"bilinear"``, both antialiased.
        crop: ``[top, left, height, width]``, a window of the resized image; only this window is
            computed. None: all of it.

    Returns:
        uint8 ``[height, width, channels]``.

    Raises:
        RuntimeError: a dtype, shape, size or crop does not fit; the message names the argument.
    """
    return torch.ops.pvt.resize(image, size, interpolation, crop or [])


# ---- shapes ----


@torch.library.register_fake("pvt::sra_attention")
def _(q: Tensor, kv: Tensor, num_heads: int, scale: float) -> Tensor:
    torch._check(q.dim() == 3, lambda: f"sra_attention: expected q [B, N, C], got {q.shape}")
    B, _, C = q.shape
    torch._check(
        kv.dim() == 3 and kv.shape[0] == B and kv.shape[2] == 2 * C,
        lambda: f"sra_attention: expected kv [{B}, kv_len, {2 * C}], got {kv.shape}",
    )
    torch._check(
        num_heads >= 1 and C % num_heads == 0,
        lambda: f"sra_attention: expected num_heads to divide C = {C}, got {num_heads}",
    )
    return q.new_empty(q.shape)


@torch.library.register_fake("pvt::spatial_reduction")
def _(
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    sr_ratio: int,
    eps: float,
) -> Tensor:
    torch._check(x.dim() == 3, lambda: f"spatial_reduction: expected x [B, N, C], got {x.shape}")
    B, N, C = x.shape
    torch._check(
        N == H * W,
        lambda: f"spatial_reduction: expected x [B, {H} * {W}, C], got {x.shape}",
    )
    torch._check(
        list(weight.shape) == [C, C, sr_ratio, sr_ratio],
        lambda: (
            f"spatial_reduction: expected weight [{C}, {C}, {sr_ratio}, {sr_ratio}], "
            f"got {weight.shape}"
        ),
    )
    return x.new_empty((B, (H // sr_ratio) * (W // sr_ratio), C))


@torch.library.register_fake("pvt::mlp")
def _(
    x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor
) -> Tensor:
    torch._check(x.dim() == 3, lambda: f"mlp: expected x [B, N, C], got {x.shape}")
    hidden, C = fc1_bias.shape[0], x.shape[2]
    torch._check(
        list(fc1_weight.shape) == [hidden, C] and list(fc2_weight.shape) == [C, hidden],
        lambda: (
            f"mlp: expected fc1_weight [{hidden}, {C}] and fc2_weight [{C}, {hidden}], "
            f"got {fc1_weight.shape} and {fc2_weight.shape}"
        ),
    )
    return x.new_empty(x.shape)


@torch.library.register_fake("pvt::dwconv_gelu")
def _(x: Tensor, H: int, W: int, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    torch._check(
        x.dim() == 3 and x.shape[1] == H * W,
        lambda: f"dwconv_gelu: expected x [B, {H} * {W}, C], got {x.shape}",
    )
    C = x.shape[2]
    torch._check(
        list(weight.shape) == [C, 1, 3, 3],
        lambda: f"dwconv_gelu: expected weight [{C}, 1, 3, 3], got {weight.shape}",
    )
    return x.new_empty(x.shape)


@torch.library.register_fake("pvt::resize")
def _(image: Tensor, size: list[int], interpolation: str, crop: list[int]) -> Tensor:
    height, width = crop[2:] if crop else size
    return image.new_empty((height, width, image.shape[2]))


# ---- autocast: as matrix products, in the dtype of the autocast region ----

_autocast_rules = torch.library.Library("pvt", "IMPL")


def _register_autocast(name: str, device: str) -> None:
    key = f"Autocast{device.upper()}"
    below = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(x: Any, dtype: torch.dtype) -> Any:
        castable = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype) if castable else x

    def rule(*args: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(below):
            return getattr(torch.ops.pvt, name)(*(cast(x, dtype) for x in args))

    _autocast_rules.impl(name, rule, key)


for _device in ("cpu", "cuda"):
    _register_autocast("sra_attention", _device)
    _register_autocast("spatial_reduction", _device)
    _register_autocast("mlp", _device)
    _register_autocast("dwconv_gelu", _device)


# ---- floating-point operations, two per multiply-accumulate ----


@register_flop_formula(torch.ops.pvt.sra_attention)
def _(q: list[int], kv: list[int], *args: Any, **kwargs: Any) -> int:
    B, N, C = q
    return 2 * 2 * B * N * kv[1] * C  # q k^T and the product with v


@register_flop_formula(torch.ops.pvt.spatial_reduction)
def _(x: list[int], H: int, W: int, weight: list[int], *args: Any, **kwargs: Any) -> int:
    B, _, C = x
    R = weight[-1]
    return 2 * B * (H // R) * (W // R) * C * C * R * R


@register_flop_formula(torch.ops.pvt.mlp)
def _(x: list[int], fc1_weight: list[int], *args: Any, **kwargs: Any) -> int:
    B, N, C = x
    return 2 * 2 * B * N * C * fc1_weight[0]


@register_flop_formula(torch.ops.pvt.dwconv_gelu)
def _(x: list[int], *args: Any, **kwargs: Any) -> int:
    B, N, C = x
    return 2 * 9 * B * N * C
