"""Parameters and MACs against the table of the published models."""

import pytest
import torch
from models import mini

from pvt_ext.model import create_model
from pvt_ext.summary import summary

# parameters, GMAC at 224 x 224, GMAC at 800 x 1280
PUBLISHED = {
    "pvt_tiny": (13_229_288, 1.933, 69.50),
    "pvt_small": (24_485_864, 3.816, 134.16),
    "pvt_medium": (44_208_104, 6.659, 221.40),
    "pvt_large": (61_369_320, 9.814, 323.28),
    "pvt_huge_v2": (304_945_512, 50.493, None),
    "pvt_v2_b0": (3_666_760, 0.566, 26.64),
    "pvt_v2_b1": (14_009_000, 2.108, 73.21),
    "pvt_v2_b2": (25_362_856, 4.027, 138.65),
    "pvt_v2_b2_li": (22_553_512, 3.889, 75.14),
    "pvt_v2_b3": (45_238_696, 6.897, 226.45),
    "pvt_v2_b4": (62_556_072, 10.101, 329.32),
    "pvt_v2_b5": (81_956_008, 11.717, 386.17),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_the_published_table(name: str) -> None:
    parameters, small, large = PUBLISHED[name]
    result = summary(name)
    assert (result.name, result.img_size, result.parameters) == (name, (224, 224), parameters)
    assert round(result.macs / 1e9, 3) == small
    assert sum(row.macs for row in result.rows) == result.macs
    assert sum(row.parameters for row in result.rows) == parameters
    if large is not None:
        assert round(summary(name, (800, 1280)).macs / 1e9, 2) == large


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li"])
def test_operators_count_like_plain_pytorch(name: str) -> None:
    for size in ((224, 224), (225, 131)):
        with torch.device("meta"):
            plain = create_model(name, fused=False)
        assert summary(name, size).rows == summary(plain, size).rows


def test_rows() -> None:
    rows = summary("pvt_small", (225, 131)).rows
    assert [row.name for row in rows] == ["stage 1", "stage 2", "stage 3", "stage 4", "head"]
    assert [row.output for row in rows] == [
        (64, 56, 32), (128, 28, 16), (320, 14, 8), (512, 7, 4), (1000,),
    ]  # fmt: skip
    assert rows[-1].macs == 512 * 1000
    assert rows[-1].parameters == 512 * 1000 + 1000 + 2 * 512


def test_rows_of_v2() -> None:
    rows = summary("pvt_v2_b0", (225, 131)).rows
    assert [row.output for row in rows] == [
        (32, 57, 33), (64, 29, 17), (160, 15, 9), (256, 8, 5), (1000,),
    ]  # fmt: skip
    assert rows[-1].macs == 256 * 1000
    assert rows[-1].parameters == 256 * 1000 + 1000


def test_a_model_is_left_alone() -> None:
    model = mini().train()
    result = summary(model, 64)
    assert result.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert model.training
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    model(torch.zeros(1, 3, 64, 64))


def test_table() -> None:
    lines = str(summary("pvt_tiny", (448, 224))).splitlines()
    assert lines[0] == "pvt_tiny at 448 x 224"
    assert lines[1].split() == ["output", "parameters", "GMAC"]
    assert lines[2].split()[:7] == ["stage", "1", "64", "x", "112", "x", "56"]
    assert lines[-1].split()[:2] == ["total", "13,229,288"]


def test_errors() -> None:
    with pytest.raises(ValueError, match="unknown name 'pvt'"):
        summary("pvt")
    with pytest.raises(ValueError, match="at least 32 x 32, got 8 x 8"):
        summary("pvt_tiny", 8)
    with pytest.raises(ValueError, match="size: expected a positive int"):
        summary("pvt_tiny", -1)
