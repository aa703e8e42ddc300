"""Augmentation and mixing: the strengths that timm gives their names, and what must always hold."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from pvt_ext.preprocess import Preprocess
from pvt_ext.training import rand_augment as ra
from pvt_ext.training.augment import TrainTransform, crop_window, erase
from pvt_ext.training.config import Augment, Mix
from pvt_ext.training.mix import cut_box, mix, smooth_targets

NO_TIMM = "timm is not installed: augmentation was NOT compared with timm's"
PLAIN = {"flip": 0.0, "rand_augment": None, "erasing": 0.0}


def photo(height: int = 40, width: int = 56, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


# ---- RandAugment ----

NAMES = [
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing",
    "SolarizeAdd", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing",
    "SharpnessIncreasing", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
]  # fmt: skip


@pytest.mark.parametrize("magnitude", [0.0, 3.3, 8.7, 9.0, 9.9])
@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
def test_operations_are_timms(place: int, magnitude: float, monkeypatch) -> None:
    theirs = pytest.importorskip("timm.data.auto_augment", reason=NO_TIMM)
    assert theirs._RAND_INCREASING_TRANSFORMS == NAMES
    name, image = NAMES[place], photo()
    options = {"fillcolor": (124, 116, 104), "resample": Image.Resampling.BICUBIC}
    for sign, draw in ((1, 0.1), (-1, 0.9)):
        monkeypatch.setattr(random, "random", lambda draw=draw: draw)  # of their sign
        level = theirs.LEVEL_TO_ARG[name]
        args = level(magnitude, {}) if level else ()
        expected = np.asarray(theirs.NAME_TO_OP[name](image, *args, **options))
        actual = np.asarray(ra._OPERATIONS[place](image, magnitude / 10, sign))
        assert np.array_equal(actual, expected)


def test_policy_is_timms() -> None:
    theirs = pytest.importorskip("timm.data.auto_augment", reason=NO_TIMM)
    policy = theirs.rand_augment_transform("rand-m9-mstd0.5-inc1")
    operation = policy.ops[0]
    ours = ra.parse_policy("rand-m9-mstd0.5-inc1")
    assert ours == (operation.magnitude, operation.magnitude_std, policy.num_layers, operation.prob)
    assert [op.name for op in policy.ops] == NAMES


def test_policy() -> None:
    assert ra.parse_policy("rand-m9-mstd0.5-inc1") == (9, 0.5, 2, 0.5)
    assert ra.parse_policy("rand-m5-n3-p1-inc1") == (5, 0, 3, 1)
    for wrong in ("", "rand", "rand-m9", "rand-m9-inc0", "original-m9-inc1", "rand-m9-x3-inc1"):
        with pytest.raises(ValueError, match=r"a policy such as rand-m9-mstd0\.5-inc1"):
            ra.parse_policy(wrong)
    with pytest.raises(ValueError, match="at most 10"):
        ra.parse_policy("rand-m11-inc1")


def test_the_strongest_posterization_is_black() -> None:  # Pillow refuses 0 bits
    assert not np.asarray(ra._posterize(photo(), 1.0, 1)).any()
    assert set(np.unique(np.asarray(ra._posterize(photo(), 0.0, 1)) & 15)) == {0}


def test_operations_are_drawn_evenly(monkeypatch) -> None:
    drawn: list[tuple[int, float, int]] = []

    def note(number: int):
        return lambda image, level, sign: (drawn.append((number, level, sign)), image)[1]

    monkeypatch.setattr(ra, "_OPERATIONS", tuple(note(i) for i in range(15)))
    rng = np.random.default_rng(0)
    policy = ra.parse_policy("rand-m9-mstd0.5-inc1")
    for _ in range(6000):
        ra.rand_augment(photo(4, 4), policy, rng)
    assert len(drawn) == pytest.approx(6000, rel=0.03)  # two layers, each in half of the images
    counts = Counter(number for number, _, _ in drawn)
    assert all(counts[i] == pytest.approx(400, rel=0.2) for i in range(15))
    levels = np.array([level for _, level, _ in drawn])
    assert np.median(levels) == pytest.approx(0.9, abs=0.005)
    assert levels.std() == pytest.approx(0.05, rel=0.1)
    assert levels.max() == 1.0  # cut off
    assert np.mean([sign for _, _, sign in drawn]) == pytest.approx(0, abs=0.05)


# ---- crop, flip, erase ----


def test_crop_windows_have_the_share_and_shape_asked_for() -> None:
    rng = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(2000):
        left, top, w, h = crop_window(400, 300, (0.08, 1.0), (3 / 4, 4 / 3), rng)
        assert 0 <= left <= 400 - w
        assert 0 <= top <= 300 - h
        shares.append(w * h / 120_000)
        ratios.append(w / h)
    assert 0.079 < min(shares) < 0.1
    assert 0.9 < max(shares) <= 1.0
    assert 0.74 < min(ratios) < 0.77
    assert 1.30 < max(ratios) < 1.35
    squares = [crop_window(300, 300, (0.08, 1.0), (1, 1), rng)[2] for _ in range(2000)]
    assert np.mean(np.square(squares)) / 300**2 == pytest.approx(0.54, abs=0.02)  # drawn evenly


@pytest.mark.parametrize(
    ("size", "window"),
    [((900, 30), (430, 0, 40, 30)), ((30, 900), (0, 430, 30, 40)), ((1, 1), (0, 0, 1, 1))],
)
def test_crop_of_a_strip_is_in_its_middle(size, window) -> None:
    rng = np.random.default_rng(0)
    assert crop_window(*size, (0.9, 1.0), (3 / 4, 4 / 3), rng) == window


def test_crop_window_is_timms(monkeypatch) -> None:
    theirs = pytest.importorskip("timm.data.transforms", reason=NO_TIMM)

    class Draws:  # the same draws for both
        def __init__(self) -> None:
            self.rng = np.random.default_rng(3)

        def uniform(self, low: float, high: float) -> float:
            return float(self.rng.uniform(low, high))

        def integers(self, high: int) -> int:
            return int(self.rng.integers(high))

    for width, height in [(400, 300), (900, 30), (30, 900), (32, 32)]:
        a, b = Draws(), Draws()
        monkeypatch.setattr(random, "uniform", b.uniform)
        monkeypatch.setattr(random, "randint", lambda low, high: low)
        image = Image.new("RGB", (width, height))
        for _ in range(20):
            _, _, w, h = crop_window(width, height, (0.08, 1.0), (3 / 4, 4 / 3), a)
            _, _, their_h, their_w = theirs.RandomResizedCropAndInterpolation.get_params(
                image, (0.08, 1.0), (3 / 4, 4 / 3)
            )
            assert (w, h) == (their_w, their_h)
            a, b = Draws(), Draws()
            monkeypatch.setattr(random, "uniform", b.uniform)


def test_whole_image_is_what_an_evaluation_sees() -> None:
    image = photo(32, 32)
    x = TrainTransform(Augment(crop="padded", padding=0, **PLAIN), 32)(
        image, np.random.default_rng(0)
    )
    pixels = torch.from_numpy(np.array(image))
    torch.testing.assert_close(x, Preprocess("hf", 32)(pixels), rtol=0, atol=3e-7)
    whole = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), **PLAIN)
    x = TrainTransform(whole, 48)(photo(60, 60), np.random.default_rng(0))
    pixels = torch.from_numpy(np.array(photo(60, 60)))
    torch.testing.assert_close(x, Preprocess("hf", 48)(pixels), rtol=0, atol=3e-7)


def test_padded_crop() -> None:
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    transform = TrainTransform(Augment(crop="padded", padding=4, **PLAIN), 32)
    corners = set()
    for seed in range(800):
        lit = transform(white, np.random.default_rng(seed))[0] > 0
        rows, columns = (lit.any(1).nonzero(), lit.any(0).nonzero())
        assert lit.sum() == len(rows) * len(columns) >= 28 * 28  # a rectangle, black around it
        corners.add(tuple(int(n) for n in (rows[0], rows[-1], columns[0], columns[-1])))
    assert len(corners) == 81
    with pytest.raises(ValueError, match=r"padded needs images of 32 x 32 .* got 56 x 40"):
        transform(photo(), np.random.default_rng(0))


def test_flip() -> None:
    image = photo(32, 32)
    options = {**PLAIN, "crop": "padded", "padding": 0}
    seen = TrainTransform(Augment(**options), 32)(image, np.random.default_rng(0))
    flipped = TrainTransform(Augment(**{**options, "flip": 1.0}), 32)(
        image, np.random.default_rng(0)
    )
    assert torch.equal(flipped, seen.flip(2))


def test_erasing() -> None:
    rng = np.random.default_rng(0)
    areas, values = [], []
    for _ in range(500):
        x = np.full((3, 64, 64), np.inf, np.float32)
        erase(x, rng)
        hole = np.isfinite(x)
        assert (hole == hole[:1]).all()
        rows, columns = hole[0].any(1), hole[0].any(0)
        assert (hole[0] == rows[:, None] & columns[None]).all()
        areas.append(hole[0].mean())
        values.append(x[hole])
    assert 0.015 < min(areas) < 0.03
    assert 0.30 < max(areas) < 0.345
    noise = np.concatenate(values)
    assert (noise.mean(), noise.std()) == pytest.approx((0, 1), abs=0.01)  # each pixel its own


def test_erasing_is_as_frequent_as_asked() -> None:
    grey = Image.new("RGB", (32, 32), (9, 9, 9))
    options = {**PLAIN, "crop": "padded", "padding": 0, "erasing": 0.25}
    transform = TrainTransform(Augment(**options), 32)
    plain = transform(grey, np.random.default_rng(0)).amin()
    erased = [
        bool(transform(grey, np.random.default_rng(s)).std(dim=(1, 2)).max() > 1e-6)
        for s in range(800)
    ]
    assert np.mean(erased) == pytest.approx(0.25, abs=0.05)
    assert plain.isfinite()


# ---- mixup, cutmix, smoothing ----


def batch(size: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 16, 16, generator=generator)
    return images, torch.randint(0, 5, (size,), generator=generator)


def test_smoothed_targets() -> None:
    targets = smooth_targets(torch.tensor([2, 0]), 5, 0.1)
    expected = [[0.02, 0.02, 0.92, 0.02, 0.02], [0.92, 0.02, 0.02, 0.02, 0.02]]
    torch.testing.assert_close(targets, torch.tensor(expected))
    logits = torch.randn(2, 5)
    smoothed = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 0]), label_smoothing=0.1)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, targets), smoothed)


def test_mixup_is_a_convex_sum_with_the_mirrored_image() -> None:
    images, labels = batch()
    kept = images.clone()
    mixed, targets = mix(images, labels, 5, Mix(cutmix=0), np.random.default_rng(1))
    assert torch.equal(images, kept)
    one_hot = smooth_targets(labels, 5, 0.1)
    share = ((mixed - images.flip(0)) / (images - images.flip(0))).median()
    assert 0 < share < 1
    torch.testing.assert_close(
        mixed, images * share + images.flip(0) * (1 - share), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        targets, one_hot * share + one_hot.flip(0) * (1 - share), rtol=1e-4, atol=1e-5
    )


def test_cutmix_shares_the_label_by_area() -> None:
    images, labels = batch()
    for seed in range(30):
        mixed, targets = mix(
            images, labels, 5, Mix(mixup=0, smoothing=0), np.random.default_rng(seed)
        )
        from_other = (mixed == images.flip(0)) & (mixed != images)
        area = from_other[0, 0].float().mean()
        assert torch.equal(from_other | (mixed == images), torch.ones_like(from_other))
        expected = smooth_targets(labels, 5, 0.0)
        torch.testing.assert_close(targets, expected * (1 - area) + expected.flip(0) * area)


def test_cut_box_is_timms() -> None:
    theirs = pytest.importorskip("timm.data.mixup", reason=NO_TIMM)
    for seed in range(50):
        share = float(np.random.default_rng(seed).uniform())
        top, bottom, left, right = cut_box(30, 50, share, np.random.default_rng(seed))

        class Draws:
            rng = np.random.default_rng(seed)

            def randint(self, low: int, high: int, size: object = None) -> int:
                return int(self.rng.integers(high))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(theirs.np, "random", Draws())
            assert theirs.rand_bbox((30, 50), share) == (top, bottom, left, right)


def test_mixing_is_timms() -> None:
    theirs = pytest.importorskip("timm.data.mixup", reason=NO_TIMM)
    images, labels = batch()
    for cut in (False, True):
        expected = theirs.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=5)
        rng = np.random.default_rng(4)
        ours, targets = mix(
            images, labels, 5, Mix(switch_prob=float(cut)), np.random.default_rng(4)
        )
        rng.random(), rng.random()
        share = rng.beta(1.0, 1.0) if cut else rng.beta(0.8, 0.8)
        box = cut_box(16, 16, share, rng) if cut else None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(expected, "_params_per_batch", lambda share=share, cut=cut: (share, cut))
            patch.setattr(theirs, "rand_bbox", lambda *_, box=box, **__: box)
            x, y = expected(images.clone(), labels)
        torch.testing.assert_close(ours, x)
        torch.testing.assert_close(targets, y)


def test_what_is_mixed_how_often() -> None:
    images, labels = batch(2)
    kinds = Counter()
    for seed in range(600):
        mixed, _ = mix(images, labels, 5, Mix(prob=0.6), np.random.default_rng(seed))
        if torch.equal(mixed, images):
            kinds["none"] += 1
        elif ((mixed == images) | (mixed == images.flip(0))).all():
            kinds["cut"] += 1
        else:
            kinds["mixed"] += 1
    assert kinds["none"] == pytest.approx(240, abs=45)  # and boxes without a pixel
    assert kinds["cut"] == pytest.approx(180, abs=45)
    assert kinds["mixed"] == pytest.approx(180, abs=45)
    off = mix(images, labels, 5, Mix(mixup=0, cutmix=0, smoothing=0), np.random.default_rng(0))
    assert off[0] is images
    assert torch.equal(off[1].argmax(1), labels)
