"""Packages of compiled code (.pt2) for the tests: compiled once, changed as archives.

Compiling takes half a minute, so variations are made by writing another ``pvt.json``.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import mini

from pvt_ext.model import PVT
from pvt_ext.pt2 import MIN_TORCH, export_pt2


def require_compiler() -> None:
    """Skip, and say so, where packages cannot be made."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if found < MIN_TORCH:
        pytest.skip(f"NOT TESTED: pt2 export needs torch {MIN_TORCH}, this is {torch.__version__}")
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("NOT TESTED: pt2 export needs a C++ compiler, there is none")


def packaged_model() -> PVT:
    """The model that is in the fixture ``package``."""
    return mini(num_classes=1000, variant="pvt_mini")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_compiler()
    path = tmp_path_factory.mktemp("package") / "pvt_mini.pt2"
    export_pt2(packaged_model(), path, weights_source="random", seed=0, command="made by a test")
    return path


Entries = dict[str, bytes]


def rewrite(package: Path, path: Path, change: Callable[[Entries], None]) -> Path:
    """A copy of an archive whose entries (without the archive's own name) were changed."""
    with zipfile.ZipFile(package) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"model/{name}", data)
    return path


def with_metadata(package: Path, path: Path, **changes: Any) -> Path:
    """A copy with another pvt.json; a dict changes the fields it names, None removes one."""

    def change(entries: Entries) -> None:
        metadata = json.loads(entries["extra/pvt.json"])
        for key, value in changes.items():
            metadata[key] = metadata[key] | value if isinstance(value, dict) else value
        entries["extra/pvt.json"] = json.dumps(metadata).encode()

    return rewrite(package, path, change)
