"""Tests that need a GPU: `make gpu-test`. Without one they are skipped, in one line per file.

``PVT_GPU_TEST_DEVICE=cpu`` runs those that any device can run there: a test of the tests.
"""

import os
import sys
from collections.abc import Iterator

import gpu as gpu_device
import pytest
import torch


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """No TF32, which PyTorch takes for convolutions, not for products, unless told otherwise."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """End the process once its CUDA context is broken: all later tests would fail alike.

    pytest-xdist starts another for them; without it they are not run.
    """
    report = yield
    if report.failed and gpu_device.DEVICE == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            if "PYTEST_XDIST_WORKER" not in os.environ:
                pytest.exit(f"CUDA cannot go on after {item.nodeid}: {error}", returncode=1)
            print(f"\n{item.nodeid}\n{report.longreprtext}", file=sys.stderr, flush=True)
            os._exit(1)
    return report


@pytest.fixture
def device() -> torch.device:
    return torch.device(gpu_device.DEVICE)


@pytest.fixture
def gpu() -> torch.device:
    """For what a CPU has no counterpart of."""
    if gpu_device.DEVICE != "cuda":
        pytest.skip("NOT TESTED: needs a GPU")
    return torch.device(gpu_device.DEVICE)
