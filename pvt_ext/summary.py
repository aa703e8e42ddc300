"""How large a model is: parameters and multiply-accumulates, counted without running it."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from pvt_ext.model import PVT, create_model
from pvt_ext.nn import to_pair
from pvt_ext.stage import Stage


@dataclass(frozen=True)
class Row:
    """One part of a model: a stage, or the head (in v1 with the final norm)."""

    name: str
    output: tuple[int, ...]  # (channels, height, width); (classes,) for the head
    parameters: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """Size of a model at one image size; ``str()`` gives a table."""

    name: str
    img_size: tuple[int, int]
    parameters: int
    macs: int
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        size = f"{self.img_size[0]} x {self.img_size[1]}"
        lines = [f"{self.name} at {size}", f"{'':10}{'output':>16}{'parameters':>14}{'GMAC':>10}"]
        for row in self.rows:
            output = " x ".join(map(str, row.output))
            lines.append(f"{row.name:10}{output:>16}{row.parameters:>14,}{row.macs / 1e9:>10.3f}")
        lines.append(f"{'total':10}{'':>16}{self.parameters:>14,}{self.macs / 1e9:>10.3f}")
        return "\n".join(lines)


def summary(model: str | PVT, size: int | tuple[int, int] | None = None) -> Summary:
    """Parameters and multiply-accumulates (MACs) of one image.

    Papers call this number FLOPs; it counts every convolution and matrix product, the spatial
    reduction and both products of attention included, and nothing else.

    Args:
        model: a name in :func:`pvt_ext.list_models`, or a model (its weights are not touched).
        size: image side, or ``(height, width)``; by default the model's own, mostly 224.
    """
    with torch.device("meta"):  # shapes only: no memory, no arithmetic
        if isinstance(model, str):
            model = create_model(model)
        H, W = model.img_size if size is None else to_pair("size", size)
        state = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
        image = torch.empty(1, model.in_chans, H, W)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = functional_call(model, state, image)
    counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}

    rows = []
    grid = (H, W)
    for i, info in enumerate(model.feature_info):
        stage = model.stages[i]
        assert isinstance(stage, Stage)
        grid = stage.patch_embed.grid(*grid)
        output = (info["num_chs"], *grid)
        macs = counts[f"{type(model).__name__}.{info['module']}"]
        rows.append(Row(f"stage {i + 1}", output, _parameters(stage), macs))
    total = counts["Global"]
    rest = total - sum(row.macs for row in rows)
    rest_parameters = _parameters(model) - sum(row.parameters for row in rows)
    rows.append(Row("head", tuple(logits.shape[1:]), rest_parameters, rest))
    return Summary(model.variant, (H, W), _parameters(model), total, tuple(rows))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
