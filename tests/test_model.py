"""PVT v1 against the published formula, at every size, and the model's programming interface."""

import numpy as np
import published
import pytest
import torch
from models import lively, mini, published_state, relative_error
from torch import Tensor

from pvt_ext.model import PVT, create_model
from pvt_ext.variants import VARIANTS, list_models, min_image_size

TOLERANCE = 1e-5
PARAMETERS = {
    "pvt_tiny": 13_229_288,
    "pvt_small": 24_485_864,
    "pvt_medium": 44_208_104,
    "pvt_large": 61_369_320,
    "pvt_huge_v2": 304_945_512,
    "pvt_v2_b0": 3_666_760,
    "pvt_v2_b1": 14_009_000,
    "pvt_v2_b2": 25_362_856,
    "pvt_v2_b2_li": 22_553_512,
    "pvt_v2_b3": 45_238_696,
    "pvt_v2_b4": 62_556_072,
    "pvt_v2_b5": 81_956_008,
    "pvt_nano": 1_439_146,
}
SIZES = [
    (224, 224),
    (448, 448),  # here and at 896 x 896 the published code fails
    (224, 896),
    (112, 448),  # 28 * 112 == 56 * 56: the published code takes the table for one of this grid
    (256, 832),
    (225, 227),
    (64, 64),
    (33, 65),
    pytest.param((896, 896), marks=pytest.mark.slow),
    pytest.param((800, 1344), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def fused() -> PVT:
    return lively("pvt_tiny")


@pytest.fixture(scope="module")
def plain(fused: PVT) -> PVT:
    model = create_model("pvt_tiny", fused=False).eval()
    model.load_state_dict(fused.state_dict())
    return model


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list_models())
def test_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_equals_the_published_formula(fused: PVT, plain: PVT, size: tuple[int, int]) -> None:
    x = image(1, 3, *size)
    with torch.inference_mode():
        expected = published.logits(published_state(fused), x)
        assert relative_error(fused(x), expected) < TOLERANCE
        assert relative_error(plain(x), expected) < TOLERANCE


@pytest.mark.parametrize("name", ["pvt_small", "pvt_medium", "pvt_large"])
def test_variants_equal_the_published_formula(name: str) -> None:
    model = lively(name)
    x = image(1, 3, 96, 128)
    with torch.inference_mode():
        expected = published.logits(published_state(model), x)
        assert relative_error(model(x), expected) < TOLERANCE


@pytest.mark.parametrize("use_fused", [True, False])
def test_every_norm_has_the_published_epsilon(use_fused: bool) -> None:
    """Where what a norm sees is small, its epsilon decides the result."""
    model = lively("pvt_tiny", fused=use_fused)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("patch_embed", "pos_embed", "cls_token", ".sr.")):
                parameter.mul_(3e-3)
            elif name.endswith(("attn.proj.weight", "attn.proj.bias", "fc2.weight", "fc2.bias")):
                parameter.mul_(1e-3)  # so the residual stream stays small, up to the final norm
    x = image(1, 3, 64, 96)
    with torch.inference_mode():
        expected = published.logits(published_state(model), x)
        assert relative_error(model(x), expected) < TOLERANCE


def test_position_tables_of_a_rectangle() -> None:
    model = lively("pvt_tiny", img_size=(96, 160))
    for size in ((96, 160), (160, 96), (128, 64)):
        x = image(1, 3, *size)
        with torch.inference_mode():
            expected = published.logits(published_state(model), x, grid=(24, 40))
            assert relative_error(model(x), expected) < TOLERANCE


@pytest.mark.parametrize("size", [(224, 224), (130, 199)])
def test_features(fused: PVT, size: tuple[int, int]) -> None:
    x = image(2, 3, *size)
    with torch.inference_mode():
        maps = fused.features(x)
        expected = published.features(published_state(fused), x)
    assert len(maps) == len(fused.feature_info) == 4
    for i, (actual, reference, info) in enumerate(
        zip(maps, expected, fused.feature_info, strict=True)
    ):
        stride = info["reduction"]
        assert stride == (4, 8, 16, 32)[i]
        assert actual.shape == (2, info["num_chs"], size[0] // stride, size[1] // stride)
        assert fused.get_submodule(info["module"]) is fused.stages[i]
        assert relative_error(actual, reference) < TOLERANCE


def test_forward_is_features_then_head(fused: PVT) -> None:
    x = image(2, 3, 64, 96)
    with torch.inference_mode():
        tokens = fused.forward_features(x)
        assert tokens.shape == (2, 512)
        assert torch.equal(fused.forward_head(tokens), fused(x))


def test_samples_of_a_batch_are_independent(fused: PVT) -> None:
    x = image(3, 3, 64, 64)
    with torch.inference_mode():
        single = torch.cat([fused(sample.unsqueeze(0)) for sample in x])
        assert relative_error(fused(x), single) < TOLERANCE
        assert fused(x[:0]).shape == (0, 1000)


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
def test_below_the_minimum_size(fused: PVT, size: tuple[int, int]) -> None:
    message = f"at least 32 x 32, got {size[0]} x {size[1]}"
    for call in (fused, fused.forward_features, fused.features, fused.attention_maps):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match=message):
        create_model("pvt_tiny", img_size=size)


def test_minimum_size_follows_the_stages() -> None:
    specs = VARIANTS["pvt_tiny"]
    assert min_image_size(specs) == 32
    assert min_image_size([specs[0]._replace(sr_ratio=1)]) == 4
    assert min_image_size([*specs[:3], specs[3]._replace(sr_ratio=2)]) == 64


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64)])
def test_refuses_other_shapes(fused: PVT, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected an image batch \[B, 3, H, W\], got shape"):
        fused(torch.zeros(shape))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("use_fused", [True, False])
def test_scripts(use_fused: bool, training: bool) -> None:
    model = mini(fused=use_fused, drop_path_rate=0.5).train(training)
    scripted = torch.jit.script(model)
    x = image(4, 3, 64, 90)
    for name in ("forward", "features"):
        eager, script = [], []
        for run, outputs in ((model, eager), (scripted, script)):
            torch.manual_seed(1)  # the same samples are dropped
            with torch.no_grad():
                result = getattr(run, name)(x)
            outputs.extend(result if isinstance(result, list) else [result])
        assert all(torch.equal(a, b) for a, b in zip(eager, script, strict=True))
    with pytest.raises(torch.jit.Error, match="at least 32 x 32, got 16 x 64"):
        scripted(torch.zeros(1, 3, 16, 64))


def test_gradients_reach_every_parameter_and_agree() -> None:
    models = [mini(fused=True).train(), mini(fused=False).train()]
    x = image(2, 3, 64, 64)
    for model in models:
        model(x).square().sum().backward()
    ours, plain = (
        {name: parameter.grad for name, parameter in model.named_parameters()} for model in models
    )
    for name, expected in plain.items():
        assert expected.abs().max() > 0, name
        assert relative_error(ours[name], expected) < 1e-3, name


def test_attention_maps(fused: PVT) -> None:
    x = image(1, 3, 64, 96)
    with torch.inference_mode():
        maps = fused.attention_maps(x)
    assert [len(stage) for stage in maps] == [2, 2, 2, 2]
    # per stage: heads, queries, keys; the last stage has a class token
    shapes = [(1, 384, 6), (2, 96, 6), (5, 24, 6), (8, 7, 7)]
    for stage, shape in zip(maps, shapes, strict=True):
        for probs in stage:
            assert probs.shape == (1, *shape)
            torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:-1]))
    assert maps[0][0].std() > 0


def test_attention_maps_are_those_of_the_forward_pass(fused: PVT) -> None:
    """The last block's map, applied to its values by hand, gives that block's attention output."""
    x = image(1, 3, 64, 64)
    captured: list[tuple[Tensor, Tensor]] = []
    attention = fused.stages[3].blocks[1].attn
    handle = attention.register_forward_hook(
        lambda module, args, out: captured.append((args[0], out))
    )
    with torch.inference_mode():
        fused(x)
        handle.remove()
        probs = fused.attention_maps(x)[3][1]
        tokens, output = captured[0]
        values = attention.kv(tokens).chunk(2, -1)[1].unflatten(-1, (8, -1)).transpose(1, 2)
        expected = attention.proj((probs @ values).transpose(1, 2).flatten(2))
    assert relative_error(output, expected) < TOLERANCE


def test_reset_classifier() -> None:
    model = mini().bfloat16()
    x = image(2, 3, 64, 64).bfloat16()
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert model.num_classes == 7
    assert model.get_classifier().weight.dtype == torch.bfloat16
    assert 0.01 < model.get_classifier().weight.float().std() < 0.03
    assert not model.get_classifier().bias.any()
    model.reset_classifier(0)
    assert model(x).shape == (2, 48)
    assert torch.equal(model(x), model.forward_features(x))
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    with pytest.raises(ValueError, match="num_classes: expected at least 0, got -1"):
        model.reset_classifier(-1)


def test_create_model_options() -> None:
    model = create_model("pvt_tiny", num_classes=0, in_chans=1, img_size=64, drop_path_rate=0.7)
    assert model.training
    assert isinstance(model.head, torch.nn.Identity)
    assert model.stages[0].pos_embed.shape == (1, 256, 64)
    assert model.stages[3].pos_embed.shape == (1, 5, 512)
    assert model.eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 512)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.7, 8).tolist())


def test_whole_numbers_of_other_libraries() -> None:
    options = {"img_size": np.int64(64), "num_classes": np.int32(3), "in_chans": torch.tensor(1)}
    with torch.device("meta"):
        model = create_model("pvt_tiny", **options)  # type: ignore[arg-type]
    assert (model.img_size, model.num_classes, model.in_chans) == ((64, 64), 3, 1)
    for number in (*model.img_size, model.num_classes, model.in_chans):
        assert type(number) is int


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = create_model("pvt_tiny")
    assert model.no_weight_decay() == {"stages.3.cls_token"}
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float("weight" in name)))
        elif name.endswith("bias"):
            is_conv = ".sr." in name or "patch_embed.proj" in name
            assert is_conv or not parameter.any(), name
        elif ".sr." not in name and "patch_embed" not in name:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
    torch.manual_seed(0)
    again = create_model("pvt_tiny")
    assert torch.equal(model.head.weight, again.head.weight)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pvt_smal", {}, "unknown name 'pvt_smal'; did you mean pvt_small"),
        ("resnet", {}, "unknown name 'resnet'; did you mean pvt_tiny, .*pvt_huge_v2"),
        (3, {}, "create_model: expected the name of a model, got 3"),
        (["pvt_tiny"], {}, r"create_model: expected the name of a model, got \['pvt_tiny'\]"),
        ("pvt_tiny", {"in_chans": 0}, "in_chans: expected at least 1, got 0"),
        ("pvt_tiny", {"num_classes": -5}, "num_classes: expected at least 0, got -5"),
        ("pvt_tiny", {"drop_path_rate": 1.0}, "drop_path_rate: expected .* got 1.0"),
        ("pvt_tiny", {"drop_path_rate": None}, "drop_path_rate: expected .* got None"),
        ("pvt_tiny", {"num_classes": "10"}, "num_classes: expected a whole number, got '10'"),
        ("pvt_tiny", {"num_classes": True}, "num_classes: expected a whole number, got True"),
        ("pvt_tiny", {"in_chans": 3.0}, "in_chans: expected a whole number, got 3.0"),
        ("pvt_tiny", {"img_size": 224.0}, "img_size: expected a positive int or .* got 224.0"),
        ("pvt_tiny", {"img_size": True}, "img_size: expected a positive int or .* got True"),
        ("pvt_tiny", {"img_size": "ab"}, "img_size: expected a positive int or .* got 'ab'"),
        ("pvt_tiny", {"img_size": (224, 224, 3)}, r"img_size: .* got \(224, 224, 3\)"),
        ("pvt_huge_v2", {"pretrained": True}, "no published weights for pvt_huge_v2"),
    ],
)
def test_create_model_refuses(name: str, options: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model(name, **options)  # type: ignore[arg-type]
