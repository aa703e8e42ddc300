"""Our operators inside a model that exists already: :func:`accelerate` and :func:`restore`.

A swapped block keeps its class, its layers and its parameters; only its ``forward`` is shadowed by
an object that runs the operators of a packed block (:mod:`pvt_ext.inference`) wherever they answer
the same, and the block's own code everywhere else. Packed weights follow the parameters: whatever
PyTorch can tell about a change is looked at in every call, at about 30 microseconds a block.
"""

import contextlib
import functools
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sized
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from pvt_ext.foreign_blocks import (
    LOOKED_FOR,
    Call,
    UnlikeOurs,
    as_block,
    check_tensors,
    looks_like_block,
    try_out,
)
from pvt_ext.inference import PackedBlock
from pvt_ext.nn import HOOKS


@dataclass(frozen=True)
class Acceleration:
    """What :func:`accelerate` did; ``print`` it.

    Attributes:
        swapped: class of every block that was swapped, by its name in the model.
        left: class and reason of every block that was not.
        dtype: what the weights are packed in.
    """

    swapped: dict[str, str]
    left: dict[str, tuple[str, str]]
    dtype: torch.dtype

    def __str__(self) -> str:
        lines = [f"{_blocks(self.swapped)} swapped, weights packed in {self.dtype}"]
        lines += [f"  {n} x {kind}" for kind, n in Counter(self.swapped.values()).items()]
        lines.append(f"{_blocks(self.left)} left as before")
        for (kind, reason), n in Counter(self.left.values()).items():
            first = next(name for name, why in self.left.items() if why == (kind, reason))
            lines += [f"  {n} x {kind}, the first is {first or 'the model itself'}:"]
            lines += [f"    {reason}"]
        lines.append("all that is not a block (patch embeddings, norms, heads) is as it was")
        return "\n".join(lines)


def _blocks(found: Sized) -> str:
    return f"{len(found)} block{'' if len(found) == 1 else 's'}"


def accelerate(model: nn.Module, dtype: torch.dtype = torch.float32) -> Acceleration:
    """Swap the transformer blocks of ``model`` for our operators, in place.

    Blocks of PVT and SegFormer are recognised whoever wrote them: the authors, timm, transformers,
    ourselves. Each kind of block is tried on random tokens first and swapped only if it answers as
    the published block does. The model keeps its class, parameters and ``state_dict``; training and
    whatever else the operators cannot do (docs/accelerate.md) runs the block's own code.

    Args:
        model: any module that holds such blocks, in float32 on the CPU.
        dtype: of the packed weights, torch.float32, torch.bfloat16 or torch.int8, as in
            :func:`pvt_ext.pack`. Tokens are float32 in all.

    Returns:
        what was swapped, and what was left and why.

    Raises:
        ValueError: another dtype, or no block could be swapped; the model is as it was.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if dtype not in (torch.float32, torch.bfloat16, torch.int8):
        raise ValueError(
            f"dtype: expected torch.float32, torch.bfloat16 or torch.int8, got {dtype}"
        )
    forwards: dict[str, _Forward] = {}
    left: dict[str, tuple[str, str]] = {}
    trials: dict[_Description, Call | UnlikeOurs] = {}
    for name, block in model.named_modules():
        if looks_like_block(block):
            try:
                forwards[name] = _forward_for(block, dtype, trials)
            except UnlikeOurs as reason:
                left[name] = _class_name(block), str(reason)
    report = Acceleration({n: _class_name(f.block) for n, f in forwards.items()}, left, dtype)
    if not forwards:
        raise ValueError(
            f"model: expected {LOOKED_FOR}; got {_class_name(model)} with {_reason(model, left)}"
        )
    restore(model)
    for forward in forwards.values():
        forward.block.forward = forward
    return report


def _reason(model: nn.Module, left: dict[str, tuple[str, str]]) -> str:
    if not left:
        packed = any(isinstance(module, PackedBlock) for module in model.modules())
        return "blocks that are packed already" if packed else "none of them"
    name, (kind, reason) = next(iter(left.items()))
    return f"none that fits: {name or 'the model'} ({kind}): {reason}"


def restore(model: nn.Module) -> None:
    """Undo :func:`accelerate`. A model that is not accelerated stays as it is."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), _Forward):
            del module.forward


# A block's code and its settings, module by module.
_Description = tuple[tuple[Callable[..., Any], tuple[tuple[str, Any], ...]], ...]


def _describe(block: nn.Module) -> _Description:
    return tuple(
        (type(m).forward, (*_settings(m).items(), ("config", _attention(m.__dict__.get("config")))))
        for m in block.modules()
    )


def _settings(module: nn.Module) -> dict[str, Any]:
    """Numbers, flags, functions and the like that a module's code may read."""
    return {
        name: value
        for name, value in module.__dict__.items()
        if name not in ("training", "forward") and not name.startswith("_") and _is_plain(value)
    }


def _attention(config: object) -> object:
    """The name by which transformers looks its attention function up."""
    return getattr(config, "_attn_implementation", None)


def _is_plain(value: object) -> bool:
    if type(value) is tuple:
        return all(_is_plain(part) for part in value)
    return type(value) in (bool, int, float, str, FunctionType)


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _forward_for(
    block: nn.Module, dtype: torch.dtype, trials: dict[_Description, Call | UnlikeOurs]
) -> "_Forward":
    for name, module in block.named_modules():
        forward = module.__dict__.get("forward")
        if forward is not None and not isinstance(forward, _Forward):
            raise UnlikeOurs(f"{name or 'its'} forward was replaced: {type(forward).__name__}")
    check_tensors(block)
    as_block(block)
    description = _describe(block)
    if description not in trials:
        try:
            trials[description] = try_out(block)
        except UnlikeOurs as reason:
            trials[description] = reason
    call = trials[description]
    if isinstance(call, UnlikeOurs):
        raise call
    return _Forward(block, dtype, call, description)


# What transformers hands down to blocks that take any keyword and do not read it.
_ASKED_OF_THE_MODEL = ("output_hidden_states", "return_dict")


class _Forward:
    """Shadows a block's ``forward``. Copies and pickles with the block, without packed weights."""

    def __init__(
        self, block: nn.Module, dtype: torch.dtype, call: Call, description: _Description
    ) -> None:
        self.block = block
        self.dtype = dtype
        self.call = call
        self.description = description
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("packed", "packing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Replaced as a whole, so that other threads see either nothing or all of it.
        self.packed: _Packed | None = None
        self.packing = threading.Lock()
        _watch_fused_optimizers()

    def __getattr__(self, name: str) -> Any:
        if name == "__globals__":  # which torch.jit.script asks for first
            raise AttributeError(
                "torch.jit.script cannot compile an accelerated block: pvt_ext.restore(model) first"
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            answer = self._operators(args, kwargs)
            if answer is not None:
                return (answer,) if self.call.gives_tuple else answer
        return type(self.block).forward(self.block, *args, **kwargs)

    def _operators(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """What the operators answer; None where they do not apply."""
        if self.block.training or _is_observed():
            return None
        tokens = self._read(args, kwargs)
        if tokens is None:
            return None
        x, H, W = tokens
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *self.block.parameters())):
            return None
        packed = self._packed()
        if packed is None or not packed.accepts(x, H, W):
            return None
        return packed.block(x.clone(memory_format=torch.contiguous_format), H, W)

    def _read(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, int, int] | None:
        """Tokens and grid, if the call has them and asks for nothing else."""
        given = dict(zip(self.call.names, args, strict=False)) | kwargs
        if len(given) != len(args) + len(kwargs):
            return None
        x = given.pop(self.call.names[0], None)
        if self.call.size_in_one:
            size = given.pop(self.call.names[1], None)
            H, W = size if isinstance(size, tuple | list) and len(size) == 2 else (None, None)
        else:
            H, W = (given.pop(name, None) for name in self.call.names[1:3])
        for name in _ASKED_OF_THE_MODEL:
            if name not in self.call.names:
                given.pop(name, None)
        asked = any(value is not None and value is not False for value in given.values())
        if asked or type(H) is not int or type(W) is not int:
            return None
        if type(x) is not Tensor or x.layout is not torch.strided or x.device.type != "cpu":
            return None
        return None if x.dtype != torch.float32 or x.dim() != 3 or x.numel() == 0 else (x, H, W)

    def _packed(self) -> "_Packed | None":
        packed = self.packed
        if packed is None or not packed.is_current():
            packed = self._pack()
        return packed if packed is not None and packed.is_quiet() else None

    def _pack(self) -> "_Packed | None":
        with self.packing:
            if self.packed is None or not self.packed.is_current():  # else another thread was first
                self.packed = None
                if _describe(self.block) == self.description:
                    with contextlib.suppress(UnlikeOurs):
                        self.packed = _Packed(self.block, self.dtype)
            return self.packed


class _Packed:
    """A block's packed weights, and what they were made from.

    Everything they were made from is held, so that no other object and no other weights can come to
    lie at its address.
    """

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        check_tensors(block)
        modules = list(block.modules())
        self.within = modules[1:]
        self.modules = [(m, type(m), type(m).forward, [*m._modules.values()]) for m in modules]
        self.settings = [(m.__dict__, k, v) for m in modules for k, v in _settings(m).items()]
        self.attentions = [(c, _attention(c)) for m in modules if (c := m.__dict__.get("config"))]
        self.absent = [
            (m._parameters, k) for m in modules for k, p in m._parameters.items() if p is None
        ]
        # Before the weights are read: a change meanwhile is then noticed in the next call.
        self.parameters = [
            (m._parameters, k, p, p._version, p.data_ptr(), p.untyped_storage())
            for m in modules
            for k, p in m._parameters.items()
            if p is not None
        ]
        with torch.inference_mode(False), torch.no_grad():
            ours = as_block(block)
            self.block = PackedBlock(ours, dtype).eval()
        self.channels = ours.attn.dim
        self.on_grid = ours.attn.sr is not None or ours.mlp.dwconv is not None
        self.smallest = 1 if ours.attn.linear else ours.attn.sr_ratio
        self.stepped = False  # by a fused optimizer
        with _packings_lock:
            _packings.add(self)

    def is_current(self) -> bool:
        """Whether the block is as it was packed."""
        return (
            not self.stepped
            and all(
                owner.get(name) is p and p._version == version and p.data_ptr() == address
                for owner, name, p, version, address, _ in self.parameters
            )
            and all(owner.get(name) is None for owner, name in self.absent)
            and all(owner.get(name) is value for owner, name, value in self.settings)
            and all(_attention(config) == name for config, name in self.attentions)
            and all(
                type(m) is kind and kind.forward is forward and [*m._modules.values()] == children
                for m, kind, forward, children in self.modules
            )
        )

    def is_quiet(self) -> bool:
        """Whether nothing inside the block trains or watches."""
        for module in self.within:
            state = module.__dict__
            if state["training"] or "forward" in state:
                return False
            for hooks in HOOKS:
                if state[hooks] and not all(_is_idle(hook) for hook in state[hooks].values()):
                    return False
        return True

    def accepts(self, x: Tensor, H: int, W: int) -> bool:
        """Whether the tokens fit; if not, the block's own code says what is wrong."""
        if x.shape[2] != self.channels:
            return False
        return not self.on_grid or (x.shape[1] == H * W and min(H, W) >= self.smallest)


_packings: weakref.WeakSet[_Packed] = weakref.WeakSet()
_packings_lock = threading.Lock()


@functools.cache
def _watch_fused_optimizers() -> None:
    """Their steps change weights without counting it in the weights' versions."""

    def after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        groups = [group["params"] for group in optimizer.param_groups if group.get("fused")]
        changed = {id(parameter) for group in groups for parameter in group}
        if changed:
            with _packings_lock:
                for packed in _packings:
                    packed.stepped |= any(id(entry[2]) in changed for entry in packed.parameters)

    register_optimizer_step_post_hook(after_step)


def _is_observed() -> bool:
    """Whether what runs inside a block is meant to be changed or seen from outside."""
    return bool(
        torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or has_any_global_hook()
    )


def _is_idle(hook: Callable[..., Any]) -> bool:
    """transformers leaves hooks in a model whose attentions were once asked for."""
    module = sys.modules.get(getattr(hook, "__module__", ""))
    collector = getattr(module, "_active_collector", None)
    if collector is None or getattr(hook, "__name__", "") != "output_capturing_hook":
        return False
    captured = dict(zip(hook.__code__.co_freevars, hook.__closure__ or (), strict=True))
    wanted = collector.get()
    return "key" in captured and captured["key"].cell_contents not in (wanted or ())
