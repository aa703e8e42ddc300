"""What a comparison runs: one job is one row, given to every peer alike."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pvt_ext import PVT, Preprocess, create_model, load_image, load_weights
from tests.models import lively

DTYPES = ("fp32", "bf16", "int8")
PHOTOS = Path(__file__).parents[1] / "assets" / "photos"
SUFFIXES = {".jpg", ".jpeg", ".png"}


class NotAvailableError(Exception):
    """A peer cannot do this job, for a reason its user should know."""


@dataclass(frozen=True)
class Job:
    """One row. ``folder`` holds weights.pt and images.pt and takes what peers write."""

    model: str
    dtype: str
    batch: int
    size: tuple[int, int]
    threads: int
    folder: Path

    def load(self, *, fused: bool) -> PVT:
        """The model with the weights of this comparison, float32, in evaluation mode."""
        model = create_model(self.model, fused=fused).eval()
        model.load_state_dict(torch.load(self.folder / f"{self.model}.weights.pt"))
        return model

    def images(self) -> dict[str, Tensor]:
        """``test`` images, which every peer is timed with and checked on, and ``calibration``."""
        return torch.load(self.folder / "images.pt")

    def input(self) -> Tensor:
        """``[batch, 3, H, W]``, float32."""
        return batches(self.images()["test"], self.batch)[0]

    @property
    def label(self) -> str:
        H, W = self.size
        return f"{self.model} {self.dtype} batch {self.batch}, {H}x{W}"


def batches(images: Tensor, size: int) -> list[Tensor]:
    """``images`` in batches of exactly ``size``; the last is filled up from the beginning."""
    count = -(-len(images) // size)
    indices = torch.arange(count * size) % len(images)
    return list(images[indices].split(size))


def save_weights(model: str, folder: Path, checkpoint: str | None) -> None:
    """Weights for all peers: of a checkpoint, or random ones whose norms and biases matter."""
    if checkpoint is None:
        network = lively(model)
    else:
        network = create_model(model)
        load_weights(network, checkpoint)
    torch.save(network.state_dict(), folder / f"{model}.weights.pt")


def save_images(size: tuple[int, int], folder: Path, calibrate: Path | None, count: int) -> None:
    """``count`` test images out of the sample photos, and images to calibrate int8 with.

    Without ``calibrate`` the latter are other parts of the same photos, else up to 128 images out
    of that folder.
    """
    preprocess = Preprocess("hf", size)  # squashed, so that each photo gives all of its pixels
    views = [view for photo in _photos(PHOTOS) for view in _views(load_image(photo))]
    test = [preprocess(view) for view in views[::3]][:count]
    if calibrate is None:
        calibration = [preprocess(view) for i, view in enumerate(views) if i % 3]
    else:
        files = _photos(calibrate)
        if not files:
            raise FileNotFoundError(f"--calibrate: no images in {calibrate}")
        step = max(1, len(files) // 128)
        calibration = [preprocess(load_image(file)) for file in files[::step][:128]]
    images = {"test": torch.stack(test), "calibration": torch.stack(calibration)}
    torch.save(images, folder / "images.pt")


def _photos(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


def _views(image: Tensor) -> list[Tensor]:
    """The whole photo, its four quarters and its middle, and their mirror images."""
    h, w = image.shape[0] // 2, image.shape[1] // 2
    corners = [(0, 0), (0, w), (h, 0), (h, w), (h // 2, w // 2)]
    parts = [image, *(image[y : y + h, x : x + w] for y, x in corners)]
    return [view.contiguous() for part in parts for view in (part, part.flip(1))]
