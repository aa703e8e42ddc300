"""Random numbers without a state: each draw is a function of the seed and of what it is for.

So a draw depends neither on the number of workers nor on what was drawn before, and a run that is
resumed in the middle of an epoch draws what it would have drawn.
"""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a draw is for. The numbers are part of the results: never change one."""

    ORDER = 0  # (epoch): the order of the images
    SAMPLE = 1  # (epoch, image, repeat): its augmentation
    MIX = 2  # (epoch, batch, rank): mixup and cutmix
    NETWORK = 3  # (epoch, step, rank): drop path, by torch's generators


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """The generator of one draw."""
    return np.random.default_rng((seed, stream, *key))


def seed_torch(seed: int, *key: int) -> None:
    """Put torch's generators, of all devices, in the state that belongs to ``key``."""
    torch.manual_seed(int(generator(seed, Stream.NETWORK, *key).integers(2**63)))
