"""Optional libraries stay optional, and what the pages about them show runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from models import MINI, MINI_V2

from pvt_ext.variants import VARIANTS

PAGES = [Path(__file__).parents[1] / "docs" / name for name in ("adapters.md", "accelerate.md")]
LIBRARIES = ["timm", "huggingface_hub", "torchvision"]
HIDE = """
import sys
class Hide:
    def find_spec(self, name, *_):
        if name == "{library}":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Hide())
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_package_imports_none_of_them() -> None:
    result = run_python(
        f"import pvt_ext, sys; print(sorted(sys.modules.keys() & set({LIBRARIES})))"
    )
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize(
    ("module", "library"),
    [("timm", "timm"), ("hub", "huggingface_hub"), ("torchvision", "torchvision")],
)
def test_a_missing_library_is_named(module: str, library: str) -> None:
    result = run_python(HIDE.format(library=library) + f"import pvt_ext.{module}")
    last = result.stderr.strip().splitlines()[-1]
    assert last == (
        f"ImportError: pvt_ext.{module}: {library} is not installed; run: pip install {library}"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", LIBRARIES)
def test_examples_run(library: str, tmp_path, monkeypatch) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed: its example was NOT tested")
    for name, specs in [("pvt_small", MINI), ("pvt_v2_b0", MINI_V2), ("pvt_v2_b2", MINI_V2)]:
        monkeypatch.setitem(VARIANTS, name, specs)  # quick ones
    monkeypatch.chdir(tmp_path)
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    examples = [block for block in blocks if f"# needs {library}\n" in block]
    assert examples
    for code in examples:
        exec(code, {})
