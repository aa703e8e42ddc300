"""The Pyramid Vision Transformer, v1 and v2: the pyramid with a classifier, and models by name.

A model is described by data, one :class:`StageSpec` per stage; :mod:`pvt_ext.variants` has the
table of published ones.

Sources: Wang et al., Pyramid Vision Transformer, ICCV 2021 (v1), and PVT v2: Improved Baselines
with Pyramid Vision Transformer, CVMJ 2022 (v2).
"""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pvt_ext.backbone import Backbone, Pyramid, drop_path_schedule, init_module
from pvt_ext.nn import as_map, check_at_least
from pvt_ext.variants import VARIANTS, StageSpec, list_models, task_of


class PVT(Pyramid):
    """Pyramid Vision Transformer for classification; :meth:`features` gives its feature maps.

    Any image whose sides are at least :attr:`min_size` is accepted, whatever ``img_size`` is;
    sides need not be multiples of 32 (v1 drops what does not fill a patch, v2 pads).

    Args:
        specs: the stages, in order; :data:`pvt_ext.variants.VARIANTS` has the published ones. The
            head sees the class token if the last stage has one, else the mean of its tokens.
        num_classes: outputs of the head; 0 means no head, so ``forward`` returns features.
        in_chans: channels of the image.
        img_size: image side, or ``(height, width)``, that the position tables are made for.
        drop_path_rate: stochastic depth of the last block; earlier blocks rise to it linearly.
        fused: use the operators of this library; False selects plain PyTorch.
        variant: name of this configuration, carried into exported files.
    """

    def __init__(
        self,
        specs: Sequence[StageSpec],
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_path_rate: float = 0.0,
        fused: bool = True,
        variant: str = "",
    ) -> None:
        rates = drop_path_schedule(specs, drop_path_rate)
        super().__init__(specs, in_chans, img_size, rates, not specs[-1].norm, fused, variant)
        self.reset_classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of an image batch: ``[B, in_chans, H, W] -> [B, num_classes]``."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """What the head sees, ``[B, num_features]``: class token or mean of tokens, normalised."""
        tokens, _ = self._last_stage(x)
        return self._head_input(tokens)

    def _last_stage(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        # Its tokens, class token included, before the final norm; and their grid.
        self._check_image(x)
        tokens, (H, W) = x, (0, 0)
        for i, stage in enumerate(self.stages):
            tokens, (H, W) = stage(x if i == 0 else as_map(tokens, H, W))
        return tokens, (H, W)

    def forward_head(self, x: Tensor) -> Tensor:
        """``[B, num_features] -> [B, num_classes]``."""
        return self.head(x)

    @torch.jit.unused
    def get_classifier(self) -> nn.Module:
        return self.head

    @torch.jit.unused
    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a freshly initialised one; 0 removes it."""
        num_classes = check_at_least("num_classes", num_classes, 0)
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity()
        if num_classes > 0:
            like = next(self.parameters())
            head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            init_module(head)
            self.head = head


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    fused: bool = True,
) -> PVT:
    """Build a classifier by name, in training mode.

    Args:
        name: one of :func:`list_models`.
        pretrained: load the weights that come with the name: the published ImageNet-1k weights,
            which are downloaded, or those of ``pvt_nano``, which are in the package. With another
            ``num_classes`` the head stays freshly initialised; with other ``in_chans`` the first
            convolution is adapted (:func:`pvt_ext.load_weights`).
        num_classes: outputs of the head, by default 1000, of ``pvt_nano`` 10; 0 means no head.
        in_chans: channels of the image.
        img_size: image side, or ``(height, width)``, that the position tables are made for (v2 has
            none) and that an exported file's preprocessing produces; by default 224, of
            ``pvt_nano`` 32.
        drop_path_rate: stochastic depth; published training uses 0.1 for tiny, small and b0..b2,
            0.3 for medium, large and b3..b5.
        fused: use the operators of this library; False selects plain PyTorch.

    Raises:
        ValueError: unknown name, or an argument out of range.
        DownloadError: ``pretrained``, and the file could not be fetched.
    """
    specs, task = find_specs("create_model", name), task_of(name)
    model = PVT(
        specs,
        num_classes=task.num_classes if num_classes is None else num_classes,
        in_chans=in_chans,
        img_size=task.img_size if img_size is None else img_size,
        drop_path_rate=drop_path_rate,
        fused=fused,
        variant=name,
    )
    if pretrained:
        from pvt_ext.weights import load_official

        load_official(model)
    return model


def create_backbone(
    name: str,
    *,
    pretrained: bool = False,
    out_indices: Sequence[int] | None = None,
    return_cls: bool = False,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    fused: bool = True,
) -> Backbone:
    """Build a backbone by name, in training mode: ``[B, in_chans, H, W]`` to feature maps.

    Args:
        name: one of :func:`list_models`.
        out_indices: stages to return, 0..3 for strides 4, 8, 16 and 32 (of ``pvt_nano`` 0..2 for
            2, 4 and 8); None for all.
        return_cls: append the class token to the maps (v1).
        pretrained, in_chans, img_size, drop_path_rate, fused: as in :func:`create_model`.

    Raises:
        ValueError: unknown name, or an argument out of range.
        DownloadError: ``pretrained``, and the file could not be fetched.
    """
    backbone = Backbone(
        find_specs("create_backbone", name),
        out_indices=out_indices,
        return_cls=return_cls,
        in_chans=in_chans,
        img_size=task_of(name).img_size if img_size is None else img_size,
        drop_path_rate=drop_path_rate,
        fused=fused,
        variant=name,
    )
    if pretrained:
        from pvt_ext.weights import load_official

        load_official(backbone)
    return backbone


def find_specs(caller: str, name: str) -> tuple[StageSpec, ...]:
    """The stages of a published model; an unknown name ends in an error that suggests others."""
    if not isinstance(name, str):
        raise ValueError(f"{caller}: expected the name of a model, got {name!r}")
    if name not in VARIANTS:
        close = difflib.get_close_matches(name, VARIANTS, cutoff=0.65) or list_models()
        raise ValueError(f"{caller}: unknown name {name!r}; did you mean {', '.join(close)}?")
    return VARIANTS[name]
