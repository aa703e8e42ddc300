"""Mixup, cutmix and label smoothing of a batch: one share for the whole batch.

Each image is mixed with the one at the mirrored place of the batch.

Sources: Zhang et al., mixup, ICLR 2018; Yun et al., CutMix, ICCV 2019; timm's ``Mixup`` in batch
mode, which the published recipe uses.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_ext.training.config import Mix


def mix(
    images: Tensor, labels: Tensor, num_classes: int, config: Mix, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A batch, mixed with itself in reverse.

    Args:
        images: ``[B, C, H, W]``.
        labels: class numbers, ``[B]``.
        rng: of this batch.

    Returns:
        images, and targets ``[B, num_classes]`` whose rows sum to 1.
    """
    targets = smooth_targets(labels, num_classes, config.smoothing)
    cut = config.cutmix > 0 and (config.mixup == 0 or rng.random() < config.switch_prob)
    alpha = config.cutmix if cut else config.mixup
    if alpha == 0 or rng.random() >= config.prob:
        return images, targets
    share = float(rng.beta(alpha, alpha))  # of the image that stays
    if cut:
        height, width = images.shape[2:]
        top, bottom, left, right = cut_box(height, width, share, rng)
        images = images.clone()
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)  # what the border left of it
    else:
        images = torch.lerp(images.flip(0), images, share)
    return images, torch.lerp(targets.flip(0), targets, share)


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """One-hot rows of which ``smoothing`` is spread over all classes."""
    one_hot = F.one_hot(labels, num_classes).to(torch.float32)
    return one_hot * (1 - smoothing) + smoothing / num_classes


def cut_box(
    height: int, width: int, share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box of ``1 - share`` of the area, cut off at the border."""
    ratio = (1 - share) ** 0.5
    h, w = int(height * ratio), int(width * ratio)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(y - h // 2, 0), min(y + (h + 1) // 2, height)
    left, right = max(x - w // 2, 0), min(x + (w + 1) // 2, width)
    return top, bottom, left, right
