"""Weights in the layout that the CPU kernels read: panels of 16 columns.

A linear layer's weight ``[rows, columns]`` (``[out_features, in_features]``) becomes
``[ceil(rows / 16), ceil(columns / group), 16, group]``: sixteen outputs side by side, ``group``
inputs of one output together, because one instruction multiplies and adds that many: 1 in
float32, 2 in bfloat16. What does not fill a panel or a group is zero. The layout does not depend on
the processor, so a packed model file runs at full speed on any.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 16


def group_of(dtype: torch.dtype) -> int:
    """Inputs of one output that lie together in a packed weight of ``dtype``."""
    return 2 if dtype == torch.bfloat16 else 1


def pack_weight(weight: Tensor) -> Tensor:
    """``[rows, columns]`` in panels: ``[ceil(rows / 16), ceil(columns / group), 16, group]``.

    Raises:
        ValueError: the weight is not a matrix.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight: expected [rows, columns], got shape {list(weight.shape)}")
    rows, columns = weight.shape
    group = group_of(weight.dtype)
    weight = F.pad(weight, (0, -columns % group, 0, -rows % PANEL))
    panels = weight.unflatten(1, (-1, group)).unflatten(0, (-1, PANEL))  # p, 16, k, group
    return panels.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def pack_convolution(weight: Tensor) -> Tensor:
    """A convolution's ``[C_out, C_in, height, width]`` as a packed matrix, channels innermost.

    The matrix is ``[C_out, height * width * C_in]``, in the order in which a window of tokens
    ``[height, width, C_in]`` lies in memory.
    """
    if weight.dim() != 4:
        raise ValueError(
            f"weight: expected [C_out, C_in, height, width], got shape {list(weight.shape)}"
        )
    return pack_weight(weight.permute(0, 2, 3, 1).flatten(1))


def unpack_weight(packed: Tensor, rows: int, columns: int) -> Tensor:
    """The ``[rows, columns]`` that :func:`pack_weight` was given."""
    return packed.transpose(1, 2).flatten(2).flatten(0, 1)[:rows, :columns]
