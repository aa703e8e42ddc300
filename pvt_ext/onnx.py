"""Write a model as ONNX, for runtimes that know nothing of this library.

The graph is that of ``fused=False``: plain operators, float32, no operator of ours. Batch, height
and width are dynamic, except in the linear variant of PVT v2, whose pooling ONNX has for one size
alone. The file's ``metadata_props`` say what ``pvt.json`` says; preprocessing is up to the caller,
with the numbers that stand there.
"""

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pvt_ext.model import PVT
from pvt_ext.model_file import (
    METADATA,
    Origin,
    as_json,
    check_answer,
    check_model,
    describe,
    writable,
)
from pvt_ext.nn import Attention
from pvt_ext.preprocess import Preprocess

OPSET = 20
# Names of the file's input and output.
INPUT, OUTPUT = "image", "logits"


def export_onnx(
    model: PVT,
    path: str | os.PathLike[str],
    *,
    preset: str = "paper",
    labels: Sequence[str] | None = None,
    weights_source: str = "model",
    weights_sha256: str | None = None,
    seed: int | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Write ``model`` in evaluation mode and float32 to ``path`` as ONNX.

    The file is complete or absent, and ``model`` is not changed. Its input ``image`` is float32
    ``[batch, 3, height, width]``, its output ``logits`` float32 ``[batch, num_classes]``.

    Args:
        model: a classifier for RGB images (``in_chans=3``).
        path: usually ``<variant>.onnx``.
        preset, labels, weights_source, weights_sha256, seed, command: as in
            :func:`~pvt_ext.export.export_torchscript`; recorded in ``metadata_props``.

    Returns:
        the metadata, as in ``pvt.json``, with ``onnx`` about this file.

    Raises:
        ValueError: an argument cannot be exported as it is; nothing was written.
        RuntimeError: a package is missing, or torch cannot convert the model.
    """
    path = writable(Path(path))
    check_model(model, "fp32", labels)
    preprocess = Preprocess(preset, model.img_size)
    _check_packages()
    network = _plain_copy(model)
    check_answer(network, model)

    linear = any(isinstance(module, Attention) and module.linear for module in network.modules())
    origin = Origin(weights_source, weights_sha256, seed, command)
    metadata = describe(model, preprocess, "fp32", labels, [], origin)
    metadata["onnx"] = {
        "opset": OPSET,
        "input": INPUT,
        "output": OUTPUT,
        "min_size": [model.min_size, model.min_size],
        "fixed_size": list(model.img_size) if linear else None,
    }
    text = as_json(metadata)
    proto = _convert(network, dynamic_size=not linear)
    for key, value in _properties(metadata, text).items():
        proto.metadata_props.add(key=key, value=value)
    with tempfile.TemporaryDirectory(prefix=".pvt-export-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        temporary.write_bytes(proto.SerializeToString())
        os.replace(temporary, path)
    return metadata


def _check_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"onnx: {', '.join(missing)} not installed; run: pip install onnx onnxscript"
        )


def _plain_copy(model: PVT) -> PVT:
    network = deepcopy(model).to("cpu", torch.float32).eval()
    for module in network.modules():
        if hasattr(module, "fused"):
            module.fused = False  # type: ignore[assignment]
    return network


def _convert(network: PVT, dynamic_size: bool) -> Any:
    from torch.fx.experimental import _config

    height, width = network.img_size
    dynamic = {0: "batch"}
    if dynamic_size:
        # Not img_size itself, for which `Stage` would take its branch without resizing.
        height, width = height + 64, width + 96
        dynamic |= {2: "height", 3: "width"}
    oblivious = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), oblivious, _quiet():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, height, width),),
            dynamo=True,
            dynamic_shapes=(dynamic,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _properties(metadata: dict[str, Any], text: str) -> dict[str, str]:
    """All of ``pvt.json``, and singly what a reader without JSON needs."""
    fields = metadata["preprocess"]
    preprocess = {f"preprocess.{key}": json.dumps(value) for key, value in fields.items()}
    labels = {"labels": "\n".join(metadata["labels"])} if metadata["labels"] else {}
    return {METADATA: text, "variant": metadata["variant"], **preprocess, **labels}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide torch's notices about its own use of what it deprecates, and about torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
