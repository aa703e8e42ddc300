"""The C++ program on a GPU: $PVT_INFER, or what tools/gpu_test.sh built."""

import os

import gpu as gpu_device
import numpy as np
import pytest
from infer_program import PHOTO_FILES, ROOT, Infer
from models import mini

from pvt_ext.export import export_torchscript

gpu_device.skip_without_gpu()


@pytest.fixture(scope="module")
def infer(tmp_path_factory):
    # That of another folder may be linked against a CPU build of torch.
    folder = "gpu" if gpu_device.DEVICE == "cuda" else "*"
    built = sorted(ROOT.glob(f"build/{folder}/bin/pvt_infer"))
    program = os.environ.get("PVT_INFER") or (built[0] if built else None)
    if program is None:
        pytest.skip("NOT TESTED: pvt_infer is not built (tools/gpu_test.sh)")
    path = tmp_path_factory.mktemp("model") / "pvt_mini.pt"
    export_torchscript(mini(num_classes=10), path, dtype="bf16", weights_source="random")
    return Infer(program, path)


def logits(infer, tmp_path, *arguments):
    path = tmp_path / "logits.npy"
    infer("--device", gpu_device.DEVICE, "--logits", path, *arguments, *PHOTO_FILES)
    return np.load(path)


def test_the_same_photos_alone_and_in_batches(infer, tmp_path):
    alone = logits(infer, tmp_path)
    assert alone.shape == (len(PHOTO_FILES), 10)
    assert np.isfinite(alone).all()
    np.testing.assert_allclose(logits(infer, tmp_path, "--batch", 4), alone, atol=2e-2)


@pytest.mark.parametrize("batch", [1, 4])  # 4: the last batch is smaller, so there are two graphs
def test_cuda_graph_changes_nothing_but_the_time(infer, tmp_path, gpu, batch):
    assert len(PHOTO_FILES) % 4 != 0
    plain = logits(infer, tmp_path, "--batch", batch)
    assert np.array_equal(logits(infer, tmp_path, "--batch", batch, "--cuda-graph"), plain)
    repeated = logits(infer, tmp_path, "--batch", batch, "--cuda-graph", "--repeat", "5")
    assert np.array_equal(repeated, plain)
