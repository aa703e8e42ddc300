"""Detectors of torchvision on a pyramid: ``retinanet("pvt_small")``, ``mask_rcnn("pvt_v2_b2")``.

They are torchvision's own :class:`RetinaNet` and :class:`MaskRCNN`, whose backbone is an
:class:`FPNBackbone`; they train, run and script as those do. Levels, channels and extra levels are
those of the published detectors. The heads are torchvision's, which differ from mmdetection's, with
which PVT's detection results were published; weights trained with those do not give their published
AP here, even where their shapes fit:

=====================  ==================================  =====================================
                       torchvision, here                   mmdetection, published
=====================  ==================================  =====================================
between P6 and P7      ReLU                                nothing
anchor sizes           rounded to whole pixels             not rounded
RoIAlign               2 samples per bin and side,         as many as the box needs,
                       ``aligned=False``                   ``aligned=True``
labels                 0 is background; COCO's 91 ids      80 classes, background last
resizing               bilinear, of float images           OpenCV's, of uint8 images
boxes kept per image   RetinaNet 300, Mask R-CNN 100       100
=====================  ==================================  =====================================

Needs torchvision.
"""

from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

try:
    from torchvision.models.detection import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        MaskRCNN,
        RetinaNet,
    )
    from torchvision.ops.feature_pyramid_network import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        ExtraFPNBlock,
        FeaturePyramidNetwork,
        LastLevelMaxPool,
        LastLevelP6P7,
    )
except ModuleNotFoundError as error:
    raise ImportError(
        f"pvt_ext.torchvision: {error.name} is not installed; run: pip install torchvision"
    ) from error

import pvt_ext
from pvt_ext.backbone import Backbone
from pvt_ext.model import create_backbone

Detector = TypeVar("Detector", bound=nn.Module)

CHANNELS = 256  # of every level, as published


class FPNBackbone(nn.Module):
    """A :class:`~pvt_ext.backbone.Backbone` and a feature pyramid network on its maps.

    Args:
        body: gives the maps, finest first.
        extra_blocks: makes further levels of them.
        out_channels: of every level.

    Attributes:
        out_channels: torchvision's detectors read it.
    """

    def __init__(
        self,
        body: Backbone,
        extra_blocks: ExtraFPNBlock | None = None,
        out_channels: int = CHANNELS,
    ) -> None:
        super().__init__()
        if body.return_cls:
            raise ValueError("body: expected return_cls=False, as a class token is no map")
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.out_chans, out_channels, extra_blocks)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``[B, in_chans, H, W]`` to ``[B, out_channels, H', W']`` of every level, finest first.

        Names are ``"0"``, ``"1"``, ..., then those of the extra levels.
        """
        maps: dict[str, Tensor] = {}
        for i, m in enumerate(self.body(x)):
            maps[str(i)] = m
        return self.fpn(maps)


def retinanet(
    name: str,
    num_classes: int = 91,
    *,
    pretrained: bool = False,
    drop_path_rate: float = 0.0,
    fused: bool = True,
    **options: Any,
) -> RetinaNet:
    """RetinaNet on P3..P7: the maps of strides 8, 16 and 32, and two levels made of the last map.

    Args:
        name: of the backbone, one of :func:`pvt_ext.list_models`.
        num_classes: labels, background included; 91 for COCO's ids.
        pretrained: download and load the published ImageNet-1k weights of the backbone.
        drop_path_rate, fused: as in :func:`pvt_ext.model.create_backbone`.
        options: of torchvision's RetinaNet, such as ``min_size=800`` and ``max_size=1333``, the
            size that images are brought to; ``score_thresh``; ``anchor_generator``, which by
            default has 9 anchors of 32 to 812 pixels per place.

    Returns:
        the detector in training mode; all of its weights are trained.
    """
    body = create_backbone(
        name,
        pretrained=pretrained,
        out_indices=(1, 2, 3),
        drop_path_rate=drop_path_rate,
        fused=fused,
    )
    extra = LastLevelP6P7(body.out_chans[-1], CHANNELS)
    extra.use_P5 = False  # else it would read P5, not C5, where both have 256 channels: pvt_v2_b0
    return RetinaNet(FPNBackbone(body, extra), num_classes, **options)


def mask_rcnn(
    name: str,
    num_classes: int = 91,
    *,
    pretrained: bool = False,
    drop_path_rate: float = 0.0,
    fused: bool = True,
    **options: Any,
) -> MaskRCNN:
    """Mask R-CNN on P2..P6: the maps of strides 4 to 32, and the last level at half its size.

    Args:
        name, num_classes, pretrained, drop_path_rate, fused: as in :func:`retinanet`.
        options: of torchvision's MaskRCNN, such as ``min_size=800`` and ``max_size=1333``, the
            size that images are brought to; ``box_score_thresh``; ``rpn_anchor_generator``, which
            by default has 3 anchors per place, of 32, 64, 128, 256 or 512 pixels by level.

    Returns:
        the detector in training mode; all of its weights are trained.
    """
    body = create_backbone(name, pretrained=pretrained, drop_path_rate=drop_path_rate, fused=fused)
    return MaskRCNN(FPNBackbone(body, LastLevelMaxPool()), num_classes, **options)


def pack(detector: Detector, dtype: torch.dtype = torch.float32) -> Detector:
    """A copy of ``detector`` for inference, in evaluation mode, with :func:`pvt_ext.pack` of its
    backbone's body in ``dtype``; the rest stays as it is."""
    packed = deepcopy(detector).eval()
    backbone = packed.backbone
    if not isinstance(backbone, FPNBackbone):
        raise ValueError(f"detector: expected a pvt_ext FPNBackbone, got {type(backbone).__name__}")
    backbone.body = pvt_ext.pack(backbone.body, dtype)
    return packed
