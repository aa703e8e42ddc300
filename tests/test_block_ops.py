"""The operators of a packed model against their reference."""

import random
import resource
import sys

import cases
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from running import (
    CPU_LEVELS,
    at_cpu_level,
    in_a_process,
    in_eight_threads,
    same_bits_for_any_number_of_threads,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pvt_ext import block_ops, reference

ALL = [(name, case) for name, of_operator in cases.BLOCK_CASES.items() for case in of_operator]
SMALL = [
    ("patch_embed", cases.PatchCase(2, 3, 9, 8, 20, 3, 2, 1)),
    ("reduce_kv", cases.KvCase(2, 5, 4, 6, 2)),
    ("reduce_kv", cases.KvCase(2, 5, 4, 6, 0)),
    ("pool_kv", cases.PoolCase(2, 5, 4, 6, 3)),
    ("attention_block_", cases.AttentionBlockCase(2, 6, 8, 2, 5)),
    ("mlp_block_", cases.MlpBlockCase(2, 6, 8, 20)),
    ("conv_mlp_block_", cases.ConvMlpCase(2, 3, 2, 8, 20)),
    ("head", cases.HeadCase(2, 8, 5)),
]


def run(name, inputs):
    """The operator's result; one that overwrites x is given a copy."""
    inputs = list(inputs)
    if name.endswith("_"):
        inputs[0] = inputs[0].clone()
    return getattr(block_ops, name)(*inputs)


def check(name, *draws):
    formula = getattr(reference, name.rstrip("_"))
    cases.assert_as_exact(lambda *inputs: run(name, inputs), formula, *draws)


def check_draws(name, case, dtypes):
    # A block of one input is quantised without any error, beside which that of GELU would count.
    assume(getattr(case, "hidden", 2) > 1 or dtypes[1] != torch.int8)
    torch.manual_seed(0)
    # Of one channel, every token is the same after its LayerNorm: one rounding error per draw.
    draws = 8 if case.C >= 8 else 64
    check(name, *(case.inputs(*dtypes) for _ in range(draws)))


@pytest.mark.parametrize("dtypes", cases.PACKED_DTYPES, ids=str)
@pytest.mark.parametrize(("name", "case"), ALL, ids=str)
def test_matches_reference(name, case, dtypes):
    check(name, case.inputs(*dtypes))


@pytest.mark.parametrize(
    ("name", "case"), [case for case in ALL if case[0] not in ("attention_block_", "head")], ids=str
)
def test_int8_is_quantised_as_the_reference_says(name, case):
    """But for values beside the middle between two integers, which may go either way. (Attention
    may fold its projections into keys and values, which are not quantised; the head is not.)"""
    inputs = case.inputs(weight=torch.int8)
    formula = getattr(reference, name.rstrip("_"))
    expected, truth = formula(*inputs), formula(*(cases.in_double(x) for x in inputs))
    noise = cases.rms(expected.double() - truth)
    assert cases.rms(run(name, inputs) - expected) < 0.3 * noise


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(0, 3),
    N=st.integers(0, 120),
    C=st.integers(1, 80),
    hidden=st.integers(1, 600),
    dtypes=st.sampled_from(cases.PACKED_DTYPES),
)
def test_mlp_any_shape(B, N, C, hidden, dtypes):
    check_draws(
        "mlp_block_", cases.MlpBlockCase(B, N, C, hidden, cases.well_conditioned(C)), dtypes
    )


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(0, 3),
    H=st.integers(1, 30),
    W=st.integers(1, 30),
    C=st.integers(1, 80),
    hidden=st.integers(1, 400),
    relu=st.booleans(),
    dtypes=st.sampled_from(cases.PACKED_DTYPES),
)
def test_conv_mlp_any_shape(B, H, W, C, hidden, relu, dtypes):
    case = cases.ConvMlpCase(B, H, W, C, hidden, relu, cases.well_conditioned(C))
    check_draws("conv_mlp_block_", case, dtypes)


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(0, 3),
    N=st.integers(0, 120),
    num_heads=st.integers(1, 4),
    head_dim=st.integers(1, 40),
    kv_len=st.integers(1, 140),
    dtypes=st.sampled_from(cases.PACKED_DTYPES),
)
def test_attention_any_shape(B, N, num_heads, head_dim, kv_len, dtypes):
    C = num_heads * head_dim
    case = cases.AttentionBlockCase(B, N, C, num_heads, kv_len, cases.well_conditioned(C))
    check_draws("attention_block_", case, dtypes)


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(1, 3),
    sr_ratio=st.integers(0, 5),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    C=st.integers(1, 70),
    dtypes=st.sampled_from(cases.PACKED_DTYPES),
)
def test_reduction_any_shape(B, sr_ratio, extra, C, dtypes):
    H, W = max(sr_ratio, 1) + extra[0], max(sr_ratio, 1) + extra[1]
    eps = cases.well_conditioned(C)
    check_draws("reduce_kv", cases.KvCase(B, H, W, C, sr_ratio, eps, eps), dtypes)


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(0, 3),
    H=st.integers(1, 30),
    W=st.integers(1, 30),
    C=st.integers(1, 70),
    pool_size=st.integers(1, 9),
    dtypes=st.sampled_from(cases.PACKED_DTYPES),
)
def test_pooling_any_shape(B, H, W, C, pool_size, dtypes):
    eps = cases.well_conditioned(C)
    check_draws("pool_kv", cases.PoolCase(B, H, W, C, pool_size, eps, eps), dtypes)


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(1, 3),
    C_in=st.integers(1, 70),
    C=st.integers(1, 70),
    kernel=st.integers(1, 7).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, k - 1))),
    stride=st.integers(1, 5),
    extra=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    tokens=st.booleans(),
    dtypes=st.sampled_from(cases.PACKED_DTYPES),
)
def test_patches_of_any_shape(B, C_in, C, kernel, stride, extra, tokens, dtypes):
    K, padding = kernel
    H, W = K + extra[0], K + extra[1]
    eps = cases.well_conditioned(C)
    case = cases.PatchCase(B, C_in, H, W, C, K, stride, padding, tokens=tokens, eps=eps)
    check_draws("patch_embed", case, dtypes)


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(0, 9),
    C=st.integers(1, 600),
    num_classes=st.integers(1, 100),
    dtypes=st.sampled_from(cases.PACKED_DTYPES),
)
def test_head_of_any_shape(B, C, num_classes, dtypes):
    check_draws("head", cases.HeadCase(B, C, num_classes), dtypes)


@pytest.mark.parametrize("dtypes", cases.PACKED, ids=str)
def test_strided_inputs(dtypes):
    x, *rest = cases.PatchCase(2, 6, 9, 8, 20, 3, 2, 1).inputs(*dtypes)
    check("patch_embed", (x.transpose(2, 3).contiguous().transpose(2, 3), *rest))
    check("patch_embed", (x[:1].expand(3, -1, -1, -1), *rest))
    x, kv, *rest = cases.AttentionBlockCase(2, 6, 8, 2, 5).inputs(*dtypes)
    check("attention_block_", (x, torch.cat([kv, kv], dim=-1)[..., 3 : 3 + kv.shape[2]], *rest))
    x, *rest = cases.PoolCase(2, 5, 4, 6, 3).inputs(*dtypes)
    check("pool_kv", (torch.cat([x, x], dim=-1)[..., 1:7], *rest))
    x, *rest = cases.KvCase(2, 5, 4, 6, 2).inputs(*dtypes)
    check("reduce_kv", (torch.cat([x, x], dim=-1)[..., 1:7], *rest))
    x, weight, bias = cases.HeadCase(4, 9, 30).inputs(*dtypes)
    check("head", (x.t().contiguous().t(), weight.t().contiguous().t(), bias.repeat(2)[::2]))


@pytest.mark.parametrize(("name", "case"), ALL, ids=str)
def test_float32_vectors_beside_bfloat16_tokens(name, case):
    inputs = [
        x.float() if isinstance(x, Tensor) and x.dim() == 1 else x
        for x in case.inputs(torch.bfloat16, torch.bfloat16)
    ]
    check(name, inputs)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [torch.float32, None], ids=["float32 tokens", "tokens alike"])
@pytest.mark.parametrize(("name", "case"), SMALL, ids=str)
def test_weights_of_another_grouping_are_accepted(name, case, tokens, weights):
    """What `.to(torch.bfloat16)` or `.half()` of a float32 file leaves: correct, if not fast."""

    def cast(inputs):
        is_packed = [isinstance(x, Tensor) and x.shape[2:] == (16, 1) for x in inputs]
        return [
            x if packed or tokens is None or not isinstance(x, Tensor) else x.to(tokens)
            for x, packed in zip(inputs, is_packed, strict=True)
        ]

    inputs = [x.to(weights) if isinstance(x, Tensor) else x for x in case.inputs()]
    cases.assert_as_exact(
        lambda *inputs: run(name, cast(inputs)).to(weights),
        getattr(reference, name.rstrip("_")),
        inputs,
    )


@pytest.mark.parametrize(("name", "case"), SMALL, ids=str)
def test_opcheck(name, case):
    torch.library.opcheck(getattr(torch.ops.pvt, name).default, case.inputs())


@pytest.mark.parametrize(("name", "case"), SMALL, ids=str)
def test_meta_device_gives_the_shape(name, case):
    inputs = case.inputs()
    on_meta = [x.to("meta") if isinstance(x, Tensor) else x for x in inputs]
    assert getattr(block_ops, name)(*on_meta).shape == run(name, inputs).shape


@pytest.mark.parametrize(("name", "case"), SMALL, ids=str)
def test_gradients_are_refused(name, case):
    inputs = list(case.inputs())
    inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match=rf"pvt::{name} has no gradient.*torch.no_grad"):
        getattr(block_ops, name)(*inputs)
    with torch.no_grad():
        assert not run(name, inputs).requires_grad


@pytest.mark.parametrize(("name", "case"), SMALL, ids=str)
def test_flops_are_those_of_the_reference(name, case):
    inputs = case.inputs()
    counts = []
    for call in (lambda: run(name, inputs), lambda: getattr(reference, name.rstrip("_"))(*inputs)):
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("dtypes", cases.PACKED, ids=str)
@pytest.mark.parametrize(("name", "case"), ALL, ids=str)
def test_same_bits_for_any_number_of_threads(name, case, dtypes):
    inputs = case.inputs(*dtypes)
    assert same_bits_for_any_number_of_threads(lambda: run(name, inputs))


@pytest.mark.parametrize("dtypes", cases.PACKED, ids=str)
@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("patch_embed", cases.PatchCase(5, 64, 14, 14, 128, 2, 2, tokens=True)),
        ("reduce_kv", cases.KvCase(5, 14, 14, 320, 2)),
        ("reduce_kv", cases.KvCase(5, 7, 7, 512, 0)),
        ("pool_kv", cases.PoolCase(5, 14, 14, 320, 7)),
        ("attention_block_", cases.AttentionBlockCase(5, 50, 512, 8, 50)),
        ("mlp_block_", cases.MlpBlockCase(5, 50, 512, 2048)),
        ("conv_mlp_block_", cases.ConvMlpCase(5, 14, 14, 64, 300)),
        ("conv_mlp_block_", cases.ConvMlpCase(5, 20, 14, 64, 300)),
        ("head", cases.HeadCase(5, 512, 1000)),
    ],
    ids=str,
)
def test_batch_equals_single_bitwise(name, case, dtypes):
    inputs = case.inputs(*dtypes)
    single = []
    for i in range(case.B):
        one = [x[i : i + 1] if isinstance(x, Tensor) and x is inputs[0] else x for x in inputs]
        if name == "attention_block_":
            one[1] = inputs[1][i : i + 1]
        single.append(run(name, one))
    assert torch.equal(run(name, inputs), torch.cat(single))


def test_threads_do_not_disturb_each_other():
    jobs = [(name, case.inputs()) for name, case in SMALL]
    expected = [run(name, inputs) for name, inputs in jobs]

    def work():
        for _ in range(30):
            for (name, inputs), truth in zip(jobs, expected, strict=True):
                assert torch.equal(run(name, inputs), truth)

    in_eight_threads(work)


def check_memory_is_flat() -> None:
    """1000 calls of random sizes: what is resident afterwards is what was after the first."""
    random.seed(0)

    def call(N):
        run("mlp_block_", cases.MlpBlockCase(1, N, 64, 256).inputs())
        run(
            "attention_block_",
            cases.AttentionBlockCase(1, N, 64, 2, 49).inputs(),
        )

    for _ in range(20):
        call(3000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        call(random.randint(1, 3000))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 4 * 1024, f"{grown} KB"


def check_all_cases() -> None:
    import pvt_ext

    print(pvt_ext.cpu_level())
    for name, case in ALL:
        for dtypes in cases.PACKED:
            torch.manual_seed(0)
            check(name, case.inputs(*dtypes))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory")
def test_memory_is_flat():
    in_a_process("test_block_ops", "check_memory_is_flat()")


@pytest.mark.parametrize("level", CPU_LEVELS)
def test_every_cpu_level(level):
    at_cpu_level(level, "test_block_ops", "check_all_cases()")


def with_changes(name, case, names, **changes):
    inputs = dict(zip(names.split(), case.inputs(), strict=True))
    return lambda: getattr(block_ops, name)(**inputs | changes)


def mlp_with(**changes):
    names = "x norm_weight norm_bias eps fc1_weight fc1_bias fc2_weight fc2_bias"
    return with_changes("mlp_block_", cases.MlpBlockCase(2, 6, 8, 20), names, **changes)


def attention_with(**changes):
    names = "x kv norm_weight norm_bias eps q_weight q_bias proj_weight proj_bias num_heads scale"
    return with_changes(
        "attention_block_", cases.AttentionBlockCase(2, 6, 8, 2, 5), names, **changes
    )


def kv_with(**changes):
    names = (
        "x H W norm_weight norm_bias eps sr_weight sr_bias sr_norm_weight sr_norm_bias sr_eps "
        "kv_weight kv_bias sr_ratio"
    )
    return with_changes("reduce_kv", cases.KvCase(2, 4, 6, 8, 2), names, **changes)


def pool_with(**changes):
    names = (
        "x H W norm_weight norm_bias eps pool_size sr_weight sr_bias sr_norm_weight sr_norm_bias "
        "sr_eps kv_weight kv_bias"
    )
    return with_changes("pool_kv", cases.PoolCase(2, 4, 6, 8, 3), names, **changes)


def conv_mlp_with(**changes):
    names = (
        "x H W norm_weight norm_bias eps fc1_weight fc1_bias relu dwconv_weight dwconv_bias "
        "fc2_weight fc2_bias"
    )
    return with_changes("conv_mlp_block_", cases.ConvMlpCase(2, 4, 6, 8, 20), names, **changes)


def patch_with(**changes):
    names = "x weight bias norm_weight norm_bias eps position kernel_size stride padding"
    return with_changes("patch_embed", cases.PatchCase(2, 3, 9, 8, 20, 3, 2, 1), names, **changes)


def head_with(**changes):
    return with_changes("head", cases.HeadCase(2, 8, 5), "x weight bias", **changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            mlp_with(x=torch.zeros(6, 8)),
            r"x of shape \[B, N, C\], got \[6, 8\]",
        ),
        (mlp_with(x=torch.zeros(8, 6, 2).transpose(0, 2)), "x contiguous"),
        (mlp_with(x=torch.zeros(2, 6, 8).int()), "x of dtype float32.*got Int"),
        (mlp_with(norm_bias=torch.zeros(7)), r"norm_bias of shape \[8\], got \[7\]"),
        (mlp_with(norm_bias=torch.zeros(8).half()), "norm_bias of dtype float32 or float32"),
        (mlp_with(fc1_weight=torch.zeros(20, 8)), r"fc1_weight packed .* got shape \[20, 8\]"),
        (
            mlp_with(fc1_weight=torch.zeros(2, 9, 16, 1)),
            r"packed from \[20, 8\], which is \[2, 8, 16, 1\], got \[2, 9, 16, 1\]",
        ),
        (
            mlp_with(fc2_weight=torch.zeros(1, 20, 16, 1).double()),
            "fc2_weight of dtype float32 like x, bfloat16, float16 or uint8 .*, got float64",
        ),
        (
            mlp_with(x=torch.zeros(2, 6, 8).double()),
            "x of dtype float32 like fc1_weight, got float64",
        ),
        (
            mlp_with(x=torch.zeros(2, 6, 8).half(), fc1_weight=torch.zeros(2, 4, 16, 2).bfloat16()),
            "x of dtype float32 or bfloat16 like fc1_weight, got float16",
        ),
        (
            mlp_with(x=torch.zeros(2, 6, 8).half(), fc1_weight=torch.zeros(2, 3, 16, 4).byte()),
            "x of dtype float32 beside an int8 fc1_weight, got float16",
        ),
        (attention_with(kv=torch.zeros(2, 0, 16)), "kv of shape .* at least one key"),
        (attention_with(kv=torch.zeros(1, 5, 16)), r"\[2, kv_len, 16\].*got \[1, 5, 16\]"),
        (attention_with(num_heads=3), "num_heads to divide C = 8, got 3"),
        (kv_with(H=5), r"with H = 5, W = 6, got \[2, 24, 8\]"),
        (kv_with(sr_ratio=7), "sr_ratio from 1 to the sides of the token grid 4x6, got 7"),
        (kv_with(sr_bias=None), "all of sr_weight, sr_bias, sr_norm_weight and sr_norm_bias"),
        (kv_with(sr_ratio=1), r"sr_weight packed from \[8, 8\]"),
        (pool_with(W=5), r"pool_kv.*with H = 4, W = 5, got \[2, 24, 8\]"),
        (pool_with(pool_size=0), "pool_size from 1 to 4096, got 0"),
        (pool_with(x=torch.zeros(24, 8)), r"x of shape \[B, H \* W, C\], got \[24, 8\]"),
        (conv_mlp_with(H=3), r"conv_mlp_block_.*with H = 3, W = 6, got \[2, 24, 8\]"),
        (
            conv_mlp_with(dwconv_weight=torch.zeros(20, 3, 3)),
            r"dwconv_weight of shape \[3, 3, 20\], got \[20, 3, 3\]",
        ),
        (conv_mlp_with(dwconv_bias=torch.zeros(8)), r"dwconv_bias of shape \[20\], got \[8\]"),
        (patch_with(x=torch.zeros(2, 3, 9)), r"x of shape \[B, C_in, H, W\], got \[2, 3, 9\]"),
        (patch_with(kernel_size=0), "kernel_size from 1 to 4096, got 0"),
        (patch_with(stride=0), "stride of at least 1, got 0"),
        (patch_with(padding=3), "padding from 0 to kernel_size - 1 = 2, got 3"),
        (patch_with(x=torch.zeros(2, 3, 0, 8)), "an input of at least 1x1 .*got 0x8"),
        (
            patch_with(position=torch.zeros(3, 20)),
            r"shape \[5 \* 4, 20\], got \[3, 20\]",
        ),
        (head_with(x=torch.zeros(2, 3, 8)), r"head: .*x of shape \[B, C\], got \[2, 3, 8\]"),
        (head_with(x=torch.zeros(2, 7)), r"weight of shape \[num_classes, 7\], got \[5, 8\]"),
        (head_with(weight=torch.zeros(5, 8).half()), "weight of dtype float32 like x, got float16"),
        (head_with(bias=torch.zeros(4)), r"bias of shape \[5\], got \[4\]"),
    ],
)
def test_messages_name_argument_expectation_and_value(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_are_checked_while_tracing_too(device):
    _, *rest = cases.MlpBlockCase(2, 6, 8, 20).inputs()
    rest = [r.to(device) if isinstance(r, Tensor) else r for r in rest]
    with pytest.raises(RuntimeError, match=r"expected fc1_weight packed from \[20, 9\]"):
        block_ops.mlp_block_(
            torch.zeros(2, 6, 9, device=device), *[torch.zeros(9, device=device)] * 2, *rest[2:]
        )
