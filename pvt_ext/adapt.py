"""Make weights fit a model of another image size, other channels, or without a class token.

Each function changes ``given``, tensors under this library's names, where it can, and leaves what
it cannot for the comparison of shapes that follows.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_ext.backbone import Pyramid
from pvt_ext.stage import Stage

State = dict[str, Tensor]


def fit_cls_rows(given: State, model: Pyramid, dropped: bool) -> None:
    """Add or remove row 0 of position tables, which belongs to the class token.

    A model without one needs no row. A model that has one while the file has none (or whose class
    token is ``dropped``) keeps the row it has.
    """
    for i, stage in enumerate(_stages(model)):
        name, has_cls = f"stages.{i}.pos_embed", stage.cls_token is not None
        table, in_file = given.get(name), f"stages.{i}.cls_token" in given
        if table is None or table.dim() != 3 or stage.pos_embed is None:
            continue
        if in_file and (dropped or not has_cls):
            table = table[:, 1:]
        if has_cls and dropped and table.shape[2] == stage.pos_embed.shape[2]:
            row = stage.pos_embed.detach()[:, :1]
            table = torch.cat((row.to(table), table), dim=1)
        given[name] = table


def fit_positions(given: State, model: Pyramid) -> list[str]:
    """Resize square position tables bilinearly to the grids of ``model``; what was done."""
    adapted = []
    for i, stage in enumerate(_stages(model)):
        name, wanted = f"stages.{i}.pos_embed", stage.pos_embed
        table = given.get(name)
        if table is None or wanted is None or table.shape == wanted.shape:
            continue
        num_cls = int(stage.cls_token is not None)
        H, W = stage.patch_embed.H, stage.patch_embed.W
        fits = table.dim() == 3 and table.shape[0] == 1 and table.shape[2] == wanted.shape[2]
        side = math.isqrt(max(table.shape[1] - num_cls, 0)) if fits else 0
        if side == 0 or side * side + num_cls != table.shape[1]:
            continue  # reported as a mismatch
        grid = table[:, num_cls:].float().transpose(1, 2).unflatten(2, (side, side))
        grid = F.interpolate(grid, size=(H, W), mode="bilinear", align_corners=False)
        grid = grid.flatten(2).transpose(1, 2).to(table.dtype)
        given[name] = torch.cat((table[:, :num_cls], grid), dim=1)
        adapted.append(f"{name}: from {side}x{side} to {H}x{W}")
    return adapted


def fit_channels(given: State, wanted: State) -> list[str]:
    """Give the first convolution the model's input channels; what was done.

    One channel gets the sum of the file's, which is what a grey image gives in RGB. Any other
    number takes the file's in turn, scaled so that their sum stays what it was.
    """
    name = "stages.0.patch_embed.proj.weight"
    kernel, target = given.get(name), wanted.get(name)
    if kernel is None or target is None or kernel.dim() != 4 or kernel.shape == target.shape:
        return []
    old, new = kernel.shape[1], target.shape[1]
    if new == 1:
        kernel = kernel.sum(dim=1, keepdim=True, dtype=torch.float32)
    else:
        turns = kernel.float().repeat(1, -(-new // old), 1, 1)[:, :new]
        kernel = turns * (old / new)
    given[name] = kernel.to(given[name].dtype)
    return [f"{name}: from {old} to {new} channels"]


def _stages(model: Pyramid) -> list[Stage]:
    return list(model.stages)  # type: ignore[arg-type]
