"""The operators that have kernels on a GPU, against their reference there and in float64."""

import os
import subprocess
import sys
from dataclasses import replace

import cases
import pytest
import torch
from cuda_graph import captured
from gpu import skip_without_gpu
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pvt_ext import block_ops, build_info, ops, reference

skip_without_gpu()

DTYPES = [torch.bfloat16, torch.float16]
CHANNELS = [32, 64, 128, 160, 256, 320, 512]
ROWS = [(1, 1), (1, 15), (2, 16), (3, 17), (1, 49), (7, 50), (2, 196), (1, 197), (1, 3136)]
KEYS = [1, 7, 8, 13, 16, 17, 49, 50, 63, 64, 65, 144, 250, 256, 257]
HEADS = [(32, 1), (64, 2), (64, 1), (128, 2), (160, 5), (256, 8), (320, 5), (512, 8)]
# sr_ratio and channels of each stage, v1's first
REDUCTIONS = [(8, 64), (4, 128), (2, 320), (0, 512), (8, 32), (4, 64), (2, 160), (0, 256)]
PATCHES = [(64, 128), (128, 320), (320, 512), (32, 64), (64, 160), (160, 256)]

IMAGES = [
    cases.PatchCase(2, 3, 224, 224, 64, 4, 4),
    cases.PatchCase(3, 3, 61, 47, 64, 7, 4, 3, position=False),
    cases.PatchCase(1, 3, 30, 97, 32, 7, 4, 3, position=False),
    cases.PatchCase(1, 1, 9, 5, 32, 3, 2, 1),
]
MLP = [
    *(cases.MlpBlockCase(B, N, 64, 512) for B, N in ROWS),
    *(cases.MlpBlockCase(2, 197, C, 4 * C) for C in CHANNELS),
    cases.MlpBlockCase(1, 17, 64, 100),
    cases.MlpBlockCase(1, 17, 70, 280),
]
CONV_MLP = [
    *(cases.ConvMlpCase(2, 14, 15, C, 4 * C) for C in CHANNELS),
    cases.ConvMlpCase(3, 1, 1, 64, 512),
    cases.ConvMlpCase(1, 1, 13, 64, 512),
    cases.ConvMlpCase(1, 9, 2, 64, 512),
    cases.ConvMlpCase(2, 7, 7, 64, 256, relu=True),
    cases.ConvMlpCase(2, 7, 7, 64, 100),
]
ATTENTION = [
    *(cases.AttentionBlockCase(B, N, 64, 1, 49) for B, N in ROWS),
    *(cases.AttentionBlockCase(2, 50, 64, 1, kv_len) for kv_len in KEYS),
    *(cases.AttentionBlockCase(3, 33, 320, 5, kv_len) for kv_len in KEYS),
    *(cases.AttentionBlockCase(2, 197, C, heads, 49) for C, heads in HEADS),
    cases.AttentionBlockCase(2, 50, 64, 1, 1000),
    cases.AttentionBlockCase(2, 50, 80, 2, 49),
]
REDUCTION = [
    *(cases.KvCase(2, 56 if R > 4 else 28, 29, C, R) for R, C in REDUCTIONS),
    *(cases.KvCase(3, max(R, 1), max(R, 1), C, R) for R, C in REDUCTIONS),
    cases.KvCase(1, 15, 17, 48, 3),
]
PATCH = [
    *(cases.PatchCase(2, C_in, 14, 28, C, 2, 2, tokens=True) for C_in, C in PATCHES),
    *(cases.PatchCase(1, C_in, 15, 9, C, 3, 2, 1, False, tokens=True) for C_in, C in PATCHES),
    *IMAGES,
    cases.PatchCase(2, 3, 64, 64, 48, 4, 4),
]
SRA = [
    *(cases.AttentionCase(B, N, 64, 1, 49) for B, N in ROWS),
    *(cases.AttentionCase(2, 50, 64, 1, kv_len) for kv_len in KEYS),
    *(cases.AttentionCase(3, 33, 96, 3, kv_len) for kv_len in KEYS),
    *(cases.AttentionCase(2, 197, C, heads, 49) for C, heads in HEADS),
    cases.AttentionCase(64, 3136, 64, 1, 49),
    cases.AttentionCase(2, 50, 64, 1, 1000),
    cases.AttentionCase(2, 50, 80, 2, 49),
]
SPATIAL = [
    *(cases.ReductionCase(2, 56 if R > 4 else 28, 29, C, R) for R, C in REDUCTIONS if R),
    *(cases.ReductionCase(3, R, R, C, R) for R, C in REDUCTIONS if R),
    cases.ReductionCase(64, 56, 56, 64, 8),
    cases.ReductionCase(1, 15, 17, 48, 3),
]
POOL = [
    *(cases.PoolCase(2, 14, 15, C, 7) for C in (64, 128, 320, 512)),
    cases.PoolCase(3, 56, 56, 64, 7),
    cases.PoolCase(1, 3, 4, 128, 7),
    cases.PoolCase(1, 25, 40, 64, 1),
    cases.PoolCase(2, 10, 11, 48, 7),
]
ALL = [
    *(("mlp_block_", case) for case in MLP),
    *(("conv_mlp_block_", case) for case in CONV_MLP),
    *(("attention_block_", case) for case in ATTENTION),
    *(("reduce_kv", case) for case in REDUCTION),
    *(("patch_embed", case) for case in PATCH),
    *(("pool_kv", case) for case in POOL),
    *(("sra_attention", case) for case in SRA),
    *(("spatial_reduction", case) for case in SPATIAL),
]
ONE_OF_EACH = [
    ("mlp_block_", cases.MlpBlockCase(2, 197, 64, 512)),
    ("conv_mlp_block_", cases.ConvMlpCase(2, 14, 15, 64, 512)),
    ("attention_block_", cases.AttentionBlockCase(2, 197, 64, 1, 49)),
    ("reduce_kv", cases.KvCase(2, 28, 28, 64, 4)),
    ("pool_kv", cases.PoolCase(2, 25, 40, 64, 7)),
    ("patch_embed", cases.PatchCase(2, 64, 28, 28, 128, 2, 2, tokens=True)),
    ("sra_attention", cases.AttentionCase(2, 197, 64, 1, 49)),
    ("spatial_reduction", cases.ReductionCase(2, 28, 28, 64, 4)),
]
# Kernels that none of those is: of images, of just enough rows for the wide ones, of few tokens.
OTHER_KERNELS = [
    ("patch_embed", IMAGES[-1]),
    ("mlp_block_", cases.MlpBlockCase(90, 196, 320, 128)),
    ("attention_block_", cases.AttentionBlockCase(2, 197, 320, 5, 49)),
]
# Enough to fill any GPU, which few rows run in other kernels than.
MANY_ROWS = [
    *(("mlp_block_", cases.MlpBlockCase(16, 3136, C, 4 * C)) for C in (32, 64, 128, 160, 256)),
    *(("mlp_block_", cases.MlpBlockCase(128, 196, C, 4 * C)) for C in (320, 512)),
    *(("conv_mlp_block_", cases.ConvMlpCase(12, 56, 57, C, 512)) for C in (32, 64, 128, 160)),
    *(("conv_mlp_block_", cases.ConvMlpCase(128, 14, 14, C, 1280)) for C in (256, 320, 512)),
    *(("reduce_kv", cases.KvCase(200, 7, 8, C, 0)) for C in (256, 512)),
    ("attention_block_", cases.AttentionBlockCase(16, 3136, 64, 1, 49)),
    ("attention_block_", cases.AttentionBlockCase(50, 785, 128, 2, 64)),
    ("attention_block_", cases.AttentionBlockCase(200, 196, 320, 5, 49)),
    ("attention_block_", cases.AttentionBlockCase(600, 50, 512, 8, 50)),
]
# The same of patches. Some blocks have all columns of theirs, and finish them.
MANY_PATCHES = [
    *(
        ("patch_embed", cases.PatchCase(40, C_in, 54, 56, C, 2, 2, tokens=True))
        for C_in, C in PATCHES
    ),
    *(
        ("reduce_kv", cases.KvCase(B, 7 * R, 7 * R + 1, C, R))
        for R, C in REDUCTIONS
        for B in (60, 200)
        if R
    ),
    *(("spatial_reduction", cases.ReductionCase(40, 56, 55, C, 2)) for C in (32, 64, 128, 160)),
]
# What a profiler calls the kernels of each.
KERNELS = {
    "mlp_block_": "linear_kernel",
    "conv_mlp_block_": "depthwise_kernel",
    "attention_block_": "attention_block_kernel",
    "reduce_kv": "linear_kernel",
    "pool_kv": "pool_kernel",
    "patch_embed": "convolve_kernel",
    "sra_attention": "sra_attention_kernel",
    "spatial_reduction": "convolve_kernel",
}


def on(device, inputs):
    # Strides stay: x of a patch embedding is a view of tokens.
    return [x.to(device) if isinstance(x, Tensor) else x for x in inputs]


def drawn(case, device, dtype=torch.bfloat16):
    """Inputs in one dtype, packed weights too."""
    packs = not isinstance(case, (cases.AttentionCase, cases.ReductionCase))
    return on(device, case.inputs(dtype, dtype) if packs else case.inputs(dtype))


def poison_free_memory(device):
    """What is allocated next holds NaN, so that a value that was never written is seen."""
    torch.full((1 << 24,), float("nan"), device=device)


def operator(name):
    return getattr(block_ops, name, None) or getattr(ops, name)


def run(name, inputs):
    inputs = list(inputs)
    if name.endswith("_"):
        inputs[0] = inputs[0].clone()
    return operator(name)(*inputs)


def kernels_of(name, inputs):
    run(name, inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(name, inputs)
        torch.cuda.synchronize()
    return [event.key for event in profile.key_averages()]


def check(name, inputs, device, factor=1.5):
    """The error is at most ``factor`` times that of the formula in the same dtype."""
    formula = getattr(reference, name.rstrip("_"))
    poison_free_memory(device)
    ours = run(name, inputs)
    torchs = formula(*inputs)
    truth = formula(*(cases.in_double(x) for x in inputs))
    assert ours.device == truth.device
    assert ours.dtype == torchs.dtype
    error, torch_error = (cases.rms(x.double() - truth) for x in (ours, torchs))
    eps = torch.finfo(ours.dtype).eps
    assert error <= factor * torch_error + eps / 4 * cases.rms(truth), (error, torch_error)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "case"), ALL, ids=str)
def test_matches_float64(name, case, dtype, device):
    check(name, drawn(case, device, dtype), device)


def kernel_of_many_rows(name, C):
    """What a profiler calls it; compute capability 9.0 multiplies in warpgroups."""
    warpgroups = torch.cuda.get_device_capability() == (9, 0) and C % 64 == 0
    if name == "mlp_block_" and C <= 256:
        return "mlp_warpgroup" if warpgroups and C <= 128 else "mlp_block"
    if name == "attention_block_":
        if not warpgroups:
            return "attention_block_kernel"
        return "attention_warpgroup_kernel" if C <= 320 else "sra_attention_kernel"
    if not warpgroups:
        return "streamed_linear_kernel"
    return "staying_linear_kernel" if name == "reduce_kv" else "passing_linear_kernel"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "case"), MANY_ROWS, ids=str)
def test_many_rows(name, case, dtype, gpu):
    inputs = drawn(case, gpu, dtype)
    check(name, inputs, gpu)
    names = kernels_of(name, inputs)
    few = ("::linear_kernel", "::split_linear_kernel", "::split_streamed_linear_kernel")
    assert not any(kernel in key for kernel in few for key in names), names
    expected = kernel_of_many_rows(name, case.C)
    assert any(expected in key for key in names), names


def are_patches_for_warpgroups(name, case):
    channels = {case.C, getattr(case, "C_in", case.C)}
    return (
        torch.cuda.get_device_capability() == (9, 0)
        and all(C % 64 == 0 for C in channels)
        and (name != "reduce_kv" or case.B >= 200)  # fewer do not fill an H100
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "case"), MANY_PATCHES, ids=str)
def test_many_patches(name, case, dtype, gpu):
    inputs = drawn(case, gpu, dtype)
    check(name, inputs, gpu)
    names = kernels_of(name, inputs)
    warpgroups = are_patches_for_warpgroups(name, case)
    if name == "reduce_kv":
        first, after, finishes = "reduce", "::linear_kernel", warpgroups
    else:
        first, after = "convolve", "patch_norm_kernel"
        most_columns = 320 if warpgroups else 160  # of a block
        finishes = most_columns >= case.C
    first = f"{first}_warpgroup_kernel" if warpgroups else "convolve_kernel"
    assert any(first in key for key in names), names
    assert any(after in key for key in names) != finishes, names


@pytest.mark.parametrize(("name", "case"), ONE_OF_EACH, ids=str)
def test_float32(name, case, device):
    """Through ATen, whose attention has its own float32: of three products in TF32 each."""
    check(name, drawn(case, device, torch.float32), device, factor=4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "case"), ONE_OF_EACH, ids=str)
def test_runs_its_own_kernel(name, case, dtype, gpu):
    assert build_info()["cuda_architectures"], "pvt_ext was built without CUDA kernels"
    names = kernels_of(name, drawn(case, gpu, dtype))
    assert any(KERNELS[name] in key for key in names), names


def has_kernel(case):
    """Whether docs/cuda.md says so."""
    if isinstance(case, cases.ReductionCase):
        return case.C in (32, 64, 128, 160, 320)
    return case.C // case.num_heads in (32, 64) and case.kv_len <= 256


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *(("sra_attention", case) for case in SRA),
        *(("spatial_reduction", case) for case in SPATIAL),
    ],
    ids=str,
)
def test_has_the_kernels_that_the_documentation_says(name, case, gpu):
    names = kernels_of(name, drawn(case, gpu))
    assert any(KERNELS[name] in key for key in names) == has_kernel(case), names


@pytest.mark.parametrize(
    ("case", "is_fused"),
    [
        (cases.AttentionBlockCase(2, 197, 128, 2, 49), True),
        (cases.AttentionBlockCase(2, 197, 320, 5, 49), False),
        (cases.AttentionBlockCase(2, 50, 512, 8, 256), False),
        (cases.AttentionBlockCase(2, 50, 512, 8, 257), True),
    ],
    ids=str,
)
def test_attention_of_few_tokens_is_three_kernels(case, is_fused, gpu):
    names = kernels_of("attention_block_", drawn(case, gpu))
    assert any("attention_block_kernel" in key for key in names) == is_fused, names
    others = ("sra_attention_kernel", "split_streamed_linear_kernel")  # q's is one of two
    assert is_fused or all(any(part in key for key in names) for part in others), names


def test_attention_of_many_tokens_is_three_kernels_where_there_are_warpgroups(gpu):
    case = cases.AttentionBlockCase(1024, 64, 320, 5, 65)  # one key more than one kernel takes
    names = kernels_of("attention_block_", drawn(case, gpu))
    is_fused = torch.cuda.get_device_capability() != (9, 0)
    assert any("attention_block_kernel" in key for key in names) == is_fused, names
    three = ("staying_linear_kernel", "sra_attention_kernel", "passing_linear_kernel")
    assert is_fused or all(any(part in key for key in names) for part in three), names


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", IMAGES, ids=str)
def test_an_image_has_its_own_kernel(case, dtype, gpu):
    names = kernels_of("patch_embed", drawn(case, gpu, dtype))
    assert any("image_embed_kernel" in key for key in names), names


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", IMAGES, ids=str)
def test_channels_last_changes_nothing(case, dtype, device):
    x, *rest = drawn(case, device, dtype)
    out = run("patch_embed", [x.contiguous(memory_format=torch.channels_last), *rest])
    assert torch.allclose(out, run("patch_embed", [x, *rest]), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("name", "case"), ONE_OF_EACH, ids=str)
def test_a_hundred_runs_give_the_same_bits(name, case, device):
    inputs = drawn(case, device)
    first = run(name, inputs)
    for _ in range(100):
        assert torch.equal(run(name, inputs), first)


def keep_busy(device):
    """What is called next is queued for some milliseconds, and then follows without a pause."""
    if device.type == "cuda":
        torch.cuda._sleep(20_000_000)


# A kernel may be launched while the one before it still runs.
@pytest.mark.parametrize(("name", "case"), [*ONE_OF_EACH, *OTHER_KERNELS], ids=str)
def test_what_was_just_written_is_read(name, case, device):
    inputs = drawn(case, device)
    new = [x * 1.25 if isinstance(x, Tensor) else x for x in inputs]
    expected = run(name, new)
    tensors = [(x, y) for x, y in zip(inputs, new, strict=True) if isinstance(x, Tensor)]
    keep_busy(device)
    results = []
    for i in range(20):
        for x, y in tensors if i % 2 == 0 else reversed(tensors):
            x.zero_()
            x.copy_(y)
        results.append(run(name, inputs))
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize(
    ("name", "case"),
    [pair for pair in ONE_OF_EACH + OTHER_KERNELS if pair[0].endswith("_")],
    ids=str,
)
def test_calls_that_follow_each_other_wait(name, case, gpu):
    inputs = drawn(case, gpu)
    results = []
    for wait in (torch.cuda.synchronize, lambda: None):
        x = inputs[0].clone()
        keep_busy(gpu)
        for _ in range(20):
            operator(name)(x, *inputs[1:])
            wait()
        results.append(x)
    assert torch.isfinite(results[0]).all()
    assert torch.equal(*results)


ATTEND = """
import torch
from pvt_ext import ops
q, kv = torch.load(r"{path}", weights_only=True)
torch.save(ops.sra_attention(q, kv, 1, 0.125), r"{path}")
"""


@pytest.mark.parametrize("value", ["0", "1", "2"])
def test_kernels_wait_to_be_launched_if_the_environment_says_so(value, gpu, tmp_path):
    path = tmp_path / "tensors.pt"
    inputs = [torch.randn(2, 50, C, device=gpu).bfloat16() for C in (64, 128)]
    torch.save(inputs, path)
    done = subprocess.run(
        [sys.executable, "-c", ATTEND.format(path=path)],
        env=os.environ | {"PVT_PDL": value},
        capture_output=True,
        text=True,
    )
    if value == "2" and torch.cuda.get_device_capability() >= (9, 0):
        assert "expected PVT_PDL to be 0 or 1 in the environment, got '2'" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert torch.equal(
            torch.load(path, weights_only=True), ops.sra_attention(*inputs, 1, 0.125)
        )


@pytest.mark.parametrize(("name", "case"), ONE_OF_EACH, ids=str)
def test_an_image_does_not_depend_on_its_batch(name, case, device):
    inputs = drawn(case, device)
    together = run(name, inputs)
    for b in range(case.B):
        alone = [
            x[b : b + 1] if isinstance(x, Tensor) and x.dim() > 1 and x.shape[0] == case.B else x
            for x in inputs
        ]
        assert torch.allclose(run(name, alone), together[b : b + 1], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("name", "case"), ONE_OF_EACH, ids=str)
def test_no_images(name, case, device):
    inputs = drawn(replace(case, B=0), device)
    assert run(name, inputs).shape[0] == 0


@pytest.mark.parametrize("layout", ["sliced", "every second"])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("reduce_kv", 0),
        ("attention_block_", 1),
        ("sra_attention", 0),
        ("sra_attention", 1),
        ("spatial_reduction", 0),
        ("spatial_reduction", 3),
    ],
)
def test_other_strides(name, argument, layout, device):
    case = dict(ONE_OF_EACH)[name]
    inputs = drawn(case, device)
    expected = run(name, inputs)
    inputs[argument] = cases.restrided(inputs[argument], layout)
    assert not inputs[argument].is_contiguous()
    assert torch.allclose(run(name, inputs), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("mlp_block_", 0),
        ("conv_mlp_block_", 0),
        ("attention_block_", 0),
        ("attention_block_", 1),
        ("sra_attention", 0),
        ("sra_attention", 1),
        ("spatial_reduction", 0),
        ("spatial_reduction", 3),
    ],
)
def test_an_odd_address(name, argument, device):
    """16-byte accesses are impossible; there is an answer, not an error."""
    inputs = drawn(dict(ONE_OF_EACH)[name], device)
    expected = run(name, inputs)
    x = inputs[argument]
    inputs[argument] = torch.empty(x.numel() + 1, dtype=x.dtype, device=device)[1:].view(x.shape)
    inputs[argument].copy_(x)
    out = operator(name)(*inputs)  # in place, where it is
    out = inputs[0] if name.endswith("_") else out
    assert torch.allclose(out, expected, rtol=2e-2, atol=2e-2)


def test_one_key_with_any_stride(device):
    """A stride that is never used need not be one of whole vectors."""
    wide = torch.randn(1, 1, 129, device=device).bfloat16()
    kv, q = wide[:, :, :128], torch.randn(1, 20, 64, device=device).bfloat16()
    assert torch.equal(ops.sra_attention(q, kv, 1, 0.125), kv[:, :, 64:].expand_as(q))


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("attention_block_", cases.AttentionBlockCase(2, 50, 64, 1, 144)),
        ("sra_attention", cases.AttentionCase(2, 50, 64, 1, 144)),
    ],
    ids=str,
)
def test_large_scores(name, case, device):
    x, kv, *rest = drawn(case, device)
    kv[..., :64] *= 60
    check(name, [x, kv, *rest], device)


@pytest.mark.parametrize("kv_len", [49, 200, 1000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_huge_scores(dtype, kv_len, device):
    q, keys = on(device, cases.huge_scores(2, 30, 64, kv_len, dtype))
    values = torch.randn_like(keys)
    # 1000 keys are PyTorch's to attend to, and cuDNN's softmax scales scores in a multiply-add.
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        out = ops.sra_attention(q, torch.cat([keys, values], dim=-1), 1, 0.125)
    assert torch.equal(out, values[:, :1].expand_as(q))


@pytest.mark.parametrize("scale", [0.0, -0.3, 1e-35])
@pytest.mark.parametrize("name", ["attention_block_", "sra_attention"])
def test_unusual_scales(name, scale, device):
    *inputs, _ = drawn(dict(ONE_OF_EACH)[name], device)
    check(name, [*inputs, scale], device)


@pytest.mark.parametrize(("name", "case"), [*ONE_OF_EACH, *OTHER_KERNELS], ids=str)
def test_tokens_without_variance(name, case, device):
    x, *rest = drawn(case, device)
    check(name, [torch.full_like(x, 3), *rest], device)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["mlp_block_", "attention_block_", "sra_attention"])
def test_a_bad_token_spoils_no_other(name, bad, device):
    x, *rest = drawn(dict(ONE_OF_EACH)[name], device)
    x[0, 5, 3] = bad
    out = run(name, [x, *rest])
    spoilt = out.isnan().any(dim=-1)
    assert spoilt[0, 5]
    assert spoilt.sum() == 1


def test_a_bad_token_spoils_the_keys_of_its_own_cell(device):
    x, *rest = drawn(cases.PoolCase(2, 14, 14, 64, 7), device)
    x[1, 17, 3] = float("nan")  # of the first cells' second row: cell 1 of row 0
    spoilt = run("pool_kv", [x, *rest]).isnan().any(dim=-1)
    assert spoilt[1, 1]
    assert spoilt.sum() == 1


@pytest.mark.parametrize(("name", "case"), ONE_OF_EACH, ids=str)
def test_two_streams_at_once(name, case, gpu):
    draws = [drawn(case, gpu) for _ in range(2)]
    expected = [run(name, inputs) for inputs in draws]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results = [[], []]
    for _ in range(20):
        for stream, inputs, outs in zip(streams, draws, results, strict=True):
            with torch.cuda.stream(stream):
                outs.append(run(name, inputs))
    torch.cuda.synchronize()
    for outs, one in zip(results, expected, strict=True):
        assert all(torch.equal(out, one) for out in outs)


@pytest.mark.parametrize(("name", "case"), ONE_OF_EACH, ids=str)
def test_graph_capture(name, case, gpu):
    """Captured on one set of inputs, replayed on another."""
    inputs, others = (drawn(case, gpu) for _ in range(2))
    replay = captured(lambda *inputs: run(name, inputs), *inputs)
    assert torch.equal(replay(*others), run(name, others))


@pytest.mark.parametrize(("name", "case"), ONE_OF_EACH, ids=str)
def test_another_device_than_the_current_one(name, case, gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("NOT TESTED: needs two GPUs")
    inputs = drawn(case, torch.device("cpu"))
    first, second = (run(name, on(torch.device("cuda", i), inputs)) for i in range(2))
    assert second.device.index == 1
    assert torch.cuda.current_device() == 0
    assert torch.equal(first.cpu(), second.cpu())


@pytest.mark.parametrize(("name", "case"), ONE_OF_EACH, ids=str)
def test_opcheck(name, case, device):
    """Schema, shape function and dispatch agree."""
    inputs = drawn(case, device)
    torch.library.opcheck(getattr(torch.ops.pvt, name).default, tuple(inputs))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("shape", "size", "crop"),
    [
        ((37, 53, 3), [24, 31], []),
        ((480, 640, 3), [256, 341], [16, 58, 224, 224]),
        ((400, 50, 1), [20, 60], [3, 4, 10, 50]),  # the vertical pass goes first
        ((20, 17, 4), [64, 96], []),
    ],
)
def test_resize_gives_the_values_of_a_cpu(shape, size, crop, interpolation, device):
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    expected = ops.resize(image, size, interpolation, crop)
    out = ops.resize(image.to(device), size, interpolation, crop)
    assert out.device.type == device.type
    assert torch.equal(out.cpu(), expected)
