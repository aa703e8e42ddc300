"""The weight files of PVT: where they are, what they are, what they score.

``PUBLISHED`` can be downloaded; ``PACKAGED`` come with this library.

``sha256`` is None where nobody recorded one. OpenMMLab puts the first eight digits into the name of
each file, and those are checked. Accuracies are the publishers'.

Sources: github.com/whai362/PVT (classification and its v2 releases), the model cards of timm,
OpenGVLab and Zetatech on huggingface.co, mmdetection's configs/pvt.
"""

from pathlib import Path
from typing import NamedTuple


class PublishedFile(NamedTuple):
    """One file. ``top1`` is ImageNet-1k accuracy in percent, ``box_ap`` COCO AP of the detector."""

    variant: str
    format: str  # as pvt_ext.formats calls it
    url: str
    file_name: str  # in the cache
    megabytes: int | None = None
    top1: float | None = None
    box_ap: float | None = None
    sha256: str | None = None


def _official() -> dict[str, PublishedFile]:
    rows: dict[str, tuple[int, float]] = {  # MB, top-1
        "pvt_tiny": (51, 75.1),
        "pvt_small": (93, 79.8),
        "pvt_medium": (168, 81.2),
        "pvt_large": (234, 81.7),
        "pvt_v2_b0": (14, 70.5),
        "pvt_v2_b1": (54, 78.7),
        "pvt_v2_b2": (97, 82.0),
        "pvt_v2_b2_li": (86, 82.1),
        "pvt_v2_b3": (173, 83.1),
        "pvt_v2_b4": (239, 83.6),
        "pvt_v2_b5": (313, 83.8),
    }  # there is none for pvt_huge_v2
    url = "https://github.com/whai362/PVT/releases/download/v2/{}.pth"
    return {
        f"official/{name}": PublishedFile(
            name, "official", url.format(name), f"{name}.pth", megabytes, top1
        )
        for name, (megabytes, top1) in rows.items()
    }


def _timm() -> dict[str, PublishedFile]:
    top1 = {
        "pvt_v2_b0": 70.654,
        "pvt_v2_b1": 78.698,
        "pvt_v2_b2": 82.062,
        "pvt_v2_b2_li": 82.200,
        "pvt_v2_b3": 83.120,
        "pvt_v2_b4": 83.710,
        "pvt_v2_b5": 83.760,
    }  # measured by timm, with its own preprocessing (crop 0.9)
    return {
        f"timm/{name}.in1k": _on_hub(f"timm/{name}.in1k", name, "timm", top1=accuracy)
        for name, accuracy in top1.items()
    }


def _hugging_face() -> dict[str, PublishedFile]:
    v1 = [
        _on_hub(f"Zetatech/pvt-{size}-224", f"pvt_{size}", "hf", file="pytorch_model.bin")
        for size in ("tiny", "small", "medium", "large")
    ]
    v2 = [_on_hub(f"OpenGVLab/pvt_v2_b{i}", f"pvt_v2_b{i}", "hf") for i in range(6)]
    linear = _on_hub("OpenGVLab/pvt_v2_b2_linear", "pvt_v2_b2_li", "hf", megabytes=90)
    return {file.url.split("/resolve/")[0][len(_HUB) :]: file for file in (*v1, *v2, linear)}


_HUB = "https://huggingface.co/"


def _on_hub(
    repository: str,
    variant: str,
    format: str,
    *,
    file: str = "model.safetensors",
    megabytes: int | None = None,
    top1: float | None = None,
) -> PublishedFile:
    name = f"{repository.replace('/', '--')}--{file}"
    url = f"{_HUB}{repository}/resolve/main/{file}"
    return PublishedFile(variant, format, url, name, megabytes, top1)


def _mmdetection() -> dict[str, PublishedFile]:
    rows = {  # RetinaNet, 12 epochs: date and digest in the file's name, box AP
        "pvt-t": ("pvt_tiny", "20210831_103110-17b566bd", 36.6),
        "pvt-s": ("pvt_small", "20210906_142921-b6c94a5b", 40.4),
        "pvt-m": ("pvt_medium", "20210831_103243-55effa1b", 41.7),
        "pvtv2-b0": ("pvt_v2_b0", "20210831_103157-13e9aabe", 37.1),
        "pvtv2-b1": ("pvt_v2_b1", "20210831_103318-7e169a7d", 41.2),
        "pvtv2-b2": ("pvt_v2_b2", "20210901_174843-529f0b9a", 44.6),
        "pvtv2-b3": ("pvt_v2_b3", "20210903_151512-8357deff", 46.0),
        "pvtv2-b4": ("pvt_v2_b4", "20210901_170151-83795c86", 46.3),
        "pvtv2-b5": ("pvt_v2_b5", "20210902_201800-3420eb57", 46.1),
    }
    files = {}
    for backbone, (variant, stamp, box_ap) in rows.items():
        config = f"retinanet_{backbone}_fpn_1x_coco"
        url = f"https://download.openmmlab.com/mmdetection/v2.0/pvt/{config}/{config}_{stamp}.pth"
        files[f"mmdet/{config}"] = PublishedFile(
            variant,
            "mmdet",
            url,
            url.rpartition("/")[2],
            box_ap=box_ap,
            sha256=stamp.rpartition("-")[2],
        )
    return files


PUBLISHED = _official() | _timm() | _hugging_face() | _mmdetection()
PACKAGED = {"pvt_nano": Path(__file__).with_name("pvt_nano_cifar10.safetensors")}
