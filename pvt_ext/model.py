"""The Pyramid Vision Transformer, v1 and v2: image -> 4 x stage -> head.

A model is described by data, one :class:`StageSpec` per stage; :mod:`pvt_ext.variants` has the
table of published ones. Each stage cuts its input into patches and runs its blocks, so stage 1..4
works at 1/4, 1/8, 1/16 and 1/32 of the image's height and width.

Sources: Wang et al., Pyramid Vision Transformer, ICCV 2021 (v1), and PVT v2: Improved Baselines
with Pyramid Vision Transformer, CVMJ 2022 (v2).
"""

import difflib
import math
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_ext.nn import (
    BLOCK_EPS,
    Block,
    PatchEmbed,
    as_map,
    check_at_least,
    check_probability,
    to_pair,
)
from pvt_ext.variants import VARIANTS, StageSpec, list_models, min_image_size


class Stage(nn.Module):
    """Patch embedding, positions, blocks and norm of one resolution.

    The position table, if there is one, belongs to the grid of ``img_size``. On any other grid it
    is resized bilinearly, as in the published formula; the decision compares heights and widths.
    The position of a class token is row 0 of the table.

    Args:
        spec: the numbers of this stage.
        img_size: ``(height, width)`` of the input that the position table is made for.
        in_chans: channels of the input.
        drop_path: stochastic depth probability of each block.
        fused: use the operators of this library; False selects plain PyTorch.
    """

    def __init__(
        self,
        spec: StageSpec,
        img_size: tuple[int, int],
        in_chans: int,
        drop_path: Sequence[float],
        fused: bool = True,
    ) -> None:
        super().__init__()
        if spec.cls_token and (spec.sr_ratio > 1 or spec.linear or spec.dwconv):
            raise ValueError(
                "cls_token: expected sr_ratio 1, linear False and dwconv False in the same stage "
                f"(they need a grid of tokens), got {spec}"
            )
        dim = spec.embed_dim
        self.patch_embed = PatchEmbed(img_size, spec.patch_size, in_chans, dim, spec.overlap)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if spec.cls_token else None
        num_positions = self.patch_embed.num_patches + int(spec.cls_token)
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, num_positions, dim)) if spec.positions else None
        )
        self.blocks = nn.ModuleList(
            Block(
                dim,
                spec.num_heads,
                spec.mlp_ratio,
                spec.sr_ratio,
                rate,
                fused,
                linear=spec.linear,
                dwconv=spec.dwconv,
            )
            for rate in drop_path
        )
        self.norm = nn.LayerNorm(dim, eps=BLOCK_EPS) if spec.norm else None
        self.fan_out_init = spec.fan_out_init

    def forward(self, x: Tensor, with_cls: bool = True) -> tuple[Tensor, tuple[int, int]]:
        """Tokens of this stage and the grid ``(H, W)`` they form.

        Args:
            x: feature map, ``[B, in_chans, H_in, W_in]``.
            with_cls: whether the class token of this stage, if it has one, takes part.

        Returns:
            tokens ``[B, H * W, embed_dim]``, with the class token ``[B, 1 + H * W, embed_dim]``.
        """
        x, (H, W) = self.embed(x, with_cls)
        for block in self.blocks:
            x = block(x, H, W)
        norm = self.norm
        if norm is not None:
            x = norm(x)
        return x, (H, W)

    def embed(self, x: Tensor, with_cls: bool) -> tuple[Tensor, tuple[int, int]]:
        """The first part of :meth:`forward`: tokens with their positions, and their grid."""
        cls_token, table = self.cls_token, self.pos_embed
        position: Tensor | None = None
        if table is not None:
            H, W = self.patch_embed.grid(x.shape[2], x.shape[3])
            num_cls = 0 if cls_token is None else 1
            position = self._resize(table[0, num_cls:], H, W)
        x, (H, W) = self.patch_embed(x, position)
        if cls_token is not None and with_cls:
            cls = cls_token if table is None else cls_token + table[:, :1]
            x = torch.cat((cls.expand(x.shape[0], -1, -1).to(x.dtype), x), dim=1)
        return x, (H, W)

    def _resize(self, table: Tensor, H: int, W: int) -> Tensor:
        # H0 * W0, C -> H * W, C
        H0, W0 = self.patch_embed.H, self.patch_embed.W
        if (H == H0 and W == W0) or min(H, W) < 1:  # an input without a patch has no position
            return table
        table = table.unflatten(0, (H0, W0)).permute(2, 0, 1)[None]  # N, C -> 1, C, H0, W0
        table = F.interpolate(table, size=[H, W], mode="bilinear", align_corners=False)
        return table[0].flatten(1).transpose(0, 1)


class PVT(nn.Module):
    """Pyramid Vision Transformer for classification, and as a backbone.

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

    has_cls_token: Final[bool]

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
        super().__init__()
        in_chans = check_at_least("in_chans", in_chans, 1)
        check_at_least("num_classes", num_classes, 0)
        check_probability("drop_path_rate", drop_path_rate)
        self.variant = variant
        self.fused = fused
        self.in_chans = in_chans
        self.img_size = to_pair("img_size", img_size)
        self.min_size = min_image_size(specs)
        self.num_features = specs[-1].embed_dim
        self.has_cls_token = specs[-1].cls_token
        if any(spec.cls_token for spec in specs[:-1]):
            raise ValueError("specs: expected a cls_token in the last stage only")
        self._check_size(self.img_size[0], self.img_size[1])

        num_blocks = sum(spec.depth for spec in specs)
        rates = [drop_path_rate * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
        stages: list[Stage] = []
        feature_info: list[dict[str, Any]] = []
        size, chans, stride, start = self.img_size, in_chans, 1, 0
        for i, spec in enumerate(specs):
            drop_path = rates[start : start + spec.depth]
            stages.append(Stage(spec, size, chans, drop_path, fused=fused))
            size = (stages[i].patch_embed.H, stages[i].patch_embed.W)
            chans, stride, start = spec.embed_dim, stride * spec.patch_size, start + spec.depth
            feature_info.append({"num_chs": chans, "reduction": stride, "module": f"stages.{i}"})

        self.feature_info = feature_info
        self.stages = nn.ModuleList(stages)
        self.norm = None if specs[-1].norm else nn.LayerNorm(self.num_features, eps=BLOCK_EPS)
        self.init_weights()
        self.reset_classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of an image batch: ``[B, in_chans, H, W] -> [B, num_classes]``."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """What the head sees, ``[B, num_features]``: class token or mean of tokens, normalised."""
        self._check_image(x)
        last = len(self.stages) - 1
        for i, stage in enumerate(self.stages):
            x, (H, W) = stage(x)
            if i != last:
                x = as_map(x, H, W)
        if self.has_cls_token:
            x = x[:, :1]  # the norm is per token, so the others need none
        norm = self.norm
        if norm is not None:
            x = norm(x)
        return x[:, 0] if self.has_cls_token else x.mean(dim=1)

    def forward_head(self, x: Tensor) -> Tensor:
        """``[B, num_features] -> [B, num_classes]``."""
        return self.head(x)

    @torch.jit.export
    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps C2, C3, C4, C5 for detection and segmentation.

        As in the published detection code, the class token takes no part; v1 maps have no norm, v2
        maps that of their stage. Channels and strides are in :attr:`feature_info`.

        Args:
            x: ``[B, in_chans, H, W]``.

        Returns:
            one ``[B, C, H', W']`` per stage, strides 4, 8, 16 and 32: ``H'`` is ``H // stride`` in
            v1 and ``ceil(H / stride)`` in v2. They are views of tokens (channels last in memory).
        """
        self._check_image(x)
        maps: list[Tensor] = []
        for stage in self.stages:
            x, (H, W) = stage(x, with_cls=False)
            x = as_map(x, H, W)
            maps.append(x)
        return maps

    @torch.jit.unused
    def attention_maps(self, x: Tensor) -> list[list[Tensor]]:
        """Attention probabilities of every block, computed in plain PyTorch.

        Args:
            x: ``[B, in_chans, H, W]``.

        Returns:
            per stage, per block: ``[B, num_heads, N, kv_len]``. A class token is query 0 and key 0.
        """
        self._check_image(x)
        maps: list[list[Tensor]] = []
        for stage in self.stages:
            assert isinstance(stage, Stage)
            x, (H, W) = stage.embed(x, True)
            maps.append([])
            for block in stage.blocks:
                if not isinstance(block, Block):
                    raise ValueError(
                        "attention_maps: a packed model has none; ask the model it was packed from"
                    )
                maps[-1].append(block.attn.attention_map(block.norm1(x), H, W))
                x = block(x, H, W)
            if stage.norm is not None:
                x = stage.norm(x)
            if stage.cls_token is None:
                x = as_map(x, H, W)
        return maps

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
            _init_module(head)
            self.head = head

    @torch.jit.unused
    def no_weight_decay(self) -> set[str]:
        """Parameters that published training exempts from weight decay, besides 1-D ones."""
        return {name for name, _ in self.named_parameters() if name.endswith("cls_token")}

    @torch.jit.unused
    def init_weights(self) -> None:
        """Initialise as published: truncated normal, std 0.02; norms 1 and 0; biases 0.

        Convolutions are v1's, which keep PyTorch's default, or v2's, which are normal with
        variance ``2 / fan_out``.
        """
        for stage in self.stages:
            assert isinstance(stage, Stage)
            for parameter in (stage.pos_embed, stage.cls_token):
                if parameter is not None:
                    nn.init.trunc_normal_(parameter, std=0.02)
        self.apply(_init_module)
        for stage in self.stages:
            if stage.fan_out_init:
                stage.apply(_init_convolution)

    def _check_image(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"PVT: expected an image batch [B, {self.in_chans}, H, W], got shape {x.shape}"
            )
        self._check_size(x.shape[2], x.shape[3])

    def _check_size(self, H: int, W: int) -> None:
        if min(H, W) < self.min_size:
            raise ValueError(
                f"PVT: expected an image of at least {self.min_size} x {self.min_size}, "
                f"got {H} x {W}"
            )


def _init_module(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def _init_convolution(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] = 224,
    drop_path_rate: float = 0.0,
    fused: bool = True,
) -> PVT:
    """Build a model by name, in training mode.

    Args:
        name: one of :func:`list_models`.
        pretrained: download and load the published ImageNet-1k weights.
        num_classes: outputs of the head; 0 means no head.
        in_chans: channels of the image.
        img_size: image side, or ``(height, width)``, that the position tables are made for (v2 has
            none) and that an exported file's preprocessing produces.
        drop_path_rate: stochastic depth; published training uses 0.1 for tiny, small and b0..b2,
            0.3 for medium, large and b3..b5.
        fused: use the operators of this library; False selects plain PyTorch.

    Raises:
        ValueError: unknown name, an argument out of range, or ``pretrained`` with another head or
            other channels than the published weights have.
    """
    if name not in VARIANTS:
        close = difflib.get_close_matches(name, VARIANTS) or list_models()
        raise ValueError(f"create_model: unknown name {name!r}; did you mean {', '.join(close)}?")
    if pretrained and (num_classes != 1000 or in_chans != 3):
        raise ValueError(
            "create_model: published weights have num_classes=1000 and in_chans=3, got "
            f"num_classes={num_classes} and in_chans={in_chans}; for other classes create the "
            "model with its 1000, then call model.reset_classifier(num_classes)"
        )
    model = PVT(
        VARIANTS[name],
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=img_size,
        drop_path_rate=drop_path_rate,
        fused=fused,
        variant=name,
    )
    if pretrained:
        from pvt_ext.weights import load_official

        load_official(model)
    return model
