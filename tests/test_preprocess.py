"""Preprocessing, bit for bit, against Pillow and torchvision's formulas written out."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from pvt_ext.preprocess import PRESETS, Preprocess, half, load_image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def viewed_by_torchvision(
    image: Image.Image, resize: int | tuple[int, int], crop: tuple[int, int]
) -> Tensor:
    """Resize, CenterCrop, ToTensor and Normalize of torchvision on a Pillow image.

    Once compared with torchvision 0.29 itself: equal in every bit.
    """
    w, h = image.size
    if isinstance(resize, tuple):
        new_h, new_w = resize
    else:
        short, long = (w, h) if w <= h else (h, w)
        new_short, new_long = resize, int(resize * long / short)
        new_w, new_h = (new_short, new_long) if w <= h else (new_long, new_short)
    image = image.resize((new_w, new_h), Image.Resampling.BICUBIC)
    top, left = round((new_h - crop[0]) / 2.0), round((new_w - crop[1]) / 2.0)
    image = image.crop((left, top, left + crop[1], top + crop[0]))
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return x.sub_(mean).div_(std)


RESIZE: dict[str, int | tuple[int, int]] = {"paper": 256, "timm": 248, "hf": (224, 224)}


def random_image(H: int, W: int, seed: int = 0) -> Image.Image:
    """Noise on a gradient: every value matters, and so does its place."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, W)[None, :, None] + np.linspace(0, 40, H)[:, None, None]
    pixels = ramp + rng.integers(0, 80, (H, W, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))


def assert_same_view(preset: str, H: int, W: int, seed: int = 0) -> None:
    image = random_image(H, W, seed)
    expected = viewed_by_torchvision(image, RESIZE[preset], (224, 224))
    actual = Preprocess(preset)(as_tensor(image))
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected), f"{preset} {H} x {W}"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(PRESETS)), st.integers(1, 600), st.integers(1, 600), st.integers(0, 9))
def test_equals_torchvision(preset: str, H: int, W: int, seed: int) -> None:
    assert_same_view(preset, H, W, seed)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "size", [(1, 1), (256, 256), (224, 224), (1200, 900), (3, 700), (700, 2), (50, 4000)]
)
def test_equals_torchvision_at_odd_sizes(preset: str, size: tuple[int, int]) -> None:
    assert_same_view(preset, *size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(50, 20000), (20000, 50)])
def test_equals_torchvision_at_extreme_shapes(size: tuple[int, int]) -> None:
    assert_same_view("paper", *size)


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 100_000), st.integers(1, 100_000), st.sampled_from(["paper", "timm"]))
def test_geometry_equals_torchvisions_formula(H: int, W: int, preset: str) -> None:
    size, (top, left, crop_h, crop_w) = Preprocess(preset).geometry(H, W)
    resize = RESIZE[preset]
    assert isinstance(resize, int)
    long = int(resize * max(H, W) / min(H, W))
    assert size == ([resize, long] if H <= W else [long, resize])
    assert (crop_h, crop_w) == (224, 224)
    assert (top, left) == (round((size[0] - 224) / 2.0), round((size[1] - 224) / 2.0))
    assert 0 <= top <= size[0] - 224
    assert 0 <= left <= size[1] - 224


def test_half_rounds_to_even() -> None:
    assert [half(n) for n in range(2000)] == [round(n / 2.0) for n in range(2000)]


def test_only_the_window_is_computed() -> None:
    """The whole resized image would be 256 x 5,120,000, 4 GB."""
    assert Preprocess()(torch.zeros(1, 20_000, 3, dtype=torch.uint8)).shape == (3, 224, 224)


@pytest.mark.parametrize("img_size", [32, 96, 384, (96, 160), (160, 96)])
def test_other_sizes_keep_the_proportion(img_size: int | tuple[int, int]) -> None:
    crop = (img_size, img_size) if isinstance(img_size, int) else img_size
    image = random_image(300, 410)
    resize = {"paper": int(256 / 224 * max(crop)), "timm": math.floor(max(crop) / 0.9), "hf": crop}
    for preset in PRESETS:
        expected = viewed_by_torchvision(image, resize[preset], crop)
        assert torch.equal(Preprocess(preset, img_size)(as_tensor(image)), expected)


def test_resized_side_for_every_crop() -> None:
    for side in range(32, 2049):
        assert Preprocess("paper", side).resize == int(256 / 224 * side)
        assert Preprocess("timm", side).resize == math.floor(side / 0.9)


@pytest.mark.parametrize("preset", PRESETS)
def test_scripts(preset: str) -> None:
    preprocess = Preprocess(preset)
    scripted = torch.jit.script(preprocess)
    for H, W in ((300, 200), (17, 401), (1, 1)):
        image = as_tensor(random_image(H, W))
        assert torch.equal(scripted(image), preprocess(image))


def test_takes_sliced_images() -> None:
    image = as_tensor(random_image(300, 400))
    view = image[20:280:2, 10:, :].flip(1)
    assert torch.equal(Preprocess()(view), Preprocess()(view.contiguous()))
    assert torch.equal(image, as_tensor(random_image(300, 400))), "the input was changed"


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(8, 8, 3),
        torch.zeros(8, 8, dtype=torch.uint8),
        torch.zeros(8, 8, 4, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 8, 3, dtype=torch.uint8),
    ],
)
def test_refuses_other_tensors(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"preprocess: expected a(n| uint8) image"):
        Preprocess()(image)


def test_refuses_arguments() -> None:
    with pytest.raises(ValueError, match="preset: expected one of paper, timm, hf, got 'pil'"):
        Preprocess("pil")
    with pytest.raises(ValueError, match=r"img_size: .* got 0"):
        Preprocess("paper", 0)


# ---- files ----


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_load_image_is_pillows_convert(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    if mode == "I;16":
        Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) * 2000).save(path)
    else:
        random_image(4, 6).convert(mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
        expected = image.convert("RGB")
    loaded = load_image(path)
    assert loaded.dtype == torch.uint8
    assert loaded.shape == (4, 6, 3)
    assert torch.equal(loaded, as_tensor(expected))


def test_load_image_reads_cmyk_and_ignores_orientation(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    random_image(8, 16).convert("CMYK").save(path)
    with Image.open(path) as image:
        assert torch.equal(load_image(path), as_tensor(image.convert("RGB")))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter
    random_image(8, 16).save(path, exif=exif)
    assert load_image(path).shape == (8, 16, 3)


def test_load_image_refuses(tmp_path: Path) -> None:
    random_image(64, 64).save(tmp_path / "good.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:2000])
    for name in ("empty.jpg", "text.jpg", "cut.png", "absent.png"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as an image"):
            load_image(tmp_path / name)
