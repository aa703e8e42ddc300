"""The pyramid: four stages, and their feature maps for detection and segmentation.

Each stage cuts its input into patches and runs its blocks, so stage 1..4 works at 1/4, 1/8, 1/16
and 1/32 of the image's height and width. :class:`Backbone` is what dense prediction needs of a
model; :class:`pvt_ext.model.PVT` adds the classifier.

Sources: Wang et al., Pyramid Vision Transformer, ICCV 2021 (v1), and PVT v2: Improved Baselines
with Pyramid Vision Transformer, CVMJ 2022 (v2).
"""

# mypy: disable-error-code="union-attr, operator"
# mypy does not know what is in a ModuleList; TorchScript allows neither casts nor type comments.

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from pvt_ext.nn import (
    BLOCK_EPS,
    Attention,
    Block,
    as_map,
    check_at_least,
    check_probability,
    to_pair,
)
from pvt_ext.stage import Stage
from pvt_ext.variants import StageSpec, min_image_size


class Pyramid(nn.Module):
    """The stages, and what every model made of them can do.

    Any image whose sides are at least :attr:`min_size` is accepted, whatever ``img_size`` is;
    sides need not be multiples of 32 (v1 drops what does not fill a patch, v2 pads).

    Args:
        specs: the stages, in order; :data:`pvt_ext.variants.VARIANTS` has the published ones.
        in_chans: channels of the image.
        img_size: image side, or ``(height, width)``, that the position tables are made for.
        drop_path_rates: stochastic depth of every block, first to last.
        final_norm: whether there is a LayerNorm after the last stage, as in the v1 classifier.
        fused: use the operators of this library; False selects plain PyTorch.
        variant: name of this configuration, carried into exported files.

    Attributes:
        min_size: smallest height and width of an image.
        num_features: channels of the last stage.
        feature_info: per stage ``num_chs``, ``reduction`` (the stride) and ``module``.
    """

    has_cls_token: Final[bool]

    def __init__(
        self,
        specs: Sequence[StageSpec],
        in_chans: int,
        img_size: int | tuple[int, int],
        drop_path_rates: Sequence[float],
        final_norm: bool,
        fused: bool,
        variant: str,
    ) -> None:
        super().__init__()
        self.variant = variant
        self.fused = fused
        self.in_chans = check_at_least("in_chans", in_chans, 1)
        self.img_size = to_pair("img_size", img_size)
        self.min_size = min_image_size(specs)
        self.num_features = specs[-1].embed_dim
        self.has_cls_token = specs[-1].cls_token
        if any(spec.cls_token for spec in specs[:-1]):
            raise ValueError("specs: expected a cls_token in the last stage only")
        self._check_size(self.img_size[0], self.img_size[1])

        stages: list[Stage] = []
        feature_info: list[dict[str, Any]] = []
        size, chans, stride, start = self.img_size, self.in_chans, 1, 0
        for i, spec in enumerate(specs):
            drop_path = drop_path_rates[start : start + spec.depth]
            stages.append(Stage(spec, size, chans, drop_path, fused=fused))
            size = (stages[i].patch_embed.H, stages[i].patch_embed.W)
            chans, stride, start = spec.embed_dim, stride * spec.patch_size, start + spec.depth
            feature_info.append({"num_chs": chans, "reduction": stride, "module": f"stages.{i}"})

        self.feature_info = feature_info
        self.float_output = False  # a packed model's tokens may be narrower than what it gives
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(self.num_features, eps=BLOCK_EPS) if final_norm else None
        self.init_weights()

    @torch.jit.export
    def features(self, x: Tensor, return_cls: bool = False) -> list[Tensor]:
        """Feature maps C2, C3, C4, C5 for detection and segmentation.

        As in the published detection code, the class token takes no part; v1 maps have no norm, v2
        maps that of their stage. Channels and strides are in :attr:`feature_info`.

        Args:
            x: ``[B, in_chans, H, W]``.
            return_cls: let the class token take part, and append what the head sees of it.

        Returns:
            one ``[B, C, H', W']`` per stage, strides 4, 8, 16 and 32: ``H'`` is ``H // stride`` in
            v1 and ``ceil(H / stride)`` in v2. They are views of tokens (channels last in memory).
            With ``return_cls``, then the class token, normalised: ``[B, num_features]``.

        Raises:
            ValueError: ``x`` is no such batch, or the model has no class token to return.
        """
        self._check_image(x)
        if return_cls and not self.has_cls_token:
            raise ValueError("return_cls: expected False, as this model has no class token")
        maps: list[Tensor] = []
        cls: list[Tensor] = []
        last = len(self.stages) - 1
        for i, stage in enumerate(self.stages):
            x, (H, W) = stage(x, with_cls=return_cls)
            if return_cls and i == last:
                cls.append(self._head_input(x))
                x = x[:, 1:]
            x = as_map(x, H, W)
            maps.append(x.float() if self.float_output else x)
        return maps + cls

    def _head_input(self, x: Tensor) -> Tensor:
        # Tokens of the last stage -> class token or mean of tokens, normalised: B, num_features
        if self.has_cls_token:
            x = x[:, :1]  # the norm is per token, so the others need none
        norm = self.norm
        if norm is not None:
            x = norm(x.to(norm.weight.dtype))
        return x[:, 0] if self.has_cls_token else x.mean(dim=1)

    @torch.jit.export
    def grids(self, H: int, W: int) -> list[tuple[int, int]]:
        """Height and width of every feature map of an image of ``H`` x ``W``."""
        sizes: list[tuple[int, int]] = []
        for stage in self.stages:
            H, W = stage.patch_embed.grid(H, W)
            sizes.append((H, W))
        return sizes

    @torch.jit.unused
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the tokens between blocks for the backward pass and compute the rest again.

        Costs about one more forward pass; gradients are the same. A scripted model ignores it.
        """
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    @torch.jit.unused
    def set_attn_maps(self, enable: bool = True) -> None:
        """Whether each forward pass keeps its attention probabilities for :meth:`attn_maps`.

        While it is on, attention runs in plain PyTorch, which holds them in memory. A scripted
        model ignores it.
        """
        for attn in self._attentions():
            attn.keep_attn_map = enable
            attn.attn_map = None

    @torch.jit.unused
    def attn_maps(self) -> list[list[Tensor]]:
        """Attention probabilities of the last forward pass, of every block of every stage.

        Returns:
            per stage, per block: ``[B, num_heads, N, kv_len]``, part of the autograd graph. The
            keys form the reduced grid in row-major order; a class token is query 0 and key 0.

        Raises:
            RuntimeError: :meth:`set_attn_maps` is off, or nothing ran since.
        """
        maps = [attn.attn_map for attn in self._attentions()]
        kept = [attn_map for attn_map in maps if attn_map is not None]
        if len(kept) < len(maps):
            raise RuntimeError(
                "attn_maps: expected a forward pass after set_attn_maps(True), there was none"
            )
        rest = iter(kept)
        return [[next(rest) for _ in stage.blocks] for stage in self.stages]

    @torch.jit.unused
    def attention_maps(self, x: Tensor) -> list[list[Tensor]]:
        """:meth:`attn_maps` of one forward pass of ``x``, ``[B, in_chans, H, W]``."""
        self.set_attn_maps(True)
        try:
            self(x)
            return self.attn_maps()
        finally:
            self.set_attn_maps(False)

    def _attentions(self) -> list[Attention]:
        blocks = [block for stage in self.stages for block in stage.blocks]
        if not all(isinstance(block, Block) for block in blocks):
            raise ValueError(
                "attention_maps: a packed model has none; ask the model it was packed from"
            )
        return [block.attn for block in blocks]

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
        self.apply(init_module)
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


class Backbone(Pyramid):
    """Feature maps of an image batch, and nothing that they do not need.

    There is no head, without ``return_cls`` no class token and no final norm, and no stage after
    the last one asked for; :func:`pvt_ext.load_weights` leaves the same out of a classifier's file.

    Args:
        specs, in_chans, img_size, fused, variant: as in :class:`Pyramid`; ``specs`` of all stages.
        out_indices: stages to return, ascending, 0..3 for strides 4..32; None for all.
        return_cls: append the class token, which then takes part in the last stage.
        drop_path_rate: as in :class:`pvt_ext.model.PVT`.

    Attributes:
        feature_info: of the maps returned: ``num_chs``, ``reduction`` (the stride), ``module``.
    """

    return_cls: Final[bool]

    def __init__(
        self,
        specs: Sequence[StageSpec],
        *,
        out_indices: Sequence[int] | None = None,
        return_cls: bool = False,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_path_rate: float = 0.0,
        fused: bool = True,
        variant: str = "",
    ) -> None:
        if out_indices is None:
            out_indices = range(len(specs))
        indices = _check_indices(out_indices, len(specs))
        kept = list(specs[: indices[-1] + 1])
        if return_cls and not kept[-1].cls_token:
            raise ValueError(
                "return_cls: expected False, as there is no class token in stage "
                f"{indices[-1]}, the last of out_indices {list(indices)}"
            )
        if not return_cls:
            kept[-1] = kept[-1]._replace(cls_token=False)
        rates = drop_path_schedule(specs, drop_path_rate)
        super().__init__(kept, in_chans, img_size, rates, return_cls, fused, variant)
        self.return_cls = return_cls
        self.out_indices = indices
        self.out_chans = [specs[i].embed_dim for i in indices]
        self.feature_info = [self.feature_info[i] for i in indices]

    def forward(self, x: Tensor, sizes: list[tuple[int, int]] | None = None) -> list[Tensor]:
        """Feature maps of the stages in ``out_indices``, finest first.

        Args:
            x: ``[B, in_chans, H, W]``.
            sizes: height and width of every image in a batch of padded ones
                (:func:`pvt_ext.pad_images`). Padding then has no influence: each image's maps are
                those of the image alone, at the top left of maps that are zero elsewhere. Images of
                one size run together. Not while attention maps are kept.

        Returns:
            as :meth:`features`, of the stages asked for; :meth:`grids` tells their sizes.
        """
        if sizes is None or x.shape[0] == 0:
            return self._chosen(x)
        self._check_image(x)
        if not is_scripting():
            sizes = [self._check_pair(size) for size in sizes]
            self._check_keeps_no_maps()
        self._check_sizes(x, sizes)
        out: list[Tensor] = []
        rest = list(range(len(sizes)))
        while len(rest) > 0:  # the images of one size at a time
            H, W = sizes[rest[0]]
            same: list[int] = []
            others: list[int] = []
            for i in rest:
                if sizes[i] == (H, W):
                    same.append(i)
                else:
                    others.append(i)
            rest = others
            index = torch.tensor(same, device=x.device)
            maps = self._chosen(x[index, :, :H, :W])
            if len(out) == 0:
                out = self._zeros(x, maps)
            for target, m in zip(out, maps):  # noqa: B905
                if m.dim() == 4:
                    target[index, :, : m.shape[2], : m.shape[3]] = m
                else:
                    target[index] = m
        return out

    def _chosen(self, x: Tensor) -> list[Tensor]:
        maps = self.features(x, self.return_cls)
        return [maps[i] for i in self.out_indices] + maps[len(self.stages) :]

    def _zeros(self, x: Tensor, maps: list[Tensor]) -> list[Tensor]:
        # What _chosen(x) would return, like maps of other sizes, empty.
        grids = self.grids(x.shape[2], x.shape[3])
        out: list[Tensor] = []
        for i, m in zip(self.out_indices, maps):  # noqa: B905
            H, W = grids[i]
            out.append(m.new_zeros([x.shape[0], m.shape[1], H, W]))
        if self.return_cls:
            out.append(maps[-1].new_zeros([x.shape[0], self.num_features]))
        return out

    @torch.jit.unused
    def _check_keeps_no_maps(self) -> None:
        blocks = (block for stage in self.stages for block in stage.blocks)
        if any(isinstance(block, Block) and block.attn.keep_attn_map for block in blocks):
            raise ValueError("sizes: expected None while attention maps are kept (set_attn_maps)")

    @torch.jit.unused
    def _check_pair(self, size: tuple[int, int]) -> tuple[int, int]:
        # Not one number for both sides: two images given one size would have one side each.
        if not isinstance(size, tuple | list):
            raise ValueError(f"sizes: expected (height, width) for every image, got {size!r}")
        return to_pair("sizes", size)

    def _check_sizes(self, x: Tensor, sizes: list[tuple[int, int]]) -> None:
        if len(sizes) != x.shape[0]:
            raise ValueError(f"sizes: expected one per image, {x.shape[0]}, got {len(sizes)}")
        for H, W in sizes:
            if min(H, W) < 1 or min(x.shape[2] - H, x.shape[3] - W) < 0:
                raise ValueError(
                    f"sizes: expected 1 x 1 to {x.shape[2]} x {x.shape[3]}, got {H} x {W}"
                )


def drop_path_schedule(specs: Sequence[StageSpec], rate: float) -> list[float]:
    """Stochastic depth of every block: from 0 for the first linearly to ``rate`` for the last."""
    check_probability("drop_path_rate", rate)
    num_blocks = sum(spec.depth for spec in specs)
    return [rate * i / max(num_blocks - 1, 1) for i in range(num_blocks)]


def _check_indices(out_indices: Sequence[int], num_stages: int) -> list[int]:
    if not isinstance(out_indices, Sequence):
        raise ValueError(f"out_indices: expected several stages, got {out_indices!r}")
    indices = [check_at_least("out_indices", i, 0) for i in out_indices]
    if not indices or indices != sorted(set(indices)) or indices[-1] >= num_stages:
        raise ValueError(
            f"out_indices: expected ascending stages from 0 to {num_stages - 1}, "
            f"got {list(out_indices)}"
        )
    return indices


def init_module(module: nn.Module) -> None:
    """Initialise a linear layer or LayerNorm as published."""
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


def pad_images(images: Iterable[Tensor], divisor: int = 32) -> tuple[Tensor, list[tuple[int, int]]]:
    """Images of different sizes as one batch, with zeros at the right and below.

    Args:
        images: ``[C, H, W]`` each, of one dtype and device.
        divisor: the batch's height and width are multiples of it.

    Returns:
        ``[B, C, H, W]`` and the height and width of every image, for :class:`Backbone`.
    """
    divisor = check_at_least("divisor", divisor, 1)
    images = list(images)
    if not images or any(image.dim() != 3 for image in images):
        shapes = [list(image.shape) for image in images]
        raise ValueError(f"images: expected at least one [C, H, W], got {shapes}")
    if len({(image.shape[0], image.dtype, image.device) for image in images}) > 1:
        raise ValueError("images: expected the same channels, dtype and device in all")
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    H, W = (-(-max(sides) // divisor) * divisor for sides in zip(*sizes, strict=True))
    padded = [F.pad(image, (0, W - image.shape[2], 0, H - image.shape[1])) for image in images]
    return torch.stack(padded), sizes
