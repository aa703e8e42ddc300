"""The operators against their reference: values, dtypes, strides, tracing, gradients, messages."""

from pathlib import Path

import cases
import pytest
import shapes
import torch
from hypothesis import given, settings
from running import (
    CPU_LEVELS,
    at_cpu_level,
    cpu_runs,
    in_a_process,
    same_bits_for_any_number_of_threads,
)
from torch import Tensor

from pvt_ext import ops, reference

ALL = [
    (getattr(ops, name), getattr(reference, name), case)
    for name, of_operator in cases.CASES.items()
    for case in of_operator
]
SMALL = [
    (ops.sra_attention, reference.sra_attention, cases.AttentionCase(2, 6, 8, 2, 5)),
    (ops.spatial_reduction, reference.spatial_reduction, cases.ReductionCase(2, 5, 4, 3, 2)),
    (ops.mlp, reference.mlp, cases.MlpCase(2, 6, 8, 20)),
    (ops.dwconv_gelu, reference.dwconv_gelu, cases.DepthwiseCase(2, 4, 5, 9, relu=True)),
]


def label(value: object) -> str:
    return getattr(value, "__name__", None) or str(value)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize(("op", "formula", "case"), ALL, ids=label)
def test_matches_reference(op, formula, case, dtype):
    cases.assert_as_exact(op, formula, case.inputs(dtype))


@pytest.mark.parametrize("kv_len", [5, 49, 300])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_huge_scores(dtype, kv_len):
    """Their rounding errors are far above 1, the weights are still 1 and 0."""
    q, keys = cases.huge_scores(2, 30, 64, kv_len, dtype)
    values = torch.randn_like(keys)
    kv = torch.cat([keys, values], dim=-1)
    for scale, chosen in ((0.125, values[:, :1]), (-0.125, values[:, -1:])):
        assert torch.equal(ops.sra_attention(q, kv, 1, scale), chosen.expand_as(q))
    mean = values.double().mean(dim=1, keepdim=True).expand_as(q)
    out = ops.sra_attention(q, kv, 1, 0.0)
    assert torch.allclose(out.double(), mean, atol=4 * torch.finfo(dtype).eps)


@settings(max_examples=60, deadline=None)
@given(case=shapes.attention(), dtype=shapes.dtypes)
def test_attention_any_shape(case, dtype):
    draws = (case.inputs(dtype) for _ in range(8))
    cases.assert_as_exact(ops.sra_attention, reference.sra_attention, *draws)


@settings(max_examples=60, deadline=None)
@given(case=shapes.reduction(), dtype=shapes.dtypes)
def test_reduction_any_shape(case, dtype):
    if case.B == 0:  # conv2d of an empty batch is refused by some PyTorch backends
        out = ops.spatial_reduction(*case.inputs(dtype))
        R = case.sr_ratio
        assert out.shape == (0, (case.H // R) * (case.W // R), case.C)
    else:
        draws = (case.inputs(dtype) for _ in range(8))
        cases.assert_as_exact(ops.spatial_reduction, reference.spatial_reduction, *draws)


@settings(max_examples=60, deadline=None)
@given(case=shapes.mlp, dtype=shapes.dtypes)
def test_mlp_any_shape(case, dtype):
    draws = (case.inputs(dtype) for _ in range(shapes.draws(case)))
    cases.assert_as_exact(ops.mlp, reference.mlp, *draws)


@settings(max_examples=60, deadline=None)
@given(case=shapes.depthwise, dtype=shapes.dtypes)
def test_dwconv_any_shape(case, dtype):
    draws = (case.inputs(dtype) for _ in range(shapes.draws(case)))
    cases.assert_as_exact(ops.dwconv_gelu, reference.dwconv_gelu, *draws)


SOME = [  # one of each operator, neither tiny nor slow
    (ops.sra_attention, reference.sra_attention, cases.ATTENTION[3]),
    (ops.spatial_reduction, reference.spatial_reduction, cases.REDUCTION[3]),
    (ops.mlp, reference.mlp, cases.MLP[3]),
    (ops.dwconv_gelu, reference.dwconv_gelu, cases.DEPTHWISE[3]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("op", "formula", "case"), SOME, ids=label)
@pytest.mark.parametrize("layout", ["sliced", "transposed", "every second", "expanded"])
def test_strided_inputs(op, formula, case, dtype, layout):
    inputs = [cases.restrided(x, layout) for x in case.inputs(dtype)]
    assert any(not x.is_contiguous() for x in inputs if isinstance(x, Tensor))
    cases.assert_as_exact(op, formula, inputs)


@pytest.mark.parametrize(("op", "formula", "case"), SMALL, ids=label)
def test_opcheck(op, formula, case):
    inputs = case.inputs(torch.float32)
    inputs = [x.requires_grad_() if isinstance(x, Tensor) else x for x in inputs]
    torch.library.opcheck(getattr(torch.ops.pvt, op.__name__).default, tuple(inputs))


def test_resize_opcheck():
    image = torch.randint(0, 256, (7, 9, 3), dtype=torch.uint8)
    for crop in ([], [1, 0, 3, 2]):
        torch.library.opcheck(torch.ops.pvt.resize.default, (image, [5, 4], "bicubic", crop))


@pytest.mark.parametrize(("op", "formula", "case"), SMALL, ids=label)
def test_meta_device_gives_the_shape(op, formula, case):
    inputs = case.inputs(torch.float32)
    on_meta = [x.to("meta") if isinstance(x, Tensor) else x for x in inputs]
    assert op(*on_meta).shape == op(*inputs).shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("op", "formula", "case"), SMALL, ids=label)
def test_autocast(op, formula, case, dtype):
    """Inputs of any mixture of dtypes run in the dtype of the region, as matrix products do."""
    inputs = list(case.inputs(torch.float32))
    expected = op(*[x.to(dtype) if isinstance(x, Tensor) else x for x in inputs])
    inputs[0] = inputs[0].to(torch.bfloat16 if dtype == torch.float16 else torch.float16)
    inputs[0].requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = op(*inputs)
    assert out.dtype == dtype
    if dtype == torch.bfloat16:  # float16 -> bfloat16 loses digits once, as in `expected`
        torch.testing.assert_close(out, expected, rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert inputs[0].grad.dtype == inputs[0].dtype


def test_scripted_calls_equal_eager():
    @torch.jit.script
    def scripted(q: Tensor, kv: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.ops.pvt.sra_attention(q, kv, 2, 0.5)
        return out, torch.ops.pvt.resize(image, [4, 5], "bilinear", [])

    q, kv, num_heads, _ = SMALL[0][2].inputs(torch.float32)
    image = torch.randint(0, 256, (9, 8, 3), dtype=torch.uint8)
    out, small = scripted(q, kv, image)
    assert torch.equal(out, ops.sra_attention(q, kv, num_heads, 0.5))
    assert torch.equal(small, ops.resize(image, [4, 5], "bilinear"))


@pytest.mark.parametrize(("op", "formula", "case"), [*ALL[2:4], *SOME[1:]], ids=label)
def test_same_bits_for_any_number_of_threads(op, formula, case):
    inputs = case.inputs(torch.float32)
    assert same_bits_for_any_number_of_threads(lambda: op(*inputs))


def test_batch_equals_single_bitwise():
    q, kv, num_heads, scale = cases.AttentionCase(3, 50, 64, 2, 49).inputs(torch.float32)
    single = [ops.sra_attention(q[i : i + 1], kv[i : i + 1], num_heads, scale) for i in range(3)]
    assert torch.equal(ops.sra_attention(q, kv, num_heads, scale), torch.cat(single))


@pytest.mark.parametrize("scale", [0.0, -0.5, 1e-20])
def test_any_scale(scale):
    q, kv, num_heads, _ = cases.AttentionCase(1, 9, 16, 2, 20).inputs(torch.float32)
    cases.assert_as_exact(ops.sra_attention, reference.sra_attention, (q, kv, num_heads, scale))


def test_a_block_of_keys_without_weight():
    """All scores of the first block are -inf; a later key is finite and gets all the weight."""
    q = torch.full((1, 1, 1), 2e38)
    kv = torch.stack([torch.full((600,), -1e3), torch.arange(600.0)], dim=-1)[None]
    kv[0, 590, 0] = 0.0
    assert ops.sra_attention(q, kv, 1, 1.0).item() == 590.0


def test_a_failed_allocation_leaves_a_working_operator():
    q, kv = torch.randn(1, 4, 8), torch.randn(1, 1, 16)
    expected = ops.sra_attention(q, kv, 2, 0.5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with pytest.raises(RuntimeError, match=r"^not enough memory: \d+ bytes"):
            ops.sra_attention(q, kv.expand(1, 2**44, 16), 2, 0.5)
        assert torch.equal(ops.sra_attention(q, kv, 2, 0.5), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_are_checked_while_tracing_too(device):
    with pytest.raises(RuntimeError, match=r"sra_attention: expected kv.*\[2, "):
        ops.sra_attention(
            torch.randn(2, 4, 8, device=device), torch.randn(2, 3, 7, device=device), 2, 0.5
        )
    vector = torch.zeros(4, device=device)
    weight = torch.zeros(4, 4, 2, 2, device=device)
    x = torch.zeros(1, 9, 4, device=device)
    with pytest.raises(RuntimeError, match=r"spatial_reduction: expected x.*\[1, 9, 4\]"):
        ops.spatial_reduction(x, 2, 4, weight, vector, vector, vector, 2, 1e-5)


def test_large_scores_do_not_overflow():
    q, kv, num_heads, scale = cases.AttentionCase(1, 2000, 32, 1, 600).inputs(torch.float32)
    cases.assert_as_exact(
        ops.sra_attention, reference.sra_attention, (q * 300, kv, num_heads, scale)
    )


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_stays_where_it_came_from(where):
    q, kv, num_heads, scale = cases.AttentionCase(1, 9, 32, 2, 20).inputs(torch.float32)
    if where == "q":
        q[0, 3, 5] = torch.nan
    else:
        kv[0, 7, 5 if where == "k" else 32 + 5] = torch.nan
    expected = reference.sra_attention(q, kv, num_heads, scale).isnan()
    assert expected.any()
    assert not expected.all()
    assert torch.equal(ops.sra_attention(q, kv, num_heads, scale).isnan(), expected)


def test_inputs_are_not_changed():
    for op, _, case in SMALL:
        inputs = case.inputs(torch.float32)
        copies = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        op(*inputs)
        for x, copy in zip(inputs, copies, strict=True):
            assert torch.equal(x, copy) if isinstance(x, Tensor) else x == copy


@pytest.mark.parametrize("level", CPU_LEVELS)
def test_every_cpu_level(level):
    at_cpu_level(level, "test_ops", "check_all_cases()")


def test_the_fastest_level_is_chosen():
    """Intel's instruction for bfloat16 is slower than multiplying floats."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if not cpu_runs("avx512_bf16"):
        pytest.skip("NOT TESTED: the choice between AVX-512 levels: no AVX-512 with bfloat16 here")
    slow_bf16 = "GenuineIntel" in info
    expected = "amx" if cpu_runs("amx") else "avx512_vnni" if slow_bf16 else "avx512_bf16"
    out = in_a_process("test_ops", "print_cpu_level()", PVT_CPU_LEVEL="")
    assert out.strip() == expected


def print_cpu_level() -> None:
    import pvt_ext

    print(pvt_ext.cpu_level())


def check_all_cases() -> None:
    import pvt_ext

    print(pvt_ext.cpu_level())
    for op, formula, case in ALL:
        for dtype in cases.DTYPES[:3]:
            torch.manual_seed(0)
            cases.assert_as_exact(op, formula, case.inputs(dtype))


def attention_with(**changes):
    q, kv, num_heads, scale = cases.AttentionCase(2, 6, 8, 2, 5).inputs(torch.float32)
    return lambda: ops.sra_attention(
        **{"q": q, "kv": kv, "num_heads": num_heads, "scale": scale} | changes
    )


def reduction_with(**changes):
    names = ("x", "H", "W", "weight", "bias", "norm_weight", "norm_bias", "sr_ratio", "eps")
    values = cases.ReductionCase(2, 4, 6, 3, 2).inputs(torch.float32)
    return lambda: ops.spatial_reduction(**dict(zip(names, values, strict=True)) | changes)


def mlp_with(**changes):
    names = ("x", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
    values = cases.MlpCase(2, 6, 8, 20).inputs(torch.float32)
    return lambda: ops.mlp(**dict(zip(names, values, strict=True)) | changes)


def dwconv_with(**changes):
    names = ("x", "H", "W", "weight", "bias", "relu")
    values = cases.DepthwiseCase(2, 4, 6, 3).inputs(torch.float32)
    return lambda: ops.dwconv_gelu(**dict(zip(names, values, strict=True)) | changes)


def resize_with(**changes):
    image = torch.zeros(5, 6, 3, dtype=torch.uint8)
    return lambda: ops.resize(**{"image": image, "size": [2, 3]} | changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (attention_with(q=torch.zeros(6, 8)), r"q of shape \[B, N, C\], got \[6, 8\]"),
        (attention_with(q=torch.zeros(2, 6, 8).int()), "q of dtype float32.*got Int"),
        (
            attention_with(kv=torch.zeros(2, 5, 8)),
            r"kv of shape \[2, kv_len, 16\] \(q is \[2, 6, 8\]\), got \[2, 5, 8\]",
        ),
        (attention_with(kv=torch.zeros(2, 0, 16)), "kv with at least one key"),
        (
            attention_with(kv=torch.zeros(2, 5, 16).half()),
            "kv of dtype float32 like q, got float16",
        ),
        (attention_with(num_heads=3), "num_heads to divide C = 8, got 3"),
        (attention_with(num_heads=0), "num_heads to divide C = 8, got 0"),
        (reduction_with(x=torch.zeros(2, 24)), r"x of shape \[B, H \* W, C\], got \[2, 24\]"),
        (reduction_with(H=5), r"with H = 5, W = 6, got \[2, 24, 3\]"),
        (reduction_with(H=2**33, W=2**33), r"with H = 8589934592, W = 8589934592"),
        (reduction_with(sr_ratio=0), "sr_ratio of at least 1, got 0"),
        (reduction_with(sr_ratio=5), r"a token grid of at least 5x5 \(sr_ratio\), got 4x6"),
        (reduction_with(sr_ratio=3), r"weight of shape \[3, 3, 3, 3\], got \[3, 3, 2, 2\]"),
        (reduction_with(bias=torch.zeros(2)), r"bias of shape \[3\], got \[2\]"),
        (reduction_with(norm_bias=torch.zeros(3).double()), "norm_bias of dtype float32 like x"),
        (mlp_with(x=torch.zeros(6, 8)), r"mlp: expected x of shape \[B, N, C\], got \[6, 8\]"),
        (mlp_with(x=torch.zeros(2, 6, 8).int()), "mlp: expected x of dtype float32.*got Int"),
        (mlp_with(fc1_weight=torch.zeros(20, 7)), r"fc1_weight of shape \[hidden, 8\], got"),
        (mlp_with(fc1_bias=torch.zeros(8)), r"fc1_bias of shape \[20\], got \[8\]"),
        (mlp_with(fc2_weight=torch.zeros(8, 8)), r"fc2_weight of shape \[8, 20\], got"),
        (mlp_with(fc2_bias=torch.zeros(20)), r"fc2_bias of shape \[8\], got \[20\]"),
        (mlp_with(fc2_bias=torch.zeros(8).half()), "fc2_bias of dtype float32 like x"),
        (dwconv_with(x=torch.zeros(24, 3)), r"dwconv_gelu: expected x of shape .*got \[24, 3\]"),
        (dwconv_with(H=5), r"dwconv_gelu: expected x .*with H = 5, W = 6, got \[2, 24, 3\]"),
        (dwconv_with(weight=torch.zeros(3, 3, 3)), r"weight of shape \[3, 1, 3, 3\], got"),
        (dwconv_with(bias=torch.zeros(4)), r"bias of shape \[3\], got \[4\]"),
        (dwconv_with(bias=torch.zeros(3).half()), "bias of dtype float32 like x, got float16"),
        (resize_with(image=torch.zeros(5, 6, 3)), "image of dtype uint8, got float32"),
        (resize_with(image=torch.zeros(5, 6, dtype=torch.uint8)), r"with 1 to 4 channels"),
        (resize_with(image=torch.zeros(0, 6, 3, dtype=torch.uint8)), r"got \[0, 6, 3\]"),
        (resize_with(size=[2]), "size as .height, width., got 1 values"),
        (resize_with(size=[2, 0]), r"size from 1 to \d+, got \[2, 0\]"),
        (resize_with(interpolation="nearest"), "'bicubic' or 'bilinear', got 'nearest'"),
        (resize_with(crop=[0, 0, 1]), "crop as .*got 3 values"),
        (resize_with(crop=[1, 0, 2, 3]), r"crop inside the resized image \[2, 3\]"),
    ],
)
def test_messages_name_argument_expectation_and_value(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
