"""PVT v1 as published, written a second time: the oracle of the model tests.

A plain function of a state_dict with the published parameter names; it shares no code with
``pvt_ext``. Positions are resized per stage from the stored grid, always, which changes nothing
when the grid is the stored one. Compared once with the published code (github.com/whai362/PVT,
commit 57e2dfa), random weights, largest difference relative to the largest value: logits of
pvt_tiny and pvt_small 8e-7 at 224 x 224 and 0 at 256 x 192; features of pvt_tiny (detection/pvt.py)
2e-6 at 224 x 224, 256 x 192 and 192 x 512.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]

# Heads and reductions cannot be read from the weights' shapes; depths and widths can.
HEADS = {64: 1, 128: 2, 256: 4, 320: 5, 512: 8, 768: 12}
SR_RATIOS = (8, 4, 2, 1)


def logits(w: Weights, x: Tensor, grid: tuple[int, int] = (56, 56)) -> Tensor:
    """Class scores. ``grid``: the stage 1 grid that the position tables were made for."""
    for i in (1, 2, 3):
        tokens, hw = _stage(w, x, i, grid, cls=False)
        x = _as_map(tokens, hw)
    tokens, _ = _stage(w, x, 4, grid, cls=True)
    tokens = _norm(w, "norm", tokens, 1e-6)
    return F.linear(tokens[:, 0], w["head.weight"], w["head.bias"])


def features(w: Weights, x: Tensor, grid: tuple[int, int] = (56, 56)) -> list[Tensor]:
    """C2..C5 as the published detection code computes them."""
    maps = []
    for i in (1, 2, 3, 4):
        tokens, hw = _stage(w, x, i, grid, cls=False)
        x = _as_map(tokens, hw)
        maps.append(x)
    return maps


def _stage(w: Weights, x: Tensor, i: int, grid: tuple[int, int], cls: bool) -> tuple[Tensor, tuple]:
    kernel = w[f"patch_embed{i}.proj.weight"]
    x = F.conv2d(x, kernel, w[f"patch_embed{i}.proj.bias"], stride=kernel.shape[-1])
    hw = (x.shape[2], x.shape[3])
    x = _norm(w, f"patch_embed{i}.norm", _as_tokens(x), 1e-5)

    table = w[f"pos_embed{i}"]
    first, table = (table[:, :1], table[:, 1:]) if i == 4 else (None, table)
    stored = (grid[0] >> (i - 1), grid[1] >> (i - 1))
    table = _as_tokens(F.interpolate(_as_map(table, stored), size=hw, mode="bilinear"))
    x = x + table
    if cls:
        x = torch.cat([(w["cls_token"] + first).repeat(len(x), 1, 1), x], dim=1)

    j = 0
    while f"block{i}.{j}.norm1.weight" in w:
        name = f"block{i}.{j}"
        x = x + _attention(w, f"{name}.attn", _norm(w, f"{name}.norm1", x, 1e-6), hw, i)
        hidden = F.gelu(_linear(w, f"{name}.mlp.fc1", _norm(w, f"{name}.norm2", x, 1e-6)))
        x = x + _linear(w, f"{name}.mlp.fc2", hidden)
        j += 1
    return x, hw


def _attention(w: Weights, name: str, x: Tensor, hw: tuple[int, int], i: int) -> Tensor:
    C = x.shape[-1]
    heads = HEADS[C]
    source = x
    if SR_RATIOS[i - 1] > 1:
        kernel = w[f"{name}.sr.weight"]
        source = F.conv2d(_as_map(x, hw), kernel, w[f"{name}.sr.bias"], stride=SR_RATIOS[i - 1])
        source = _norm(w, f"{name}.norm", _as_tokens(source), 1e-5)
    q = _linear(w, f"{name}.q", x)
    kv = _linear(w, f"{name}.kv", source)
    out = torch.empty_like(q)
    d = C // heads
    for h in range(heads):  # one head at a time: slow, and hard to get wrong
        head = slice(h * d, (h + 1) * d)
        k, v = kv[..., :C][..., head], kv[..., C:][..., head]
        scores = q[..., head] @ k.transpose(1, 2) / d**0.5
        out[..., head] = scores.softmax(-1) @ v
    return _linear(w, f"{name}.proj", out)


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def _as_map(x: Tensor, hw: tuple[int, int]) -> Tensor:
    return x.transpose(1, 2).reshape(len(x), -1, *hw)


def _as_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)
