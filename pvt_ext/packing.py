"""Weights in the layout that the CPU kernels read: panels of 16 columns.

A linear layer's weight ``[rows, columns]`` (``[out_features, in_features]``) becomes
``[ceil(rows / 16), ceil(columns / group), 16, group]``: sixteen outputs side by side, ``group``
inputs of one output together, because one instruction multiplies and adds that many: 1 in
float32, 2 in bfloat16 and float16, 4 in int8. What does not fill a panel or a group is zero. The
layout does not depend on the processor, so a packed model file runs at full speed on any.

In int8 a weight is ``scale * integer`` with one scale per output and integers from -127 to 127.
They are stored as uint8, with 128 added, and every panel has one more row, whose 64 bytes are the
scales of its 16 outputs in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 16
_GROUPS = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 2, torch.int8: 4}


def pack_weight(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``[rows, columns]`` in panels: ``[ceil(rows / 16), ceil(columns / group), 16, group]``.

    Args:
        weight: a matrix, floating-point.
        dtype: what it is rounded to; None: nothing else. torch.int8 gives uint8 panels with a row
            of scales, see above.

    Raises:
        ValueError: the weight is not a matrix.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight: expected [rows, columns], got shape {list(weight.shape)}")
    if dtype == torch.int8:
        return _quantised(weight)
    return _panels(weight.to(dtype or weight.dtype), _GROUPS.get(dtype or weight.dtype, 1))


def pack_convolution(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A convolution's ``[C_out, C_in, height, width]`` as a packed matrix, channels innermost.

    The matrix is ``[C_out, height * width * C_in]``, in the order in which a window of tokens
    ``[height, width, C_in]`` lies in memory.
    """
    if weight.dim() != 4:
        raise ValueError(
            f"weight: expected [C_out, C_in, height, width], got shape {list(weight.shape)}"
        )
    return pack_weight(weight.permute(0, 2, 3, 1).flatten(1), dtype)


def unpack_weight(packed: Tensor, rows: int, columns: int) -> Tensor:
    """The ``[rows, columns]`` that :func:`pack_weight` was given, rounded; of int8 in float32."""
    if packed.dtype == torch.uint8:
        scales = packed[:, -1:].contiguous().view(torch.float32)  # p, 1, 16, 1
        packed = (packed[:, :-1].float() - 128) * scales
    return packed.transpose(1, 2).flatten(2).flatten(0, 1)[:rows, :columns]


def _panels(weight: Tensor, group: int) -> Tensor:
    rows, columns = weight.shape
    weight = F.pad(weight, (0, -columns % group, 0, -rows % PANEL))
    panels = weight.unflatten(1, (-1, group)).unflatten(0, (-1, PANEL))  # p, 16, k, group
    return panels.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def _quantised(weight: Tensor) -> Tensor:
    weight = weight.float()
    scale = weight.abs().amax(dim=1, keepdim=True) / 127  # of every row
    integers = torch.where(scale > 0, (weight / scale).round(), 0.0)
    panels = (_panels(integers, _GROUPS[torch.int8]) + 128).to(torch.uint8)
    scales = _panels(scale, 1)  # p, 1, 16, 1
    return torch.cat([panels, scales.view(torch.uint8)], dim=1)
