"""Packed weights of accelerated models follow the parameters."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial

import pytest
import torch
from accelerated import TOLERANCE, authors, blocks_run, image
from models import relative_error
from published_modules import Block
from running import in_eight_threads
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import pvt_ext.acceleration
from pvt_ext.acceleration import accelerate


def each_weight(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            yield module, name, parameter


def _step(optimizer: type[torch.optim.Optimizer], **options: object) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer(model.parameters(), lr=0.02, **options).step()  # type: ignore[call-arg]

    return change


def change_in_inference_mode(model: nn.Module) -> None:
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def change_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1


def change_twice_by_data(model: nn.Module) -> None:
    """A new tensor may lie where the old one was."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
        parameter.data = (parameter.data * 1.1).float()


def change_parameters(model: nn.Module) -> None:
    for module, name, parameter in each_weight(model):
        setattr(module, name, nn.Parameter(parameter.detach() * 1.1))


def change_one_bias(model: nn.Module) -> None:
    model.block3[0].mlp.fc1.bias[7] += 1  # type: ignore[union-attr, index, operator]


def change_layers(model: nn.Module) -> None:
    model.block2[0].attn.kv = nn.Linear(24, 48)  # type: ignore[union-attr, index]
    model.block2[0].norm1 = nn.LayerNorm(24, eps=1e-6)  # type: ignore[union-attr, index]
    model.block2[1].attn.q.bias = None  # type: ignore[union-attr, index]


def change_blocks(model: nn.Module) -> None:
    for mlp, ratio in ((model.block1[0].mlp, 0.5), (model.block4[0].mlp, 2.0)):  # type: ignore
        mlp.fc2.weight.mul_(ratio)


def load(model: nn.Module, **options: bool) -> None:
    model.load_state_dict(
        {k: v + 0.1 * torch.randn_like(v) for k, v in model.state_dict().items()}, **options
    )


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "in place": lambda model: [p.mul_(1.1) for p in model.parameters()],
    "initialised again": lambda model: [nn.init.uniform_(p, 0, 0.1) for p in model.parameters()],
    "inference mode": change_in_inference_mode,
    "SGD": _step(torch.optim.SGD),
    "SGD, fused": _step(torch.optim.SGD, fused=True),
    "AdamW": _step(torch.optim.AdamW),
    "AdamW, foreach": _step(torch.optim.AdamW, foreach=True),
    "lists": lambda model: torch._foreach_mul_(list(model.parameters()), 1.1),
    "AdamW, fused": _step(torch.optim.AdamW, fused=True),
    "state dict": load,
    "state dict, assigned": partial(load, assign=True),
    "data": change_data,
    "data, twice": change_twice_by_data,
    "to half and back": lambda model: model.half().float(),
    "to bfloat16 and back": lambda model: model.to(torch.bfloat16).to(torch.float32),
    "parameters": change_parameters,
    "one number": change_one_bias,
    "layers": change_layers,
    "two blocks": change_blocks,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_noticed(change: str) -> None:
    model, twin = authors(), authors()
    x = image(1, 3, 64, 64)
    accelerate(model)
    with torch.no_grad():
        before = model(x)
        for m in (model, twin):
            torch.manual_seed(3)
            CHANGES[change](m)
            m.eval()  # new layers too
        expected = twin(x)
        assert relative_error(before, expected) > 10 * TOLERANCE  # it matters
        got = model(x)
        assert relative_error(got, expected) < TOLERANCE
        assert blocks_run(lambda: model(x)) == 5
        assert torch.equal(model(x), got)


def test_a_bias_where_there_was_none() -> None:
    block = Block(16, 2, qkv_bias=False).eval()
    twin, x = deepcopy(block), image(1, 12, 16)
    accelerate(block)
    with torch.no_grad():
        block(x, 3, 4)
        for b in (block, twin):
            b.attn.kv.bias = nn.Parameter(torch.ones(32))
        assert relative_error(block(x, 3, 4), twin(x, 3, 4)) < TOLERANCE


def test_old_weights_keep_their_address_until_they_are_replaced() -> None:
    """Else new ones could come to lie there and pass for them."""
    model = authors()
    weight = model.block1[0].attn.q.weight
    accelerate(model)
    with torch.no_grad():
        model(image(1, 3, 64, 64))
        old = StorageWeakRef(weight.untyped_storage())
        weight.data = weight.data.clone()
        assert not old.expired()
        model(image(1, 3, 64, 64))
        assert old.expired()


def test_changes_that_pytorch_does_not_count() -> None:
    """As documented: these need a second call."""
    model, twin = authors(), authors()
    x = image(1, 3, 64, 64)
    accelerate(model)
    with torch.no_grad():
        before = model(x)
        for m in (model, twin):
            m.block1[0].mlp.fc2.weight.data.mul_(2)
        assert torch.equal(model(x), before)
        accelerate(model)
        assert relative_error(model(x), twin(x)) < TOLERANCE


def test_weights_from_outside() -> None:
    model, twin = authors(), authors()
    x = image(1, 3, 64, 64)
    accelerate(model)
    weights = {name: p * 1.1 for name, p in model.named_parameters()}
    with torch.no_grad():
        before = model(x)
        expected = torch.func.functional_call(twin, weights, x)
        assert relative_error(torch.func.functional_call(model, weights, x), expected) < TOLERANCE
        assert torch.equal(model(x), before)


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    made: list[object] = []

    class Counted(pvt_ext.acceleration.PackedBlock):
        def __init__(self, *args: object) -> None:
            made.append(args)
            super().__init__(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pvt_ext.acceleration, "PackedBlock", Counted)
    return made


def test_weights_are_packed_when_needed_and_once(packings: list[object]) -> None:
    model = authors()
    x = image(1, 3, 64, 64)
    accelerate(model)
    model(x)  # wants gradients
    with torch.no_grad():
        model.train()(x)
        assert not packings
        for _ in range(3):
            model.eval()(x)
        assert len(packings) == 5
        model.block1[0].norm1.bias.add_(1)
        model(x)
        assert len(packings) == 6


def test_one_model_in_many_threads(packings: list[object]) -> None:
    model = authors()
    x = image(1, 3, 64, 96)
    with torch.no_grad():
        accelerate(model)
        expected = deepcopy(model)(x)
        packings.clear()

    def work() -> None:
        with torch.no_grad():
            for _ in range(10):
                assert torch.equal(model(x), expected)

    in_eight_threads(work)
    assert len(packings) == 5
