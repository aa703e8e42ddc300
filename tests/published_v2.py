"""PVT v2 as published, written a second time: the oracle of the v2 model tests.

A plain function of a state_dict with the published parameter names, after the paper (Wang et al.,
PVT v2: Improved Baselines with Pyramid Vision Transformer, section 3); it shares no code with
``pvt_ext``. Depths, widths and the linear variant are read from the weights. Compared once with
timm 1.0.31 (torch 2.14.1), random weights, largest difference of logits relative to the largest
value: pvt_v2_b0 3.4e-7, pvt_v2_b2 4.4e-7, pvt_v2_b2_li 4.7e-7 over 224 x 224, 448 x 320 and
225 x 227.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]

HEADS = (1, 2, 5, 8)
STRIDES = (4, 2, 2, 2)
SR_RATIOS = (8, 4, 2, 1)
POOL = 7


def logits(w: Weights, x: Tensor) -> Tensor:
    last = features(w, x)[-1]
    return F.linear(last.mean(dim=(2, 3)), w["head.weight"], w["head.bias"])


def features(w: Weights, x: Tensor) -> list[Tensor]:
    """The normalised map of every stage, ``[B, C, H, W]``."""
    linear = "block4.0.attn.sr.weight" in w  # only the linear variant reduces in stage 4
    maps = []
    for i in (1, 2, 3, 4):
        x = _stage(w, x, i, linear)
        maps.append(x)
    return maps


def _stage(w: Weights, x: Tensor, i: int, linear: bool) -> Tensor:
    # Stride S, kernel 2 S - 1, padding S - 1. Maps are [B, H, W, C] from here on.
    S = STRIDES[i - 1]
    weight, bias = w[f"patch_embed{i}.proj.weight"], w[f"patch_embed{i}.proj.bias"]
    assert weight.shape[-2:] == (2 * S - 1, 2 * S - 1)
    x = F.conv2d(x, weight, bias, stride=S, padding=S - 1).permute(0, 2, 3, 1)
    x = _norm(w, f"patch_embed{i}.norm", x, 1e-5)
    j = 0
    while (name := f"block{i}.{j}") + ".norm1.weight" in w:
        x = x + _attention(w, f"{name}.attn", _norm(w, f"{name}.norm1", x, 1e-6), i, linear)
        x = x + _feed_forward(w, f"{name}.mlp", _norm(w, f"{name}.norm2", x, 1e-6), linear)
        j += 1
    return _norm(w, f"norm{i}", x, 1e-6).permute(0, 3, 1, 2)


def _attention(w: Weights, name: str, x: Tensor, i: int, linear: bool) -> Tensor:
    heads, R = HEADS[i - 1], SR_RATIOS[i - 1]
    source = x
    if linear:
        source = F.linear(_average(x), w[f"{name}.sr.weight"][:, :, 0, 0], w[f"{name}.sr.bias"])
        source = F.gelu(_norm(w, f"{name}.norm", source, 1e-5))
    elif R > 1:
        rows, columns = x.shape[1] // R, x.shape[2] // R
        patches = x[:, : rows * R, : columns * R].unflatten(2, (columns, R)).unflatten(1, (rows, R))
        # b: image, y, x: key, u, v: place in the patch
        source = torch.einsum("byuxvc,ocuv->byxo", patches, w[f"{name}.sr.weight"])
        source = _norm(w, f"{name}.norm", source + w[f"{name}.sr.bias"], 1e-5)
    q = _linear(w, f"{name}.q", x).flatten(1, 2)
    k, v = _linear(w, f"{name}.kv", source).flatten(1, 2).chunk(2, dim=-1)
    outputs = []
    for qh, kh, vh in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
        scores = qh @ kh.transpose(1, 2) / qh.shape[-1] ** 0.5
        outputs.append(scores.softmax(dim=-1) @ vh)
    return _linear(w, f"{name}.proj", torch.cat(outputs, dim=-1)).view_as(x)


def _average(x: Tensor) -> Tensor:
    # Cell k of 7 covers floor(k n / 7) .. ceil((k + 1) n / 7): cells overlap where 7 is no divisor.
    def spans(n: int) -> list[slice]:
        return [slice(k * n // POOL, -(-(k + 1) * n // POOL)) for k in range(POOL)]

    rows = [
        torch.stack([x[:, y, z].mean(dim=(1, 2)) for z in spans(x.shape[2])], dim=1)
        for y in spans(x.shape[1])
    ]
    return torch.stack(rows, dim=1)  # B, 7, 7, C


def _feed_forward(w: Weights, name: str, x: Tensor, linear: bool) -> Tensor:
    x = _linear(w, f"{name}.fc1", x)
    if linear:
        x = x.clamp(min=0)
    weight = w[f"{name}.dwconv.dwconv.weight"]  # hidden, 1, 3, 3
    _, H, W, _ = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    x = w[f"{name}.dwconv.dwconv.bias"].expand_as(x)
    for u in range(3):
        for v in range(3):
            x = x + padded[:, u : u + H, v : v + W] * weight[:, 0, u, v]
    return _linear(w, f"{name}.fc2", F.gelu(x))


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)
