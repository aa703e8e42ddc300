"""Models saved for, and read back from, the Hugging Face Hub. Runs where huggingface_hub is."""

import copy
import json
import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from models import MINI, MINI_V2, enliven

import pvt_ext
from pvt_ext.variants import VARIANTS

pytest.importorskip(
    "huggingface_hub",
    reason="huggingface_hub is not installed: saving for, and reading from, the Hub was NOT tested",
)

from huggingface_hub import ModelCard

from pvt_ext.hub import HubPVT

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def mini(monkeypatch) -> None:
    """Models of these names are quick; no test reaches the network."""
    monkeypatch.setitem(VARIANTS, "pvt_tiny", MINI)
    monkeypatch.setitem(VARIANTS, "pvt_v2_b0", MINI_V2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def lively_hub(name: str = "pvt_tiny", **options: object) -> HubPVT:
    model = HubPVT(name, **{"num_classes": 7, "img_size": 64, **options}).eval()
    enliven(model)
    return model


@pytest.fixture
def saved(tmp_path) -> Path:
    lively_hub().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0"])
def test_a_saved_model_comes_back(name: str, tmp_path) -> None:
    model = lively_hub(name, in_chans=1, img_size=(64, 96), drop_path_rate=0.1, fused=False)
    model.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.json", WEIGHTS]
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "name": name,
        "num_classes": 7,
        "in_chans": 1,
        "img_size": [64, 96],
        "drop_path_rate": 0.1,
        "fused": False,
    }
    again = HubPVT.from_pretrained(tmp_path)
    assert (again.variant, again.img_size, again.fused) == (name, (64, 96), False)
    assert not again.training
    x = torch.randn(2, 1, 64, 96)
    assert torch.equal(again(x), model(x))


def test_positional_arguments_are_saved(tmp_path) -> None:
    HubPVT("pvt_v2_b0", 3).save_pretrained(tmp_path)
    assert HubPVT.from_pretrained(str(tmp_path)).num_classes == 3


def test_a_new_head_is_saved(saved) -> None:
    model = HubPVT.from_pretrained(saved)
    model.reset_classifier(4)
    model.save_pretrained(saved)
    again = HubPVT.from_pretrained(saved)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x), model(x))
    assert HubPVT("pvt_tiny").num_classes == 1000


def test_model_card(saved) -> None:
    card = ModelCard.load(saved / "README.md")
    assert card.data.library_name == "pvt_ext"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-classification"
    assert {"pvt", "pyramid-vision-transformer"} <= set(card.data.tags)
    assert "https://arxiv.org/abs/2102.12122" in card.text
    assert "{{" not in card.content
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    names: dict[str, object] = {"images": torch.randn(1, 3, 64, 64)}
    exec(code.replace('"..."', repr(str(saved))), names)
    assert names["logits"].shape == (1, 7)


def test_arguments_replace_those_of_the_file(saved) -> None:
    model = HubPVT.from_pretrained(saved, img_size=(64, 96), fused=False)
    x = torch.randn(1, 3, 64, 96)
    expected = HubPVT.from_pretrained(saved)(x)  # resizes positions in every pass
    torch.testing.assert_close(model(x), expected)
    assert not model.fused
    with pytest.raises(ValueError, match=r"nothing was loaded: .*head\.weight"):
        HubPVT.from_pretrained(saved, num_classes=3)
    model = HubPVT.from_pretrained(saved, num_classes=3, adapt="num_classes")
    assert model(x[..., :64]).shape == (1, 3)


# ---- what is refused ----


def edit(folder: Path, change) -> None:
    state = safetensors.torch.load_file(folder / WEIGHTS)
    change(state)
    safetensors.torch.save_file(state, folder / WEIGHTS)


def add(state) -> None:
    state["extra.weight"] = torch.zeros(1)


def poison(state) -> None:
    state["head.bias"][0] = torch.nan


def reshape(state) -> None:
    state["head.bias"] = torch.zeros(8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("norm.bias"), r"1 missing: norm\.bias"),
        (add, r"extra\.weight"),
        (poison, r"head\.bias \(NaN"),
        (reshape, r"head\.bias \(expected \[7\], got \[8\]\)"),
    ],
    ids=["missing", "unexpected", "nan", "shape"],
)
def test_weights_that_do_not_fit_are_refused(saved, change, reason: str) -> None:
    edit(saved, change)
    with pytest.raises(ValueError, match=reason):
        HubPVT.from_pretrained(saved)


@pytest.mark.parametrize("size", [0, 4, 1000, -4])
def test_truncated_weights_are_refused(saved, size: int) -> None:
    file = saved / WEIGHTS
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: (the file is empty|not a checkpoint)"):
        HubPVT.from_pretrained(saved)


def test_another_model_is_refused(saved) -> None:
    lively_hub("pvt_v2_b0").save_pretrained(saved / "other")
    os.replace(saved / "other" / WEIGHTS, saved / WEIGHTS)
    with pytest.raises(ValueError, match="does not fit pvt_tiny, nothing was loaded"):
        HubPVT.from_pretrained(saved)


def test_a_folder_without_its_files_is_refused(saved) -> None:
    (saved / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=WEIGHTS):
        HubPVT.from_pretrained(saved)
    (saved / "config.json").unlink()
    with pytest.raises(ValueError, match=r"expected a config\.json with the name of a model"):
        HubPVT.from_pretrained(saved)


def test_an_unknown_name_is_refused(saved) -> None:
    (saved / "config.json").write_text('{"name": "pvt_tyni"}')
    with pytest.raises(ValueError, match=r"'pvt_tyni'; did you mean pvt_tiny"):
        HubPVT.from_pretrained(saved)


def test_a_packed_model_is_not_saved(tmp_path) -> None:
    with pytest.raises(ValueError, match="packed"):
        pvt_ext.pack(lively_hub()).save_pretrained(tmp_path)
    assert not (tmp_path / WEIGHTS).exists()


# ---- a PVT like any other ----


@pytest.mark.filterwarnings("ignore")
def test_it_scripts_packs_and_copies(saved) -> None:
    model = HubPVT.from_pretrained(saved)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(torch.jit.script(model)(x), model(x))
        torch.testing.assert_close(pvt_ext.pack(model)(x), model(x))
    twin = copy.deepcopy(model)
    twin.reset_classifier(2)
    assert twin(x).shape == (1, 2)
    model.save_pretrained(saved)
    assert HubPVT.from_pretrained(saved).num_classes == 7
