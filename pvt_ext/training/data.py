"""Batches: a DataLoader for training, which can begin anywhere, and one for evaluation."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pvt_ext.preprocess import Preprocess
from pvt_ext.training.augment import TrainTransform
from pvt_ext.training.order import BatchOrder, Key
from pvt_ext.training.randomness import Stream, generator
from pvt_ext.training.sources import Source, decode

Batch = tuple[Tensor, Tensor]  # float32 [B, 3, H, W], int64 [B]


class CachedImages:
    """The images of a source, decoded, in memory that processes share."""

    def __init__(self, source: Source) -> None:
        images = [np.asarray(decode(source, i)) for i in range(len(source.labels))]
        self.shapes = np.array([image.shape[:2] for image in images])
        self.starts = np.concatenate([[0], np.cumsum([image.size for image in images])])
        pixels = np.concatenate([image.ravel() for image in images])
        self.pixels = torch.from_numpy(pixels).share_memory_()

    def image(self, index: int) -> Image.Image:
        pixels = self.pixels[self.starts[index] : self.starts[index + 1]].numpy()
        return Image.fromarray(pixels.reshape(*self.shapes[index], 3))


class TrainImages(Dataset[tuple[Tensor, int]]):
    """Augmented images by :data:`~pvt_ext.training.order.Key`; no state, so any worker will do."""

    def __init__(self, source: Source, transform: TrainTransform, seed: int, cache: bool) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.cached = CachedImages(source) if cache else None

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index = key[1]
        image = self.cached.image(index) if self.cached else decode(self.source, index)
        rng = generator(self.seed, Stream.SAMPLE, *key)
        return self.transform(image, rng), int(self.source.labels[index])


class EvalImages(Dataset[tuple[Tensor, int]]):
    """Images as an exported model sees them; this process's share of them, none twice."""

    def __init__(self, source: Source, preprocess: Preprocess, rank: int, world_size: int) -> None:
        self.source = source
        self.preprocess = preprocess
        self.indices = range(rank, len(source.labels), world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        index = self.indices[place]
        pixels = torch.from_numpy(np.array(decode(self.source, index)))
        return self.preprocess(pixels), int(self.source.labels[index])


class TrainLoader:
    """The batches of this process, step by step, from any step of any epoch on."""

    def __init__(
        self, images: TrainImages, order: BatchOrder, workers: int, pin_memory: bool
    ) -> None:
        self.order = order
        self.loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            images,
            batch_sampler=order,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
        )

    def steps(self, epoch: int, first_step: int) -> Iterator[list[Batch]]:
        """The batches of each step, ``accumulate`` of them, from ``first_step`` to the last."""
        self.order.epoch, self.order.first_step = epoch, first_step
        batches = one_line_errors(self.loader)
        for _ in range(first_step, self.order.steps):
            yield [next(batches) for _ in range(self.order.accumulate)]


def eval_loader(
    images: EvalImages, batch_size: int, workers: int, pin_memory: bool
) -> DataLoader[tuple[Tensor, int]]:
    """Batches of all images of this process; the last one may be smaller."""
    return DataLoader(images, batch_size, num_workers=workers, pin_memory=pin_memory)


def one_line_errors(loader: DataLoader[tuple[Tensor, int]]) -> Iterator[Batch]:
    """The batches of a loader; a worker's ValueError arrives without its traceback."""
    try:
        yield from loader
    except ValueError as error:
        raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from None
