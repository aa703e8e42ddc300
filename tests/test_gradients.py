"""Gradients of the operators against those of their references, and how PyTorch reaches them."""

import cases
import pytest
import shapes
import torch
from hypothesis import given, settings
from running import CPU_LEVELS, at_cpu_level, same_bits_for_any_number_of_threads
from test_ops import ALL, SMALL, SOME, label
from torch import Tensor

import pvt_ext
from pvt_ext import ops, reference

EACH = pytest.mark.parametrize(("op", "formula", "case"), SMALL, ids=label)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize(("op", "formula", "case"), ALL, ids=label)
def test_matches_reference(op, formula, case, dtype):
    draws = 1 if case.real else 32
    cases.assert_gradients_as_exact(op, formula, *(case.inputs(dtype) for _ in range(draws)))


@settings(max_examples=40, deadline=None)
@given(case=shapes.attention(), dtype=shapes.dtypes)
def test_attention_any_shape(case, dtype):
    draws = (case.inputs(dtype) for _ in range(8))
    cases.assert_gradients_as_exact(ops.sra_attention, reference.sra_attention, *draws)


@settings(max_examples=40, deadline=None)
@given(case=shapes.reduction(least_batch=1), dtype=shapes.dtypes)
def test_reduction_any_shape(case, dtype):
    draws = (case.inputs(dtype) for _ in range(8))
    cases.assert_gradients_as_exact(ops.spatial_reduction, reference.spatial_reduction, *draws)


@settings(max_examples=40, deadline=None)
@given(case=shapes.mlp, dtype=shapes.dtypes)
def test_mlp_any_shape(case, dtype):
    draws = (case.inputs(dtype) for _ in range(shapes.draws(case)))
    cases.assert_gradients_as_exact(ops.mlp, reference.mlp, *draws)


@settings(max_examples=40, deadline=None)
@given(case=shapes.depthwise, dtype=shapes.dtypes)
def test_dwconv_any_shape(case, dtype):
    draws = (case.inputs(dtype) for _ in range(shapes.draws(case)))
    cases.assert_gradients_as_exact(ops.dwconv_gelu, reference.dwconv_gelu, *draws)


def test_an_empty_batch():
    inputs = cases.ReductionCase(0, 5, 4, 3, 2).inputs(torch.float32)
    d_x, *d_weights = cases.gradients(ops.spatial_reduction, inputs)
    assert d_x.shape == inputs[0].shape
    assert all(not d.any() for d in d_weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("op", "formula", "case"), SOME, ids=label)
@pytest.mark.parametrize("layout", ["sliced", "transposed", "every second", "expanded"])
def test_strided_inputs(op, formula, case, dtype, layout):
    inputs = [cases.restrided(x, layout) for x in case.inputs(dtype)]
    cases.assert_gradients_as_exact(op, formula, inputs)


@EACH
@pytest.mark.parametrize("layout", ["sliced", "transposed", "every second", "expanded"])
def test_strided_gradient(op, formula, case, layout):
    inputs = [x.requires_grad_() if isinstance(x, Tensor) else x for x in case.inputs(torch.float)]
    out = op(*inputs)
    grad = cases.restrided(torch.randn_like(out), layout)
    wanted = [x for x in inputs if isinstance(x, Tensor)]
    strided = torch.autograd.grad(out, wanted, grad, retain_graph=True)
    for a, b in zip(strided, torch.autograd.grad(out, wanted, grad.contiguous()), strict=True):
        assert torch.equal(a, b)


@EACH
def test_gradcheck(op, formula, case):
    inputs = [x.requires_grad_() if isinstance(x, Tensor) else x for x in case.inputs(torch.double)]
    assert torch.autograd.gradcheck(op, inputs)


@EACH
def test_only_what_is_needed_is_computed(op, formula, case):
    """Of each input alone the gradient is the one among all; the operator is told what to omit."""
    inputs = case.inputs(torch.float32)
    everything = cases.gradients(op, inputs)
    tensors = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
    for place, expected in zip(tensors, everything, strict=True):
        inputs = [x.detach() if isinstance(x, Tensor) else x for x in inputs]
        inputs[place].requires_grad_()
        out = op(*inputs)
        generator = torch.Generator().manual_seed(1)
        grad = torch.randint(-16, 17, out.shape, generator=generator) / 8
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            out.backward(grad)
        assert torch.equal(inputs[place].grad, expected)
        assert counter.get_total_flops() < flops_of_all(op, case)


def flops_of_all(op, case) -> int:
    inputs = [x.requires_grad_() if isinstance(x, Tensor) else x for x in case.inputs(torch.float)]
    out = op(*inputs).sum()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        out.backward()
    return counter.get_total_flops()


@EACH
def test_second_derivative_is_refused(op, formula, case):
    inputs = [x.requires_grad_() if isinstance(x, Tensor) else x for x in case.inputs(torch.double)]
    (grad,) = torch.autograd.grad(op(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative; .* fused=False"):
        grad.sum().backward()


BACKWARD = [
    ("sra_attention_backward", cases.AttentionCase(2, 6, 8, 2, 5), slice(4)),
    ("spatial_reduction_backward", cases.ReductionCase(2, 5, 4, 3, 2), (0, 1, 2, 3, 4, 5, 7, 8)),
    ("mlp_backward", cases.MlpCase(2, 6, 8, 20), slice(4)),
    ("dwconv_gelu_backward", cases.DepthwiseCase(2, 4, 5, 9, relu=True), slice(6)),
]


@pytest.mark.parametrize(("name", "case", "arguments"), BACKWARD, ids=[b[0] for b in BACKWARD])
@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True), (False, False)])
def test_opcheck(name, case, arguments, needed):
    inputs = case.inputs(torch.float32)
    out = getattr(ops, name.removesuffix("_backward"))(*inputs)
    inputs = inputs[arguments] if isinstance(arguments, slice) else [inputs[i] for i in arguments]
    operator = getattr(torch.ops.pvt, name).default
    torch.library.opcheck(operator, (torch.randn_like(out), *inputs, *needed))


@pytest.mark.parametrize(("op", "formula", "case"), SOME, ids=label)
def test_same_bits_for_any_number_of_threads(op, formula, case):
    inputs = case.inputs(torch.float32)
    assert same_bits_for_any_number_of_threads(
        lambda: torch.cat([grad.flatten() for grad in cases.gradients(op, inputs)])
    )


@pytest.mark.parametrize("level", CPU_LEVELS)
def test_every_cpu_level(level):
    at_cpu_level(level, "test_gradients", "check_all_cases()")


def check_all_cases() -> None:
    print(pvt_ext.cpu_level())
    for op, formula, case in ALL:
        for dtype in cases.DTYPES[:3]:
            torch.manual_seed(0)
            draws = 1 if case.real else 32
            inputs = (case.inputs(dtype) for _ in range(draws))
            cases.assert_gradients_as_exact(op, formula, *inputs)


def test_training_keeps_neither_probabilities_nor_hidden_tensor():
    """What backward will need of an operator is what it was given."""
    kept = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.data_ptr())
        return x

    for op, _, case in SOME:
        inputs = [
            x.requires_grad_() if isinstance(x, Tensor) else x for x in case.inputs(torch.float)
        ]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            op(*inputs)
        assert kept
        assert set(kept) <= {x.data_ptr() for x in inputs if isinstance(x, Tensor)}
        kept.clear()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: torch.ops.pvt.sra_attention_backward(
                torch.zeros(2, 5, 8), torch.zeros(2, 6, 8), torch.zeros(2, 3, 16), 2, 0.5,
                True, True,
            ),
            r"sra_attention_backward: expected grad of shape \[2, 6, 8\], got \[2, 5, 8\]",
        ),
        (
            lambda: torch.ops.pvt.spatial_reduction_backward(
                torch.zeros(1, 4, 3).half(), torch.zeros(1, 16, 3), 4, 4, torch.zeros(3, 3, 2, 2),
                torch.zeros(3), torch.zeros(3), 2, 1e-5, True, True,
            ),
            "spatial_reduction_backward: expected grad of dtype float32 like x, got float16",
        ),
        (
            lambda: torch.ops.pvt.mlp_backward(
                torch.zeros(1, 4, 3), torch.zeros(1, 4, 3), torch.zeros(5, 3), torch.zeros(4),
                torch.zeros(3, 5), True, True,
            ),
            r"mlp_backward: expected fc1_bias of shape \[5\], got \[4\]",
        ),
        (
            lambda: torch.ops.pvt.dwconv_gelu_backward(
                torch.zeros(1, 5, 3), torch.zeros(1, 4, 3), 2, 2, torch.zeros(3, 1, 3, 3),
                torch.zeros(3), False, True, True,
            ),
            r"dwconv_gelu_backward: expected grad of shape \[1, 4, 3\], got \[1, 5, 3\]",
        ),
    ],
)  # fmt: skip
def test_messages_name_argument_expectation_and_value(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
