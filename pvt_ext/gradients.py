"""Gradients of the operators of :mod:`pvt_ext.ops`: operators themselves, registered here.

They take what the forward pass took and compute the rest again: no probability matrix, no hidden
tensor is kept. A gradient that nobody needs is not computed. There is no second derivative.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# ---- shapes ----


def _like(x: Tensor, needed: bool) -> Tensor:
    return x.new_empty(x.shape if needed else (0,))


@torch.library.register_fake("pvt::sra_attention_backward")
def _(
    grad: Tensor,
    q: Tensor,
    kv: Tensor,
    num_heads: int,
    scale: float,
    need_q: bool,
    need_kv: bool,
) -> tuple[Tensor, Tensor]:
    torch._check(
        grad.shape == q.shape,
        lambda: f"sra_attention_backward: expected grad {list(q.shape)}, got {grad.shape}",
    )
    return _like(q, need_q), _like(kv, need_kv)


@torch.library.register_fake("pvt::spatial_reduction_backward")
def _(
    grad: Tensor,
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    sr_ratio: int,
    eps: float,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = (weight, bias, norm_weight, norm_weight)
    d_weight, d_bias, d_norm_weight, d_norm_bias = (_like(w, need_weights) for w in weights)
    return _like(x, need_x), d_weight, d_bias, d_norm_weight, d_norm_bias


@torch.library.register_fake("pvt::mlp_backward")
def _(
    grad: Tensor,
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch._check(
        grad.shape == x.shape,
        lambda: f"mlp_backward: expected grad {list(x.shape)}, got {grad.shape}",
    )
    d_fc1_weight, d_fc1_bias, d_fc2_weight = (
        _like(w, need_weights) for w in (fc1_weight, fc1_bias, fc2_weight)
    )
    d_fc2_bias = x.new_empty((fc2_weight.shape[0],) if need_weights else (0,))
    return _like(x, need_x), d_fc1_weight, d_fc1_bias, d_fc2_weight, d_fc2_bias


@torch.library.register_fake("pvt::dwconv_gelu_backward")
def _(
    grad: Tensor,
    x: Tensor,
    H: int,
    W: int,
    weight: Tensor,
    bias: Tensor,
    relu: bool,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    torch._check(
        grad.shape == x.shape,
        lambda: f"dwconv_gelu_backward: expected grad {list(x.shape)}, got {grad.shape}",
    )
    return _like(x, need_x), _like(weight, need_weights), _like(bias, need_weights)


# ---- autograd ----


def _register(
    name: str,
    setup_context: Callable[[Any, tuple[Any, ...], Tensor], None],
    backward: Callable[[Any, Tensor], tuple[Tensor | None, ...]],
) -> None:
    """Differentiate ``pvt::<name>`` by ``backward``, which calls ``pvt::<name>_backward``."""
    torch.library.register_autograd(f"pvt::{name}", backward, setup_context=setup_context)

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"pvt::{name} has no second derivative; create the model with fused=False "
            "to differentiate twice"
        )

    torch.library.register_autograd(f"pvt::{name}_backward", refuse)


def _wanted(grads: tuple[Tensor, ...], needed: tuple[bool, ...]) -> list[Tensor | None]:
    return [grad if need else None for grad, need in zip(grads, needed, strict=True)]


def _attention_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, kv, ctx.num_heads, ctx.scale = inputs
    ctx.save_for_backward(q, kv)


def _attention_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:2]
    grads = torch.ops.pvt.sra_attention_backward(
        grad, *ctx.saved_tensors, ctx.num_heads, ctx.scale, *needed
    )
    return (*_wanted(grads, needed), None, None)


def _reduction_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.H, ctx.W, weight, bias, norm_weight, _, ctx.sr_ratio, ctx.eps = inputs
    ctx.save_for_backward(x, weight, bias, norm_weight)


def _reduction_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, *weights = ctx.saved_tensors
    need_x, *need_weights = (ctx.needs_input_grad[i] for i in (0, 3, 4, 5, 6))
    grads = torch.ops.pvt.spatial_reduction_backward(
        grad, x, ctx.H, ctx.W, *weights, ctx.sr_ratio, ctx.eps, need_x, any(need_weights)
    )
    d_x, *d_weights = _wanted(grads, (need_x, *need_weights))
    return (d_x, None, None, *d_weights, None, None)


def _mlp_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])  # not the last bias


def _mlp_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    need_x, *need_weights = ctx.needs_input_grad
    grads = torch.ops.pvt.mlp_backward(grad, *ctx.saved_tensors, need_x, any(need_weights))
    return tuple(_wanted(grads, (need_x, *need_weights)))


def _dwconv_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.H, ctx.W, weight, bias, ctx.relu = inputs
    ctx.save_for_backward(x, weight, bias)


def _dwconv_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    need_x, *need_weights = (ctx.needs_input_grad[i] for i in (0, 3, 4))
    grads = torch.ops.pvt.dwconv_gelu_backward(
        grad, x, ctx.H, ctx.W, weight, bias, ctx.relu, need_x, any(need_weights)
    )
    d_x, d_weight, d_bias = _wanted(grads, (need_x, *need_weights))
    return d_x, None, None, d_weight, d_bias, None


_register("sra_attention", _attention_context, _attention_backward)
_register("spatial_reduction", _reduction_context, _reduction_backward)
_register("mlp", _mlp_context, _mlp_backward)
_register("dwconv_gelu", _dwconv_context, _dwconv_backward)


# ---- floating-point operations, those of what is computed again included ----


@register_flop_formula(torch.ops.pvt.sra_attention_backward)
def _(
    grad: list[int],
    q: list[int],
    kv: list[int],
    num_heads: int,
    scale: float,
    need_q: bool,
    need_kv: bool,
    **kwargs: Any,
) -> int:
    B, N, C = q
    products = 2 + int(need_q) + 2 * int(need_kv)  # scores, their gradients; dq; dk, dv
    return 2 * products * B * N * kv[1] * C


@register_flop_formula(torch.ops.pvt.spatial_reduction_backward)
def _(
    grad: list[int],
    x: list[int],
    H: int,
    W: int,
    weight: list[int],
    bias: list[int],
    norm_weight: list[int],
    sr_ratio: int,
    eps: float,
    need_x: bool,
    need_weights: bool,
    **kwargs: Any,
) -> int:
    B, _, C = x
    products = 1 + int(need_x) + int(need_weights)
    return 2 * products * B * grad[1] * C * C * sr_ratio**2


@register_flop_formula(torch.ops.pvt.mlp_backward)
def _(
    grad: list[int],
    x: list[int],
    fc1_weight: list[int],
    fc1_bias: list[int],
    fc2_weight: list[int],
    need_x: bool,
    need_weights: bool,
    **kwargs: Any,
) -> int:
    B, N, C = x
    products = 2 + int(need_x) + 2 * int(need_weights)
    return 2 * products * B * N * C * fc1_weight[0]


@register_flop_formula(torch.ops.pvt.dwconv_gelu_backward)
def _(
    grad: list[int],
    x: list[int],
    H: int,
    W: int,
    weight: list[int],
    bias: list[int],
    relu: bool,
    need_x: bool,
    need_weights: bool,
    **kwargs: Any,
) -> int:
    B, N, C = x
    return 2 * 9 * (1 + int(need_x) + int(need_weights)) * B * N * C
