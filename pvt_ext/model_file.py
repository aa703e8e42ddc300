"""What exported files of every format have in common: what can be exported, and ``pvt.json``.

:mod:`pvt_ext.export` writes TorchScript, :mod:`pvt_ext.pt2` packages of compiled code,
:mod:`pvt_ext.onnx` ONNX. docs/pvt_json.md describes the fields of ``pvt.json``.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import pvt_ext
from pvt_ext.download import check_file, damaged_entry
from pvt_ext.inference import pack
from pvt_ext.model import PVT
from pvt_ext.preprocess import Preprocess

METADATA = "pvt.json"
FORMAT = 1  # raised when a reader of pvt.json must change
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
COMPILED = "data/aotinductor/"  # where a package of AOTInductor keeps its code


class Origin(NamedTuple):
    """Where the weights of a file come from, and how to make it again."""

    weights_source: str = "model"
    weights_sha256: str | None = None
    seed: int | None = None
    command: str | None = None


def check_model(model: PVT, dtype: str, labels: Sequence[str] | None) -> None:
    """Raise ValueError unless ``model`` can be exported in ``dtype`` with these labels."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if model.in_chans != 3:
        raise ValueError(f"model: expected in_chans 3 (RGB images), got {model.in_chans}")
    if model.num_classes == 0:
        raise ValueError("model: expected a classifier, got one without a head (num_classes 0)")
    if labels is not None:
        _check_labels(labels, model.num_classes)


def packed_copy(model: PVT, dtype: str) -> PVT:
    """``model`` packed for inference on the CPU; the original is not changed."""
    return pack(deepcopy(model).to("cpu"), DTYPES[dtype])


def check_answer(network: nn.Module, model: PVT) -> None:
    """Run ``network`` once, on a small black image, to see that it gives ``num_classes`` scores."""
    with torch.inference_mode():
        scores = network(torch.zeros(1, 3, model.min_size, model.min_size))
    if scores.shape != (1, model.num_classes):
        raise ValueError(
            f"model: expected {model.num_classes} scores per image (num_classes), got "
            f"{list(scores.shape[1:])}; change the head with model.reset_classifier"
        )


def describe(
    model: PVT,
    preprocess: Preprocess,
    dtype: str,
    labels: Sequence[str] | None,
    operators: Sequence[str],
    origin: Origin,
) -> dict[str, Any]:
    """The contents of ``pvt.json``. ``operators``: what must be registered before loading."""
    return {
        "format": FORMAT,
        "library": "pvt_ext",
        "version": pvt_ext.__version__,
        "torch": torch_version(),
        "variant": model.variant,
        "num_classes": model.num_classes,
        "in_chans": model.in_chans,
        "img_size": list(model.img_size),
        "dtype": str(DTYPES[dtype]).removeprefix("torch."),
        "ops": {"version": pvt_ext.ops_version(), "required": sorted(operators)},
        "preprocess": {
            "preset": preprocess.preset,
            "mode": preprocess.mode,
            "resize": preprocess.resize,
            "crop": list(preprocess.crop),
            "interpolation": preprocess.interpolation,
            "mean": preprocess.mean,
            "std": preprocess.std,
        },
        "labels": list(labels) if labels is not None else _default_labels(model.num_classes),
        "weights": {
            "source": origin.weights_source,
            "seed": origin.seed,
            "sha256": origin.weights_sha256,
        },
        "command": origin.command,
    }


def as_json(metadata: dict[str, Any]) -> str:
    text = json.dumps(metadata, indent=1, ensure_ascii=False)
    check_utf8("labels, command", text)
    return text


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of ``pvt.json`` in an exported file, without loading the model.

    Raises:
        ValueError: the file is missing, damaged or something else; the message says what.
    """
    path = Path(path)
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            if f"extra/{METADATA}" in names:
                entry = archive.namelist()[names.index(f"extra/{METADATA}")]
                return _checked(json.loads(archive.read(entry)))
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"{path}: not an exported model, or damaged ({error})") from error
    if "constants.pkl" in names:
        raise ValueError(
            f"{path}: a TorchScript file without {METADATA}; pvt export did not write it"
        )
    if is_compiled(names):
        raise ValueError(
            f"{path}: a package (.pt2) without {METADATA}; pvt export did not write it"
        )
    if any(name.startswith("models/") for name in names):
        raise ValueError(
            f"{path}: a package of torch.export without compiled code, not an exported model; "
            "make one with: pvt export NAME --format pt2"
        )
    if "data.pkl" in names:
        raise ValueError(
            f"{path}: a checkpoint (weights only), not an exported model; "
            f"make one with: pvt export NAME --weights {path}"
        )
    raise ValueError(f"{path}: a zip archive, but not an exported model")


def is_compiled(names: Iterable[str]) -> bool:
    """Whether these are entries of a package of AOTInductor, without the archive's own name."""
    return any(name.startswith(COMPILED) for name in names)


def check_loadable(path: Path, metadata: dict[str, Any]) -> None:
    """Raise ValueError if the file is damaged or needs other operators than this library."""
    needed, found = metadata["ops"]["version"], pvt_ext.ops_version()
    if needed > found:
        raise ValueError(
            f"{path}: needs operator version {needed} (exported by pvt_ext {metadata['version']}), "
            f"this is pvt_ext {pvt_ext.__version__} with version {found}"
        )
    damaged = damaged_entry(path)
    if damaged is not None:
        raise ValueError(f"{path}: damaged (checksum of {damaged})")


def torch_version() -> str:
    """``2.13.0``, without what is said of the build."""
    return torch.__version__.partition("+")[0]


def writable(path: Path) -> Path:
    """The absolute path, without links, of a file that may be written or replaced."""
    target = Path(os.path.realpath(path))
    check_utf8("path", str(target))  # torch writes to no other
    if path.is_dir() or not target.parent.is_dir():
        raise ValueError(f"path: expected a file name in an existing folder, got {path}")
    if (path.exists() or os.path.lexists(target)) and not target.is_file():
        raise ValueError(f"path: expected a regular file or a new one, got {path}")
    if not target.name.rpartition(".")[0] and target.name.startswith("."):
        raise ValueError(f"path: expected a name before the suffix, got {path}")
    return target


def check_utf8(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what}: expected text in UTF-8, got {text[error.start : error.end]!r} in it"
        ) from error


def _check_labels(labels: object, num_classes: int) -> None:
    if not isinstance(labels, Sequence) or isinstance(labels, str):
        raise ValueError(f"labels: expected a list of names, got {type(labels).__name__}")
    others = [label for label in labels if not isinstance(label, str)]
    if others:
        raise ValueError(f"labels: expected names (str), got {others[0]!r}")
    if len(labels) != num_classes:
        raise ValueError(f"labels: expected {num_classes} names, got {len(labels)}")


def _checked(metadata: Any) -> dict[str, Any]:
    """``metadata``, if the fields that this library reads are as docs/pvt_json.md has them."""

    def expect(field: str, kind: type, value: object) -> None:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{METADATA}: expected {field} ({kind.__name__}), got {value!r:.50}")

    expect("an object", dict, metadata)
    for field, kind in (("format", int), ("version", str), ("num_classes", int), ("ops", dict)):
        expect(field, kind, metadata.get(field))
    expect("ops.version", int, metadata["ops"].get("version"))
    if metadata["format"] != FORMAT:
        raise ValueError(f"{METADATA}: expected format {FORMAT}, got {metadata['format']}")
    if "compiled" in metadata:
        expect("compiled", dict, metadata["compiled"])
        expect("compiled.machine", str, metadata["compiled"].get("machine"))
        expect("compiled.min_size", list, metadata["compiled"].get("min_size"))
    if metadata.get("labels") is not None:
        _check_labels(metadata["labels"], metadata["num_classes"])
    return dict(metadata)


def _default_labels(num_classes: int) -> list[str] | None:
    if num_classes != 1000:
        return None
    return (files("pvt_ext") / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
