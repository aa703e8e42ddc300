"""Read weights into a model: all of them, or none and an error that lists what does not fit.

:func:`load_weights` reads the files of five libraries (:mod:`pvt_ext.formats`) and can be asked to
adapt them to another image size, other channels or other classes; :func:`save_weights` writes them
back; :func:`load_published` fetches the files that are published (:mod:`pvt_ext.published`).
"""

import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from pvt_ext.adapt import fit_channels, fit_cls_rows, fit_positions
from pvt_ext.backbone import Backbone, Pyramid
from pvt_ext.checkpoint import (
    listing,
    named_tensors,
    read_checkpoint,
    recorded,
    refuse,
)
from pvt_ext.download import DownloadError, check_file, download, file_sha256
from pvt_ext.formats import WRITERS, translate
from pvt_ext.published import PACKAGED, PUBLISHED, PublishedFile

ADAPTATIONS = ("positions", "in_chans", "num_classes")


class LoadReport(NamedTuple):
    """What :func:`load_weights` did. Names are this library's."""

    source: str  # path, or "state_dict"
    format: str  # official, timm, hf, mmdet or pvt_ext
    loaded: int  # tensors of the model that were filled
    adapted: tuple[str, ...]  # "name: what was done"
    missing: tuple[str, ...]  # in the model only, by permission: as they were
    unexpected: tuple[str, ...]  # in the file only, by permission: left out
    sha256: str | None  # of the file

    def __str__(self) -> str:
        parts = [
            f"{self.loaded} tensors loaded",
            listing("adapted", self.adapted),
            listing("not in the file", self.missing),
            listing("left out", self.unexpected),
        ]
        return f"{self.source} ({self.format}): {'; '.join(filter(None, parts))}"


def load_weights(
    model: Pyramid,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    adapt: str | Collection[str] = ("positions",),
    drop: str | Collection[str] = (),
    sha256: str | None = None,
) -> LoadReport:
    """Load every parameter of ``model`` from a file or a state_dict.

    Args:
        model: a PVT or a Backbone; receives the weights, keeps its dtype and device. A Backbone
            leaves out what it has no use for: head, class token, final norm, later stages.
        source: a ``.safetensors`` or pickled (``.pth``, ``.bin``, ...) file, or a state_dict, in
            the names of the authors, timm, Hugging Face, mmdetection or this library; also a
            training checkpoint that holds one under ``model`` or ``state_dict``, a detector's (of
            which the backbone is read), or names that all begin with ``module.`` or the like.
            Pickled files are read with ``weights_only=True``.
        adapt: what may be made to fit. ``"positions"``: position tables of another (square) image
            size are resized bilinearly, which gives the same output as resizing them in every
            forward pass. ``"in_chans"``: the first convolution is given other input channels: one
            channel gets the sum of the file's, another number takes them in turn, scaled by the
            ratio of the numbers. ``"num_classes"``: a head of another shape, or none, is left out,
            and the model keeps the one it has.
        drop: parts that need not match, in this library's names: a name, the beginning of names
            (``"stages.3"``, ``"head"``), or ``"cls_token"`` with its row in the position table.
            They are not loaded.
        sha256: expected digest of the file.

    Raises:
        ValueError: the file is no checkpoint, of no known format or has another digest, or any
            parameter is missing, unexpected, of another shape or without real, finite values. The
            model is then unchanged.
    """
    permitted, parts = _names("adapt", adapt), _names("drop", drop)
    if not permitted <= set(ADAPTATIONS):
        raise ValueError(f"adapt: expected some of {', '.join(ADAPTATIONS)}, got {adapt!r}")
    _check_model(model)
    wanted = model.state_dict()
    _check_writable(wanted)

    origin, digest, img_size = "state_dict", None, None
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        check_file(path)
        origin, digest = str(path), file_sha256(path)
        if sha256 is not None and digest != sha256.lower():
            raise ValueError(f"{path}: expected SHA-256 {sha256}, got {digest}")
        source, img_size = read_checkpoint(path), recorded(path).img_size
    elif not isinstance(source, Mapping):
        raise ValueError(f"source: expected a file or a state_dict, got {type(source).__name__}")
    elif sha256 is not None:
        raise ValueError("sha256: expected None, as a state_dict has no digest")

    format, given, outside = translate(named_tensors(source, origin), origin)
    _check_parts(parts, given, wanted)
    fit_cls_rows(given, model, not parts.isdisjoint({"cls_token", "stages.3.cls_token"}))
    missing = _take_parts(wanted, parts)
    unexpected = [*outside, *_take_parts(given, [*parts, *_unused_parts(given, model)])]
    adapted = []
    if "num_classes" in permitted and _differs("head.", given, wanted):
        missing += _take_parts(wanted, ["head"])
        unexpected += _take_parts(given, ["head"])
        adapted.append("head: as it was")
    if "in_chans" in permitted:
        adapted += fit_channels(given, wanted)
    if "positions" in permitted:
        adapted += fit_positions(given, model, img_size)
    _refuse_misfits(origin, format, model.variant, given, wanted)

    ready = _converted(given, wanted, origin)
    model.load_state_dict(ready, strict=False)
    return LoadReport(
        origin, format, len(ready), tuple(adapted), tuple(missing), tuple(unexpected), digest
    )


def save_weights(
    model: Pyramid,
    path: str | os.PathLike[str],
    *,
    format: str = "pvt_ext",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the weights of ``model`` as a state_dict, for this or another library.

    Args:
        model: a PVT or a Backbone that is not packed.
        path: ``.safetensors``, which also records ``img_size``, else a ``.pth`` file as
            ``torch.save`` writes it. A link is followed.
        format: ``"pvt_ext"``, ``"official"`` (the authors' names) or ``"timm"`` (v2 only).
        metadata: recorded in a ``.safetensors`` file besides ``img_size``; other files have none.

    Raises:
        ValueError: another format, or one that cannot hold this model.
    """
    if format not in WRITERS:
        raise ValueError(f"format: expected one of {', '.join(WRITERS)}, got {format!r}")
    _check_model(model)
    path = Path(os.path.realpath(path))
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ValueError(f"{path}: expected a file to write, but {what}")
    state = {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
    state = WRITERS[format](state)
    with tempfile.TemporaryDirectory(prefix=".pvt_ext", dir=path.parent) as folder:
        partial = Path(folder, path.name)  # complete or absent under its own name
        with partial.open("wb") as file:
            if path.suffix.lower() == ".safetensors":
                size = "x".join(map(str, model.img_size))
                facts = {**(metadata or {}), "format": "pt", "img_size": size}
                file.write(safetensors.torch.save(state, metadata=facts))
            else:
                torch.save(state, file)
        os.replace(partial, path)


def load_published(
    model: Pyramid,
    name: str,
    *,
    adapt: str | Collection[str] = ("positions",),
    drop: str | Collection[str] = (),
    progress: bool = True,
) -> LoadReport:
    """Download a published file (once) and load it.

    Args:
        model: as in :func:`load_weights`; of the variant that the file is for.
        name: a key of :data:`pvt_ext.published.PUBLISHED`, such as ``"official/pvt_small"``.
        adapt, drop: as in :func:`load_weights`.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: no such file is published, or it does not fit the model.
        DownloadError: the file could not be fetched, has changed, or is not what was published.
    """
    if name not in PUBLISHED:
        raise ValueError(f"no published file {name!r}; `pvt weights` and PUBLISHED list them")
    file = PUBLISHED[name]
    if model.variant and model.variant != file.variant:
        raise ValueError(f"{name} is for {file.variant}, not for {model.variant}")
    path = download(file.url, name=file.file_name, sha256=file.sha256, progress=progress)
    return load_weights(model, path, adapt=adapt, drop=drop)


def load_official(
    model: Pyramid, *, adapt: str | Collection[str] = ADAPTATIONS, progress: bool = True
) -> LoadReport:
    """Load the weights that come with ``model.variant``.

    Those are the authors' ImageNet-1k weights, downloaded once, or, for ``pvt_nano``, this
    library's CIFAR-10 weights, which are in the package.

    Args:
        model, adapt, progress: as in :func:`load_published`; by default, weights are adapted to
            the model's image size, channels and classes.

    Raises:
        ValueError: no weights are published for this variant.
        DownloadError: the file could not be fetched or has changed.
    """
    if model.variant in PACKAGED:
        return load_weights(model, PACKAGED[model.variant], adapt=adapt)
    name = f"official/{model.variant}"
    if name not in PUBLISHED:
        variants = [file.variant for key, file in PUBLISHED.items() if key.startswith("official/")]
        raise ValueError(
            f"no published weights for {model.variant or 'this model'}; "
            f"there are for {', '.join([*variants, *PACKAGED])}"
        )
    return load_published(model, name, adapt=adapt, progress=progress)


# ---- arguments ----


def _names(argument: str, names: str | Collection[str]) -> set[str]:
    given = [names] if isinstance(names, str) else names
    if not isinstance(given, Collection) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"{argument}: expected a str or several, got {names!r}")
    return set(given)


def _check_model(model: object) -> None:
    if not isinstance(model, Pyramid):
        inner = next((n for n in ("module", "_orig_mod", "model") if hasattr(model, n)), None)
        advice = f"; pass its .{inner}" if inner else ""
        got = type(model).__name__
        raise ValueError(f"model: expected a PVT or a Backbone, got {got}{advice}")
    if not any(True for _ in model.parameters()):
        raise ValueError("model: expected one that is not packed; use the one it was packed from")


def _check_writable(wanted: Mapping[str, Tensor]) -> None:
    if any(tensor.is_meta for tensor in wanted.values()):
        raise ValueError("model: expected one with memory for its weights, got the meta device")
    for name, tensor in wanted.items():
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"model: {name} was made in inference mode and cannot be written to")
        if torch._debug_has_internal_overlap(tensor) == 1:
            raise ValueError(f"model: {name} is expanded and cannot be written to")


def _check_parts(
    parts: Collection[str], given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    for part in parts:
        if not any(_belongs(name, part) for name in (*given, *wanted)):
            raise ValueError(
                f"drop: expected parts of the model or the file, in the model's names, got {part!r}"
            )


# ---- comparing ----


def _belongs(name: str, part: str) -> bool:
    return (
        name == part
        or name.startswith(part + ".")
        or (part == "cls_token" and name.endswith(".cls_token"))
    )


def _take_parts(tensors: dict[str, Tensor], parts: Collection[str]) -> list[str]:
    """Remove from ``tensors`` what belongs to one of ``parts``; the names."""
    taken = [name for name in tensors if any(_belongs(name, part) for part in parts)]
    for name in taken:
        del tensors[name]
    return taken


def _unused_parts(given: Mapping[str, Tensor], model: Pyramid) -> list[str]:
    """Parts of a classifier that a Backbone does without."""
    if not isinstance(model, Backbone):
        return []
    numbers = {name.split(".")[1] for name in given if name.startswith("stages.")}
    later = sorted(numbers - {str(i) for i in range(len(model.stages))})
    unused = ["head", *(f"stages.{number}" for number in later)]
    return unused if model.return_cls else [*unused, "cls_token", "norm"]


def _differs(part: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    def shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        return {n: t.shape for n, t in tensors.items() if n.startswith(part)}

    return shapes(given) != shapes(wanted)


def _refuse_misfits(
    origin: str,
    format: str,
    variant: str,
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
) -> None:
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    misshapen = [
        name for name in wanted if name in given and wanted[name].shape != given[name].shape
    ]
    if not (missing or unexpected or misshapen):
        return
    shapes = [
        f"{name} (expected {list(wanted[name].shape)}, got {list(given[name].shape)})"
        for name in misshapen
    ]
    problems = [
        listing("missing", missing),
        listing("unexpected", unexpected),
        listing("of another shape", shapes),
    ]
    wrong = {*missing, *unexpected, *misshapen}
    advice = ""
    if all(name.startswith("head.") for name in wrong):
        advice = "; adapt='num_classes' keeps the head that the model has"
    elif wrong == {"stages.0.patch_embed.proj.weight"}:
        advice = "; adapt='in_chans' makes other channels of it"
    raise ValueError(
        f"{origin} ({format} names) does not fit {variant or 'this model'}, nothing was loaded: "
        f"{'; '.join(filter(None, problems))}{advice}"
    )


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
    refuse(origin, "without finite values", broken)
    return ready


__all__ = [
    "ADAPTATIONS", "DownloadError", "LoadReport", "PublishedFile", "load_official",
    "load_published", "load_weights", "save_weights",
]  # fmt: skip
