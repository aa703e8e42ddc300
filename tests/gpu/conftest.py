"""Tests that need a GPU: `make gpu-test`. Without one they are skipped, in one line per file.

``PVT_GPU_TEST_DEVICE=cpu`` runs those that any device can run there: a test of the tests.
"""

import gpu as gpu_device
import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    return torch.device(gpu_device.DEVICE)


@pytest.fixture
def gpu() -> torch.device:
    """For what a CPU has no counterpart of."""
    if gpu_device.DEVICE != "cuda":
        pytest.skip("NOT TESTED: needs a GPU")
    return torch.device(gpu_device.DEVICE)
