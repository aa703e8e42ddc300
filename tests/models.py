"""Models for the tests: weights that matter, and sizes that are quick."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pvt_ext.formats import published_name
from pvt_ext.model import PVT, create_model
from pvt_ext.variants import StageSpec

# Four stages as in PVT v1, small enough to create and save in milliseconds.
MINI = (
    StageSpec(16, 1, 1, 2, 8, 4),
    StageSpec(24, 2, 2, 2, 4, 2),
    StageSpec(40, 1, 5, 2, 2, 2),
    StageSpec(48, 1, 8, 2, 1, 2, cls_token=True),
)
# The same sizes as in PVT v2, and its linear variant.
MINI_V2 = tuple(
    spec._replace(
        cls_token=False, positions=False, overlap=True, dwconv=True, norm=True, fan_out_init=True
    )
    for spec in MINI
)
MINI_V2_LI = tuple(spec._replace(linear=True) for spec in MINI_V2)


def enliven(model: nn.Module, seed: int = 0) -> None:
    """Random norms, biases, tokens and positions, so that a mistake in any of them shows.

    As initialised, norms are 1 and biases 0, and positions are too small to matter.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            strength = 0.5 if "pos_embed" in name or "cls_token" in name else 0.1
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 or strength == 0.5:
                parameter.add_(noise * strength)


def lively(name: str, **options: object) -> PVT:
    """``create_model`` in evaluation mode with seeded weights that matter."""
    torch.manual_seed(0)
    model = create_model(name, **options).eval()  # type: ignore[arg-type]
    enliven(model)
    return model


def mini(specs: Sequence[StageSpec] = MINI, **options: object) -> PVT:
    """A small model with seeded weights that matter, in evaluation mode."""
    torch.manual_seed(0)
    model = PVT(specs, **{"num_classes": 10, "img_size": 64, **options}).eval()  # type: ignore[arg-type]
    enliven(model)
    return model


def published_state(model: PVT) -> dict[str, Tensor]:
    """The weights of ``model`` under the published names."""
    return {published_name(name): tensor for name, tensor in model.state_dict().items()}


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


def scramble(model: nn.Module, seed: int = 1) -> nn.Module:
    """Fill ``model`` with other weights than any test starts from; returns it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the largest expected value."""
    assert actual.shape == expected.shape, f"{actual.shape} != {expected.shape}"
    return ((actual - expected).abs().max() / expected.abs().max()).item()
