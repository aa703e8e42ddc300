"""A training step of whole models: eager, scripted, compiled, under autocast, and their export."""

import pytest
import torch
import torch.nn.functional as F
from models import MINI, MINI_V2, MINI_V2_LI, mini
from torch import Tensor, nn

SPECS = pytest.mark.parametrize("specs", [MINI, MINI_V2, MINI_V2_LI], ids=["v1", "v2", "linear"])


def images(B: int = 2, H: int = 64, W: int = 64) -> Tensor:
    return torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(B * H * W))


def gradients(model: nn.Module, x: Tensor, parameters: nn.Module | None = None) -> list[Tensor]:
    """Of a cross entropy, those of the parameters of ``model`` (``parameters``)."""
    of = model if parameters is None else parameters
    of.zero_grad(set_to_none=True)
    F.cross_entropy(model(x).float(), torch.arange(len(x)) % 10).backward()
    return [p.grad for p in of.parameters() if p.grad is not None]


def assert_close(ours: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Every gradient, relative to its size."""
    for a, b in zip(ours, expected, strict=True):
        assert (a - b).norm() <= tolerance * b.norm() + 1e-9


@SPECS
@pytest.mark.parametrize("size", [(64, 64), (96, 72)], ids=str)
def test_fused_equals_reference(specs, size):
    x = images(3, *size)
    expected = gradients(mini(specs, fused=False).double(), x.double())
    ours = gradients(mini(specs), x)
    assert_close(ours, [g.float() for g in expected], 1e-4)


@SPECS
def test_autocast(specs):
    """All gradients together are as far from float32's as those of the reference, at most."""
    x, model = images(3), mini(specs)
    expected = gradients(model, x)

    def error(model: nn.Module) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = gradients(model, x)
        assert all(grad.dtype == torch.float32 for grad in found)
        errors = [(a - b).norm() / b.norm() for a, b in zip(found, expected, strict=True)]
        return torch.stack(errors).mean().item()

    assert 0 < error(model) <= 1.5 * error(mini(specs, fused=False))


@SPECS
def test_scripted_training_step(specs):
    model = mini(specs).train()
    scripted = torch.jit.script(model)
    for size in (64, 96, 64):  # TorchScript specialises in its second run
        x = images(2, size, size)
        torch.manual_seed(1)
        expected = gradients(model, x)
        torch.manual_seed(1)
        assert_close(gradients(scripted, x, model), expected, 1e-5)


@SPECS
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_training_step(specs, backend):
    model = mini(specs).train()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    x = images()
    assert_close(gradients(compiled, x, model), gradients(model, x), 1e-4)


@pytest.mark.slow
@SPECS
def test_compiled_once_for_every_batch_and_size(specs):
    model = mini(specs).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    first = images(5, 96, 128)  # no side equals another number of the model
    assert_close(gradients(compiled, first, model), gradients(model, first), 1e-4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((2, 128, 160), (7, 160, 96)):
            x = images(*shape)
            assert_close(gradients(compiled, x, model), gradients(model, x), 1e-4)


@SPECS
def test_export_with_dynamic_batch_and_size(specs):
    model = mini(specs)
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        model, (images(3, 96, 128),), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
    )
    for shape in ((1, 128, 160), (5, 160, 96)):
        x = images(*shape)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-5)
