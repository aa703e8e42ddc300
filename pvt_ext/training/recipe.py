"""The published recipe as functions: the learning rate of each epoch, and what is decayed.

Source: ``classification/main.py`` of the authors' code with timm 0.3.2, whose schedule it steps
once after each epoch; hence epochs 0 and 1 run at the same rate.
"""

import math
from typing import Any

import torch
from torch import nn

from pvt_ext.model import PVT
from pvt_ext.training.config import Optimizer, Schedule


def peak_rate(optimizer: Optimizer, images_per_step: int) -> float:
    """The learning rate that the warm-up leads to: linear in the images of a step."""
    if optimizer.lr_images is None:
        return optimizer.lr
    return optimizer.lr * images_per_step / optimizer.lr_images


def learning_rate(schedule: Schedule, peak: float, epoch: int, share: float = 0.0) -> float:
    """The learning rate in an epoch, counted from 0.

    The warm-up rises linearly and does not shift the cosine, which has begun unseen meanwhile.

    Args:
        peak: as :func:`peak_rate` gives it.
        share: how much of the epoch is over, 0..1; plays no part in a schedule per epoch.
    """
    t = epoch + share if schedule.per == "step" else max(epoch - 1, 0)
    if t < schedule.warmup_epochs:
        return schedule.warmup_lr + t * (peak - schedule.warmup_lr) / schedule.warmup_epochs
    cosine = 1 + math.cos(math.pi * t / schedule.epochs)
    return schedule.min_lr + 0.5 * (peak - schedule.min_lr) * cosine


def parameter_groups(model: PVT, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay, for an optimiser.

    Biases, norms and class tokens are not decayed; position tables are, as published.
    """
    exempt = model.no_weight_decay()
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        one_dimensional = parameter.ndim <= 1 or name.endswith(".bias")
        (others if one_dimensional or name in exempt else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def make_optimizer(model: PVT, config: Optimizer) -> torch.optim.AdamW:
    """AdamW; its learning rate is set before each step."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
