"""Accelerated models beside the same models as they were."""

import io
import pickle
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MINI, MINI_V2, MINI_V2_LI, enliven, mini, relative_error
from published_modules import Block, PyramidVisionTransformer
from running import in_eight_threads
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import pvt_ext.acceleration
from pvt_ext.acceleration import accelerate, restore
from pvt_ext.inference import PackedBlock, pack

TOLERANCE = 1e-5
SIZES = [(64, 64), (96, 64), (33, 65), (130, 51)]
WIDTHS, HEADS, DEPTHS = (32, 64, 160, 256), (1, 2, 5, 8), (1, 2, 1, 1)
OPERATORS = ("pvt::attention_block_", "pvt::mlp_block_", "pvt::conv_mlp_block_")


# ---- models ----


def authors(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = PyramidVisionTransformer(**options)  # type: ignore[arg-type]
    enliven(model)
    return model.eval()


def timms(linear: bool = False) -> nn.Module:
    pvt_v2 = pytest.importorskip(
        "timm.models.pvt_v2", reason="timm is not installed: its PVT v2 was NOT accelerated"
    )
    model = pvt_v2.PyramidVisionTransformerV2(
        depths=DEPTHS, embed_dims=WIDTHS, num_heads=HEADS, linear=linear, num_classes=10
    )
    enliven(model)
    return model.eval()


def transformers(name: str, kind: str, **options: object) -> nn.Module:
    library = pytest.importorskip(
        "transformers", reason="transformers is not installed: its models were NOT accelerated"
    )
    sizes = {"hidden_sizes": WIDTHS, "num_attention_heads": HEADS, "depths": DEPTHS}
    if name == "Pvt":
        sizes["image_size"] = 64
    options = {
        key: list(value) if isinstance(value, tuple) else value for key, value in sizes.items()
    } | options
    if name == "GLPN":
        options["decoder_hidden_size"] = 32
    model = getattr(library, name + kind)(getattr(library, name + "Config")(**options))
    enliven(model)
    return model.eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "authors-v1": partial(authors, version=1),
    "authors-v2": authors,
    "authors-linear": partial(authors, linear=True),
    "authors-no-bias": partial(authors, qkv_bias=False, drop_path=0.0),
    "pvt_ext-v1": partial(mini, MINI),
    "pvt_ext-v2": partial(mini, MINI_V2),
    "pvt_ext-linear-plain": partial(mini, MINI_V2_LI, fused=False),
    "timm": timms,
    "timm-linear": partial(timms, linear=True),
    "transformers-v1": partial(transformers, "Pvt", "ForImageClassification"),
    "transformers-v1-no-bias": partial(
        transformers, "Pvt", "ForImageClassification", qkv_bias=False, layer_norm_eps=1e-3
    ),
    "transformers-v2": partial(transformers, "PvtV2", "ForImageClassification"),
    "transformers-v2-linear": partial(
        transformers, "PvtV2", "ForImageClassification", linear_attention=True, drop_path_rate=0.1
    ),
    "transformers-segformer": partial(transformers, "Segformer", "ForImageClassification"),
    "transformers-segmentation": partial(transformers, "Segformer", "ForSemanticSegmentation"),
    "transformers-glpn": partial(transformers, "GLPN", "ForDepthEstimation"),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]()


def answer(model: nn.Module, x: Tensor, **options: object) -> Tensor:
    out = model(x, **options)
    return out if isinstance(out, Tensor) else out[0]


def image(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


# ---- what ran ----


class Operators(TorchDispatchMode):
    """Counts the operators of a packed block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func.name() in OPERATORS
        return func(*args, **(kwargs or {}))


def blocks_run(call: Callable[[], object]) -> float:
    """How many blocks ran as operators in ``call()``."""
    with Operators() as operators:
        call()
    return operators.count / 2


# ---- the same answers ----


def test_same_answers(model: nn.Module) -> None:
    few = {"PvtForImageClassification": 1, "GLPNForDepthEstimation": 1}  # those take no others
    sizes = SIZES[: few.get(type(model).__name__)]
    before = dict(model.state_dict(keep_vars=True)), list(model.named_parameters())
    kind, modules = type(model), list(model.named_modules())
    with torch.inference_mode():
        own = [answer(model, image(2, 3, *size)) for size in sizes]
        report = accelerate(model)
        assert not report.left
        assert len(report.swapped) == 5
        for size, expected in zip(sizes, own, strict=True):
            assert relative_error(answer(model, image(2, 3, *size)), expected) < TOLERANCE
            assert blocks_run(lambda: model(image(2, 3, *size))) == len(report.swapped)  # noqa: B023

    assert type(model) is kind
    assert list(model.named_modules()) == modules
    after = dict(model.state_dict(keep_vars=True))
    assert list(after) == list(before[0])
    assert all(after[key] is tensor for key, tensor in before[0].items())
    for (name, parameter), (name_before, parameter_before) in zip(
        model.named_parameters(), before[1], strict=True
    ):
        assert name == name_before
        assert parameter is parameter_before

    restore(model)
    assert not any("forward" in module.__dict__ for module in model.modules())
    with torch.inference_mode():
        for size, expected in zip(sizes, own, strict=True):
            assert torch.equal(answer(model, image(2, 3, *size)), expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_block(data: st.DataObject) -> None:
    draw = data.draw
    heads, width = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    block = Block(
        heads * width,
        heads,
        mlp_ratio=draw(st.sampled_from([1, 3.3, 4])),
        qkv_bias=draw(st.booleans()),
        drop_path=draw(st.sampled_from([0.0, 0.5])),
        sr_ratio=draw(st.integers(1, 5)),
        version=(version := draw(st.integers(1, 2))),
        linear=version == 2 and draw(st.booleans()),
    ).eval()
    enliven(block, seed=draw(st.integers(0, 9)))
    H, W = (draw(st.integers(block.attn.sr_ratio, 12)) for _ in range(2))
    on_grid = block.attn.linear or block.attn.sr_ratio > 1 or hasattr(block.mlp, "dwconv")
    N = H * W + int(not on_grid)  # a class token
    x = image(draw(st.integers(1, 3)), N, heads * width)
    if draw(st.booleans()):
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    copy = x.clone()
    with torch.no_grad():
        expected = block(x, H, W)
        accelerate(block)
        assert relative_error(block(x, H, W), expected) < TOLERANCE
        assert relative_error(block(H=H, x=x, W=W), expected) < TOLERANCE
        assert blocks_run(lambda: block(x, W=W, H=H)) == 1
    assert torch.equal(x, copy)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (256, 352)], ids=str)
@pytest.mark.parametrize("name", ["authors", "timm", "pvt", "pvt_v2", "segformer"])
def test_full_size(name: str, size: tuple[int, int]) -> None:
    widths, depths = (64, 128, 320, 512), (3, 4, 6, 3)
    sizes = {"hidden_sizes": list(widths), "depths": list(depths)}
    if name == "authors":
        model = authors(embed_dims=widths, mlp_ratios=(8, 8, 4, 4), depths=depths)
    elif name == "timm":
        timm = pytest.importorskip("timm", reason="timm is not installed: pvt_v2_b2 NOT tested")
        model = timm.create_model("pvt_v2_b2").eval()
    elif name == "pvt":
        model = transformers("Pvt", "Model", **sizes, image_size=224)
        size = (224, 224)
    elif name == "pvt_v2":
        model = transformers("PvtV2", "Model", **sizes)
    else:
        model = transformers("Segformer", "Model", **sizes)
    x = image(1, 3, *size)
    with torch.inference_mode():
        expected = answer(model, x)
        assert len(accelerate(model).swapped) == 16
        assert relative_error(answer(model, x), expected) < TOLERANCE


def flat(tensors: Tensor | tuple) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else [t for part in tensors for t in flat(part)]


def test_what_transformers_returns_besides() -> None:
    x = image(1, 3, 64, 64)
    for name in ("Pvt", "PvtV2", "Segformer"):
        model = transformers(name, "Model")
        with torch.no_grad():
            expected = model(x, output_attentions=True, output_hidden_states=True)
            n = len(accelerate(model).swapped)
            asked = partial(model, x, output_attentions=True, output_hidden_states=True)
            got = asked()
            assert blocks_run(asked) == 0  # the operators have no attention maps
            for ours, theirs in (
                *zip(flat(got.attentions), flat(expected.attentions), strict=True),
                *zip(got.hidden_states, expected.hidden_states, strict=True),
            ):
                assert torch.equal(ours, theirs)
            # Asking leaves hooks behind, which do nothing unless asked again.
            hidden = partial(model, x, output_hidden_states=True)
            assert blocks_run(hidden) == n
            for ours, theirs in zip(hidden().hidden_states, expected.hidden_states, strict=True):
                assert relative_error(ours, theirs) < TOLERANCE
            assert isinstance(model(x, return_dict=False), tuple)


# ---- where the block's own code runs ----


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


# ---- training ----


def test_training_is_untouched(model: nn.Module) -> None:
    twin = deepcopy(model)
    accelerate(model)
    x = image(2, 3, 64, 64)
    for step in range(2):
        for m in (model, twin):
            m.train()
            m.zero_grad()
            torch.manual_seed(step)
            answer(m, x).square().mean().backward()
            torch.optim.SGD(m.parameters(), lr=0.01).step()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            assert ours.grad is None or torch.equal(ours.grad, theirs.grad)
        with torch.inference_mode():
            assert relative_error(answer(model.eval(), x), answer(twin.eval(), x)) < TOLERANCE


# ---- changed weights ----


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


# ---- precisions ----


@pytest.mark.parametrize("specs", [MINI, MINI_V2, MINI_V2_LI], ids=["v1", "v2", "v2_li"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_narrow_weights_are_as_close_as_in_a_packed_model(specs, dtype) -> None:
    model = mini(specs)
    x = image(16, 3, 96, 96)
    with torch.inference_mode():
        truth = mini(specs).double()(x.double())
        packed = pack(model, dtype)(x)
        assert accelerate(model, dtype).dtype == dtype
        ours = model(x)
        assert (ours - truth).norm() / truth.norm() > 1e-5
        assert (ours - truth).norm() < 1.2 * (packed - truth).norm()
        assert blocks_run(lambda: model(x)) == 5
        accelerate(model)  # again, in float32
        assert relative_error(model(x), mini(specs)(x)) < TOLERANCE
        accelerate(model, dtype)
        assert torch.equal(model(x), ours)


# ---- what is left ----


class Scaled(Block):
    """Layer scale."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.gamma = nn.Parameter(torch.ones(()))


class PostNorm(Block):
    """The same layers in another order."""

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = x + self.norm1(self.attn(x, H, W))
        return x + self.norm2(self.mlp(x, H, W))


class Otherwise(Block):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, 2, 2)


class Broken(Block):
    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        raise KeyError("cannot be tried")


class Pair(Block):
    def forward(self, x: Tensor, H: int, W: int) -> tuple[Tensor, int]:  # type: ignore[override]
        return super().forward(x, H, W), H


class MyLinear(nn.Linear):
    pass


def changed(path: str, value: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        block = Block(16, 2, sr_ratio=2)
        owner, _, name = path.rpartition(".")
        setattr(block.get_submodule(owner), name, value)
        return block

    return make


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "GELU by tanh": (
        lambda: Block(16, 2, act_layer=partial(nn.GELU, approximate="tanh")),
        r"mlp.act: expected the exact GELU, got GELU\(approximate='tanh'\)",
    ),
    "another activation": (changed("mlp.act", nn.SiLU()), "mlp.act: expected the exact GELU"),
    "layer scale": (lambda: Scaled(16, 2), "gamma: the published block has no such weight"),
    "buffer": (lambda: with_buffer(), "attn.mask: the published block has no such weight"),
    "another order": (lambda: PostNorm(16, 2), "its answers are not those of the published block"),
    "another signature": (lambda: Otherwise(16, 2), r"expected forward\(x, H, W\) or .*'x',"),
    "fails": (lambda: Broken(16, 2), r"its own code failed on tokens \[2, 30, 16\]: 'cannot be"),
    "answers more": (lambda: Pair(16, 2), "expected tokens as answer, got tuple"),
    "subclass": (changed("attn.q", MyLinear(16, 16)), "attn.q: expected Linear, got MyLinear"),
    "no query": (changed("attn.q", None), "attn.q: expected Linear .* got none"),
    "wide": (changed("attn.kv", nn.Linear(16, 48)), "kv.out_features: expected 32, got 48"),
    "padding": (
        changed("attn.sr", nn.Conv2d(16, 16, 2, 2, padding=1)),
        r"attn.sr.padding: expected \(0, 0\), got \(1, 1\)",
    ),
    "groups": (changed("attn.sr", nn.Conv2d(16, 16, 2, 2, groups=4)), "sr.groups: expected 1, got"),
    "overlap": (changed("attn.sr", nn.Conv2d(16, 16, 3, 2)), r"sr.stride: expected \(3, 3\), got"),
    "no reduction": (changed("attn.sr", nn.Conv2d(16, 16, 1)), "expected a reduction of more than"),
    "reflection": (
        changed("mlp.dwconv.dwconv", nn.Conv2d(64, 64, 3, 1, 1, groups=64, padding_mode="reflect")),
        "dwconv.padding_mode: expected zeros, got reflect",
    ),
    "dense": (
        changed("mlp.dwconv.dwconv", nn.Conv2d(64, 64, 3, 1, 1)),
        "dwconv.groups: expected 64",
    ),
    "no weights": (
        changed("norm1", nn.LayerNorm(16, elementwise_affine=False)),
        "norm1.elementwise_affine: expected True, got False",
    ),
    "no bias": (changed("norm2", nn.LayerNorm(16, bias=False)), "norm2: expected a bias"),
    "another norm": (changed("norm2", nn.RMSNorm(16)), "norm2: expected LayerNorm, got RMSNorm"),
    "heads": (changed("attn.num_heads", 3), "number of heads that divides 16, got 3"),
    "ReLU without convolution": (
        lambda: Block(16, 2, linear=True, version=1),
        "its answers are not those of the published block",
    ),
    "pool": (lambda: linear_with(nn.AdaptiveMaxPool2d(7)), "pool: expected .*AvgPool2d.*, got"),
    "pool sides": (lambda: linear_with(nn.AdaptiveAvgPool2d((7, 5))), "expected a square, got"),
    "double": (lambda: Block(16, 2).double(), "expected torch.float32 on cpu, got torch.float64"),
    "meta": (lambda: Block(16, 2).to("meta"), "expected torch.float32 on cpu, .* on meta"),
    "replaced forward": (
        changed("mlp.forward", print),
        "mlp forward was replaced: builtin_function_or_method",
    ),
    "wrapped": (changed("forward", print), "its forward was replaced: builtin_function_or_method"),
}


def with_buffer() -> nn.Module:
    block = Block(16, 2)
    block.attn.register_buffer("mask", torch.zeros(2))
    return block


def linear_with(pool: nn.Module) -> nn.Module:
    block = Block(16, 2, linear=True)
    block.attn.pool = pool
    return block


@pytest.mark.parametrize("why", LEFT)
def test_left_as_it_is(why: str) -> None:
    make, reason = LEFT[why]
    model = nn.ModuleList([Block(16, 2), make(), make()])
    before = dict(model[1].__dict__)
    report = accelerate(model)
    assert list(report.swapped) == ["0"]
    assert list(report.left) == ["1", "2"]
    assert re.search(reason, report.left["1"][1])
    assert model[1].__dict__ == before


def test_left_after_a_change() -> None:
    """A block that was swapped, and no longer fits when asked again."""
    model = nn.ModuleList([Block(16, 2), Block(16, 2)])
    assert len(accelerate(model).swapped) == 2
    model[1].mlp.act = nn.ReLU()
    assert list(accelerate(model).left) == ["1"]
    assert "forward" not in model[1].__dict__


def test_report() -> None:
    model = nn.Sequential(
        Block(16, 2), nn.Linear(2, 2), Block(16, 2, version=1), PostNorm(16, 2), Scaled(16, 2)
    )
    text = str(accelerate(model, torch.bfloat16))
    assert text.splitlines()[:4] == [
        "2 blocks swapped, weights packed in torch.bfloat16",
        "  2 x published_modules.Block",
        "2 blocks left as before",
        "  1 x test_accelerate.PostNorm, the first is 3:",
    ]
    assert text.splitlines()[5:] == [
        "  1 x test_accelerate.Scaled, the first is 4:",
        "    gamma: the published block has no such weight",
        "all that is not a block (patch embeddings, norms, heads) is as it was",
    ]


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"dtype: expected torch.float32, .* got torch.float16"):
        accelerate(authors(), torch.float16)
    with pytest.raises(ValueError, match=r"model: expected a torch.nn.Module, got dict"):
        accelerate({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"PVT or SegFormer: .* got .*Linear with none of them$"):
        accelerate(nn.Linear(2, 2))
    reason = r"none that fits: 0 \(.*Scaled\): gamma: the published block has no such weight$"
    with pytest.raises(ValueError, match=reason) as caught:
        accelerate(nn.Sequential(Scaled(16, 2)))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"got .*PVT with blocks that are packed already$"):
        accelerate(pack(mini()))
    model = authors()
    accelerate(model)
    forwards = [block.forward for block in model.block2]
    model.double()
    with pytest.raises(ValueError, match=r"got torch.float64"):
        accelerate(model)
    assert [block.forward for block in model.block2] == forwards  # nothing half done
    restore(nn.Linear(2, 2))


def test_a_trial_touches_nothing() -> None:
    model = authors().train()
    model.block1[0].attn.q.register_forward_hook(lambda *args: pytest.fail("was called"))
    versions = [p._version for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    accelerate(model)
    assert [p._version for p in model.parameters()] == versions
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


# ---- copies ----


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copy", [deepcopy, through_pickle, through_a_file])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize(
    "model", [name for name in MODELS if name != "transformers-segmentation"], indirect=True
)  # whose hooks cannot be pickled, accelerated or not
def test_copies_are_independent(
    model: nn.Module, copy: Callable[[nn.Module], nn.Module], used: bool
) -> None:
    x = image(1, 3, 64, 64)
    n = len(accelerate(model).swapped)
    with torch.no_grad():
        if used:
            model(x)
        other = copy(model)
        expected = answer(model, x)
        assert torch.equal(answer(other, x), expected)
        assert blocks_run(lambda: other(x)) == n
        for parameter in other.parameters():
            parameter.mul_(1.1)
        assert not torch.equal(answer(other, x), expected)
        assert torch.equal(answer(model, x), expected)
        restore(other)
        assert blocks_run(lambda: other(x)) == 0
        assert blocks_run(lambda: model(x)) == n
    if not used:
        return
    file = io.BytesIO()
    torch.save(model, file)
    restore(model)
    plain = io.BytesIO()
    torch.save(model, plain)
    assert file.tell() < 1.2 * plain.tell() + 50_000  # without packed weights


def test_scripting_says_what_to_do() -> None:
    model = mini(MINI_V2)
    x = image(1, 3, 64, 64)
    accelerate(model)
    with pytest.raises(AttributeError, match=r"cannot compile .*: pvt_ext.restore\(model\) first"):
        torch.jit.script(model)
    with torch.no_grad():
        expected = model(x)
        assert relative_error(pack(model)(x), expected) < TOLERANCE
        restore(model)
        assert relative_error(torch.jit.script(model)(x), expected) < TOLERANCE


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
