"""Which images, and in which order: a function of seed and epoch, shared out among the processes.

The order of an epoch is one list for all processes. Process ``r`` of ``w`` takes every ``w``-th
entry from ``r`` on, so the repeats of an image go to different processes, and a step sees the same
images however many processes share its batch.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from pvt_ext.training.randomness import Stream, generator

Key = tuple[int, int, int]  # epoch, image, repeat
_ROUND = 256  # with repeats, an epoch is a multiple of so many images, as published


def epoch_length(num_images: int, repeats: int) -> int:
    """Images drawn in an epoch, by all processes together."""
    if repeats > 1 and num_images >= _ROUND:
        return num_images // _ROUND * _ROUND
    return num_images


def epoch_order(num_images: int, repeats: int, seed: int, epoch: int) -> np.ndarray:
    """Image and repeat of every draw of an epoch, ``[epoch_length, 2]``.

    With ``repeats`` an image comes so many times in a row, and so only a part of the images in any
    one epoch. Source: Berman et al., MultiGrain, 2019; Hoffer et al., Augment your batch, 2020.
    """
    shuffled = generator(seed, Stream.ORDER, epoch).permutation(num_images)
    draws = np.arange(epoch_length(num_images, repeats))
    return np.stack([shuffled[draws // repeats], draws % repeats], axis=1)


class BatchOrder(Sampler[list[Key]]):
    """The batches of one process in one epoch: a batch sampler for a DataLoader.

    Every process has the same number of batches; images that do not fill a step are left out.

    Args:
        num_images: in the data set.
        repeats: as in :func:`epoch_order`.
        batch_size: images of one process at a time.
        accumulate: batches that make a step.
        rank, world_size: this process, of so many.
        seed: of the order.
    """

    def __init__(
        self,
        num_images: int,
        *,
        repeats: int,
        batch_size: int,
        accumulate: int,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        self.num_images = num_images
        self.repeats = repeats
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.accumulate = accumulate
        length = epoch_length(num_images, repeats)
        self.images_per_step = batch_size * accumulate * world_size
        self.steps = length // self.images_per_step
        if self.steps == 0:
            raise ValueError(
                f"data.train: expected at least the {self.images_per_step} images of one step, "
                f"got {length}; make run.batch_size smaller"
            )
        self.epoch = 0
        self.first_step = 0

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        draws = epoch_order(self.num_images, self.repeats, self.seed, self.epoch)
        mine = draws[self.rank :: self.world_size]
        first = self.first_step * self.accumulate
        for batch in range(first, first + len(self)):
            chosen = mine[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(image), int(repeat)) for image, repeat in chosen]
