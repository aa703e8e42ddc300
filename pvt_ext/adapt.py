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

    A model without one needs no row; the authors' detectors have a row without a token. A model
    that has one while the file has none, or whose token is ``dropped``, keeps the row it has.
    """
    for i, stage in enumerate(_stages(model)):
        name, has_cls = f"stages.{i}.pos_embed", stage.cls_token is not None
        table = given.get(name)
        if table is None or table.dim() != 3 or stage.pos_embed is None:
            continue
        rows = table.shape[1]
        has_row = f"stages.{i}.cls_token" in given or (_side(rows) == 0 and _side(rows - 1) > 0)
        if has_row and (dropped or not has_cls):
            table = table[:, 1:]
        if has_cls and dropped and table.shape[2] == stage.pos_embed.shape[2]:
            row = stage.pos_embed.detach()[:, :1]
            table = torch.cat((row.to(table), table), dim=1)
        given[name] = table


def fit_positions(given: State, model: Pyramid, img_size: tuple[int, int] | None) -> list[str]:
    """Resize position tables bilinearly to the grids of ``model``; what was done.

    They are square unless ``img_size``, what they were made for, says otherwise.
    """
    adapted = []
    for i, stage in enumerate(_stages(model)):
        name, wanted = f"stages.{i}.pos_embed", stage.pos_embed
        table = given.get(name)
        if table is None or wanted is None or table.dim() != 3:
            continue
        num_cls = int(stage.cls_token is not None)
        H, W = stage.patch_embed.H, stage.patch_embed.W
        h = w = _side(table.shape[1] - num_cls)
        if img_size is not None:
            h, w = model.grids(*img_size)[i]
        elif table.shape == wanted.shape:
            continue
        fits = table.shape[0] == 1 and table.shape[2] == wanted.shape[2]
        if not fits or h * w == 0 or h * w + num_cls != table.shape[1] or (h, w) == (H, W):
            continue  # reported as a mismatch, if it is one
        grid = table[:, num_cls:].float().transpose(1, 2).unflatten(2, (h, w))
        grid = F.interpolate(grid, size=(H, W), mode="bilinear", align_corners=False)
        given[name] = torch.cat((table[:, :num_cls], grid.flatten(2).transpose(1, 2)), dim=1)
        adapted.append(f"{name}: from {h}x{w} to {H}x{W}")
    return adapted


def fit_channels(given: State, wanted: State) -> list[str]:
    """Give the first convolution the model's input channels; what was done.

    One channel gets the sum of the file's, which is what a grey image gives in RGB. Any other
    number takes the file's in turn, scaled by the ratio of the numbers.
    """
    name = "stages.0.patch_embed.proj.weight"
    kernel, target = given.get(name), wanted.get(name)
    if kernel is None or target is None or kernel.dim() != 4 or kernel.shape == target.shape:
        return []
    old, new = kernel.shape[1], target.shape[1]
    if old == 0:
        return []
    if new == 1:
        given[name] = kernel.sum(dim=1, keepdim=True, dtype=torch.float32)
    else:
        given[name] = kernel.float().repeat(1, -(-new // old), 1, 1)[:, :new] * (old / new)
    return [f"{name}: from {old} to {new} channels"]


def _side(rows: int) -> int:
    """Side of a square of ``rows`` tokens, 0 if they form none."""
    side = math.isqrt(max(rows, 0))
    return side if side * side == rows else 0


def _stages(model: Pyramid) -> list[Stage]:
    return list(model.stages)  # type: ignore[arg-type]
