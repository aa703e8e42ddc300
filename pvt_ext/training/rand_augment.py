"""RandAugment on Pillow images, with the operations and strengths that timm gives the name.

The published recipe asks for ``rand-m9-mstd0.5-inc1``. It is written out here because timm cannot
be imported beside every build of torch, other libraries' operations are not those of the recipe,
and all of them draw from global random states.

Source: Cubuk et al., RandAugment, NeurIPS 2020; the increasing set of timm's ``auto_augment.py``.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pvt_ext.preprocess import IMAGENET_MEAN

_FILL = tuple(round(255 * mean) for mean in IMAGENET_MEAN)  # where a transform leaves nothing
_MAX_MAGNITUDE = 10.0


class Policy(NamedTuple):
    """How strong, how many and how often."""

    magnitude: float  # 0..10
    std: float = 0.0  # of the normal distribution around it
    layers: int = 2  # operations drawn for an image, one and the same perhaps twice
    prob: float = 0.5  # that one that was drawn is applied


def parse_policy(text: str) -> Policy:
    """``rand-m9-mstd0.5-inc1``: also ``n`` (layers) and ``p`` (probability), as timm writes them.

    Raises:
        ValueError: another policy, or one whose strength does not increase with the magnitude.
    """
    name, *parts = text.split("-")
    found = [re.fullmatch(r"(mstd|m|n|p|inc)(\d+(?:\.\d+)?)", part) for part in parts]
    values = {match[1]: float(match[2]) for match in found if match}
    if name != "rand" or not all(found) or "m" not in values or values.pop("inc", 0) != 1:
        raise ValueError("a policy such as rand-m9-mstd0.5-inc1")
    policy = Policy(
        magnitude=values["m"],
        std=values.get("mstd", 0.0),
        layers=int(values.get("n", 2)),
        prob=values.get("p", 0.5),
    )
    if policy.magnitude > _MAX_MAGNITUDE or policy.prob > 1:
        raise ValueError("a policy with m of at most 10 and p of at most 1")
    return policy


def rand_augment(image: Image.Image, policy: Policy, rng: np.random.Generator) -> Image.Image:
    """An RGB image after ``policy.layers`` random operations."""
    for operation in rng.choice(len(_OPERATIONS), policy.layers):
        if rng.random() < policy.prob:
            magnitude = np.clip(rng.normal(policy.magnitude, policy.std), 0, _MAX_MAGNITUDE)
            sign = 1 if rng.random() < 0.5 else -1
            image = _OPERATIONS[operation](image, float(magnitude) / _MAX_MAGNITUDE, sign)
    return image


# ---- operations: image, level 0..1, sign ----


def _auto_contrast(image: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageOps.invert(image)


def _rotate(image: Image.Image, level: float, sign: int) -> Image.Image:
    return image.rotate(sign * level * 30, Image.Resampling.BICUBIC, fillcolor=_FILL)


def _posterize(image: Image.Image, level: float, sign: int) -> Image.Image:
    mask = 256 - 2 ** (4 + int(level * 4))  # of the bits kept, 4 to 0 (Pillow refuses 0)
    return image.point([i & mask for i in range(256)] * 3)


def _solarize(image: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(level * 256))


def _solarize_add(image: Image.Image, level: float, sign: int) -> Image.Image:
    add = int(level * 110)
    return image.point([min(i + add, 255) if i < 128 else i for i in range(256)] * 3)


def _color(image: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageEnhance.Color(image).enhance(_factor(level, sign))


def _contrast(image: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(_factor(level, sign))


def _brightness(image: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(_factor(level, sign))


def _sharpness(image: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(_factor(level, sign))


def _factor(level: float, sign: int) -> float:
    return max(0.1, 1 + sign * level * 0.9)


def _shear_x(image: Image.Image, level: float, sign: int) -> Image.Image:
    return _affine(image, (1, sign * level * 0.3, 0, 0, 1, 0))


def _shear_y(image: Image.Image, level: float, sign: int) -> Image.Image:
    return _affine(image, (1, 0, 0, sign * level * 0.3, 1, 0))


def _translate_x(image: Image.Image, level: float, sign: int) -> Image.Image:
    return _affine(image, (1, 0, sign * level * 0.45 * image.width, 0, 1, 0))


def _translate_y(image: Image.Image, level: float, sign: int) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, sign * level * 0.45 * image.height))


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=_FILL
    )


_OPERATIONS: tuple[Callable[[Image.Image, float, int], Image.Image], ...] = (
    _auto_contrast, _equalize, _invert, _rotate, _posterize, _solarize, _solarize_add, _color,
    _contrast, _brightness, _sharpness, _shear_x, _shear_y, _translate_x, _translate_y,
)  # fmt: skip
