"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch
from foreign_names import hf_state

import pvt_ext

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example_runs(tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 1000)
    assert names["c3"].shape == (1, 64, 100, 168)
    assert [m.shape[2:] for m in names["maps"]] == [(60, 80), (30, 40), (15, 20)]
    assert names["attention"].shape == (1, 1, 3136, 49)
    assert (tmp_path / "pvt_small.pt").stat().st_size > 90e6


def test_example_of_the_page_on_weights_runs(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    state = hf_state(pvt_ext.create_model("pvt_v2_b0").state_dict())
    torch.save(state, "pytorch_model.bin")
    exec(code, {})
    assert f"print(report)  # {capsys.readouterr().out}" in code


def test_examples_with_other_libraries_run():
    reason = "not installed: the README's examples with other libraries was NOT tested"
    pytest.importorskip("timm", reason=f"timm is {reason}")
    pytest.importorskip("torchvision", reason=f"torchvision is {reason}")
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1:]:
        exec(code, {})


def test_table_of_models_is_that_of_the_code():
    for name in pvt_ext.list_models():
        size = pvt_ext.summary(name)
        assert f"| {name} | {size.parameters:,} | {size.macs / 1e9:.3f} |" in README


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
