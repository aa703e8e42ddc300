"""Load an exported file of either kind, told apart by its content."""

import os
from typing import Any

import torch

from pvt_ext.export import load_torchscript
from pvt_ext.model_file import read_metadata
from pvt_ext.pt2 import Package, load_pt2


def load_exported(
    path: str | os.PathLike[str],
) -> tuple[torch.jit.ScriptModule | Package, dict[str, Any]]:
    """A TorchScript file or a package, ready to run on the CPU, and its metadata.

    Either is called with images and has a method ``preprocess``; see
    :func:`~pvt_ext.export.load_torchscript` and :func:`~pvt_ext.pt2.load_pt2`.
    """
    if "compiled" in read_metadata(path):
        return load_pt2(path)
    return load_torchscript(path)
