"""The names of other libraries: recognised, translated, written back."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from foreign_names import hf_state, mmdet_state
from models import MINI, MINI_V2, MINI_V2_LI, mini, published_state, same_weights, scramble
from torch import Tensor, nn

from pvt_ext.backbone import Backbone
from pvt_ext.formats import library_name, published_name, to_timm, translate
from pvt_ext.model import create_model
from pvt_ext.variants import StageSpec
from pvt_ext.weights import load_weights, save_weights

State = dict[str, Tensor]


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("patch_embed1.proj.weight", "stages.0.patch_embed.proj.weight"),
        ("patch_embed4.norm.bias", "stages.3.patch_embed.norm.bias"),
        ("pos_embed2", "stages.1.pos_embed"),
        ("block3.17.attn.sr.weight", "stages.2.blocks.17.attn.sr.weight"),
        ("block4.0.mlp.fc2.bias", "stages.3.blocks.0.mlp.fc2.bias"),
        ("block1.0.mlp.dwconv.dwconv.weight", "stages.0.blocks.0.mlp.dwconv.weight"),
        ("block4.39.norm1.bias", "stages.3.blocks.39.norm1.bias"),
        ("norm1.weight", "stages.0.norm.weight"),
        ("norm4.bias", "stages.3.norm.bias"),
        ("cls_token", "stages.3.cls_token"),
        ("norm.weight", "norm.weight"),
        ("head.bias", "head.bias"),
        ("block5.0.norm1.weight", "block5.0.norm1.weight"),  # no stage 5: left alone
    ],
)
def test_names(published: str, ours: str) -> None:
    assert library_name(published) == ours
    assert library_name(ours) == ours
    assert published_name(ours) == published


@pytest.mark.parametrize(
    ("name", "keys"),
    [("pvt_tiny", 161), ("pvt_small", 301), ("pvt_medium", 517), ("pvt_large", 751),
     ("pvt_huge_v2", 1381), ("pvt_v2_b0", 178), ("pvt_v2_b1", 178), ("pvt_v2_b2", 334),
     ("pvt_v2_b2_li", 346), ("pvt_v2_b3", 574), ("pvt_v2_b4", 834), ("pvt_v2_b5", 1054)],
)  # fmt: skip
def test_names_of_every_variant(name: str, keys: int) -> None:
    with torch.device("meta"):
        ours = list(create_model(name).state_dict())
    published = [published_name(key) for key in ours]
    assert len(set(published)) == keys
    assert not any(key.startswith("stages") for key in published)
    assert [library_name(key) for key in published] == ours


# ---- every format, into a classifier ----

FORMATS: dict[str, Callable[[State], State]] = {
    "pvt_ext": dict,
    "official": lambda state: {published_name(name): tensor for name, tensor in state.items()},
    "timm": to_timm,
    "hf": hf_state,
}
KINDS = {"v1": MINI, "v2": MINI_V2, "linear": MINI_V2_LI}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize(
    ("kind", "format"),
    [(kind, format) for kind in KINDS for format in FORMATS if (kind, format) != ("v1", "timm")],
)
def test_reads_every_format(kind: str, format: str, prefix: str) -> None:
    source, target = mini(KINDS[kind]), scramble(mini(KINDS[kind]))
    given = {prefix + name: t for name, t in FORMATS[format](source.state_dict()).items()}
    report = load_weights(target, given)
    assert same_weights(target, source)
    assert (report.format, report.loaded) == (format, len(source.state_dict()))
    assert not report.adapted
    assert not report.missing
    assert not report.unexpected
    assert "0 not" not in str(report)


def test_reads_timms_feature_extractor() -> None:
    source, target = mini(MINI_V2, num_classes=0), scramble(mini(MINI_V2, num_classes=0))
    state = {
        re.sub(r"stages\.(\d)", r"stages_\1", n): t for n, t in to_timm(source.state_dict()).items()
    }
    assert "stages_1.downsample.proj.weight" in state
    assert load_weights(target, state).format == "timm"
    assert same_weights(target, source)


def test_reads_hugging_faces_base_model() -> None:
    for specs in (MINI, MINI_V2):
        source, target = mini(specs, num_classes=0), scramble(mini(specs, num_classes=0))
        state = hf_state(source.state_dict())
        bare = {re.sub(r"^pvt(_v2)?\.", "", name): tensor for name, tensor in state.items()}
        assert load_weights(target, bare).format == "hf"
        assert same_weights(target, source)


# ---- mmdetection: backbones ----


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_reads_a_detectors_backbone(kind: str) -> None:
    source, target = (Backbone(KINDS[kind], img_size=64) for _ in range(2))
    scramble(source)
    state = {f"backbone.{name}": t for name, t in mmdet_state(source.state_dict()).items()}
    state |= {"neck.fpn.weight": torch.zeros(1), "bbox_head.cls.weight": torch.zeros(1)}
    report = load_weights(target, {"state_dict": state, "meta": {}})
    assert same_weights(target, source)
    assert report.format == "mmdet"
    assert report.unexpected == ("neck.fpn.weight", "bbox_head.cls.weight")
    assert "left out: neck.fpn.weight" in str(report)


def test_a_heads_counters_do_not_matter() -> None:
    source, target = scramble(Backbone(MINI_V2, img_size=64)), Backbone(MINI_V2, img_size=64)
    state = {f"backbone.{published_name(n)}": t for n, t in source.state_dict().items()}
    state["decode_head.bn.num_batches_tracked"] = torch.tensor(5)
    assert load_weights(target, {"state_dict": state}).format == "official"
    assert same_weights(target, source)


def test_the_authors_detectors_have_a_row_without_a_token() -> None:
    classifier = mini()
    state = published_state(classifier)
    detector = {
        f"backbone.{name}": tensor
        for name, tensor in state.items()
        if not name.startswith(("head.", "norm.", "cls_token"))
    }
    target = scramble(Backbone(MINI, img_size=64)).eval()
    assert load_weights(target, detector).loaded == len(target.state_dict())
    x = torch.randn(1, 3, 64, 96)
    for ours, expected in zip(target(x), classifier.features(x), strict=True):
        assert torch.equal(ours, expected)
    whole = scramble(mini())
    load_weights(whole, detector, drop=("head", "norm", "cls_token"))
    table = whole.state_dict()["stages.3.pos_embed"]
    assert torch.equal(table[:, 1:], state["pos_embed4"][:, 1:])


def test_two_backbones_are_one_too_many() -> None:
    state = mini(MINI_V2).state_dict()
    both = {f"{who}.backbone.{n}": t for n, t in state.items() for who in ("student", "teacher")}
    with pytest.raises(ValueError, match=r"two models, under 'student\.backbone\.' and 'teacher"):
        load_weights(Backbone(MINI_V2), both)


def test_a_detectors_backbone_into_a_classifier_needs_permission() -> None:
    source, target = scramble(Backbone(MINI, img_size=64)), mini()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state = mmdet_state(source.state_dict())
    with pytest.raises(ValueError, match=r"mmdet names\) does not fit .* 5 missing: .*cls_token"):
        load_weights(target, state)
    report = load_weights(target, state, drop=("head", "norm", "cls_token"))
    kept = {"stages.3.cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert set(report.missing) == kept
    after = target.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in kept)
    table = "stages.3.pos_embed"
    assert torch.equal(after[table][:, :1], before[table][:, :1])
    assert torch.equal(after[table][:, 1:], source.state_dict()[table])
    rest = set(after) - kept - {table}
    assert all(torch.equal(after[name], source.state_dict()[name]) for name in rest)


# ---- a classifier's file, into a backbone ----


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (0, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_backbones_leave_out_what_they_have_no_use_for(
    kind: str, out_indices: tuple[int, ...]
) -> None:
    source = mini(KINDS[kind])
    target = scramble(Backbone(KINDS[kind], out_indices=out_indices, img_size=64)).eval()
    report = load_weights(target, published_state(source))
    assert report.unexpected
    assert all(re.match(r"head|norm|stages\.3", name) for name in report.unexpected)
    x = torch.randn(1, 3, 64, 96)
    features = source.features(x)
    for i, m in zip(out_indices, target(x), strict=True):
        torch.testing.assert_close(m, features[i], rtol=0, atol=0)


def test_a_backbone_with_a_class_token_loads_it() -> None:
    source = mini()
    target = scramble(Backbone(MINI, return_cls=True, img_size=64)).eval()
    report = load_weights(target, published_state(source))
    assert set(report.unexpected) == {"head.weight", "head.bias"}
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(target(x)[-1], source.forward_features(x))


# ---- not a format ----


def test_unknown_names() -> None:
    message = r"2 names of no known format \(pvt_ext, official, timm, hf, mmdet\): conv1.weight, fc"
    with pytest.raises(ValueError, match=message):
        load_weights(mini(), {"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)})


def test_halves_that_do_not_match_are_missing() -> None:
    source = mini()
    state = hf_state(source.state_dict())
    name = "pvt.encoder.block.0.0.attention.self.value.weight"
    for broken in (state | {name: torch.zeros(3)}, {n: t for n, t in state.items() if n != name}):
        with pytest.raises(ValueError, match=r"1 missing: stages.0.blocks.0.attn.kv.weight; "):
            load_weights(mini(), broken)
    state = mmdet_state(scramble(Backbone(MINI, img_size=64)).state_dict())
    state["layers.0.1.1.attn.attn.in_proj_bias"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"2 missing: stages.0.blocks.0.attn.q.bias, stages.0"):
        load_weights(Backbone(MINI, img_size=64), state)


def test_a_name_cannot_come_twice() -> None:
    state = hf_state(mini(MINI_V2).state_dict())
    state["encoder.layers.0.layer_norm.bias"] = state["pvt_v2.encoder.layers.0.layer_norm.bias"]
    with pytest.raises(ValueError, match=r"1 given under two names: stages\.0\.norm\.bias$"):
        translate(state, "file")


# ---- writing ----


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("format", ["pvt_ext", "official", "timm"])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, format: str, suffix: str, tmp_path: Path) -> None:
    source, path = mini(KINDS[kind]), tmp_path / f"weights.{suffix}"
    if (kind, format) == ("v1", "timm"):
        with pytest.raises(ValueError, match="timm has no PVT v1, got timm"):
            save_weights(source, path, format=format)
        assert not list(tmp_path.iterdir())
        return
    save_weights(source, path, format=format)
    read = torch.load if suffix == "pth" else safetensors.torch.load_file
    assert set(read(path)) == set(FORMATS[format](source.state_dict()))
    target = scramble(mini(KINDS[kind]))
    assert load_weights(target, path).format == format
    assert same_weights(target, source)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_saving_refuses(tmp_path: Path) -> None:
    from pvt_ext import pack

    with pytest.raises(ValueError, match="format: expected one of pvt_ext, official, timm, got 'x"):
        save_weights(mini(), tmp_path / "a.pth", format="xml")
    with pytest.raises(ValueError, match="model: expected one that is not packed"):
        save_weights(pack(mini()), tmp_path / "a.pth")
    for path, message in [
        (tmp_path / "no" / "a.pth", "there is no folder"),
        (tmp_path, "is a fol"),
    ]:
        with pytest.raises(ValueError, match=f"expected a file to write, but .*{message}"):
            save_weights(mini(), path)
    for wrapped in (nn.DataParallel(mini()), nn.Linear(2, 2), torch.compile(mini())):
        with pytest.raises(ValueError, match="model: expected a PVT or a Backbone, got"):
            save_weights(wrapped, tmp_path / "a.pth")
        with pytest.raises(ValueError, match="model: expected a PVT or a Backbone, got"):
            load_weights(wrapped, mini().state_dict())
    assert not list(tmp_path.iterdir())


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.pth").symlink_to(tmp_path / "there.pth")
    save_weights(mini(), tmp_path / "link.pth")
    assert (tmp_path / "link.pth").is_symlink()
    load_weights(mini(), tmp_path / "there.pth")


# ---- positions that are not square ----


def test_a_file_knows_the_size_of_its_positions(tmp_path: Path) -> None:
    # 8 x 32 tokens: as many as 16 x 16.
    source = mini(img_size=(32, 128))
    save_weights(source, tmp_path / "a.safetensors")
    x = torch.randn(1, 3, 32, 128)
    for img_size in (64, 96, (32, 128)):
        target = scramble(mini(img_size=img_size)).eval()
        report = load_weights(target, tmp_path / "a.safetensors")
        if img_size == (32, 128):
            assert report.adapted == ()
            assert torch.equal(target(x), source(x))
        else:
            assert len(report.adapted) == 4
            assert "from 8x32 to" in report.adapted[0]
    with pytest.raises(ValueError, match=r"of another shape: stages\.0\.pos_embed"):
        load_weights(mini(img_size=96), tmp_path / "a.safetensors", adapt=())


def test_specs_are_not_mistaken_for_each_other() -> None:
    # Every pair of kinds, in every format, is refused with the model as it was.
    def cases() -> list[tuple[str, tuple[StageSpec, ...], State]]:
        return [
            (kind, KINDS[other], write(mini(KINDS[kind]).state_dict()))
            for kind in KINDS
            for other in KINDS
            for format, write in FORMATS.items()
            if kind != other and (kind, format) != ("v1", "timm")
        ]

    for _, specs, state in cases():
        target = scramble(mini(specs))
        with pytest.raises(ValueError, match="nothing was loaded"):
            load_weights(target, state)
        assert same_weights(target, scramble(mini(specs)))
