"""From an image to the network's input, with the very pixels that Pillow and torchvision give.

Three preprocessings go by the name of PVT; :data:`PRESETS` holds them. All resize with Pillow's
antialiased bicubic filter and normalise with the mean and standard deviation of ImageNet.
"""

import os
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pvt_ext.nn import to_pair

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preset(NamedTuple):
    """How an evaluation views an image."""

    mode: str  # "shorter": shorter side to `resize`, then centre crop; "squash": straight to crop
    numerator: int  # resize = crop * numerator // denominator
    denominator: int


PRESETS = {
    "paper": Preset("shorter", 256, 224),  # 256 -> 224, as the authors evaluate
    "timm": Preset("shorter", 10, 9),  # crop_pct 0.9: 248 -> 224
    "hf": Preset("squash", 1, 1),  # 224 x 224 whatever the shape
}


class Preprocess(nn.Module):
    """Resize, centre crop, scale to 0..1 and normalise; can be scripted.

    Only the crop window is ever computed, so an image of 20000 x 50 costs no more than others.

    Args:
        preset: a name in :data:`PRESETS`.
        img_size: side, or ``(height, width)``, of the result. The resized side grows with it in
            the preset's proportion (for a rectangle, with its longer side, so the crop fits).
    """

    def __init__(self, preset: str = "paper", img_size: int | tuple[int, int] = 224) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
        self.preset = preset
        self.mode, numerator, denominator = PRESETS[preset]
        self.crop = to_pair("img_size", img_size)
        self.resize = max(self.crop) * numerator // denominator
        self.interpolation = "bicubic"
        self.mean = list(IMAGENET_MEAN)
        self.std = list(IMAGENET_STD)

    def forward(self, image: Tensor) -> Tensor:
        """``uint8 [H, W, 3]``, RGB, to ``float32 [3, *crop]``."""
        if image.dim() != 3 or image.shape[2] != 3 or image.dtype != torch.uint8:
            raise ValueError(
                f"preprocess: expected a uint8 image [H, W, 3], got {image.dtype} {image.shape}"
            )
        size, window = self.geometry(image.shape[0], image.shape[1])
        image = torch.ops.pvt.resize(image, size, self.interpolation, window)
        x = image.permute(2, 0, 1).contiguous().to(torch.float32).div(255)  # H, W, C -> C, H, W
        # Divided by std, not multiplied by its inverse: torchvision's Normalize, bit for bit.
        mean = torch.tensor(self.mean, dtype=torch.float32, device=x.device).view(3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=x.device).view(3, 1, 1)
        return x.sub_(mean).div_(std)

    def geometry(self, H: int, W: int) -> tuple[list[int], list[int]]:
        """Of an ``H x W`` image: ``[height, width]`` to resize to, and the crop window in it.

        The window is ``[top, left, height, width]``.
        """
        crop_h, crop_w = self.crop
        if H < 1 or W < 1:
            raise ValueError(f"preprocess: expected an image of at least 1 x 1, got {H} x {W}")
        if self.mode == "squash":
            return [crop_h, crop_w], [0, 0, crop_h, crop_w]
        # torchvision's int(resize * long / short) in whole numbers; equal below 2^53.
        height = self.resize if H <= W else self.resize * H // W
        width = self.resize if W <= H else self.resize * W // H
        return [height, width], [half(height - crop_h), half(width - crop_w), crop_h, crop_w]


def half(n: int) -> int:
    """``round(n / 2)``, a half to the even side as Python rounds: 1 -> 0, 3 -> 2, 5 -> 2."""
    return n // 2 + (n % 2) * (n // 2 % 2)


def load_image(path: str | os.PathLike[str]) -> Tensor:
    """An image file as ``uint8 [H, W, 3]``, RGB, as Pillow decodes it.

    Transparency is dropped and an EXIF orientation is not applied, as
    ``PIL.Image.open(path).convert("RGB")`` does.

    Raises:
        ValueError: the file is missing, empty, damaged or no image.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path: expected that of an image file, got {path!r}")
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{os.fspath(path)}: cannot be read as an image ({error})") from error
    return torch.from_numpy(np.array(rgb))
