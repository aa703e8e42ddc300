"""The operators in plain PyTorch: the specification every kernel is tested against.

These functions run on every device and dtype, are differentiable, export to ONNX and can return
attention weights. ``fused=False`` in :func:`pvt_ext.create_model` selects them. Written to be
obvious rather than quick; the names of the einsum letters are ``b`` batch, ``q`` queries,
``k`` keys, ``h`` heads, ``d`` head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_ext.packing import unpack_weight


def attention_weights(q: Tensor, k: Tensor, num_heads: int, scale: float) -> Tensor:
    """Attention probabilities of every head.

    Args:
        q: queries, ``[B, N, C]``.
        k: keys, ``[B, kv_len, C]``.
        num_heads: number of heads; ``C`` is ``num_heads * head_dim``.
        scale: multiplier of the scores, usually ``head_dim ** -0.5``.

    Returns:
        ``softmax(scale * q k^T)``, ``[B, num_heads, N, kv_len]``; each row sums to 1.

    Source: PVT v1, section 3.3, the softmax of equation (4).
    """
    q = q.unflatten(-1, (num_heads, -1))  # B, N, h, d
    k = k.unflatten(-1, (num_heads, -1))  # B, kv_len, h, d
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    return scores.softmax(dim=-1)


def sra_attention(q: Tensor, kv: Tensor, num_heads: int, scale: float) -> Tensor:
    """Multi-head attention over spatially reduced keys and values.

    Args:
        q: queries, ``[B, N, C]``.
        kv: keys then values along the last dimension, ``[B, kv_len, 2 * C]``.
        num_heads: number of heads; ``C`` is ``num_heads * head_dim``.
        scale: multiplier of the scores, usually ``head_dim ** -0.5``.

    Returns:
        ``[B, N, C]``, heads concatenated, ready for the output projection.

    Source: PVT v1, section 3.3, equations (1), (2) and (4).
    """
    k, v = kv.chunk(2, dim=-1)
    probs = attention_weights(q, k, num_heads, scale)
    v = v.unflatten(-1, (num_heads, -1))  # B, kv_len, h, d
    return torch.einsum("bhqk,bkhd->bqhd", probs, v).flatten(2)


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

    Rows and columns that do not fill a whole ``sr_ratio`` x ``sr_ratio`` patch are dropped, as in
    the published code (a convolution without padding).

    Args:
        x: tokens in row-major order, ``[B, H * W, C]``.
        H, W: height and width of the token grid, each at least ``sr_ratio``.
        weight, bias: convolution, ``[C, C, sr_ratio, sr_ratio]`` and ``[C]``.
        norm_weight, norm_bias: LayerNorm, ``[C]`` each.
        sr_ratio: kernel size and stride.
        eps: epsilon of the LayerNorm (1e-5 in the published models).

    Returns:
        ``[B, (H // sr_ratio) * (W // sr_ratio), C]``.

    Source: PVT v1, section 3.3, equation (3).
    """
    C = x.shape[-1]
    x = x.transpose(1, 2).unflatten(2, (H, W))  # B, N, C -> B, C, H, W
    x = F.conv2d(x, weight, bias, stride=sr_ratio)
    x = x.flatten(2).transpose(1, 2)  # B, C, H', W' -> B, kv_len, C
    return F.layer_norm(x, [C], norm_weight, norm_bias, eps)


def mlp(
    x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor
) -> Tensor:
    """Two linear layers with the exact GELU between them, on each token.

    Args:
        x: tokens, ``[B, N, C]``.
        fc1_weight, fc1_bias: ``[hidden, C]`` and ``[hidden]``.
        fc2_weight, fc2_bias: ``[C, hidden]`` and ``[C]``.

    Returns:
        ``[B, N, C]``.

    Source: PVT v1, section 3.3, the feed-forward layer.
    """
    return F.linear(F.gelu(F.linear(x, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)


def dwconv_gelu(
    x: Tensor, H: int, W: int, weight: Tensor, bias: Tensor, relu: bool = False
) -> Tensor:
    """The depthwise convolution and the GELU between the two layers of PVT v2's MLP.

    Args:
        x: tokens in row-major order, ``[B, H * W, C]``.
        H, W: height and width of the token grid.
        weight, bias: convolution of 3 x 3 tokens, zeros around the grid, ``[C, 1, 3, 3]`` and
            ``[C]``.
        relu: a ReLU before it, which the linear variant has.

    Returns:
        ``[B, H * W, C]``.

    Source: PVT v2, "Convolutional Feed-Forward".
    """
    if relu:
        x = F.relu(x)
    x = x.unflatten(1, (H, W)).permute(0, 3, 1, 2)  # B, N, C -> B, C, H, W, channels last
    x = F.conv2d(x, weight, bias, padding=1, groups=x.shape[1])
    return F.gelu(x.flatten(2).transpose(1, 2))


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
    """:func:`pvt_ext.block_ops.patch_embed`: convolution, LayerNorm, positions."""
    C_in, C = x.shape[1], bias.shape[0]
    if weight.dtype == torch.uint8:  # every patch is quantised as a row
        patches = F.unfold(x, kernel_size, padding=padding, stride=stride)
        patches = patches.unflatten(1, (C_in, -1)).permute(0, 3, 2, 1).flatten(2)
        x = _linear(patches, weight, bias)
    else:
        matrix = unpack_weight(weight, C, kernel_size * kernel_size * C_in)
        filters = matrix.unflatten(1, (kernel_size, kernel_size, C_in)).permute(0, 3, 1, 2)
        x = F.conv2d(_rounded(x, weight), filters.to(x.dtype), bias.to(x.dtype), stride, padding)
        x = x.flatten(2).transpose(1, 2)
    x = _layer_norm(x, norm_weight, norm_bias, eps)
    return x if position is None else x + position.to(x.dtype)


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
    """:func:`pvt_ext.block_ops.reduce_kv`: LayerNorm, reduction, projection."""
    x = _layer_norm(x, norm_weight, norm_bias, eps)
    if sr_weight is not None:
        assert sr_bias is not None
        assert sr_norm_weight is not None
        assert sr_norm_bias is not None
        x = x.transpose(1, 2).unflatten(2, (H, W))
        x = patch_embed(
            x, sr_weight, sr_bias, sr_norm_weight, sr_norm_bias, sr_eps, None, sr_ratio, sr_ratio, 0
        )
    return _linear(x, kv_weight, kv_bias)


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
    """What :func:`pvt_ext.block_ops.pool_kv` gives."""
    map = _layer_norm(x, norm_weight, norm_bias, eps).transpose(1, 2).unflatten(2, (H, W))
    cells = F.adaptive_avg_pool2d(map, pool_size).flatten(2).transpose(1, 2)
    cells = _layer_norm(_linear(cells, sr_weight, sr_bias), sr_norm_weight, sr_norm_bias, sr_eps)
    return _linear(F.gelu(cells), kv_weight, kv_bias)


def attention_block(
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
    """What :func:`pvt_ext.block_ops.attention_block_` leaves in ``x``."""
    q = _linear(_layer_norm(x, norm_weight, norm_bias, eps), q_weight, q_bias)
    # Integers of 8 bits are too coarse for attention itself.
    dtype = torch.bfloat16 if q_weight.dtype == torch.uint8 else q_weight.dtype
    q, kv = (t.to(dtype).to(x.dtype) for t in (q, kv))
    heads = sra_attention(q, kv, num_heads, scale)
    return x + _linear(heads, proj_weight, proj_bias)


def mlp_block(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
) -> Tensor:
    """What :func:`pvt_ext.block_ops.mlp_block_` leaves in ``x``."""
    hidden = _linear(_layer_norm(x, norm_weight, norm_bias, eps), fc1_weight, fc1_bias)
    return x + _linear(F.gelu(hidden), fc2_weight, fc2_bias)


def conv_mlp_block(
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
    """What :func:`pvt_ext.block_ops.conv_mlp_block_` leaves in ``x``."""
    hidden = _linear(_layer_norm(x, norm_weight, norm_bias, eps), fc1_weight, fc1_bias)
    if relu:
        hidden = F.relu(hidden)
    channels = hidden.shape[2]
    hidden = F.conv2d(
        hidden.transpose(1, 2).unflatten(2, (H, W)),
        dwconv_weight.permute(2, 0, 1)[:, None].to(x.dtype),  # [hidden, 1, 3, 3]
        dwconv_bias.to(x.dtype),
        padding=1,
        groups=channels,
    )
    return x + _linear(F.gelu(hidden.flatten(2).transpose(1, 2)), fc2_weight, fc2_bias)


def head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The formula of :func:`pvt_ext.block_ops.head`."""
    return F.linear(x, weight, bias.to(x.dtype))


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, [x.shape[-1]], weight.to(x.dtype), bias.to(x.dtype), eps)


def _linear(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    weight = unpack_weight(packed, bias.shape[0], x.shape[-1])
    return F.linear(_rounded(x, packed), weight.to(x.dtype), bias.to(x.dtype))


def _rounded(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` as it is multiplied by ``weight``: of the weight's precision. Beside an 8-bit weight,
    integers from -127 to 127 with one scale for every 256 inputs of a row."""
    if weight.dtype != torch.uint8:
        return x.to(weight.dtype).to(x.dtype)
    blocks = []
    for block in x.split(256, dim=-1):
        scale = block.abs().amax(dim=-1, keepdim=True) / 127
        blocks.append(torch.where(scale > 0, (block / scale).round() * scale, 0.0))
    return torch.cat(blocks, dim=-1)


def _resample_matrix(in_size: int, out_size: int, interpolation: str) -> Tensor:
    """The weights of one axis, ``[out_size, in_size]``, in 22-bit fixed point."""
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)  # shrinking widens the filter: antialiasing
    support = {"bilinear": 1.0, "bicubic": 2.0}[interpolation] * filter_scale
    center = (torch.arange(out_size, dtype=torch.float64) + 0.5) * scale
    position = torch.arange(in_size, dtype=torch.float64)
    first = (center - support + 0.5).clamp(min=0).floor()[:, None]
    last = (center + support + 0.5).clamp(max=in_size).floor()[:, None]

    x = ((position - center[:, None] + 0.5) * (1.0 / filter_scale)).abs()
    if interpolation == "bilinear":
        weight = (1 - x).clamp(min=0)
    else:
        a = -0.5
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * a
        weight = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weight = torch.where((position >= first) & (position < last), weight, 0.0)
    weight = weight / weight.sum(dim=1, keepdim=True)
    return (weight * 2**22 + torch.where(weight < 0, -0.5, 0.5)).trunc().long()


def resize(image: Tensor, size: list[int], interpolation: str, crop: list[int]) -> Tensor:
    """Resize an image as Pillow does, rounding to 8 bits after each of the two passes.

    Args:
        image: uint8 ``[H, W, channels]``.
        size: ``[height, width]`` of the resized image.
        interpolation: ``"bicubic"`` or ``"bilinear"``.
        crop: ``[top, left, height, width]``, a window of the resized image; ``[]``: all of it.

    Returns:
        uint8 ``[height, width, channels]``.

    Source: the method of Pillow's ``Image.resize``; the order of the passes is that of 13.0.
    """

    def to_pixels(sums: Tensor) -> Tensor:
        return (sums + 2**21).bitwise_right_shift(22).clamp(0, 255)

    H, W, _ = image.shape
    height, width = size
    y = _resample_matrix(H, height, interpolation)
    x = _resample_matrix(W, width, interpolation)
    pixels = image.long()
    rows_lost, columns_lost = H - height, W - width
    if rows_lost > 0 and rows_lost > 2 * columns_lost:
        pixels = to_pixels(torch.einsum("oh,hwc->owc", y, pixels))
        pixels = to_pixels(torch.einsum("ow,hwc->hoc", x, pixels))
    else:
        pixels = to_pixels(torch.einsum("ow,hwc->hoc", x, pixels))
        pixels = to_pixels(torch.einsum("oh,hwc->owc", y, pixels))
    if crop:
        top, left, crop_height, crop_width = crop
        pixels = pixels[top : top + crop_height, left : left + crop_width]
    return pixels.to(torch.uint8)
