"""From a decoded image to the network's input in training: crop, flip, RandAugment, erasing.

In the order and with the numbers of timm's ``create_transform``, which the published recipe uses.
Every draw comes from the generator that is passed in.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pvt_ext.preprocess import IMAGENET_MEAN, IMAGENET_STD
from pvt_ext.training.config import Augment
from pvt_ext.training.rand_augment import parse_policy, rand_augment

_MEAN = np.array(IMAGENET_MEAN, np.float32)
_STD = np.array(IMAGENET_STD, np.float32)
_ATTEMPTS = 10  # at a random shape that fits, before a fixed one is taken
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_LOG_RATIO = math.log(1 / 0.3)  # of height to width, either way


class TrainTransform:
    """Makes ``float32 [3, img_size, img_size]`` of an RGB image, another one for each generator."""

    def __init__(self, config: Augment, img_size: int) -> None:
        self.config = config
        self.img_size = img_size
        self.policy = parse_policy(config.rand_augment) if config.rand_augment else None

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        if self.config.crop == "resized":
            image = self._resized_crop(image, rng)
        else:
            image = self._padded_crop(image, rng)
        if rng.random() < self.config.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.policy:
            image = rand_augment(image, self.policy, rng)
        x = (np.asarray(image, np.float32) / 255 - _MEAN) / _STD
        x = np.ascontiguousarray(x.transpose(2, 0, 1))  # H, W, C -> C, H, W
        if rng.random() < self.config.erasing:
            erase(x, rng)
        return torch.from_numpy(x)

    def _resized_crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        left, top, width, height = crop_window(
            image.width, image.height, self.config.scale, self.config.ratio, rng
        )
        # Cropped before it is resized: no pixel from outside has an influence.
        part = image.crop((left, top, left + width, top + height))
        return part.resize((self.img_size, self.img_size), Image.Resampling.BICUBIC)

    def _padded_crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        side, padding = self.img_size, self.config.padding
        if image.size != (side, side):
            raise ValueError(
                f"augment.crop: padded needs images of {side} x {side} (model.img_size), "
                f"got {image.width} x {image.height}"
            )
        left, top = (int(offset) for offset in rng.integers(2 * padding + 1, size=2))
        return ImageOps.expand(image, padding).crop((left, top, left + side, top + side))


def crop_window(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random part of an image.

    Args:
        scale: range of its share of the area.
        ratio: range of its width to height, drawn evenly on a logarithmic scale.
    """
    for _ in range(_ATTEMPTS):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    # The largest part in the middle that has a permitted shape.
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def erase(x: np.ndarray, rng: np.random.Generator) -> None:
    """Fill a random rectangle of a normalised image ``[C, H, W]`` with normal noise, in place.

    Source: Zhong et al., Random Erasing, AAAI 2020.
    """
    C, H, W = x.shape
    for _ in range(_ATTEMPTS):
        area = rng.uniform(*_ERASED_AREA) * H * W
        aspect = math.exp(rng.uniform(-_ERASED_LOG_RATIO, _ERASED_LOG_RATIO))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < H and w < W:
            top, left = rng.integers(H - h + 1), rng.integers(W - w + 1)
            x[:, top : top + h, left : left + w] = rng.standard_normal((C, h, w), np.float32)
            return
