"""The models in timm's registry do what timm asks of a model. Runs where timm is installed."""

import importlib
import json
import warnings

import pytest
import safetensors.torch
import torch
from models import MINI, MINI_V2, MINI_V2_LI, enliven, lively, relative_error
from torch import Tensor, nn

import pvt_ext
from pvt_ext.formats import to_official, to_timm
from pvt_ext.model import create_backbone, create_model
from pvt_ext.variants import VARIANTS

timm = pytest.importorskip(
    "timm", reason="timm is not installed: the models in its registry were NOT tested"
)

from timm.optim import param_groups_layer_decay  # noqa: E402

import pvt_ext.timm  # noqa: E402

V1 = ["pvt_tiny", "pvt_small", "pvt_medium", "pvt_large"]
V2 = [f"pvtx_v2_{size}" for size in ("b0", "b1", "b2", "b2_li", "b3", "b4", "b5")]
BIG = {"pvt_medium", "pvt_large", "pvtx_v2_b3", "pvtx_v2_b4", "pvtx_v2_b5"}


SPECS = {"pvt_tiny": MINI, "pvt_v2_b0": MINI_V2, "pvt_v2_b2_li": MINI_V2_LI}


@pytest.fixture
def mini(monkeypatch) -> None:
    """Models of these names are quick."""
    for name, specs in SPECS.items():
        monkeypatch.setitem(VARIANTS, name, specs)


@pytest.fixture(params=["pvt_tiny", "pvtx_v2_b0", "pvtx_v2_b2_li"])
def name(request, mini) -> str:
    return request.param


def variant(name: str) -> str:
    return name.replace("pvtx_v2_", "pvt_v2_")


def lively_timm(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    enliven(model)
    return model


def save(state: dict[str, Tensor], path) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


# ---- registry ----


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in BIG else []) for n in V1 + V2]
)
def test_every_name_creates_and_runs(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    assert model(torch.randn(2, 3, 64, 96)).shape == (2, 3)
    assert model.pretrained_cfg["architecture"] == name
    assert model.variant == variant(name)


def test_all_names_are_registered_with_published_weights() -> None:
    ours = {f"{name}.in1k" for name in V1 + V2}
    assert ours <= set(timm.list_pretrained("pvt*"))
    assert set(timm.list_models("pvtx_*")) == set(V2)
    for name in V1:
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.url == f"https://github.com/whai362/PVT/releases/download/v2/{name}.pth"
    for name in V2:
        assert timm.get_pretrained_cfg(name).hf_hub_id == f"timm/{variant(name)}.in1k"


@pytest.mark.parametrize("name", V1 + V2)
def test_configuration_names_parameters_that_exist(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        plain = create_model(variant(name))
    cfg = model.pretrained_cfg
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in plain.state_dict().items()}
    assert cfg["classifier"] + ".weight" in shapes
    assert shapes[cfg["first_conv"] + ".weight"][1] == 3
    assert cfg["pool_size"] == model.grids(224, 224)[-1]


def test_the_models_of_timm_stay_its_own() -> None:
    for name in V2:
        entrypoint = timm.model_entrypoint(variant(name))
        assert entrypoint.__module__ == "timm.models.pvt_v2"
    assert not isinstance(timm.create_model("pvt_v2_b0"), pvt_ext.PVT)


def test_importing_again_changes_nothing() -> None:
    before = timm.list_models(), timm.list_pretrained()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(pvt_ext.timm)
    assert (timm.list_models(), timm.list_pretrained()) == before
    assert isinstance(timm.create_model("pvtx_v2_b0"), pvt_ext.timm.TimmPVT)


@pytest.mark.parametrize(("name", "crop_pct"), [("pvt_tiny", 0.875), ("pvtx_v2_b0", 0.9)])
def test_data_configuration(name: str, crop_pct: float) -> None:
    with torch.device("meta"):
        config = timm.data.resolve_model_data_config(timm.create_model(name))
    assert config["crop_pct"] == crop_pct
    assert config["interpolation"] == "bicubic"
    assert config["input_size"] == (3, 224, 224)
    assert config["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    assert config["std"] == timm.data.IMAGENET_DEFAULT_STD


# ---- the classifier ----


def test_logits_are_those_of_the_library(name: str) -> None:
    model, plain = lively_timm(name), lively(variant(name))
    x = torch.randn(2, 3, 96, 129)
    with torch.inference_mode():
        assert torch.equal(model(x), plain(x))


def test_forward_is_features_then_head(name: str) -> None:
    model = lively_timm(name, num_classes=5)
    x = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert torch.equal(model.forward_head(features), model(x))
        assert torch.equal(model.get_classifier()(pooled), model(x))
        assert pooled.shape == (2, model.head_hidden_size)
        channels = -1 if features.ndim == 3 else 1
        assert features.shape[channels] == model.num_features
        assert features.shape[1:] in [(1 + 3 * 2, 48), (48, 3, 2)]

        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        unpooled = timm.create_model(name, num_classes=0, global_pool="").eval()
        assert unpooled(x).shape == features.shape


@pytest.mark.parametrize(("name", "pool"), [("pvt_tiny", "token"), ("pvtx_v2_b0", "avg")])
def test_reset_classifier(name: str, pool: str, mini) -> None:
    model = timm.create_model(name)
    assert (model.global_pool, model.num_classes) == (pool, 1000)
    model.reset_classifier(7)
    assert (model.global_pool, model.num_classes) == (pool, 7)
    assert model.get_classifier().weight.shape == (7, model.num_features)
    with pytest.raises(ValueError, match=f"expected '{pool}' or '', got 'max'"):
        model.reset_classifier(7, "max")


def test_options_reach_the_model(mini) -> None:
    model = timm.create_model(
        "pvt_tiny",
        num_classes=5,
        in_chans=1,
        img_size=(64, 96),
        drop_rate=0.25,
        drop_path_rate=0.1,
        fused=False,
        dtype=torch.float64,
    )
    assert model(torch.randn(2, 1, 64, 96, dtype=torch.float64)).shape == (2, 5)
    assert model.stages[0].pos_embed.shape[1] == 16 * 24
    assert model.head_drop.p == 0.25
    assert not model.fused
    assert model.stages[-1].blocks[-1].drop_path.drop_prob == 0.1
    with pytest.raises(TypeError, match="depth"):
        timm.create_model("pvt_tiny", depth=12)


def test_dropout_acts_before_the_head_in_training_only(mini) -> None:
    model = lively_timm("pvtx_v2_b0", num_classes=0, drop_rate=0.5)
    x = torch.randn(1, 3, 64, 64)
    assert (model(x) == 0).sum() == 0
    assert (model.train()(x) == 0).sum() > 10  # of 48


@pytest.mark.filterwarnings("ignore")
def test_scripted_classifier_equals_eager(name: str) -> None:
    model = lively_timm(name, num_classes=5)
    scripted = torch.jit.script(model)
    with torch.inference_mode():
        for size in [(64, 64), (71, 97)]:
            x = torch.randn(2, 3, *size)
            assert torch.equal(scripted(x), model(x))


def test_packed_classifier(name: str) -> None:
    model = lively_timm(name, num_classes=5)
    x = torch.randn(2, 3, 71, 97)
    with torch.inference_mode():
        assert relative_error(pvt_ext.pack(model)(x), model(x)) < 1e-5


# ---- feature maps ----


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2), (0,), (3,)])
def test_features_only_is_a_backbone(name: str, out_indices: tuple[int, ...]) -> None:
    net = lively_timm(name, features_only=True, out_indices=out_indices)
    backbone = create_backbone(variant(name), out_indices=out_indices).eval()
    backbone.load_state_dict(net.model.state_dict())  # all of its parameters and no others
    x = torch.randn(2, 3, 71, 97)
    with torch.inference_mode():
        maps, expected = net(x), backbone(x)
    assert len(maps) == len(out_indices)
    for m, e in zip(maps, expected, strict=True):
        assert torch.equal(m, e)
    assert net.feature_info.channels() == [m.shape[1] for m in maps] == backbone.out_chans
    assert net.feature_info.reduction() == [4 * 2**i for i in out_indices]


def test_features_only_takes_indices_as_timm_does(mini) -> None:
    x = torch.randn(1, 3, 64, 64)
    for out_indices, channels in [((-2, -1), [40, 48]), (2, [40, 48]), ((2, 0), [40, 16])]:
        net = timm.create_model("pvtx_v2_b0", features_only=True, out_indices=out_indices)
        assert [m.shape[1] for m in net(x)] == channels == net.feature_info.channels()


def test_every_parameter_of_features_only_is_used(name: str) -> None:
    net = timm.create_model(name, features_only=True, out_indices=(1, 3))
    net.set_grad_checkpointing()
    sum(m.sum() for m in net(torch.randn(1, 3, 64, 64))).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.filterwarnings("ignore")
def test_scripted_features_only_equals_eager(name: str) -> None:
    net = lively_timm(name, features_only=True, out_indices=(1, 3))
    x = torch.randn(1, 3, 71, 97)
    with torch.inference_mode():
        for scripted, eager in zip(torch.jit.script(net)(x), net(x), strict=True):
            assert torch.equal(scripted, eager)


def test_intermediates_are_features(name: str) -> None:
    model = lively_timm(name)
    x = torch.randn(2, 3, 71, 97)
    with torch.inference_mode():
        expected = model.features(x)
        final, maps = model.forward_intermediates(x)
        assert torch.equal(final, model.forward_features(x))
        for m, e in zip(maps, expected, strict=True):
            assert torch.equal(m, e)
        (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
        assert torch.equal(last, expected[3])
        final, maps = model.forward_intermediates(x, indices=[0, 2], stop_early=True)
        assert torch.equal(final, expected[2])
        assert torch.equal(maps[0], expected[0])
        assert torch.equal(maps[1], expected[2])
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("indices", [[1], [0, 3]])
def test_pruned_models_give_the_same_maps(name: str, indices: list[int]) -> None:
    model = lively_timm(name)
    x = torch.randn(2, 3, 71, 97)
    with torch.inference_mode():
        expected = model.forward_intermediates(x, indices=indices, intermediates_only=True)
        assert model.prune_intermediate_layers(indices, prune_norm=True) == indices
        final, maps = model.forward_intermediates(x, indices=indices)
        for m, e in zip(maps, expected, strict=True):
            assert torch.equal(m, e)
        assert torch.equal(final, expected[-1])
        assert torch.equal(model(x), expected[-1])  # no pooling, no head
    assert len(model.stages) == indices[-1] + 1
    assert model.num_features == model.head_hidden_size == expected[-1].shape[1]
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)


def test_pruning_may_leave_the_head(mini) -> None:
    model = lively_timm("pvt_tiny")
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    model.prune_intermediate_layers(2, prune_head=False)
    assert torch.equal(model(x), expected)


# ---- training ----


def test_grad_checkpointing_gives_the_same_gradients(name: str) -> None:
    model = lively_timm(name, num_classes=5).train()
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for n, gradient in gradients[0].items():
        assert torch.equal(gradients[1][n], gradient), n


def layers(model: nn.Module, coarse: bool) -> dict[str, int]:
    matcher = model.group_matcher(coarse=coarse)
    return timm.models.group_parameters(model, matcher, reverse=True)


@pytest.mark.parametrize("name", ["pvt_tiny", "pvtx_v2_b0"])
def test_group_matcher_counts_layers_upwards(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    layer = layers(model, coarse=False)
    assert set(layer) == {n for n, _ in model.named_parameters()}
    assert layer["stages.0.patch_embed.proj.weight"] == 0
    first = 1
    for s, stage in enumerate(model.stages):
        for b in range(len(stage.blocks)):
            assert layer[f"stages.{s}.blocks.{b}.norm1.weight"] == first + b
        if s > 0:
            assert layer[f"stages.{s}.patch_embed.proj.weight"] == first
        first += len(stage.blocks)
        if stage.norm is not None:
            assert layer[f"stages.{s}.norm.weight"] == first - 1
    assert layer["head.weight"] == first == max(layer.values())
    if name == "pvt_tiny":
        assert layer["stages.0.pos_embed"] == 0
        assert layer["stages.3.pos_embed"] == layer["stages.3.cls_token"] == first - 2
        assert layer["norm.weight"] == first - 1

    layer = layers(model, coarse=True)
    assert layer["stages.0.patch_embed.proj.weight"] == 0
    assert [layer[f"stages.{s}.blocks.1.norm1.weight"] for s in range(4)] == [1, 2, 3, 4]
    assert layer["head.weight"] == 5


def test_layer_decay() -> None:
    with torch.device("meta"):
        model = timm.create_model("pvt_tiny")
    groups = param_groups_layer_decay(
        model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    names = {id(p): n for n, p in model.named_parameters()}
    scale = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    decay = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    assert len(scale) == len(names)
    assert scale["head.weight"] == 1
    assert scale["norm.weight"] == scale["stages.3.blocks.1.attn.q.weight"] == 0.5
    assert scale["stages.0.blocks.0.attn.q.weight"] == 0.5**8
    assert scale["stages.0.patch_embed.proj.weight"] == scale["stages.0.pos_embed"] == 0.5**9
    assert decay["stages.3.cls_token"] == 0  # as published
    assert decay["stages.3.pos_embed"] == decay["head.weight"] == 0.05


# ---- weights ----


@pytest.mark.parametrize(
    "name", ["pvtx_v2_b0", pytest.param("pvtx_v2_b2_li", marks=pytest.mark.slow)]
)
def test_logits_equal_those_of_the_models_of_timm(name, tmp_path) -> None:
    peer = lively_timm(variant(name))
    file = save(peer.state_dict(), tmp_path / "peer.pth")
    for options in (
        {"checkpoint_path": file},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": file}},
    ):
        model = timm.create_model(name, **options).eval()
        for size in [(224, 224), (97, 130)]:
            x = torch.randn(2, 3, *size)
            with torch.inference_mode():
                assert relative_error(model(x), peer(x)) < 1e-5, size


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("route", ["checkpoint_path", "pretrained"])
@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("pvt_tiny", to_official),
        ("pvt_tiny", dict),
        ("pvtx_v2_b0", to_official),
        ("pvtx_v2_b0", to_timm),
        ("pvtx_v2_b0", dict),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_weights_of_any_format(mini, name, convert, route, suffix, tmp_path) -> None:
    source = lively(variant(name))
    file = save(convert(source.state_dict()), tmp_path / f"weights{suffix}")
    if route == "pretrained":
        options = {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}
    else:
        options = {"checkpoint_path": file}
    loaded = timm.create_model(name, **options).state_dict()
    for key, tensor in source.state_dict().items():
        assert torch.equal(loaded[key], tensor), key


def test_pretrained_weights_adapt(name: str, tmp_path) -> None:
    source = lively(variant(name))
    file = save(to_official(source.state_dict()), tmp_path / "official.pth")
    pretrained = {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}
    x = torch.randn(1, 3, 71, 97)

    model = timm.create_model(name, num_classes=5, in_chans=1, **pretrained).eval()
    grey = x.mean(dim=1, keepdim=True)
    with torch.inference_mode():  # timm adds up the kernels of red, green and blue
        expected = source.features(grey.expand(-1, 3, -1, -1))
        for m, e in zip(model.features(grey), expected, strict=True):
            assert relative_error(m, e) < 1e-5
    assert model(grey).shape == (1, 5)

    net = timm.create_model(name, features_only=True, out_indices=(0, 3), **pretrained).eval()
    with torch.inference_mode():
        assert torch.equal(net(x)[1], source.features(x)[3])

    model = timm.create_model(name, img_size=(96, 64), **pretrained).eval()
    x = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        assert relative_error(model(x), source(x)) < 1e-5


def test_other_weights_are_refused_even_with_other_classes(mini, tmp_path) -> None:
    state = lively("pvt_v2_b0").state_dict()
    del state["stages.1.blocks.1.attn.q.bias"]
    file = save(state, tmp_path / "incomplete.pth")
    overlay = {"file": file}
    with pytest.raises(ValueError, match=r"nothing was loaded: 1 .*stages\.1\.blocks\.1\.attn"):
        timm.create_model(
            "pvtx_v2_b0", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5
        )
    with pytest.raises(ValueError, match="nothing was loaded"):
        timm.create_model(
            "pvtx_v2_b2_li", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True
        )
    with pytest.raises(RuntimeError, match=r"stages\.1\.blocks\.1\.attn\.q\.bias"):
        timm.create_model("pvtx_v2_b0", checkpoint_path=file)


def test_part_of_a_state_dict_may_be_loaded_on_purpose(mini) -> None:
    model = timm.create_model("pvtx_v2_b0", num_classes=5)
    report = model.load_state_dict({"head.bias": torch.ones(5)}, strict=False)
    assert model.head.bias.tolist() == [1] * 5
    assert "head.weight" in report.missing_keys


def test_saved_for_the_hub_and_loaded_again(mini, tmp_path) -> None:
    model = lively_timm("pvt_tiny", num_classes=5, img_size=64)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("pvt_tiny", 5)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(x), model(x))
