"""PVT v2 against the published formula, at every size; what v1 and v2 share is in test_model.py."""

import math
from pathlib import Path

import numpy as np
import published_v2
import pytest
import torch
from models import MINI, MINI_V2, MINI_V2_LI, lively, mini, published_state, relative_error
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from pvt_ext.cli import app
from pvt_ext.model import PVT, create_model
from pvt_ext.variants import VARIANTS, StageSpec, list_models, min_image_size

TOLERANCE = 1e-5
SIZES = [(224, 224), (448, 320), (225, 227), (29, 61)]
MINIS = {"v2": MINI_V2, "linear": MINI_V2_LI}


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["pvt_v2_b0", "pvt_v2_b2_li"])
def fused(request: pytest.FixtureRequest) -> PVT:
    return lively(request.param)


@pytest.fixture(scope="module")
def plain(fused: PVT) -> PVT:
    model = create_model(fused.variant, fused=False).eval()
    model.load_state_dict(fused.state_dict())
    return model


@pytest.fixture(params=MINIS)
def specs(request: pytest.FixtureRequest) -> tuple[StageSpec, ...]:
    return MINIS[request.param]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_equals_the_published_formula(fused: PVT, plain: PVT, size: tuple[int, int]) -> None:
    x = image(1, 3, *size)
    with torch.inference_mode():
        expected = published_v2.logits(published_state(fused), x)
        assert relative_error(fused(x), expected) < TOLERANCE
        assert relative_error(plain(x), expected) < TOLERANCE


def test_linear_variant_takes_the_smallest_image() -> None:
    model = lively("pvt_v2_b2_li")
    x = image(1, 3, 1, 2)
    with torch.inference_mode():
        expected = published_v2.logits(published_state(model), x)
        assert relative_error(model(x), expected) < TOLERANCE


@pytest.mark.parametrize("name", ["pvt_v2_b1", "pvt_v2_b3", "pvt_v2_b5"])
def test_variants_equal_the_published_formula(name: str) -> None:
    model = lively(name)
    x = image(1, 3, 96, 128)
    with torch.inference_mode():
        expected = published_v2.logits(published_state(model), x)
        assert relative_error(model(x), expected) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pvt_v2_b2", "pvt_v2_b4"])
def test_larger_variants_equal_the_published_formula(name: str) -> None:
    model = lively(name)
    for size in SIZES:
        x = image(1, 3, *size)
        with torch.inference_mode():
            expected = published_v2.logits(published_state(model), x)
            assert relative_error(model(x), expected) < TOLERANCE


@pytest.mark.parametrize("use_fused", [True, False])
def test_every_norm_has_the_published_epsilon(
    specs: tuple[StageSpec, ...], use_fused: bool
) -> None:
    """Where what a norm sees is small, its epsilon decides the result."""
    model = mini(specs, fused=use_fused)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "patch_embed" in name or ".sr." in name:
                parameter.mul_(3e-3)
            elif name.endswith(("attn.proj.weight", "attn.proj.bias", "fc2.weight", "fc2.bias")):
                parameter.mul_(1e-3)  # so the residual stream stays small, up to the stage's norm
    x = image(1, 3, 64, 96)
    with torch.inference_mode():
        expected = published_v2.logits(published_state(model), x)
        assert relative_error(model(x), expected) < TOLERANCE


@pytest.mark.parametrize("size", [(224, 224), (130, 199)])
def test_features(fused: PVT, size: tuple[int, int]) -> None:
    x = image(2, 3, *size)
    with torch.inference_mode():
        maps = fused.features(x)
        expected = published_v2.features(published_state(fused), x)
    for i, (actual, reference, info) in enumerate(
        zip(maps, expected, fused.feature_info, strict=True)
    ):
        stride = info["reduction"]
        assert stride == (4, 8, 16, 32)[i]
        grid = (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        assert actual.shape == (2, info["num_chs"], *grid)
        assert relative_error(actual, reference) < TOLERANCE


def test_forward_is_the_mean_of_the_last_map_then_head(fused: PVT) -> None:
    x = image(2, 3, 64, 97)
    with torch.inference_mode():
        tokens = fused.forward_features(x)
        assert tokens.shape == (2, fused.num_features)
        assert relative_error(tokens, fused.features(x)[-1].mean(dim=(2, 3))) < 1e-6
        assert torch.equal(fused.forward_head(tokens), fused(x))


def test_samples_of_a_batch_are_independent(specs: tuple[StageSpec, ...]) -> None:
    model = mini(specs)
    x = image(3, 3, 64, 70)
    with torch.inference_mode():
        single = torch.cat([model(sample.unsqueeze(0)) for sample in x])
        assert relative_error(model(x), single) < TOLERANCE
        assert model(x[:0]).shape == (0, 10)


def test_minimum_size_is_the_smallest_that_works() -> None:
    assert min_image_size(VARIANTS["pvt_v2_b0"]) == 29
    assert min_image_size(VARIANTS["pvt_v2_b2_li"]) == 1
    # In the last stage a reduction of 3 needs three tokens a side: 5, 9, 17, 65 before them.
    assert min_image_size([*MINI_V2[:3], MINI_V2[3]._replace(sr_ratio=3)]) == 65
    model = mini(MINI_V2)
    assert model(torch.zeros(1, 3, 29, 29)).shape == (1, 10)
    assert [tuple(m.shape[2:]) for m in model.features(torch.zeros(1, 3, 29, 30))] == [
        (8, 8), (4, 4), (2, 2), (1, 1),
    ]  # fmt: skip
    for call in (model, torch.jit.script(model), model.features, model.attention_maps):
        with pytest.raises((ValueError, torch.jit.Error), match="at least 29 x 29, got 29 x 28"):
            call(torch.zeros(1, 3, 29, 28))
    with pytest.raises(ValueError, match="at least 29 x 29, got 28 x 28"):
        create_model("pvt_v2_b0", img_size=28)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("use_fused", [True, False])
def test_scripts(specs: tuple[StageSpec, ...], use_fused: bool, training: bool) -> None:
    model = mini(specs, fused=use_fused, drop_path_rate=0.5).train(training)
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


@pytest.mark.parametrize("name", [name for name in list_models() if name.startswith("pvt_v2_")])
def test_every_variant_scripts(name: str) -> None:
    model = create_model(name).eval()
    x = image(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(torch.jit.script(model)(x), model(x))


def test_gradients_reach_every_parameter_and_agree(specs: tuple[StageSpec, ...]) -> None:
    models = [mini(specs, fused=True).train(), mini(specs, fused=False).train()]
    x = image(2, 3, 64, 64)
    for model in models:
        model(x).square().sum().backward()
    ours, plain = (
        {name: parameter.grad for name, parameter in model.named_parameters()} for model in models
    )
    for name, expected in plain.items():
        assert expected.abs().max() > 0, name
        assert relative_error(ours[name], expected) < 1e-3, name


def test_attention_maps_are_those_of_the_forward_pass(specs: tuple[StageSpec, ...]) -> None:
    model = mini(specs)
    x = image(1, 3, 64, 96)
    seen: list[tuple[Tensor, int, int]] = []
    attention = model.stages[3].blocks[0].attn
    handle = attention.register_forward_hook(lambda module, args, out: seen.append(args))
    with torch.inference_mode():
        model(x)
        handle.remove()
        maps = model.attention_maps(x)
        torch.testing.assert_close(maps[3][0], attention.attention_map(*seen[0]))
    keys = [49] * 4 if specs[0].linear else [2 * 3, 2 * 3, 2 * 3, 2 * 3]
    for stage, tokens, heads, num_keys in zip(
        maps, (384, 96, 24, 6), (1, 2, 5, 8), keys, strict=True
    ):
        for probs in stage:
            assert probs.shape == (1, heads, tokens, num_keys)
            torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:-1]))


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = create_model("pvt_v2_b1")
    assert model.no_weight_decay() == set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert not module.bias.any(), name
        elif isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert not module.bias.any(), name
        elif isinstance(module, torch.nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels / module.groups
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
            assert not module.bias.any(), name
    convolution = model.stages[0].blocks[0].mlp.dwconv
    assert convolution.groups == convolution.out_channels == 512


def test_reset_classifier(specs: tuple[StageSpec, ...]) -> None:
    model = mini(specs).bfloat16()
    x = image(2, 3, 64, 64).bfloat16()
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert model.get_classifier().weight.dtype == torch.bfloat16
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_features(x))


@pytest.mark.parametrize("change", [{"sr_ratio": 2}, {"linear": True}, {"dwconv": True}])
def test_a_class_token_needs_a_stage_without_a_grid(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cls_token: expected sr_ratio 1, linear False and dwconv"):
        PVT([*MINI[:3], MINI[3]._replace(**change)])


def test_a_class_token_belongs_to_the_last_stage() -> None:
    third = MINI[2]._replace(sr_ratio=1, cls_token=True)
    with pytest.raises(ValueError, match="cls_token in the last stage only"):
        PVT([*MINI[:2], third, MINI[3]])


def test_versions_mix() -> None:
    """The fields of a stage are independent of each other."""
    specs = [
        MINI[0]._replace(overlap=True),
        MINI[1]._replace(dwconv=True, positions=False),
        MINI[2]._replace(linear=True, norm=True),
        MINI[3]._replace(norm=True, positions=False),
    ]
    model = mini(specs)
    assert model.norm is None
    x = image(2, 3, 70, 64)
    logits = model(x)
    assert logits.shape == (2, 10)
    assert torch.equal(torch.jit.script(model)(x), logits)
    assert relative_error(mini(specs, fused=False)(x), logits) < TOLERANCE


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_export_and_predict(fused: PVT, dtype: str, tmp_path: Path) -> None:
    weights, file, scores = tmp_path / "w.pth", tmp_path / "model.pt", tmp_path / "logits.npy"
    inputs, photo = tmp_path / "input.npy", tmp_path / "photo.png"
    torch.save(published_state(fused), weights)
    pixels = np.random.default_rng(0).integers(0, 256, (260, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    for command in (
        ["export", fused.variant, "--weights", weights, "--dtype", dtype, "-o", file],
        ["predict", file, photo, "--logits", scores, "--dump-input", inputs],
    ):
        result = CliRunner().invoke(app, list(map(str, command)), catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
    with torch.inference_mode():
        expected = fused(torch.from_numpy(np.load(inputs)))
    tolerance = TOLERANCE if dtype == "fp32" else 0.1
    assert relative_error(torch.from_numpy(np.load(scores)), expected) < tolerance
