"""Read weights into a model: all of them, or none and an error that lists what does not fit.

Published checkpoints and this library name the same tensors differently::

    published                     here
    patch_embed1.proj.weight      stages.0.patch_embed.proj.weight
    pos_embed1                    stages.0.pos_embed
    block1.0.attn.q.weight        stages.0.blocks.0.attn.q.weight
    block1.0.mlp.dwconv.dwconv.*  stages.0.blocks.0.mlp.dwconv.*     (v2)
    norm1.weight                  stages.0.norm.weight               (v2)
    cls_token                     stages.3.cls_token                 (v1)
    norm.weight, head.weight      the same
"""

import argparse
import math
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_ext.download import DownloadError, check_file, damaged_entry, download, file_sha256
from pvt_ext.model import PVT


class Published(NamedTuple):
    """A checkpoint of the authors: ImageNet-1k top-1 in percent, and size of the file."""

    top1: float
    megabytes: int
    sha256: str | None = None  # not published by the authors


URL = "https://github.com/whai362/PVT/releases/download/v2/{name}.pth"
PUBLISHED = {
    "pvt_tiny": Published(75.1, 51),
    "pvt_small": Published(79.8, 93),
    "pvt_medium": Published(81.2, 168),
    "pvt_large": Published(81.7, 234),
    "pvt_v2_b0": Published(70.5, 14),
    "pvt_v2_b1": Published(78.7, 54),
    "pvt_v2_b2": Published(82.0, 97),
    "pvt_v2_b2_li": Published(82.1, 86),
    "pvt_v2_b3": Published(83.1, 173),
    "pvt_v2_b4": Published(83.6, 239),
    "pvt_v2_b5": Published(83.8, 313),
}  # the authors give no file for pvt_huge_v2


class LoadReport(NamedTuple):
    """What :func:`load_weights` did."""

    source: str  # path, or "state_dict"
    tensors: int
    resized: tuple[str, ...]  # position tables that were made for another image size
    sha256: str | None  # of the file


# ---- names ----

_PARTS = {
    "patch_embed": "patch_embed",
    "pos_embed": "pos_embed",
    "block": "blocks",
    "norm": "norm",
}
_PUBLISHED_NAME = re.compile(r"(patch_embed|pos_embed|block|norm)([1-4])(\..+)?")
_LIBRARY_NAME = re.compile(r"stages\.([0-3])\.(patch_embed|pos_embed|blocks|norm)(\..+)?")
_WRAPPERS = re.compile(r"((module|_orig_mod)\.)+")  # DistributedDataParallel, torch.compile


def library_name(name: str) -> str:
    """Name here of a published parameter; any other name is returned as it is."""
    if name == "cls_token":
        return "stages.3.cls_token"
    match = _PUBLISHED_NAME.fullmatch(name)
    if match is None:
        return name
    part, stage, rest = match.groups(default="")
    rest = rest.replace(".mlp.dwconv.dwconv.", ".mlp.dwconv.")
    return f"stages.{int(stage) - 1}.{_PARTS[part]}{rest}"


def published_name(name: str) -> str:
    """The reverse of :func:`library_name`."""
    if name == "stages.3.cls_token":
        return "cls_token"
    match = _LIBRARY_NAME.fullmatch(name)
    if match is None:
        return name
    stage, part, rest = match.groups(default="")
    rest = rest.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv.")
    return f"{part.removesuffix('s')}{int(stage) + 1}{rest}"


# ---- loading ----


def load_weights(
    model: PVT, source: str | os.PathLike[str] | Mapping[str, Any], *, sha256: str | None = None
) -> LoadReport:
    """Load every parameter of ``model`` from a file or a state_dict.

    Args:
        model: receives the weights; keeps its dtype and device.
        source: a ``.pth`` or ``.safetensors`` file, or a state_dict, with the published names or
            those of this library; also a training checkpoint that holds one under ``model`` or
            ``state_dict``. A ``module.`` or ``_orig_mod.`` before every name is ignored. Pickled
            files are read with ``weights_only=True``.
        sha256: expected digest of the file.

    Position tables made for another (square) image size are resized bilinearly, which gives the
    same output as resizing them in every forward pass.

    Raises:
        ValueError: the file is no checkpoint or has another digest, or any parameter is missing,
            unexpected, of another shape or without real, finite values. The model is then
            unchanged.
    """
    digest = None
    if isinstance(source, Mapping):
        origin, checkpoint = "state_dict", source
    else:
        path = Path(source)
        origin = str(path)
        checkpoint = read_checkpoint(path)
        digest = file_sha256(path)
        if sha256 is not None and digest != sha256.lower():
            raise ValueError(f"{path}: expected SHA-256 {sha256}, got {digest}")

    given = _renamed(_unwrap(checkpoint, origin), origin)
    wanted = model.state_dict()
    if any(tensor.is_meta for tensor in wanted.values()):
        raise ValueError("model: expected one with memory for its weights, got the meta device")
    flaws = {name: _flaw(tensor) for name, tensor in given.items()}
    _refuse(origin, "not real, dense numbers", [f"{n} ({why})" for n, why in flaws.items() if why])
    resized = _resize_positions(given, model)
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    misshapen = [
        f"{name} (expected {list(wanted[name].shape)}, got {list(given[name].shape)})"
        for name in wanted
        if name in given and wanted[name].shape != given[name].shape
    ]
    if missing or unexpected or misshapen:
        problems = [
            _listing("missing", missing),
            _listing("unexpected", unexpected),
            _listing("of another shape", misshapen),
        ]
        advice = ""
        if not missing and not unexpected and all(x.startswith("head.") for x in misshapen):
            advice = "; to change the classes, load first, then call model.reset_classifier"
        raise ValueError(
            f"{origin} does not fit {model.variant or 'this model'}, nothing was loaded: "
            f"{'; '.join(filter(None, problems))}{advice}"
        )
    ready = _converted(given, wanted, origin)
    model.load_state_dict(ready)
    return LoadReport(origin, len(given), tuple(resized), digest)


def load_official(model: PVT, *, progress: bool = True) -> LoadReport:
    """Download the authors' ImageNet-1k weights of ``model.variant`` (once) and load them.

    Raises:
        ValueError: no weights are published for this variant, or they do not fit the model.
        DownloadError: the file could not be fetched or has changed.
    """
    name = model.variant
    if name not in PUBLISHED:
        raise ValueError(
            f"no published weights for {name or 'this model'}; there are for {', '.join(PUBLISHED)}"
        )
    return load_weights(model, download(URL.format(name=name), sha256=PUBLISHED[name].sha256,
                                        progress=progress))  # fmt: skip


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """The contents of a ``.safetensors`` or pickled checkpoint, on the CPU.

    Raises:
        ValueError: there is no such file, or it holds no checkpoint, or its checksums do not fit
            (``.safetensors`` files and those of torch before 1.6 have none).
    """
    check_file(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    if path.suffix != ".safetensors" and zipfile.is_zipfile(path):
        _check_archive(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # Published training code stores its options, an argparse.Namespace, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling garbage can raise anything
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"{path}: not a checkpoint, or damaged ({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(checkpoint).__name__}")
    return checkpoint


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


def _unwrap(checkpoint: Mapping[str, Any], origin: str) -> Mapping[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    others = [str(name) for name, value in checkpoint.items() if not isinstance(value, Tensor)]
    if others or not checkpoint:
        found = _listing("entries that are no tensors", others) or "nothing"
        raise ValueError(f"{origin}: expected a dict of tensors, got {found}")
    _refuse(
        origin, "names that are no str", [repr(n) for n in checkpoint if not isinstance(n, str)]
    )
    return checkpoint


def _renamed(checkpoint: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The tensors under this library's names, without what wrappers put before every name."""
    match = _WRAPPERS.match(next(iter(checkpoint)))
    prefix = match.group() if match else ""
    if not all(name.startswith(prefix) for name in checkpoint):
        prefix = ""
    given: dict[str, Tensor] = {}
    twice = []
    for name, tensor in checkpoint.items():
        ours = library_name(name.removeprefix(prefix))
        if ours in given:
            twice.append(ours)
        given[ours] = tensor
    _refuse(origin, "given under two names", twice)
    return given


def _flaw(tensor: Tensor) -> str | None:
    """Why ``tensor`` cannot be a weight, None if it can; its values are not looked at."""
    if tensor.is_meta:
        return "on the meta device"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "nested" if tensor.is_nested else f"layout {tensor.layout}"
    return None if tensor.is_floating_point() else f"dtype {tensor.dtype}"


def _converted(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str
) -> dict[str, Tensor]:
    """``given`` in the dtypes of ``wanted``, so that nothing is left to fail while copying."""
    ready, broken = {}, []
    for name, tensor in given.items():
        dtype = wanted[name].dtype
        try:
            ready[name] = tensor.detach().to(dtype)
            if not bool(torch.isfinite(ready[name]).all()):
                broken.append(f"{name} (NaN or infinite in {dtype})")
        except RuntimeError:
            broken.append(f"{name} ({tensor.dtype} cannot become {dtype})")
    _refuse(origin, "without finite values", broken)
    return ready


def _refuse(origin: str, what: str, names: Sequence[str]) -> None:
    if names:
        raise ValueError(f"{origin}: nothing was loaded: {_listing(what, names)}")


def _resize_positions(given: dict[str, Tensor], model: PVT) -> list[str]:
    """Fit square position tables in ``given`` to the grids of ``model``; names of those changed."""
    resized = []
    for name, table in model.state_dict().items():
        source = given.get(name)
        if not name.endswith(".pos_embed") or source is None or source.shape == table.shape:
            continue
        stage = model.get_submodule(name.removesuffix(".pos_embed"))
        num_cls = int(stage.cls_token is not None)
        H, W = int(stage.patch_embed.H), int(stage.patch_embed.W)  # type: ignore[union-attr,arg-type]
        fits = source.dim() == 3 and source.shape[0] == 1 and source.shape[2] == table.shape[2]
        side = math.isqrt(max(source.shape[1] - num_cls, 0)) if fits else 0
        if side == 0 or side * side + num_cls != source.shape[1]:
            continue  # reported as a mismatch
        grid = source[:, num_cls:].float().transpose(1, 2).unflatten(2, (side, side))
        grid = F.interpolate(grid, size=(H, W), mode="bilinear", align_corners=False)
        grid = grid.flatten(2).transpose(1, 2).to(source.dtype)
        given[name] = torch.cat((source[:, :num_cls], grid), dim=1)
        resized.append(name)
    return resized


def _listing(what: str, names: Sequence[str], limit: int = 5) -> str:
    """``3 missing: a, b, c``; long lists end in a count; nothing for an empty list."""
    if not names:
        return ""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    shown = (name if name.isprintable() else repr(name) for name in names[:limit])  # one line
    return f"{len(names)} {what}: {', '.join(shown)}{more}"


__all__ = [
    "PUBLISHED", "DownloadError", "LoadReport", "Published", "library_name", "load_official",
    "load_weights", "published_name", "read_checkpoint",
]  # fmt: skip
