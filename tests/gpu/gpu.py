"""Which device the tests of this folder use."""

import os

import pytest
import torch

DEVICE = os.environ.get("PVT_GPU_TEST_DEVICE", "cuda")


def skip_without_gpu() -> None:
    """Skip the test file that calls this, unless it can run."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("NOT TESTED: no GPU, or no CUDA build of torch", allow_module_level=True)
