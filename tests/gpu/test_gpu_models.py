"""Exported and packed models on a GPU, against float64 and beside PyTorch in the same dtype."""

import threading

import cases
import pytest
import torch
from cuda_graph import captured
from gpu import skip_without_gpu

import pvt_ext
from pvt_ext.preprocess import Preprocess

skip_without_gpu()

MODELS = ["pvt_tiny", "pvt_small", "pvt_v2_b0", "pvt_v2_b2", "pvt_v2_b2_li", "pvt_nano"]


def plain(name, dtype, device):
    """The reference with the weights of model(name)."""
    torch.manual_seed(0)
    return pvt_ext.create_model(name, fused=False).eval().to(device, dtype)


def packed(name, dtype, device):
    torch.manual_seed(0)
    return pvt_ext.pack(pvt_ext.create_model(name).eval(), dtype).to(device)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(224, 224), (97, 161)], ids=str)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_in_16_bits(dtype, name, size, device):
    x = torch.randn(4, 3, *size, device=device)
    truth = plain(name, torch.float64, device)(x.double())
    eager = plain(name, dtype, device)(x.to(dtype))
    ours = packed(name, dtype, device)(x)
    assert ours.dtype == torch.float32
    error, eager_error = (cases.rms(out.double() - truth) for out in (ours, eager))
    assert error <= 1.5 * eager_error, (error / cases.rms(truth), eager_error / cases.rms(truth))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0"])
def test_other_dtypes_give_what_a_cpu_gives(name, dtype, device):
    model = packed(name, dtype, "cpu")
    x = torch.randn(2, 3, 96, 128)
    expected = model(x)
    out = model.to(device)(x.to(device)).cpu()
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2  # int8: not quantised there
    assert (out - expected).abs().max() <= tolerance * expected.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0"])
def test_model_file(name, device, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    pvt_ext.export_torchscript(pvt_ext.create_model(name).eval(), path, dtype="bf16")
    loaded = torch.jit.load(path, map_location=device)
    x = torch.randn(2, 3, 224, 224, device=device)
    assert torch.equal(loaded(x), packed(name, torch.bfloat16, device)(x))


@torch.inference_mode()
def test_preprocessing(device):
    """The pixels are those of a CPU; PyTorch divides by 255 on a GPU by multiplying."""
    preprocess = Preprocess("timm", (224, 224))
    image = torch.randint(0, 256, (480, 640, 3), dtype=torch.uint8)
    difference = preprocess(image.to(device)).cpu() - preprocess(image)
    assert difference.abs().max() < 1e-6


@torch.inference_mode()
def test_a_hundred_runs_give_the_same_bits(device):
    model = packed("pvt_tiny", torch.bfloat16, device)
    x = torch.randn(2, 3, 64, 96, device=device)
    first = model(x)
    for _ in range(100):
        assert torch.equal(model(x), first)


@torch.inference_mode()
def test_threads_with_streams_of_their_own(gpu):
    model = packed("pvt_tiny", torch.bfloat16, gpu)
    images = [torch.randn(2, 3, 64, 64 + 32 * i, device=gpu) for i in range(4)]
    expected = [model(x) for x in images]
    torch.cuda.synchronize()
    right = []

    def work(i):
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            right.append(all(torch.equal(model(images[i]), expected[i]) for _ in range(20)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * len(images)  # a thread that failed has said nothing


@torch.inference_mode()
@pytest.mark.parametrize("name", ["pvt_small", "pvt_v2_b0"])
def test_graph_replay(name, gpu):
    model = packed(name, torch.bfloat16, gpu)
    x, other = torch.randn(2, 2, 3, 224, 224, device=gpu)
    assert torch.equal(captured(model, x)(other), model(other))


@torch.inference_mode()
def test_memory_is_flat(gpu):
    model = packed("pvt_tiny", torch.bfloat16, gpu)
    sizes = torch.randint(2, 9, (60, 2), generator=torch.Generator().manual_seed(0)) * 32
    for H, W in sizes.tolist():
        model(torch.randn(1, 3, H, W, device=gpu))
    before = torch.cuda.memory_allocated()
    for H, W in sizes.tolist():
        model(torch.randn(1, 3, H, W, device=gpu))
    assert torch.cuda.memory_allocated() == before
