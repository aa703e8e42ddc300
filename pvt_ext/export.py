"""Write a model as one TorchScript file that Python and C++ run without its source.

The file answers ``forward(x: float32 [B, 3, H, W]) -> float32 [B, num_classes]`` and
``preprocess(image: uint8 [H, W, 3]) -> float32 [3, height, width]``. An entry ``pvt.json`` inside
says what it is: variant, size, dtype, labels, preprocessing, origin of the weights, and the
operators a program must load (``libpvt_ops.so``) before it can run the file.
"""

import json
import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pvt_ext
from pvt_ext.download import check_file, damaged_entry
from pvt_ext.inference import pack
from pvt_ext.model import PVT
from pvt_ext.preprocess import Preprocess

METADATA = "pvt.json"
FORMAT = 1  # raised when a reader of pvt.json must change
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


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
        dtype: ``"fp32"``, ``"bf16"`` or ``"int8"``, of weights and arithmetic;
            :func:`~pvt_ext.inference.pack` says of which. Input and output are float32.
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
    path = _writable(Path(path))
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if model.in_chans != 3:
        raise ValueError(f"model: expected in_chans 3 (RGB images), got {model.in_chans}")
    if model.num_classes == 0:
        raise ValueError("model: expected a classifier, got one without a head (num_classes 0)")
    if labels is not None:
        _check_labels(labels, model.num_classes)
    names = list(labels) if labels is not None else _default_labels(model.num_classes)

    preprocess = Preprocess(preset, model.img_size)
    if dtype == "int8" and not model.fused:
        raise ValueError("dtype: int8 needs the fused operators, got a model with fused=False")
    plain = deepcopy(model).to("cpu")
    if plain.fused:
        module = ModelFile(pack(plain, DTYPES[dtype]), preprocess, torch.float32).eval()
    else:
        module = ModelFile(plain.to(DTYPES[dtype]), preprocess, DTYPES[dtype]).eval()
    with torch.inference_mode():
        scores = module(torch.zeros(1, 3, model.min_size, model.min_size))
    if scores.shape != (1, model.num_classes):
        raise ValueError(
            f"model: expected {model.num_classes} scores per image (num_classes), got "
            f"{list(scores.shape[1:])}; change the head with model.reset_classifier"
        )
    # Not frozen: a frozen module holds its weights as constants of the graph, out of reach of
    # `.to(device)`, and gains little: on two cores, three runs, time frozen / not frozen was
    # 0.93..1.00 at batch 1 and 0.96..1.02 at batch 8 (pvt_small, interleaved), and with
    # optimize_for_inference 1.00..1.20.
    with _torchscript_warnings_ignored():
        scripted = torch.jit.script(module)
        operators = [name for name in torch.jit.export_opnames(scripted) if name[:5] == "pvt::"]
    metadata = {
        "format": FORMAT,
        "library": "pvt_ext",
        "version": pvt_ext.__version__,
        "torch": torch.__version__.partition("+")[0],
        "variant": model.variant,
        "num_classes": model.num_classes,
        "in_chans": model.in_chans,
        "img_size": list(model.img_size),
        "dtype": str(DTYPES[dtype]).removeprefix("torch."),
        "ops": {"version": pvt_ext.ops_version(), "required": sorted(operators)},
        "preprocess": {
            "preset": preset,
            "mode": preprocess.mode,
            "resize": preprocess.resize,
            "crop": list(preprocess.crop),
            "interpolation": preprocess.interpolation,
            "mean": preprocess.mean,
            "std": preprocess.std,
        },
        "labels": names,
        "weights": {"source": weights_source, "seed": seed, "sha256": weights_sha256},
        "command": command,
    }
    _save(scripted, path, metadata)
    return metadata


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
    if "data.pkl" in names:
        raise ValueError(
            f"{path}: a checkpoint (weights only), not an exported model; "
            f"make one with: pvt export NAME --weights {path}"
        )
    raise ValueError(f"{path}: a zip archive, but not an exported model")


def load_torchscript(path: str | os.PathLike[str]) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """An exported model, ready to run on the CPU, and its metadata.

    ``torch.jit.load(path)`` does as well; this says more clearly what is wrong with a file.

    Raises:
        ValueError: the file is not an exported model, is damaged (any checksum in it does not fit)
            or needs other operators than this library.
    """
    _check_utf8("path", os.fspath(path))  # torch reads from no other
    metadata = read_metadata(path)
    needed, found = metadata["ops"]["version"], pvt_ext.ops_version()
    if needed > found:
        raise ValueError(
            f"{path}: needs operator version {needed} (exported by pvt_ext {metadata['version']}), "
            f"this is pvt_ext {pvt_ext.__version__} with version {found}"
        )
    damaged = damaged_entry(Path(path))
    if damaged is not None:
        raise ValueError(f"{path}: damaged (checksum of {damaged})")
    try:
        with _torchscript_warnings_ignored():
            return torch.jit.load(os.fspath(path)), metadata
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: cannot be loaded ({reason})") from error


def _save(scripted: torch.jit.ScriptModule, path: Path, metadata: dict[str, Any]) -> None:
    text = json.dumps(metadata, indent=1, ensure_ascii=False)
    _check_utf8("labels, command", text)
    # In a folder of its own under its final name, because torch names the archive's root after it.
    with tempfile.TemporaryDirectory(prefix=".pvt-export-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        extra = {METADATA: text}
        with _torchscript_warnings_ignored():
            torch.jit.save(scripted, temporary, _extra_files=extra)
        os.replace(temporary, path)


def _writable(path: Path) -> Path:
    """The absolute path, without links, of a file that may be written or replaced."""
    target = Path(os.path.realpath(path))
    _check_utf8("path", str(target))  # torch writes to no other
    if path.is_dir() or not target.parent.is_dir():
        raise ValueError(f"path: expected a file name in an existing folder, got {path}")
    if (path.exists() or os.path.lexists(target)) and not target.is_file():
        raise ValueError(f"path: expected a regular file or a new one, got {path}")
    if not target.name.rpartition(".")[0] and target.name.startswith("."):
        raise ValueError(f"path: expected a name before the suffix, got {path}")
    return target


def _check_utf8(what: str, text: str) -> None:
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
    if metadata.get("labels") is not None:
        _check_labels(metadata["labels"], metadata["num_classes"])
    return dict(metadata)


def _default_labels(num_classes: int) -> list[str] | None:
    if num_classes != 1000:
        return None
    return (files("pvt_ext") / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()


@contextmanager
def _torchscript_warnings_ignored() -> Iterator[None]:
    """Hide torch's notice that TorchScript is deprecated, which README's policy covers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..*deprecated")
        yield
