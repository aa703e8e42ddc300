"""Read a checkpoint file, whatever wrote it, into named tensors: safely, and with one-line errors.

Pickled files are read with ``weights_only=True``, so none can run code.
"""

import argparse
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pvt_ext.download import check_file, damaged_entry


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """The contents of a ``.safetensors`` or pickled checkpoint, on the CPU.

    Raises:
        ValueError: there is no such file, or it holds no checkpoint, or its checksums do not fit
            (``.safetensors`` files and those of torch before 1.6 have none).
    """
    check_file(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    in_safetensors = path.suffix.lower() == ".safetensors"
    if not in_safetensors and zipfile.is_zipfile(path):
        _check_archive(path)
    try:
        if in_safetensors:
            return safetensors.torch.load_file(path)
        # Published training code stores its options, an argparse.Namespace, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling garbage can raise anything
        foreign = re.search(r"[Uu]nsupported .*GLOBAL (\S+)", str(error))
        if foreign:
            raise ValueError(
                f"{path}: holds Python objects ({foreign[1]}), which could run code and are not "
                "loaded; save the state_dict alone"
            ) from error
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0][:200]
        raise ValueError(
            f"{path}: not a checkpoint, or damaged ({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(checkpoint).__name__}")
    return checkpoint


class Recorded(NamedTuple):
    """What a ``.safetensors`` file of this library says about its model; None: it does not say."""

    variant: str | None = None
    img_size: tuple[int, int] | None = None  # that v1's positions are for
    preset: str | None = None
    labels: list[str] | None = None


def recorded(path: Path) -> Recorded:
    """What a file says about its model: nothing, unless it is a ``.safetensors`` file."""
    facts = recorded_metadata(path)
    size = re.fullmatch(r"(\d+)x(\d+)", facts.get("img_size", ""))
    return Recorded(
        facts.get("variant"),
        (int(size[1]), int(size[2])) if size else None,
        facts.get("preset"),
        _names(facts.get("labels", "")),
    )


def recorded_metadata(path: Path) -> dict[str, str]:
    """All that a ``.safetensors`` file says about itself; nothing for other files."""
    if path.suffix.lower() != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a checkpoint, or damaged ({error})") from error


def _names(text: str) -> list[str] | None:
    """A JSON list of names; None for anything else, which another library may have written."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return None
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if are_names else None


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.endswith("/constants.pkl") for name in archive.namelist())
        damaged = damaged_entry(path)
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path}: not a checkpoint, or damaged ({error})") from error
    if scripted:
        raise ValueError(f"{path}: expected weights, got an exported TorchScript model")
    if damaged is not None:
        raise ValueError(f"{path}: damaged (checksum of {damaged})")


def named_tensors(checkpoint: Mapping[str, Any], origin: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, or of what it holds under ``model`` or ``state_dict``.

    Raises:
        ValueError: there are none, or something else is among them.
    """
    for key in ("model", "state_dict"):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    others = [str(name) for name, value in checkpoint.items() if not isinstance(value, Tensor)]
    if others or not checkpoint:
        found = listing("entries that are no tensors", others) or "nothing"
        within = [str(name) for name, value in checkpoint.items() if isinstance(value, Mapping)]
        advice = f"; pass what is under {' or '.join(within)}" if within else ""
        raise ValueError(f"{origin}: expected a dict of tensors, got {found}{advice}")
    refuse(origin, "names that are no str", [repr(n) for n in checkpoint if not isinstance(n, str)])
    return dict(checkpoint)


def check_weights(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raise ValueError for tensors that cannot be weights; values are not looked at."""
    flaws = {name: _flaw(tensor) for name, tensor in tensors.items()}
    refuse(origin, "not real, dense numbers", [f"{n} ({why})" for n, why in flaws.items() if why])


def _flaw(tensor: Tensor) -> str | None:
    """Why ``tensor`` cannot be a weight, None if it can."""
    if tensor.is_meta:
        return "on the meta device"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "nested" if tensor.is_nested else f"layout {tensor.layout}"
    return None if tensor.is_floating_point() else f"dtype {tensor.dtype}"


def refuse(origin: str, what: str, names: Sequence[str]) -> None:
    """Raise ValueError, saying that nothing was loaded, if there are any ``names``."""
    if names:
        raise ValueError(f"{origin}: nothing was loaded: {listing(what, names)}")


def listing(what: str, names: Sequence[str], limit: int = 5) -> str:
    """``3 missing: a, b, c``; long lists end in a count; nothing for an empty list."""
    if not names:
        return ""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    shown = (name if name.isprintable() else repr(name) for name in names[:limit])  # one line
    return f"{len(names)} {what}: {', '.join(shown)}{more}"
