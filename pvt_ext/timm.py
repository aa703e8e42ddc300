"""The models in timm's registry: ``import pvt_ext.timm``, then ``timm.create_model("pvt_small")``.

PVT v1 has its published names; PVT v2 is ``pvtx_v2_b0`` .. ``pvtx_v2_b5`` and ``pvtx_v2_b2_li``, as
timm has models of its own named ``pvt_v2_*``, which stay as they are. What timm offers for its
models works: features, published weights with other classes, channels and sizes, layer decay.
``timm.create_model(..., fused=False)`` selects plain PyTorch.

Needs timm 1.0 or newer.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

try:
    from timm.data import (  # type: ignore[import-not-found,unused-ignore]
        IMAGENET_DEFAULT_MEAN,
        IMAGENET_DEFAULT_STD,
    )
    from timm.models import (  # type: ignore[import-not-found,unused-ignore]
        build_model_with_cfg,
        generate_default_cfgs,
        is_model,
        model_entrypoint,
        register_model,
    )
    from timm.models._features import (  # type: ignore[import-not-found,unused-ignore]
        FeatureInfo,
        feature_take_indices,
    )
except ModuleNotFoundError as error:
    raise ImportError(
        f"pvt_ext.timm: {error.name} is not installed; run: pip install timm"
    ) from error

from pvt_ext.adapt import fit_positions
from pvt_ext.checkpoint import refuse
from pvt_ext.formats import translate
from pvt_ext.model import PVT
from pvt_ext.nn import as_map
from pvt_ext.stage import Stage
from pvt_ext.variants import VARIANTS, StageSpec

__all__ = ["FeatureNet", "TimmPVT", "checkpoint_filter_fn"]  # timm adds what it registers

V1 = ("pvt_tiny", "pvt_small", "pvt_medium", "pvt_large")
V2 = (
    "pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b2_li", "pvt_v2_b3", "pvt_v2_b4", "pvt_v2_b5",
)  # fmt: skip


class TimmPVT(PVT):
    """A :class:`~pvt_ext.model.PVT` with the methods, and their meanings, of timm's models.

    Unlike in PVT, :meth:`forward_features` pools nothing; :meth:`forward_head` does.

    Args:
        specs: as in PVT.
        global_pool: ``"token"`` if there is a class token, else ``"avg"``; ``""`` for no pooling.
        drop_rate: dropout before the head.
        device, dtype: of the weights.
        options: the other arguments of PVT.
    """

    def __init__(
        self,
        specs: Sequence[StageSpec],
        *,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(specs, **options)
        self.global_pool = self._check_pool(self._pooling() if global_pool is None else global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.head_hidden_size = self.num_features
        self.to(device=device, dtype=dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage, normalised.

        Returns:
            with a class token ``[B, 1 + H * W, num_features]``, else ``[B, num_features, H, W]``.
        """
        tokens, (H, W) = self._last_stage(x)
        return self._normalised(tokens, H, W)

    def _normalised(self, x: Tensor, H: int, W: int) -> Tensor:
        norm = self.norm
        if norm is not None:
            x = norm(x)
        return x if self.has_cls_token else as_map(x, H, W)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Class scores of what :meth:`forward_features` gives; ``pre_logits``: what the head sees.

        With ``global_pool=""`` nothing is pooled before the head.
        """
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x.flatten(2).mean(dim=2)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    @torch.jit.unused
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of stages, those of :meth:`features`, after what :meth:`forward_features` gives.

        Args:
            x: ``[B, in_chans, H, W]``.
            indices: these stages, that many of the last, or None for all.
            norm: has no effect: each v2 stage has its own norm, and v1 maps are used without.
            stop_early: run no stage after the last one asked for, and return its map.
            output_fmt: ``"NCHW"``.
            intermediates_only: return the maps alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: expected 'NCHW', got {output_fmt!r}")
        self._check_image(x)
        take, last = feature_take_indices(len(self.stages), indices)
        end = last + 1 if stop_early or intermediates_only else len(self.stages)
        below, maps = x, []
        for i, stage in enumerate(self.stages[:end]):
            below = x
            x, (H, W) = stage(below, with_cls=False)
            x = as_map(x, H, W)
            if i in take:
                maps.append(x)
        if intermediates_only:
            return maps
        if end == len(self.stages) and self.norm is not None:
            # Once more, as the class token takes no part in the maps.
            tokens, (H, W) = self.stages[-1](below)
            x = self._normalised(tokens, H, W)
        return x, maps

    @torch.jit.unused
    def prune_intermediate_layers(
        self,
        indices: int | list[int] | None = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what :meth:`forward_intermediates` of ``indices`` does not need.

        The class token, which is there for the head, goes with it.
        """
        take, last = feature_take_indices(len(self.stages), indices)
        shortened = last + 1 < len(self.stages)
        self.stages = self.stages[: last + 1]
        if shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if shortened or prune_norm:
            self.norm = None
        if shortened or prune_head:
            self._remove_cls_token()
            self.reset_classifier(0, "")
        return list(take)

    def _remove_cls_token(self) -> None:
        self.has_cls_token = False  # type: ignore[misc]  # final once scripted
        stage = self.stages[-1]
        assert isinstance(stage, Stage)
        if stage.cls_token is not None:
            stage.cls_token = None
            if stage.pos_embed is not None:
                stage.pos_embed = nn.Parameter(stage.pos_embed.detach()[:, 1:].clone())

    @torch.jit.unused
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a freshly initialised one, 0 for none; None keeps the pooling."""
        if global_pool is not None:
            self.global_pool = self._check_pool(global_pool)
        super().reset_classifier(num_classes)

    def _pooling(self) -> str:
        return "token" if self.has_cls_token else "avg"

    def _check_pool(self, global_pool: str) -> str:
        if global_pool not in (self._pooling(), ""):
            raise ValueError(
                f"global_pool: expected {self._pooling()!r} or '', got {global_pool!r}"
            )
        return global_pool

    @torch.jit.unused
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers in order, for layer decay: stem, then blocks or, if ``coarse``, stages."""
        first, previous = (0,), (99999,)  # the first block of its stage; the layer before
        blocks = [
            (r"^stages\.(\d+)\.(?:patch_embed|pos_embed|cls_token)", first),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", previous),
            (r"^norm", previous),
        ]
        stages = [(r"^stages\.(\d+)", None), (r"^norm", previous)]
        return {
            "stem": r"^stages\.0\.(?:patch_embed|pos_embed)",
            "blocks": stages if coarse else blocks,
        }

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in PyTorch; names may also be those of the authors or of timm."""
        return super().load_state_dict(_converted(state_dict, self), strict, assign)


class FeatureNet(nn.Module):
    """What ``features_only=True`` gives: the maps of ``out_indices``, those of
    :class:`pvt_ext.backbone.Backbone`, from a model without what they do not need."""

    def __init__(self, model: TimmPVT, out_indices: int | list[int]) -> None:
        super().__init__()
        self.out_indices = model.prune_intermediate_layers(out_indices, prune_norm=True)
        self.feature_info = FeatureInfo(model.feature_info, tuple(self.out_indices))
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.model.features(x)
        return [maps[i] for i in self.out_indices]

    @torch.jit.unused
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)


# ---- weights ----


def _converted(state_dict: Mapping[str, Any], model: PVT) -> dict[str, Any]:
    # Any library's names to those here, and position tables to the model's size.
    given = dict(state_dict)
    if not given.keys() <= model.state_dict().keys():
        given = translate(given, "state_dict").tensors
    fit_positions(given, model, None)
    return given


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: PVT) -> dict[str, Any]:
    """Weights of the authors, timm or another library, under the names here.

    Raises:
        ValueError: anything but the head is missing or unexpected. With other classes than the
            published ones timm itself would load what fits and go on.
    """
    given = _converted(state_dict, model)
    wrong = given.keys() ^ model.state_dict().keys()
    misfits = sorted(name for name in wrong if not name.startswith("head."))
    refuse(f"weights for {model.variant}", "missing or unexpected", misfits)
    return given


# ---- registry ----


def _cfg(**options: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.patch_embed.proj",
        "classifier": "head",
        "fixed_input_size": False,
        "license": "apache-2.0",
        **options,
    }


def _v1_cfg(name: str) -> dict[str, Any]:
    # The authors resize to 256 and crop 224.
    url = f"https://github.com/whai362/PVT/releases/download/v2/{name}.pth"
    return _cfg(url=url, crop_pct=0.875)


def _v2_cfg(name: str) -> dict[str, Any]:
    return _cfg(hf_hub_id=f"timm/{name}.in1k", crop_pct=0.9)  # as timm's models of these weights


def _timm_name(variant: str) -> str:
    return variant.replace("pvt_v2_", "pvtx_v2_")


_cfgs: dict[str, Any] = {f"{name}.in1k": _v1_cfg(name) for name in V1}
_cfgs |= {f"{_timm_name(name)}.in1k": _v2_cfg(name) for name in V2}
default_cfgs = generate_default_cfgs(_cfgs)


def _register(variant: str) -> None:
    name = _timm_name(variant)

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return build_model_with_cfg(
            partial(TimmPVT, VARIANTS[variant], variant=variant),
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": FeatureNet},
            **options,
        )

    create.__name__ = create.__qualname__ = name
    globals()[name] = create
    if not (is_model(name) and model_entrypoint(name).__module__ == __name__):  # not reloaded
        register_model(create)


for _variant in V1 + V2:
    _register(_variant)
