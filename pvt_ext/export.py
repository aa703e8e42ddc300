"""Write a model as one TorchScript file that Python and C++ run without its source.

The file answers ``forward(x: float32 [B, 3, H, W]) -> float32 [B, num_classes]`` and
``preprocess(image: uint8 [H, W, 3]) -> float32 [3, height, width]``. An entry ``pvt.json`` inside
says what it is: variant, size, dtype, labels, preprocessing, origin of the weights, and the
operators a program must load (``libpvt_ops.so``) before it can run the file.
"""

import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pvt_ext.model import PVT
from pvt_ext.model_file import (
    DTYPES,
    METADATA,
    Origin,
    as_json,
    check_answer,
    check_loadable,
    check_model,
    check_utf8,
    describe,
    packed_copy,
    read_metadata,
    writable,
)
from pvt_ext.preprocess import Preprocess

__all__ = ["ModelFile", "export_torchscript", "load_torchscript", "read_metadata"]


class ModelFile(nn.Module):
    """What an exported file contains: the network and its preprocessing."""

    like: Tensor

    def __init__(self, model: PVT, preprocess: Preprocess, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model  # takes images of dtype
        self.transform = preprocess
        self.register_buffer("like", torch.empty(0, dtype=dtype))  # follows .to() as weights do

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.to(self.like.dtype)).float()

    @torch.jit.export
    def preprocess(self, image: Tensor) -> Tensor:
        return self.transform(image)


def export_torchscript(
    model: PVT,
    path: str | os.PathLike[str],
    *,
    preset: str = "paper",
    dtype: str = "fp32",
    labels: Sequence[str] | None = None,
    weights_source: str = "model",
    weights_sha256: str | None = None,
    seed: int | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Script ``model`` in evaluation mode and write it to ``path``.

    The file is complete or absent: it is written beside ``path`` and then renamed. ``model`` is
    not changed. It is run once, on a small black image, to see that it answers ``num_classes``
    scores.

    Args:
        model: a classifier for RGB images (``in_chans=3``).
        path: usually ``<variant>.pt``. A link is followed; what exists must be a regular file.
        preset: preprocessing, a name in :data:`pvt_ext.preprocess.PRESETS`.
        dtype: ``"fp32"``, ``"bf16"``, ``"int8"`` or, for GPUs, ``"fp16"``, of weights and
            arithmetic; :func:`~pvt_ext.inference.pack` says of which. Input and output are float32.
        labels: one name per class. None: the ImageNet names if there are 1000 classes, else none.
        weights_source, weights_sha256, seed: where the weights come from, recorded in the file:
            ``"official"``, ``"random"``, ``"file"``, a name in
            :data:`pvt_ext.published.PUBLISHED`, or ``"model"``, which says no more than that the
            model had them.
        command: what to type to make this file again, recorded in the file.

    Returns:
        the contents of ``pvt.json``.

    Raises:
        ValueError: an argument cannot be exported as it is; nothing was written.
    """
    path = writable(Path(path))
    check_model(model, dtype, labels)
    preprocess = Preprocess(preset, model.img_size)
    if dtype == "int8" and not model.fused:
        raise ValueError("dtype: int8 needs the fused operators, got a model with fused=False")
    if model.fused:
        module = ModelFile(packed_copy(model, dtype), preprocess, torch.float32).eval()
    else:
        plain = deepcopy(model).to("cpu", DTYPES[dtype])
        module = ModelFile(plain, preprocess, DTYPES[dtype]).eval()
    check_answer(module, model)
    # Not frozen: a frozen module holds its weights as constants of the graph, out of reach of
    # `.to(device)`, and gains little: on two cores, three runs, time frozen / not frozen was
    # 0.93..1.00 at batch 1 and 0.96..1.02 at batch 8 (pvt_small, interleaved), and with
    # optimize_for_inference 1.00..1.20.
    with _torchscript_warnings_ignored():
        scripted = torch.jit.script(module)
        operators = [name for name in torch.jit.export_opnames(scripted) if name[:5] == "pvt::"]
    origin = Origin(weights_source, weights_sha256, seed, command)
    metadata = describe(model, preprocess, dtype, labels, operators, origin)
    _save(scripted, path, metadata)
    return metadata


def load_torchscript(path: str | os.PathLike[str]) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """An exported model, ready to run on the CPU, and its metadata.

    ``torch.jit.load(path)`` does as well; this says more clearly what is wrong with a file.

    Raises:
        ValueError: the file is not an exported model, is damaged (any checksum in it does not fit)
            or needs other operators than this library.
    """
    check_utf8("path", os.fspath(path))  # torch reads from no other
    metadata = read_metadata(path)
    if "compiled" in metadata:
        raise ValueError(f"{path}: a package of compiled code (.pt2); load it with load_pt2")
    check_loadable(Path(path), metadata)
    try:
        with _torchscript_warnings_ignored():
            return torch.jit.load(os.fspath(path)), metadata
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: cannot be loaded ({reason})") from error


def _save(scripted: torch.jit.ScriptModule, path: Path, metadata: dict[str, Any]) -> None:
    extra = {METADATA: as_json(metadata)}
    # In a folder of its own under its final name, because torch names the archive's root after it.
    with tempfile.TemporaryDirectory(prefix=".pvt-export-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        with _torchscript_warnings_ignored():
            torch.jit.save(scripted, temporary, _extra_files=extra)
        os.replace(temporary, path)


@contextmanager
def _torchscript_warnings_ignored() -> Iterator[None]:
    """Hide torch's notice that TorchScript is deprecated, which README's policy covers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..*deprecated")
        yield
