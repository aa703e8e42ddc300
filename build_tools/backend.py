"""Build backend: setuptools, with the torch of the installing environment in sight.

The operator library is compiled against torch's headers. Listing torch as a build requirement
would make pip download another one, of several GB and perhaps of another version. Under build
isolation pip hides the environment's packages, but the interpreter still knows where they are, so
their folder is put at the end of the path: everything isolated stays in front of it.
"""

import importlib.util
import site
import sys
import sysconfig
from pathlib import Path
from typing import Any

BUILD_TOOLS = (
    "building pvt_ext without isolation needs its build tools; "
    "run: pip install 'setuptools>=77' pybind11 ninja"
)

try:
    import setuptools
    from setuptools import build_meta
    from setuptools.build_meta import build_sdist, get_requires_for_build_sdist
except ModuleNotFoundError:
    sys.exit(BUILD_TOOLS)
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"{BUILD_TOOLS} (found setuptools {setuptools.__version__})")

__all__ = ["build_sdist", "get_requires_for_build_sdist"]

INSTALL_TORCH = (
    "pvt_ext is compiled against the installed torch (>= 2.10), and none was found here; "
    "run `pip install torch` first (with uv or build, also pass --no-build-isolation)"
)


def _installed_packages() -> list[str]:
    """Package folders of the environment that pip installs into."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    settings = Path(sys.prefix, "pyvenv.cfg")  # of a virtual environment
    if not settings.exists() or "include-system-site-packages = true" in settings.read_text():
        folders += [*site.getsitepackages([sys.base_prefix]), site.getusersitepackages()]
    return folders


def _find_torch() -> None:
    for folder in _installed_packages():
        if importlib.util.find_spec("torch") is not None:
            return
        if Path(folder, "torch").is_dir():
            sys.path.append(folder)
            importlib.invalidate_caches()
    if importlib.util.find_spec("torch") is None:
        sys.exit(INSTALL_TORCH)


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    _find_torch()
    return []


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    _find_torch()
    return []


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Any = None) -> str:
    _find_torch()
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: Any = None
) -> str:
    _find_torch()
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    _find_torch()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    _find_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
