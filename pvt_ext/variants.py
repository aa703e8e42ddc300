"""The models as numbers: one :class:`StageSpec` per stage, and nothing else.

All are published but ``pvt_nano``, which is this library's own, for images of 32 to 64 pixels.

Sources: Wang et al., Pyramid Vision Transformer, ICCV 2021 (PVT v1), and Wang et al., PVT v2:
Improved Baselines with Pyramid Vision Transformer, CVMJ 2022 (PVT v2).
"""

from collections.abc import Sequence
from typing import NamedTuple


class StageSpec(NamedTuple):
    """What distinguishes one stage from another. The defaults are those of PVT v1, stages 1..3."""

    embed_dim: int
    depth: int  # blocks
    num_heads: int
    mlp_ratio: float
    sr_ratio: int  # spatial reduction of keys and values; plays no part where linear
    patch_size: int  # also the factor by which this stage shrinks the grid
    overlap: bool = False  # patches overlap: kernel 2 * patch_size - 1
    linear: bool = False  # linear SRA: keys are pooled to a fixed grid; a ReLU in the MLP
    dwconv: bool = False  # a depthwise convolution in the MLP
    positions: bool = True  # a position table
    cls_token: bool = False  # last stage only: the head sees this token, not the mean of all
    norm: bool = False  # LayerNorm after the blocks; without one in the last stage, PVT adds it
    fan_out_init: bool = False  # convolutions start as in PVT v2; else with PyTorch's default


def min_image_size(specs: Sequence[StageSpec]) -> int:
    """The smallest image side at which every stage has a grid of at least its ``sr_ratio``.

    A linear stage needs a grid of 1. An overlapping patch embedding of stride ``s`` makes
    ``ceil(side / s)`` patches of a side, another one ``side // s``.
    """
    side = 1
    for spec in reversed(specs):
        grid = max(side, 1 if spec.linear else spec.sr_ratio)
        side = (grid - 1) * spec.patch_size + (1 if spec.overlap else spec.patch_size)
    return side


def _stages(
    depths: tuple[int, ...],
    dims: tuple[int, ...],
    heads: tuple[int, ...],
    mlp_ratios: tuple[int, ...],
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1),  # as all published models have them
    patch_sizes: tuple[int, ...] = (4, 2, 2, 2),
) -> tuple[StageSpec, ...]:
    rows = zip(dims, depths, heads, mlp_ratios, sr_ratios, patch_sizes, strict=True)
    return tuple(StageSpec(*row) for row in rows)


def _v1(
    depths: tuple[int, ...], dims: tuple[int, ...], heads: tuple[int, ...]
) -> tuple[StageSpec, ...]:
    *stages, last = _stages(depths, dims, heads, (8, 8, 4, 4))
    return (*stages, last._replace(cls_token=True))


def _v2(
    depths: tuple[int, ...], dims: tuple[int, ...], mlp_ratios: tuple[int, ...], linear: bool
) -> tuple[StageSpec, ...]:
    return _as_v2(_stages(depths, dims, (1, 2, 5, 8), mlp_ratios), linear)


def _as_v2(stages: Sequence[StageSpec], linear: bool = False) -> tuple[StageSpec, ...]:
    return tuple(
        stage._replace(
            overlap=True,
            linear=linear,
            dwconv=True,
            positions=False,
            norm=True,
            fan_out_init=True,
        )
        for stage in stages
    )


# Three stages, of strides 2, 4 and 8: depths, channels, heads, mlp_ratios, sr_ratios, patch_sizes.
_NANO = _as_v2(_stages((1, 2, 2), (32, 96, 192), (1, 3, 6), (4, 4, 4), (4, 2, 1), (2, 2, 2)))


VARIANTS: dict[str, tuple[StageSpec, ...]] = {
    #                   blocks         channels              heads
    "pvt_tiny":     _v1((2, 2, 2, 2),   (64, 128, 320, 512),  (1, 2, 5, 8)),
    "pvt_small":    _v1((3, 4, 6, 3),   (64, 128, 320, 512),  (1, 2, 5, 8)),
    "pvt_medium":   _v1((3, 4, 18, 3),  (64, 128, 320, 512),  (1, 2, 5, 8)),
    "pvt_large":    _v1((3, 8, 27, 3),  (64, 128, 320, 512),  (1, 2, 5, 8)),
    "pvt_huge_v2":  _v1((3, 10, 60, 3), (128, 256, 512, 768), (2, 4, 8, 12)),
    #                   blocks         channels              mlp_ratio     linear
    "pvt_v2_b0":    _v2((2, 2, 2, 2),   (32, 64, 160, 256),   (8, 8, 4, 4), False),
    "pvt_v2_b1":    _v2((2, 2, 2, 2),   (64, 128, 320, 512),  (8, 8, 4, 4), False),
    "pvt_v2_b2":    _v2((3, 4, 6, 3),   (64, 128, 320, 512),  (8, 8, 4, 4), False),
    "pvt_v2_b2_li": _v2((3, 4, 6, 3),   (64, 128, 320, 512),  (8, 8, 4, 4), True),
    "pvt_v2_b3":    _v2((3, 4, 18, 3),  (64, 128, 320, 512),  (8, 8, 4, 4), False),
    "pvt_v2_b4":    _v2((3, 8, 27, 3),  (64, 128, 320, 512),  (8, 8, 4, 4), False),
    "pvt_v2_b5":    _v2((3, 6, 40, 3),  (64, 128, 320, 512),  (4, 4, 4, 4), False),
    "pvt_nano":     _NANO,
}  # fmt: skip


class Task(NamedTuple):
    """The classification that a model's own weights were trained for."""

    dataset: str
    num_classes: int
    img_size: int
    preset: str  # preprocessing, one of pvt_ext.preprocess.PRESETS


IMAGENET = Task("ImageNet-1k", 1000, 224, "paper")
CIFAR10 = Task("CIFAR-10", 10, 32, "hf")


def task_of(name: str) -> Task:
    """What a model is made for unless told otherwise."""
    return CIFAR10 if name == "pvt_nano" else IMAGENET


def list_models() -> list[str]:
    """Names that :func:`pvt_ext.create_model` knows: PVT v1, PVT v2, each by size, pvt_nano."""
    return list(VARIANTS)
