"""torchvision's detectors on our pyramids. Runs where torchvision is installed."""

import math

import pytest
import torch
from models import MINI, MINI_V2, enliven
from torch import Tensor, nn

import pvt_ext
from pvt_ext.backbone import Backbone
from pvt_ext.variants import VARIANTS

torchvision = pytest.importorskip(
    "torchvision", reason="torchvision is not installed: its detectors on PVT were NOT tested"
)

from torchvision.models.detection import MaskRCNN, RetinaNet  # noqa: E402

from pvt_ext.torchvision import FPNBackbone, mask_rcnn, pack, retinanet  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {"min_size": 96, "max_size": 160}
# torchvision computes the scale of an image in float32 when scripted, in float64 otherwise, and
# rounds down: some images become a pixel smaller when scripted. These do not, at SIZES.
ODD = [(111, 119), (75, 133), (63, 95)]
FEW = {
    retinanet: {"score_thresh": 0.05, "detections_per_img": 20},
    mask_rcnn: {
        "box_score_thresh": 0.05,
        "box_detections_per_img": 10,
        "rpn_pre_nms_top_n_test": 40,
        "rpn_post_nms_top_n_test": 40,
    },
}


@pytest.fixture
def mini(monkeypatch) -> None:
    """Models of these names are quick."""
    monkeypatch.setitem(VARIANTS, "pvt_tiny", MINI)
    monkeypatch.setitem(VARIANTS, "pvt_v2_b0", MINI_V2)


@pytest.fixture(params=["pvt_tiny", "pvt_v2_b0"])
def name(request, mini) -> str:
    return request.param


@pytest.fixture(params=[retinanet, mask_rcnn], ids=lambda make: make.__name__)
def make(request):
    return request.param


def lively_detector(make, name: str, **options: object) -> nn.Module:
    """A detector with random weights whose scores are far apart, in evaluation mode."""
    torch.manual_seed(0)
    detector = make(name, 5, **SIZES, **FEW[make], **options).eval()
    enliven(detector)
    with torch.no_grad():
        for part, parameter in detector.named_parameters():
            if part.endswith(("cls_logits.weight", "cls_score.weight", "bbox_pred.weight")):
                parameter.normal_(std=0.1)
            if part.endswith("cls_logits.bias"):
                parameter.normal_()
    return detector


def images() -> list[Tensor]:
    return [torch.rand(3, *size) for size in ODD]


def targets(with_masks: bool) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[5.0, 6.0, 50.0, 40.0], [20.0, 10.0, 61.0, 60.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 3])}
    if with_masks:
        return [target | {"masks": torch.ones(2, *size, dtype=torch.uint8)} for size in ODD]
    return [target] * len(ODD)


# ---- levels ----


def test_levels_of_retinanet(name: str) -> None:
    backbone = retinanet(name, **SIZES).backbone
    levels = backbone(torch.randn(2, 3, 96, 128))
    assert [tuple(level.shape) for level in levels.values()] == [
        (2, 256, 12, 16), (2, 256, 6, 8), (2, 256, 3, 4), (2, 256, 2, 2), (2, 256, 1, 1),
    ]  # fmt: skip
    assert backbone.out_channels == 256


def test_levels_of_mask_rcnn(name: str) -> None:
    levels = mask_rcnn(name, **SIZES).backbone(torch.randn(2, 3, 96, 128))
    assert [tuple(level.shape) for level in levels.values()] == [
        (2, 256, 24, 32), (2, 256, 12, 16), (2, 256, 6, 8), (2, 256, 3, 4), (2, 256, 2, 2),
    ]  # fmt: skip
    assert list(levels) == ["0", "1", "2", "3", "pool"]  # Mask R-CNN pools of those four


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_v2_b1"])  # C5 of b0 has 256 channels, as P5
def test_p6_is_made_of_the_last_map(name: str) -> None:
    backbone = retinanet(name).eval().backbone
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        c5 = backbone.body(x)[-1]
        assert torch.equal(backbone(x)["p6"], backbone.fpn.extra_blocks.p6(c5))


def test_the_fpn_sees_the_maps_of_the_backbone(name: str) -> None:
    backbone = FPNBackbone(pvt_ext.model.create_backbone(name), out_channels=8).eval()
    x = torch.randn(1, 3, 71, 97)
    with torch.inference_mode():
        maps = {str(i): m for i, m in enumerate(backbone.body(x))}
        for level, expected in zip(backbone(x).values(), backbone.fpn(maps).values(), strict=True):
            assert torch.equal(level, expected)
            assert level.shape[1] == 8


def test_a_class_token_is_refused() -> None:
    with pytest.raises(ValueError, match="return_cls"):
        FPNBackbone(Backbone(MINI, return_cls=True))


# ---- detectors ----


def test_they_are_the_detectors_of_torchvision(mini) -> None:
    for make, kind in [(retinanet, RetinaNet), (mask_rcnn, MaskRCNN)]:
        detector = make("pvt_tiny", drop_path_rate=0.1)
        assert type(detector) is kind
        assert detector.training
        assert all(p.requires_grad for p in detector.parameters())
        assert (detector.transform.min_size, detector.transform.max_size) == ((800,), 1333)
        blocks = detector.backbone.body.stages[-1].blocks
        assert blocks[-1].drop_path.drop_prob == 0.1
    assert not retinanet("pvt_tiny", fused=False).backbone.body.fused
    assert retinanet("pvt_tiny").head.classification_head.num_classes == 91
    sizes = retinanet("pvt_tiny").anchor_generator.sizes
    assert (min(map(min, sizes)), max(map(max, sizes))) == (32, 812)
    sizes = mask_rcnn("pvt_tiny").rpn.anchor_generator.sizes
    assert sizes == ((32,), (64,), (128,), (256,), (512,))


def test_published_weights_fit_the_backbone(name: str, monkeypatch) -> None:
    torch.manual_seed(1)
    source = pvt_ext.create_model(name, num_classes=1000)
    asked = []

    def load(body: Backbone) -> None:
        asked.append(body.variant)
        pvt_ext.load_weights(body, source.state_dict())

    monkeypatch.setattr("pvt_ext.weights.load_official", load)
    state = retinanet(name, pretrained=True).backbone.body.state_dict()
    assert asked == [name]
    assert torch.equal(state["stages.2.blocks.0.attn.q.weight"],
                       source.stages[2].blocks[0].attn.q.weight)  # fmt: skip


def test_training(make, name: str) -> None:
    torch.manual_seed(0)
    few = {"rpn_post_nms_top_n_train": 40, "box_batch_size_per_image": 16}
    options = few if make is mask_rcnn else {}
    detector = make(name, 5, **SIZES, drop_path_rate=0.1, **options)
    losses = detector(images(), targets(make is mask_rcnn))
    assert len(losses) == (5 if make is mask_rcnn else 2)
    assert all(math.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for part, parameter in detector.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.isfinite().all(), part
    assert detector.backbone.body.stages[0].patch_embed.proj.weight.grad.abs().sum() > 0


def assert_same_detections(actual, expected, rounding: float = 0.0) -> None:
    assert len(actual) == len(expected) == len(ODD)
    for a, e in zip(actual, expected, strict=True):
        assert len(e["boxes"]) >= 5
        assert a.keys() == e.keys()
        assert torch.equal(a["labels"], e["labels"])
        for key in a.keys() - {"labels"}:
            torch.testing.assert_close(a[key], e[key], rtol=rounding, atol=rounding, msg=key)


def test_scripted_equals_eager(make, name: str) -> None:
    detector = lively_detector(make, name)
    scripted = torch.jit.script(detector)
    x = images()
    with torch.inference_mode():
        assert scripted.transform(x)[0].image_sizes == detector.transform(x)[0].image_sizes
        _, detections = scripted(x)
        assert_same_detections(detections, detector(x))


def test_a_scripted_file_runs(make, mini, tmp_path) -> None:
    detector = pack(lively_detector(make, "pvt_v2_b0"))
    torch.jit.script(detector).save(tmp_path / "detector.pt")
    x = images()
    with torch.inference_mode():
        _, detections = torch.jit.load(tmp_path / "detector.pt")(x)
        assert_same_detections(detections, detector(x))


def test_packed_finds_the_same(make, name: str) -> None:
    detector = lively_detector(make, name)
    packed = pack(detector.train())
    assert detector.training
    assert not packed.training
    assert list(packed.backbone.body.parameters()) == []
    assert list(detector.backbone.body.parameters()) != []
    x = images()
    with torch.inference_mode():
        assert_same_detections(packed(x), detector.eval()(x), rounding=1e-3)


def test_packed_in_bfloat16_runs(mini) -> None:
    packed = pack(lively_detector(retinanet, "pvt_v2_b0"), torch.bfloat16)
    with torch.inference_mode():
        assert all(d["scores"].isfinite().all() for d in packed(images()))


def test_pack_wants_a_detector_of_this_module() -> None:
    other = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2
    )
    with pytest.raises(ValueError, match="expected a pvt_ext FPNBackbone, got BackboneWithFPN"):
        pack(other)
