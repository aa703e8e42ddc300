"""Runs ``pvt_infer``, the C++ program: fixtures for test_deploy.py and test_pvt_infer.py.

The binary is $PVT_INFER, or what CMake built in ``build/``.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from models import mini

from pvt_ext.export import export_torchscript

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "assets" / "photos"
PHOTO_FILES = sorted(path for path in PHOTOS.iterdir() if path.suffix in (".jpg", ".png"))
BUILD = "cmake -S . -B build/cpp && cmake --build build/cpp -j2"

Result = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def binary() -> Path:
    if "PVT_INFER" in os.environ:
        path = Path(os.environ["PVT_INFER"])
        assert path.is_file(), f"PVT_INFER: {path} does not exist"
        return path.resolve()
    built = sorted(ROOT.glob("build/*/bin/pvt_infer"), key=lambda path: path.stat().st_mtime)
    if built:
        return built[-1]
    if shutil.which("cmake") is None:
        pytest.skip(f"NOT TESTED: the C++ program. Install CMake, then: {BUILD}")
    pytest.fail(f"pvt_infer is not built. Run: {BUILD}")


class Infer:
    """Runs the binary on a model."""

    def __init__(self, binary: Path, model: Path | None) -> None:
        self.binary = binary
        self.model = model

    def __call__(self, *arguments: object, code: int = 0, **options: Any) -> Result:
        command = [str(self.binary)]
        if self.model is not None:
            command += ["--model", str(self.model)]
        command += [str(argument) for argument in arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
        assert result.returncode == code, f"{command}\n{result.stdout}\n{result.stderr}"
        return result

    def json(self, *arguments: object, **options: Any) -> list[dict[str, Any]]:
        lines = self("--format", "json", *arguments, **options).stdout.splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "pvt_mini.pt"
    export_torchscript(mini(num_classes=1000, variant="pvt_mini"), path, weights_source="random")
    return path


@pytest.fixture(scope="session")
def infer(binary: Path, model: Path) -> Infer:
    return Infer(binary, model)


def errors(result: Result) -> list[str]:
    """What the program said went wrong, without the name it puts in front."""
    lines = result.stderr.splitlines()
    prefix = "pvt_infer: "
    return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
