"""Write a model as a package of compiled code (``.pt2``): torch.export, then AOTInductor.

The package holds a shared library that calls this library's operators through the dispatcher, its
weights, and ``extra/pvt.json``. The code between the operators (positions, norms between stages)
is compiled for the lowest processor of its architecture and for one thread: that costs little, the
operators choose their instructions when they run, and neither SIGILL nor a second OpenMP runtime
can come with the file. docs/export.md says what is portable and what is not.

A package is a program: loading one runs its code.
"""

import os
import platform
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvt_ext.model import PVT
from pvt_ext.model_file import (
    COMPILED,
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
    torch_version,
    writable,
)
from pvt_ext.preprocess import Preprocess

MIN_TORCH = (2, 13)  # the first whose AOTInductor can be told for which processors to compile
# What every processor of an architecture runs; elsewhere the compiler's own default is taken.
BASELINES = {"x86_64": "x86-64", "aarch64": "armv8-a"}
# Concurrent calls of one loaded package; they share its weights, more calls wait.
NUM_RUNNERS = os.cpu_count() or 1


def export_pt2(
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
    """Compile ``model`` in evaluation mode for CPUs like this one and write it to ``path``.

    The file is complete or absent, and ``model`` is not changed. Takes about half a minute and a
    C++ compiler.

    Args:
        model: a classifier for RGB images (``in_chans=3``) with ``fused=True``.
        path: usually ``<variant>.pt2``.
        preset, dtype, labels, weights_source, weights_sha256, seed, command: as in
            :func:`~pvt_ext.export.export_torchscript`.

    Returns:
        the contents of ``pvt.json``.

    Raises:
        ValueError: an argument cannot be exported as it is; nothing was written.
        RuntimeError: there is no C++ compiler, or the compilation failed.
    """
    path = writable(Path(path))
    check_model(model, dtype, labels)
    if dtype == "fp16":
        raise ValueError("dtype: packages are for the CPU, where fp16 has no kernels; take bf16")
    preprocess = Preprocess(preset, model.img_size)
    if not model.fused:
        raise ValueError("model: pt2 needs the fused operators, got a model with fused=False")
    _check_torch()
    network = packed_copy(model, dtype)
    check_answer(network, model)

    program = _export(network)
    operators = {
        str(node.target).removesuffix(".default").replace(".", "::")
        for node in program.graph.nodes
        if str(node.target).startswith("pvt.")
    }
    # The runtime calls pvt::resize for the preprocessing.
    operators.add("pvt::resize")
    origin = Origin(weights_source, weights_sha256, seed, command)
    metadata = describe(model, preprocess, dtype, labels, sorted(operators), origin)
    metadata["compiled"] = {
        "machine": platform.machine(),
        "device": "cpu",
        "min_size": [model.min_size, model.min_size],
    }
    _compile(program, path, metadata)
    return metadata


class Package:
    """A loaded package: called, it gives logits; :meth:`preprocess` makes its input."""

    def __init__(self, path: str | os.PathLike[str], metadata: dict[str, Any]) -> None:
        # Not torch._inductor.aoti_load_package: it warns whenever this processor has instructions
        # that the package was not compiled for, as is intended here.
        self._loader = torch._C._aoti.AOTIModelPackageLoader(
            os.fspath(path), "model", False, NUM_RUNNERS, -1
        )
        self._min_size = metadata["compiled"]["min_size"]
        fields = metadata["preprocess"]
        self._transform = Preprocess(fields["preset"], tuple(fields["crop"]))
        self._transform.mode, self._transform.resize = fields["mode"], fields["resize"]
        self._transform.mean, self._transform.std = fields["mean"], fields["std"]
        self._transform.interpolation = fields["interpolation"]

    def preprocess(self, image: Tensor) -> Tensor:
        """``uint8 [H, W, 3]``, RGB, to ``float32 [3, height, width]``."""
        return self._transform(image)

    def __call__(self, x: Tensor) -> Tensor:
        """``float32 [B, 3, H, W]`` to logits ``float32 [B, num_classes]``."""
        self._check_image(x)
        # The compiled code takes contiguous float32 for granted.
        x = x.detach().to("cpu", torch.float32).contiguous()
        # Below autograd, whose rules for our operators are in Python: a call that waits for the
        # interpreter while another one holds it and waits for a runner would never end.
        with torch._C._AutoDispatchBelowAutograd():
            (logits,) = self._loader.boxed_run([x])
        return logits

    def _check_image(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"PVT: expected an image batch [B, 3, H, W], got shape {x.shape}")
        height, width = self._min_size
        if x.shape[2] < height or x.shape[3] < width:
            raise ValueError(
                f"PVT: expected an image of at least {height} x {width}, "
                f"got {x.shape[2]} x {x.shape[3]}"
            )


def load_pt2(path: str | os.PathLike[str]) -> tuple[Package, dict[str, Any]]:
    """A package, ready to run on the CPU, and its metadata. This runs code that is in the file.

    Raises:
        ValueError: the file is not such a package, is damaged, was compiled for another
            architecture, or needs other operators or another torch than there are.
    """
    check_utf8("path", os.fspath(path))  # torch reads from no other
    metadata = read_metadata(path)
    if "compiled" not in metadata:
        raise ValueError(
            f"{path}: a TorchScript file, not a package; load it with load_torchscript"
        )
    check_loadable(Path(path), metadata)
    machine = metadata["compiled"]["machine"]
    if machine != platform.machine():
        raise ValueError(
            f"{path}: compiled for {machine}, this machine is {platform.machine()}; "
            "export it again on such a machine, or as TorchScript, which runs on any"
        )
    try:
        return Package(path, metadata), metadata
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path}: compiled with torch {metadata['torch']}, cannot be loaded by torch "
            f"{torch_version()} ({reason})"
        ) from error


def _check_torch() -> None:
    found = tuple(int(part) for part in torch_version().split(".")[:2])
    if found < MIN_TORCH:
        needed = ".".join(map(str, MIN_TORCH))
        raise ValueError(f"pt2: expected torch {needed} or newer to export, got {torch_version()}")
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise RuntimeError(
            "pt2: there is no C++ compiler; install one (apt-get install g++) or name it in CXX"
        ) from None


def _export(network: PVT) -> torch.export.ExportedProgram:
    from torch.export import Dim
    from torch.fx.experimental import _config

    # Not img_size itself, for which `Stage` would take its branch without resizing; at that size
    # resized positions are the table, exactly.
    height, width = network.img_size[0] + 64, network.img_size[1] + 96
    # Oblivious: a size of 1 is a size like any other.
    oblivious = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), oblivious, _warnings_ignored():
        return torch.export.export(
            network,
            (torch.zeros(2, 3, height, width),),
            dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},),
            strict=False,
        )


def _compile(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    from torch.export.pt2_archive._package import package_pt2

    with tempfile.TemporaryDirectory(prefix=".pvt-export-", dir=path.parent) as folder:
        options = {
            "aot_inductor.package": True,
            "aot_inductor.output_path": f"{folder}/code/",
            "cpp.march": BASELINES.get(platform.machine(), ""),
            "cpp.simdlen": 0,  # no vector types wider than the baseline's
            "cpp.threads": 1,
        }
        inputs, keywords = program.example_inputs
        code: Any
        with torch.no_grad(), _warnings_ignored():
            try:
                code = torch._inductor.aot_compile(
                    program.module(), inputs, keywords, options=options
                )
            except Exception as error:  # of the tracer, the compiler, the linker
                reason = str(error).strip().partition("\n")[0]
                raise RuntimeError(f"pt2: the compilation failed ({reason})") from error
            names = [file for file in code if isinstance(file, str)]
            library = next(Path(name) for name in names if name.endswith(".so"))
            metadata["compiled"]["library"] = f"{COMPILED}model/{library.name}"
            metadata["compiled"]["crc32"] = zlib.crc32(library.read_bytes())
            temporary = Path(folder) / f"{path.stem}.pt2"  # torch asks for this suffix
            extra = {METADATA: as_json(metadata)}
            package_pt2(temporary, aoti_files=code, extra_files=extra)
        os.replace(temporary, path)


@contextmanager
def _warnings_ignored() -> Iterator[None]:
    """Hide torch's notices about its own use of what it deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
