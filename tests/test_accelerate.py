"""Accelerated models beside the same models as they were."""

import io
import pickle
import re
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from accelerated import (
    MODELS,
    SIZES,
    TOLERANCE,
    answer,
    authors,
    blocks_run,
    image,
    transformers,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MINI, MINI_V2, MINI_V2_LI, enliven, mini, relative_error
from published_modules import Block
from torch import Tensor, nn

from pvt_ext.acceleration import accelerate, restore
from pvt_ext.inference import pack


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]()


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
