"""Pyramid Vision Transformer with fused operators.

Three names to tell apart: the package is ``pvt_ext``, its operators are ``torch.ops.pvt.*``, and
they live in ``pvt_ext/lib/libpvt_ops.so``, a library without Python that importing this loads.
"""

from typing import Any

from pvt_ext import _library

_C = _library.load()

__version__: str = _C.version()


def ops_library() -> str:
    """Path of the operator library, for C++ programs and ``torch.ops.load_library``."""
    return str(_library.LIBRARY)


def ops_version() -> int:
    """Number raised whenever an operator's schema or meaning changes."""
    return int(_C.ops_version())


def cpu_level() -> str:
    """Instruction set of the CPU kernels in use.

    One of baseline, avx2, avx512, avx512_vnni, avx512_bf16 and amx. Chosen once from the processor;
    the environment variable ``PVT_CPU_LEVEL`` names another.
    """
    return str(_C.cpu_level())


def build_info() -> dict[str, Any]:
    """What the library was built with.

    Keys: version, ops_version, compiler, cpu_levels, cuda_architectures, torch.
    """
    return dict(_C.build_info())


# The operators have to be there before a module that uses them is scripted, hence the order.
from pvt_ext import block_ops, nn, ops  # noqa: E402
from pvt_ext.acceleration import Acceleration, accelerate, restore  # noqa: E402
from pvt_ext.backbone import Backbone, pad_images  # noqa: E402
from pvt_ext.inference import pack  # noqa: E402
from pvt_ext.model import PVT, create_backbone, create_model  # noqa: E402
from pvt_ext.preprocess import Preprocess, load_image  # noqa: E402

from pvt_ext.export import export_torchscript, load_torchscript  # noqa: E402  # isort: skip
from pvt_ext.exported import load_exported  # noqa: E402
from pvt_ext.onnx import export_onnx  # noqa: E402
from pvt_ext.pt2 import export_pt2, load_pt2  # noqa: E402
from pvt_ext.summary import summary  # noqa: E402
from pvt_ext.variants import list_models  # noqa: E402
from pvt_ext.weights import load_official, load_published, load_weights, save_weights  # noqa: E402

__all__ = [
    "PVT",
    "Acceleration",
    "Backbone",
    "Preprocess",
    "__version__",
    "accelerate",
    "block_ops",
    "build_info",
    "cpu_level",
    "create_backbone",
    "create_model",
    "export_onnx",
    "export_pt2",
    "export_torchscript",
    "list_models",
    "load_exported",
    "load_image",
    "load_official",
    "load_pt2",
    "load_published",
    "load_torchscript",
    "load_weights",
    "nn",
    "ops",
    "ops_library",
    "ops_version",
    "pack",
    "pad_images",
    "restore",
    "save_weights",
    "summary",
]
