"""Backbones: which maps, batches of padded images, checkpointing, attention maps."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from models import MINI, MINI_V2, MINI_V2_LI, enliven, mini
from torch import Tensor

from pvt_ext import create_backbone, pack, pad_images
from pvt_ext.backbone import Backbone
from pvt_ext.model import PVT
from pvt_ext.variants import StageSpec, list_models

KINDS = {"v1": MINI, "v2": MINI_V2, "linear": MINI_V2_LI}


@pytest.fixture(params=KINDS)
def specs(request: pytest.FixtureRequest) -> tuple[StageSpec, ...]:
    return KINDS[request.param]


def backbone(specs: tuple[StageSpec, ...], **options: object) -> Backbone:
    """A small backbone with seeded weights that matter, in evaluation mode."""
    torch.manual_seed(0)
    model = Backbone(specs, img_size=64, **options).eval()  # type: ignore[arg-type]
    enliven(model)
    return model


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- which maps ----


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (0,), (2,)])
def test_maps_are_those_of_the_classifier(
    specs: tuple[StageSpec, ...], out_indices: tuple[int, ...]
) -> None:
    classifier = mini(specs)
    model = Backbone(specs, out_indices=out_indices, img_size=64).eval()
    state = classifier.state_dict()
    if "stages.3.cls_token" in state:
        state["stages.3.pos_embed"] = state["stages.3.pos_embed"][:, 1:]
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    assert len(model.stages) == out_indices[-1] + 1
    x = torch.randn(2, 3, 75, 99)
    features = classifier.features(x)
    assert equal(model(x), [features[i] for i in out_indices])
    assert model.feature_info == [classifier.feature_info[i] for i in out_indices]
    grids = model.grids(75, 99)
    assert [tuple(m.shape[2:]) for m in model(x)] == [grids[i] for i in out_indices]
    assert [m.shape[1] for m in model(x)] == [info["num_chs"] for info in model.feature_info]


def test_drop_path_is_that_of_the_whole_model(specs: tuple[StageSpec, ...]) -> None:
    def rates(model: Backbone | PVT) -> list[float]:
        return [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]

    whole = rates(mini(specs, drop_path_rate=0.3))
    assert whole[-1] == 0.3
    assert rates(backbone(specs, drop_path_rate=0.3, out_indices=(1,))) == whole[:3]


def test_the_class_token_on_request() -> None:
    classifier = mini()
    model = Backbone(MINI, return_cls=True, out_indices=(1, 3), img_size=64).eval()
    model.load_state_dict(
        {n: t for n, t in classifier.state_dict().items() if not n.startswith("head.")}
    )
    x = torch.randn(2, 3, 64, 96)
    maps = model(x)
    assert [m.dim() for m in maps] == [4, 4, 2]
    assert torch.equal(maps[-1], classifier.forward_features(x))
    assert equal(maps[:1], [classifier.features(x)[1]])
    assert not torch.equal(maps[1], classifier.features(x)[3])  # the token takes part
    with_cls = classifier.features(x, return_cls=True)
    assert equal(maps, [with_cls[1], with_cls[3], with_cls[4]])


def test_no_class_token_to_return() -> None:
    with pytest.raises(ValueError, match="return_cls: expected False, as there is no class token"):
        Backbone(MINI_V2, return_cls=True)
    with pytest.raises(ValueError, match=r"stage 2, the last of out_indices \[0, 2\]"):
        Backbone(MINI, return_cls=True, out_indices=(0, 2))
    with pytest.raises(ValueError, match="return_cls: expected False, as this model has no class"):
        mini(MINI_V2).features(torch.zeros(1, 3, 64, 64), return_cls=True)


@pytest.mark.parametrize("out_indices", [(), (1, 0), (2, 2), (4,), (-1,), (0.5,), (True,), 1])
def test_refuses_other_stages(out_indices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="out_indices: expected"):
        Backbone(MINI, out_indices=out_indices)


@pytest.mark.parametrize("name", list_models())
def test_by_name(name: str) -> None:
    with torch.device("meta"):
        model = create_backbone(name, out_indices=(1, 2))
    strides = [4, 8] if name == "pvt_nano" else [8, 16]
    assert [info["reduction"] for info in model.feature_info] == strides
    assert model.variant == name
    assert len(model.stages) == 3


def test_all_stages_unless_told_otherwise() -> None:
    with torch.device("meta"):
        assert len(create_backbone("pvt_tiny").feature_info) == 4
        assert len(create_backbone("pvt_nano").feature_info) == 3


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="create_backbone: unknown name 'pvt_smal'; did you mean"):
        create_backbone("pvt_smal")


# ---- batches of padded images ----

IMAGES = [(64, 96), (50, 41), (64, 96), (33, 80)]


def images(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator) for size in IMAGES]


def poisoned(images: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """A batch of padded images whose padding is NaN."""
    batch, sizes = pad_images(images)
    for image, (H, W) in zip(batch, sizes, strict=True):
        image[:, H:] = float("nan")
        image[:, :, W:] = float("nan")
    return batch, sizes


@pytest.mark.parametrize("scripted", [False, True])
def test_padding_has_no_influence(specs: tuple[StageSpec, ...], scripted: bool) -> None:
    # Packed, where a batch's results are those of its images alone to the last bit.
    model = pack(backbone(specs, out_indices=(0, 2, 3)))
    batch, sizes = poisoned(images())
    assert sizes == IMAGES
    call = torch.jit.script(model) if scripted else model
    maps = call(batch, sizes)
    grids = model.grids(*batch.shape[2:])
    assert [tuple(m.shape[2:]) for m in maps] == [grids[i] for i in (0, 2, 3)]
    for i, image in enumerate(images()):
        for m, alone in zip(maps, model(image[None]), strict=True):
            H, W = alone.shape[2:]
            assert torch.equal(m[i, :, :H, :W], alone[0])
            assert not m[i, :, H:].any()
            assert not m[i, :, :, W:].any()


def test_class_tokens_of_padded_images() -> None:
    model = pack(backbone(MINI, return_cls=True, out_indices=(3,)))
    cls = model(*pad_images(images()))[-1]
    for row, image in zip(cls, images(), strict=True):
        assert torch.equal(row, model(image[None])[-1][0])


def test_padding_has_no_influence_on_a_model_in_training(specs: tuple[StageSpec, ...]) -> None:
    model = backbone(specs, out_indices=(1,)).train()
    maps = model(*poisoned(images()))[0]
    for i, image in enumerate(images()):
        alone = model(image[None])[0][0]
        torch.testing.assert_close(maps[i, :, : alone.shape[1], : alone.shape[2]], alone)


def test_gradients_of_padded_images() -> None:
    model = backbone(MINI_V2, out_indices=(3,)).train()
    parts = [image.requires_grad_() for image in images()]
    batch, sizes = pad_images(parts)
    model(batch, sizes)[0].square().sum().backward()
    together = [image.grad for image in parts]
    for image, expected in zip(images(), together, strict=True):
        image.requires_grad_()
        model(image[None])[0].square().sum().backward()
        torch.testing.assert_close(image.grad, expected)


def test_wrong_sizes() -> None:
    model = backbone(MINI)
    batch, sizes = pad_images(images())
    with pytest.raises(ValueError, match="sizes: expected one per image, 4, got 3"):
        model(batch, sizes[:3])
    for wrong, text in [((64, 97), "64 x 97"), ((65, 9), "65 x 9")]:
        with pytest.raises(ValueError, match=f"sizes: expected 1 x 1 to 64 x 96, got {text}"):
            model(batch, [*sizes[:3], wrong])
    for odd in ((-10, 40), (64, 96, 3), (64, None)):
        with pytest.raises(ValueError, match="sizes: expected a positive int or"):
            model(batch, [*sizes[:3], odd])
    for odd in (64, "ab", None):
        expected = rf"sizes: expected \(height, width\) for every image, got {odd!r}"
        with pytest.raises(ValueError, match=expected):
            model(batch, [*sizes[:3], odd])
    with pytest.raises(ValueError, match=r"sizes: expected \(height, width\) .*, got 64"):
        model(batch[:2], (64, 96))  # one size, of both
    with pytest.raises(ValueError, match=r"sizes: expected 1 x 1 to 64 x 96, got -1 x 9"):
        model._check_sizes(batch, [*sizes[:3], (-1, 9)])  # as scripted code asks
    with pytest.raises(ValueError, match="expected an image of at least 32 x 32, got 16 x 64"):
        model(batch, [*sizes[:3], (16, 64)])
    model.set_attn_maps()
    with pytest.raises(ValueError, match="sizes: expected None while attention maps are kept"):
        model(batch, sizes)


def test_sizes_as_other_libraries_give_them() -> None:
    model = backbone(MINI_V2)
    batch, sizes = pad_images(images())
    expected = model(batch, sizes)
    for given in ([list(size) for size in sizes], np.array(sizes).tolist()):
        assert equal(model(batch, given), expected)
    assert model(batch[:0], [])[0].shape == (0, 16, 16, 24)


@pytest.mark.parametrize("specs", [MINI, MINI_V2, MINI_V2_LI], ids=list(KINDS))
def test_padded_images_under_autocast(specs: tuple[StageSpec, ...]) -> None:
    model = backbone(specs)
    with torch.autocast("cpu", torch.bfloat16):
        maps = model(*pad_images(images()))
        alone = model(images()[1][None])
    for m, a in zip(maps, alone, strict=True):
        assert m.dtype == a.dtype
        difference = m[1, :, : a.shape[2], : a.shape[3]] - a[0]
        assert difference.abs().max() < 0.05 * a.abs().max()


def test_pad_images() -> None:
    batch, sizes = pad_images([torch.ones(2, 5, 9), torch.ones(2, 8, 3)], divisor=8)
    assert batch.shape == (2, 2, 8, 16)
    assert sizes == [(5, 9), (8, 3)]
    assert batch.sum() == 2 * (5 * 9 + 8 * 3)
    assert batch[1, :, :, :3].all()
    assert torch.equal(pad_images(iter(torch.ones(2, 3, 32, 64)))[0], torch.ones(2, 3, 32, 64))
    for wrong in ([], [torch.ones(4, 4)]):
        with pytest.raises(ValueError, match=r"images: expected at least one \[C, H, W\], got"):
            pad_images(wrong)
    with pytest.raises(ValueError, match="images: expected the same channels, dtype and device"):
        pad_images([torch.ones(3, 4, 4), torch.ones(1, 4, 4)])
    with pytest.raises(ValueError, match="divisor: expected at least 1, got 0"):
        pad_images([torch.ones(3, 4, 4)], divisor=0)


# ---- gradient checkpointing ----


def gradients(model: PVT, x: Tensor) -> list[Tensor]:
    torch.manual_seed(5)  # of the paths that are dropped
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_checkpointing_changes_no_gradient(specs: tuple[StageSpec, ...]) -> None:
    model = mini(specs, drop_path_rate=0.5).train()
    x = torch.randn(3, 3, 64, 64)
    expected = gradients(model, x)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for stage in model.stages:
        for block in stage.blocks:
            block.register_forward_pre_hook(count)
    assert equal(gradients(model, x), expected)
    assert calls == 5
    model.set_grad_checkpointing()
    assert equal(gradients(model, x), expected)
    assert calls == 5 + 2 * 5  # every block once more
    model.set_grad_checkpointing(False)
    assert equal(gradients(model, x), expected)
    assert calls == 20


def test_checkpointing_is_no_part_of_a_scripted_model() -> None:
    model = mini()
    model.set_grad_checkpointing()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(torch.jit.script(model)(x), model(x))


# ---- attention maps ----


def test_maps_of_the_pass_that_gave_the_answer(specs: tuple[StageSpec, ...]) -> None:
    model = mini(specs)
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    model.set_attn_maps()
    with pytest.raises(RuntimeError, match=r"expected a forward pass after set_attn_maps\(True\)"):
        model.attn_maps()
    torch.testing.assert_close(model(x), expected)
    maps = model.attn_maps()
    assert [len(stage) for stage in maps] == [1, 2, 1, 1]
    tokens = [m.shape[2] for stage in maps for m in stage]
    assert tokens == [256, 64, 64, 16, 4 + int(model.has_cls_token)]
    for m in (m for stage in maps for m in stage):
        torch.testing.assert_close(m.sum(dim=-1), torch.ones(m.shape[:-1]))
    again = model.attention_maps(x)  # and this leaves nothing behind
    assert all(equal(a, b) for a, b in zip(maps, again, strict=True))
    assert torch.equal(model(x), expected)
    with pytest.raises(RuntimeError, match="attn_maps"):
        model.attn_maps()


def test_maps_have_gradients_and_stay_out_of_copies() -> None:
    model = backbone(MINI).train()
    model.set_attn_maps()
    model(torch.randn(1, 3, 64, 64))
    loss = sum(m.square().sum() for stage in model.attn_maps() for m in stage)
    loss.backward()
    assert model.stages[0].blocks[0].attn.q.weight.grad.abs().max() > 0
    copy = deepcopy(model)
    with pytest.raises(RuntimeError, match="attn_maps"):
        copy.attn_maps()


def test_a_scripted_model_keeps_none() -> None:
    model = mini()
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    model.set_attn_maps()
    assert torch.equal(torch.jit.script(model)(x), expected)


# ---- packed ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed(specs: tuple[StageSpec, ...], dtype: torch.dtype) -> None:
    model = backbone(specs, out_indices=(1, 3))
    packed = pack(model, dtype)
    batch, sizes = pad_images(images())
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for call in (packed, torch.jit.script(packed)):
        for ours, expected in zip(call(batch, sizes), model(batch, sizes), strict=True):
            error = (ours - expected).abs().max() / expected.abs().max()
            assert error < tolerance
