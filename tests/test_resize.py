"""pvt::resize gives the values of Pillow, all of them."""

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pvt_ext import ops, reference

METHODS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
MODES = {1: "L", 3: "RGB", 4: "CMYK"}

# Pillow 13.0 changed which pass comes first for images much taller than wide.
needs_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="compares with the values of Pillow >= 13"
)


def random_image(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """Noise, or black and white to provoke overshoot and clipping."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return image if seed % 2 else np.where(image < 128, 0, 255).astype(np.uint8)


def pillow_resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    channels = image.shape[2]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image, MODES[channels])
    resized = picture.resize((size[1], size[0]), METHODS[interpolation])
    return np.asarray(resized).reshape(*size, channels)


side = st.one_of(st.integers(1, 12), st.integers(1, 400))


@needs_pillow_13
@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(side, side, st.sampled_from([1, 3, 4])),
    size=st.tuples(side, side),
    interpolation=st.sampled_from(sorted(METHODS)),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_equals_pillow(shape, size, interpolation, seed, data):
    image = random_image(*shape, seed)
    expected = pillow_resize(image, size, interpolation)
    source = torch.from_numpy(image)
    assert np.array_equal(ops.resize(source, list(size), interpolation).numpy(), expected)

    top, left = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
    height = data.draw(st.integers(1, size[0] - top))
    width = data.draw(st.integers(1, size[1] - left))
    window = ops.resize(source, list(size), interpolation, [top, left, height, width])
    assert np.array_equal(window.numpy(), expected[top : top + height, left : left + width])


@pytest.mark.parametrize("interpolation", sorted(METHODS))
@pytest.mark.parametrize("size", [[5, 7], [40, 3], [1, 1], [31, 64], [90, 80]])
def test_equals_reference(size, interpolation):
    image = torch.from_numpy(random_image(31, 64, 3, 1))
    crop = [size[0] // 3, size[1] // 3, size[0] - size[0] // 3, size[1] // 2 + 1]
    for window in ([], crop):
        expected = reference.resize(image, size, interpolation, window)
        assert torch.equal(ops.resize(image, size, interpolation, window), expected)


def test_strided_image():
    image = torch.from_numpy(random_image(3, 40, 30, 1)).permute(1, 2, 0)  # planar memory
    assert torch.equal(ops.resize(image, [9, 8]), ops.resize(image.contiguous(), [9, 8]))


def test_same_values_for_any_number_of_threads():
    image = torch.from_numpy(random_image(300, 200, 3, 1))
    threads = torch.get_num_threads()
    try:
        outputs = []
        for n in (1, 3):
            torch.set_num_threads(n)
            outputs.append(ops.resize(image, [256, 171], "bicubic", [16, 0, 224, 160]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*outputs)


def test_a_window_of_an_extreme_panorama_is_cheap():
    """Only the crop is computed: the whole of this resize would be 52 million pixels."""
    image = torch.full((50, 20000, 3), 7, dtype=torch.uint8)
    window = ops.resize(image, [256, 102400], "bicubic", [16, 51088, 224, 224])
    assert window.shape == (224, 224, 3)
    assert (window == 7).all()
