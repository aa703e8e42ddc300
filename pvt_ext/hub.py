"""Models on the Hugging Face Hub: :class:`HubPVT` is a PVT that is saved, shared and fetched.

A saved model is a folder of ``config.json`` (what to build), ``model.safetensors`` (its weights)
and ``README.md`` (the model card).

Needs huggingface_hub.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

try:
    from huggingface_hub import (  # type: ignore[import-not-found,unused-ignore]
        ModelHubMixin,
        hf_hub_download,
    )
except ModuleNotFoundError as error:
    raise ImportError(
        f"pvt_ext.hub: {error.name} is not installed; run: pip install huggingface_hub"
    ) from error

from pvt_ext.model import PVT, find_specs
from pvt_ext.weights import load_weights, save_weights

WEIGHTS = "model.safetensors"
CARD = """\
---
{{ card_data }}
---

# Pyramid Vision Transformer

An image classifier made with pvt_ext. `config.json` says which.

```python
from pvt_ext.hub import HubPVT

model = HubPVT.from_pretrained("...")  # the name of this repository
logits = model(images)  # [B, in_chans, H, W] -> [B, num_classes]
```

Papers: [PVT]({{ paper_url }}), [PVT v2](https://arxiv.org/abs/2106.13797)
"""


class HubPVT(  # type: ignore[call-arg,unused-ignore]
    PVT,
    ModelHubMixin,  # type: ignore[misc,unused-ignore]
    library_name="pvt_ext",
    license="apache-2.0",
    pipeline_tag="image-classification",
    tags=["image-classification", "pvt", "pyramid-vision-transformer"],
    paper_url="https://arxiv.org/abs/2102.12122",
    model_card_template=CARD,
):
    """A PVT with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    ``from_pretrained(folder_or_repository)`` gives the model in evaluation mode, with all of its
    weights or not at all: a file that is damaged, or misses anything, is refused with the reason.
    Besides the options of huggingface_hub it takes

    - arguments of this class, which then replace those of ``config.json``,
    - ``map_location``: the device of the model,
    - ``adapt`` and ``drop``: what need not match, as in :func:`pvt_ext.load_weights`;
      ``num_classes=5, adapt="num_classes"`` gives the model a fresh head of 5 classes.

    Args:
        name: one of :func:`pvt_ext.list_models`.
        num_classes, in_chans, img_size, drop_path_rate, fused: as in :func:`pvt_ext.create_model`.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_path_rate: float = 0.0,
        fused: bool = True,
    ) -> None:
        super().__init__(
            find_specs("HubPVT", name),
            num_classes=num_classes,
            in_chans=in_chans,
            img_size=img_size,
            drop_path_rate=drop_path_rate,
            fused=fused,
            variant=name,
        )

    @torch.jit.unused
    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a freshly initialised one; 0 removes it."""
        super().reset_classifier(num_classes)
        config: Any = self._hub_mixin_config  # what config.json will say
        config["num_classes"] = self.num_classes

    @torch.jit.unused
    def _save_pretrained(self, save_directory: Path) -> None:
        save_weights(self, save_directory / WEIGHTS)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str | torch.device = "cpu",
        adapt: str | Collection[str] = ("positions",),
        drop: str | Collection[str] = (),
        **arguments: Any,
    ) -> "HubPVT":
        if "name" not in arguments:
            raise ValueError(f"{model_id}: expected a config.json with the name of a model")
        model = cls(**arguments)
        path = Path(model_id, WEIGHTS)
        if not Path(model_id).is_dir():
            path = Path(
                hf_hub_download(
                    model_id,
                    WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        load_weights(model, path, adapt=adapt, drop=drop)
        return model.to(map_location).eval()
