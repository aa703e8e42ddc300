"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pvt_ext

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 1000)
    assert names["c2"].shape == (1, 64, 200, 336)
    assert names["attention"].shape == (1, 1, 3136, 49)
    assert (tmp_path / "pvt_small.pt").stat().st_size > 90e6


def test_table_of_models_is_that_of_the_code():
    for name in pvt_ext.list_models():
        size = pvt_ext.summary(name)
        assert f"| {name} | {size.parameters:,} | {size.macs / 1e9:.3f} |" in README


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
