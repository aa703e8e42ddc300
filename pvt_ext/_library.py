"""Finds and loads the operator library; every way this can fail ends in one sentence.

``pvt_ext/lib/libpvt_ops.so`` registers the operators ``torch.ops.pvt.*`` when it is loaded. It is
built on LibTorch's stable ABI: one file serves every torch from 2.10 on, C++ programs included.
``libpvt_ops_cuda.so``, where it was built, adds CUDA kernels to them; without it they run through
ATen on a GPU. ``pvt_ext._C`` is a small Python module beside them that says what was built.
"""

import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType

import torch

MIN_TORCH = (2, 10)
LIBRARY = Path(__file__).parent / "lib" / "libpvt_ops.so"
CUDA_LIBRARY = LIBRARY.with_name("libpvt_ops_cuda.so")
REBUILD = "pip install --force-reinstall --no-deps . (in the source tree of pvt_ext)"


def _record() -> dict[str, str]:
    """What the installed library was built with, readable even if the library is not."""
    try:
        return json.loads((LIBRARY.parent / "built_with.json").read_text())
    except (OSError, ValueError):
        return {}


def _built_with() -> str:
    built = _record()
    if not built.keys() >= {"version", "torch"}:
        return "pvt_ext was not built completely"
    return f"pvt_ext {built['version']} was built with torch {built['torch']}"


def check_torch_version(version: str) -> None:
    """Raise ImportError if ``version``, such as ``2.13.0+cpu``, is older than supported."""
    found = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if found < MIN_TORCH:
        needed = ".".join(map(str, MIN_TORCH))
        raise ImportError(
            f"{_built_with()} and needs torch >= {needed}, found torch {version}; "
            f"run: pip install --upgrade 'torch>={needed}'"
        )


def load() -> ModuleType:
    """Load the operator library and return the module ``pvt_ext._C``."""
    check_torch_version(torch.__version__)
    if not LIBRARY.is_file():
        if (LIBRARY.parents[2] / "csrc").is_dir():
            raise ImportError(
                f"{LIBRARY.parents[1]} is the source of pvt_ext, where it is not built; run: "
                f"pip install --editable {LIBRARY.parents[2]} (or start Python in another folder, "
                "if pvt_ext is installed)"
            )
        raise ImportError(f"{_built_with()}: {LIBRARY} is missing; run: {REBUILD}")
    try:
        torch.ops.load_library(LIBRARY)
        module = importlib.import_module("pvt_ext._C")
    except (OSError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ImportError(
            f"{_built_with()}, found torch {torch.__version__}, and its library does not load "
            f"({reason}); run: {REBUILD}"
        ) from None
    _load_cuda()
    return module


def _load_cuda() -> None:
    # A GPU need not be there: its kernels are looked for when one is used.
    if torch.version.cuda is None or not CUDA_LIBRARY.is_file():
        return
    # A driver that is enough for this torch may be too old for the runtime of a later CUDA.
    found, built = torch.version.cuda, _record().get("cuda", torch.version.cuda)
    reason = None
    if found.split(".")[0] != built.split(".")[0]:
        reason = f"they were built with CUDA {built}, and it is a build for CUDA {found}"
    else:
        try:
            torch.ops.load_library(CUDA_LIBRARY)
        except OSError as error:
            reason = str(error).splitlines()[0]
    if reason is not None:
        warnings.warn(
            f"the CUDA kernels of pvt_ext do not load beside torch {torch.__version__} ({reason}), "
            f"and its operators run through ATen on a GPU; run: {REBUILD}",
            stacklevel=3,
        )
