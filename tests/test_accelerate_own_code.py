"""Where an accelerated block's own code runs, and runs as before."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from accelerated import DEPTHS, answer, authors, blocks_run, image, transformers
from models import MINI_V2, mini
from published_modules import Block
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

from pvt_ext.acceleration import accelerate
from pvt_ext.inference import PackedBlock


def _train(model: nn.Module, x: Tensor) -> Tensor:
    return model.train()(x)


def _train_dropout(model: nn.Module, x: Tensor) -> Tensor:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    return model(x)


def _want_gradients(model: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return model(x)


def _want_input_gradients(model: nn.Module, x: Tensor) -> Tensor:
    model.requires_grad_(False)
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        return torch.autograd.grad(model(x).square().sum(), x)[0]


def _double(model: nn.Module, x: Tensor) -> Tensor:
    return model.double()(x.double())


def _bfloat16(model: nn.Module, x: Tensor) -> Tensor:
    return model.bfloat16()(x.bfloat16())


def _autocast(model: nn.Module, x: Tensor) -> Tensor:
    tokens = x.flatten().unflatten(0, (-1, 256, 16))  # float32, unlike those of the model here
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model.block1[0](tokens, 16, 16)  # type: ignore[index, operator, union-attr]


def _hook(model: nn.Module, x: Tensor) -> Tensor:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda module, args, output: output * 2)
    return model(x)


def _pre_hook(model: nn.Module, x: Tensor) -> Tensor:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return model(x)


def _global_hook(model: nn.Module, x: Tensor) -> Tensor:
    def double_linear(module: nn.Module, args: object, output: Tensor) -> Tensor | None:
        return output * 2 if isinstance(module, nn.Linear) else None

    handle = nn.modules.module.register_module_forward_hook(double_linear)
    try:
        return model(x)
    finally:
        handle.remove()


def _parametrization(model: nn.Module, x: Tensor) -> Tensor:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", Half())
    return model(x)


def _spectral_norm(model: nn.Module, x: Tensor) -> Tensor:
    for module in list(model.modules()):
        if isinstance(module, Block):
            nn.utils.spectral_norm(module.attn.q)
    return model(x)


def _made_in_inference_mode(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        for module in list(model.modules()):
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    setattr(module, name, nn.Parameter(parameter.clone(), requires_grad=False))
        return model(x)


def _changed_forward(model: nn.Module, x: Tensor) -> Tensor:
    for module in model.modules():
        if isinstance(module, Block):
            module.mlp.forward = lambda x, H, W: x
    return model(x)


def _changed_class(model: nn.Module, x: Tensor) -> Tensor:
    class Twice(nn.GELU):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.__class__ = Twice
    return model(x)


def _changed_setting(model: nn.Module, x: Tensor) -> Tensor:
    for module in model.modules():
        if isinstance(module, Block):
            module.attn.scale = 1.0
    return model(x)


def _changed_layer(model: nn.Module, x: Tensor) -> Tensor:
    for module in model.modules():
        if isinstance(module, Block):
            module.mlp.act = nn.ReLU()
    return model(x)


def _vmap(model: nn.Module, x: Tensor) -> Tensor:
    return torch.vmap(model, randomness="error")(x[None])[0]


def _ensemble(model: nn.Module, x: Tensor) -> Tensor:
    weights, _ = torch.func.stack_module_state([model, model])
    return torch.vmap(lambda w: torch.func.functional_call(model, w, x))(weights)[1]


def _tangent(model: nn.Module, x: Tensor) -> Tensor:
    model.requires_grad_(False)
    with torch.enable_grad(), forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x, x))).tangent


def _trace(model: nn.Module, x: Tensor) -> Tensor:
    tokens = x.flatten().unflatten(0, (-1, 256, 16))

    class OnOneGrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = model.block1[0]  # type: ignore[index, union-attr]

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x, 16, 16)

    traced = torch.jit.trace(
        OnOneGrid().eval(), tokens, check_trace=False
    )  # which runs it untraced
    assert "pvt::" not in str(traced.inlined_graph)
    return traced(tokens)


def _compile(model: nn.Module, x: Tensor) -> Tensor:
    return torch.compile(model, backend="eager", fullgraph=True)(x)


def _export(model: nn.Module, x: Tensor) -> Tensor:
    return torch.export.export(model, (x,)).module()(x)


OWN_CODE = [
    *(_train, _train_dropout, _want_gradients, _want_input_gradients),
    *(_double, _bfloat16, _autocast),
    *(_hook, _pre_hook, _global_hook, _parametrization, _spectral_norm),
    *(_made_in_inference_mode, _changed_forward, _changed_class, _changed_setting, _changed_layer),
    *(_vmap, _ensemble, _tangent, _trace, _compile, _export),
]


@pytest.mark.parametrize("how", OWN_CODE, ids=lambda how: how.__name__[1:])
def test_own_code_runs(
    how: Callable[[nn.Module, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, twin = authors(), authors()
    x = image(2, 3, 64, 64)
    accelerate(model)
    with torch.no_grad():
        torch.manual_seed(2)
        expected = how(twin, x)
        assert blocks_run(lambda: model(x)) == 5
        monkeypatch.setattr(PackedBlock, "forward", lambda *args: pytest.fail("operators ran"))
        torch.manual_seed(2)
        assert torch.equal(how(model, x), expected)


def test_own_code_says_what_is_wrong_with_a_call() -> None:
    block = Block(16, 2, sr_ratio=2).eval()
    twin = deepcopy(block)
    accelerate(block)
    x = image(1, 12, 16)
    for args in [(x, 3, 5), (x[..., :8], 3, 4), (x, 3), (x, 3, 4, 5), (x[0], 3, 4), (x, 12, 1), ()]:
        with torch.no_grad(), pytest.raises((RuntimeError, TypeError, IndexError)) as theirs:
            twin(*args)
        with torch.no_grad(), pytest.raises(theirs.type) as ours:
            block(*args)
        assert str(ours.value) == str(theirs.value)


def test_operators_run_again() -> None:
    model = authors()
    x = image(1, 3, 64, 64)
    accelerate(model)
    fast = lambda: blocks_run(lambda: model(x))  # noqa: E731
    with torch.no_grad():
        assert fast() == 5
        handle = model.block2[0].attn.q.register_forward_hook(lambda *args: None)
        assert fast() == 4  # the others do not care
        handle.remove()
        assert fast() == 5
        model.train()
        assert fast() == 0
        assert fast() == 0
        assert blocks_run(lambda: model.eval()(x)) == 5
        model.block1[0].attn.scale *= 2
        assert fast() == 4
        model.block1[0].attn.scale /= 2
        assert fast() == 5
        model.double().float()
        assert fast() == 5
    model.requires_grad_(False)
    assert fast() == 5  # nothing wants a gradient


def test_hooks_of_a_block_itself() -> None:
    model, seen = authors(), []
    accelerate(model)
    model.block1[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with torch.no_grad():
        assert blocks_run(lambda: model(image(1, 3, 64, 64))) == 5
    assert seen == [(1, 256, 16)]


def test_keep_attention_maps_of_our_own_blocks() -> None:
    model = mini(MINI_V2)
    attn = model.stages[0].blocks[0].attn
    accelerate(model)
    attn.keep_attn_map = True
    with torch.no_grad():
        assert blocks_run(lambda: model(image(1, 3, 64, 64))) == 4
    assert attn.attn_map is not None


def test_another_attention_function_of_transformers() -> None:
    library = pytest.importorskip(
        "transformers", reason="transformers is not installed: its attention was NOT exchanged"
    )

    def nothing(module, query, key, value, mask, **options):  # type: ignore[no-untyped-def]
        return torch.zeros_like(query).transpose(1, 2).contiguous(), None

    library.AttentionInterface.register("nothing", nothing)
    model = transformers("Segformer", "Model")
    own = deepcopy(model)
    accelerate(model)
    x = image(1, 3, 64, 64)
    with torch.inference_mode():
        assert blocks_run(lambda: model(x)) == sum(DEPTHS)
        for each in (model, own):
            each.set_attn_implementation("nothing")
        assert blocks_run(lambda: model(x)) == 0
        assert torch.equal(answer(model, x), answer(own, x))
        with pytest.raises(ValueError, match="its answers are not those of the published block"):
            accelerate(model)
