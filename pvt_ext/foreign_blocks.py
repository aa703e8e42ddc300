"""Transformer blocks of other libraries, read as :class:`~pvt_ext.nn.Block`.

Many libraries hold the block of PVT under names of their own. Nothing of them is imported here: a
block is recognised by its layers (:func:`as_block`) and then by its answers (:func:`try_out`), so
neither a new version nor a copy of their code is a stranger, and a block that only looks alike is.
"""

import inspect
from copy import deepcopy
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_ext.inference import PackedBlock
from pvt_ext.nn import HOOKS, POOL_SIZE, Block, Mlp

# Where a layer may be: the authors, NVIDIA's SegFormer and timm; then transformers, by its age.
_NORM1 = ("norm1", "layer_norm_1", "layernorm_before")
_NORM2 = ("norm2", "layer_norm_2", "layernorm_after")
_ATTENTION = ("attn", "attention.self", "attention")
_QUERY = ("q", "query", "q_proj")
_KEY = ("key", "k_proj")
_VALUE = ("value", "v_proj")
_OUTPUT = ("attn.proj", "attention.proj", "attention.output.dense", "attention.o_proj")
_REDUCTION = (
    *("sr", "spatial_reduction"),
    *("sequence_reduction.sequence_reduction", "sequence_reduction"),
)
_REDUCTION_NORM = ("norm", "layer_norm", "sequence_reduction.layer_norm")
_FC1, _FC2 = ("mlp.fc1", "mlp.dense1"), ("mlp.fc2", "mlp.dense2")
_DWCONV = ("mlp.dwconv.dwconv", "mlp.dwconv")
_ACTIVATION = ("mlp.act", "mlp.intermediate_act_fn", "mlp.activation_fn")

LOOKED_FOR = (
    "transformer blocks of PVT or SegFormer: modules with norm1, attn, norm2 and mlp (the authors' "
    "code, timm, pvt_ext) or layer_norm_1, attention, layer_norm_2 and mlp (transformers)"
)
TRIAL_TOLERANCE = 1e-5  # measured: 1e-6

# What must agree with the layer of the same place in our own block.
_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.LayerNorm: ("normalized_shape", "elementwise_affine"),
    nn.Conv2d: (
        *("in_channels", "out_channels", "kernel_size", "stride"),
        *("padding", "dilation", "groups", "padding_mode"),
    ),
}

Layer = TypeVar("Layer", bound=nn.Module)


class UnlikeOurs(ValueError):
    """Why a block is not one of ours."""


class Call(NamedTuple):
    """How a block is called: ``forward(tokens, *grid, ...)``."""

    names: tuple[str, ...]  # of the parameters; after the tokens, two for the grid's sides or one
    size_in_one: bool
    gives_tuple: bool


def looks_like_block(module: nn.Module) -> bool:
    """Whether its children have the names of a transformer block's."""
    return all(
        any(name.split(".")[0] in module._modules for name in names)
        for names in (_NORM1, _ATTENTION, _NORM2, _FC1)
    )


def as_block(theirs: nn.Module) -> Block:
    """Our block with the layers of theirs; separate keys and values are copied into one layer.

    Raises:
        UnlikeOurs: the first difference.
    """
    linear, pool_size, relu = _switches(theirs)
    fc1 = _layer(theirs, nn.Linear, *_FC1)
    norm1 = _layer(theirs, nn.LayerNorm, *_NORM1)
    dim, heads = norm1.normalized_shape[0], _get(theirs, *_inside("num_heads"))
    heads = heads or _get(theirs, *_inside("num_attention_heads"))
    if fc1.out_features < 1:
        raise UnlikeOurs("mlp.fc1: expected at least one output, got none")
    if type(heads) is not int or heads < 1 or dim % heads != 0:
        raise UnlikeOurs(f"expected a number of heads that divides {dim}, got {heads}")
    sr = _get(theirs, *_inside(*_REDUCTION))
    dwconv = _get(theirs, *_DWCONV)
    kernel = sr.kernel_size[0] if type(sr) is nn.Conv2d else 1
    with torch.device("meta"):
        ours = Block(dim, heads, sr_ratio=kernel, linear=linear)
        ours.mlp = Mlp(dim, fc1.out_features, dwconv=dwconv is not None, relu=relu)
    if (sr is None) != (ours.attn.sr is None):
        raise UnlikeOurs("expected a reduction of more than one token, or none")

    _take(ours, "norm1", theirs, *_NORM1)
    _take(ours, "attn.q", theirs, *_inside(*_QUERY))
    if _get(theirs, *_inside("kv")) is not None:
        _take(ours, "attn.kv", theirs, *_inside("kv"))
    else:
        key = _layer(theirs, nn.Linear, *_inside(*_KEY))
        value = _layer(theirs, nn.Linear, *_inside(*_VALUE))
        ours.attn.kv = _one_above_the_other(key, value)
    _take(ours, "attn.proj", theirs, *_OUTPUT)
    if sr is not None:
        _take(ours, "attn.sr", theirs, *_inside(*_REDUCTION))
        _take(ours, "attn.norm", theirs, *_inside(*_REDUCTION_NORM))
    scale = _get(theirs, *_inside("scale", "scaling"))
    ours.attn.scale = float(ours.attn.scale if scale is None else scale)
    _take(ours, "norm2", theirs, *_NORM2)
    _take(ours, "mlp.fc1", theirs, *_FC1)
    if dwconv is not None:
        _take(ours, "mlp.dwconv", theirs, *_DWCONV)
    _take(ours, "mlp.fc2", theirs, *_FC2)
    ours.attn.pool_size = pool_size
    _check_all_known(theirs, ours)
    return ours


def check_tensors(theirs: nn.Module) -> None:
    """Whether its weights can be packed, and watched.

    Raises:
        UnlikeOurs: the first that cannot.
    """
    for name, tensor in theirs.named_parameters():
        if type(tensor) is not nn.Parameter and type(tensor) is not Tensor:
            raise UnlikeOurs(f"{name}: expected a plain tensor, got {type(tensor).__name__}")
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise UnlikeOurs(
                f"{name}: expected torch.float32 on cpu, got {tensor.dtype} on {tensor.device}"
            )
        if tensor.is_inference():
            raise UnlikeOurs(f"{name}: made in inference mode, where PyTorch counts no changes")


def try_out(theirs: nn.Module) -> Call:
    """Compare a block with :func:`as_block` of it, on random tokens and weights.

    Nothing of ``theirs`` is touched: a copy is tried.

    Raises:
        UnlikeOurs: it is called otherwise, or answers otherwise.
    """
    parameters = list(inspect.signature(type(theirs).forward).parameters.values())[1:]
    names = tuple(p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD)
    size_in_one = names[1:2] == ("feat_size",)
    if not size_in_one and names[1:3] not in (("H", "W"), ("height", "width")):
        raise UnlikeOurs(f"expected forward(x, H, W) or forward(x, feat_size), got {names}")

    generator = torch.Generator("cpu").manual_seed(0)

    def random(shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)

    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        copy = deepcopy(theirs).eval()
        for module in copy.modules():
            for hooks in HOOKS:
                module.__dict__[hooks].clear()
        for parameter in copy.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.copy_(random(parameter.shape) / fan_in**0.5)
        ours = as_block(copy)
        side = max(ours.attn.sr_ratio, 2)
        H, W = 2 * side + 1, 3 * side  # not all of it fills a window
        x = random((2, H * W, ours.attn.dim))
        try:
            answer: Any = type(copy).forward(
                copy, x.clone(), *([(H, W)] if size_in_one else [H, W])
            )
        except Exception as error:
            raise UnlikeOurs(f"its own code failed on tokens {list(x.shape)}: {error}") from error
        gives_tuple = isinstance(answer, tuple) and len(answer) == 1
        expected = answer[0] if gives_tuple else answer
        if not isinstance(expected, Tensor) or expected.shape != x.shape:
            raise UnlikeOurs(f"expected tokens as answer, got {type(answer).__name__}")
        actual = PackedBlock(ours, torch.float32)(x.clone(), H, W)
        away = ((actual - expected).abs().max() / expected.abs().max()).item()
    if not away < TRIAL_TOLERANCE:
        raise UnlikeOurs(f"its answers are not those of the published block ({away:.0e} away)")
    return Call(names, size_in_one, gives_tuple)


# ---- how layers are found and compared ----


def _switches(theirs: nn.Module) -> tuple[bool, int, bool]:
    """What has no weights: whether attention is linear, side of its pool, whether the MLP has a
    ReLU."""
    if isinstance(theirs, Block):
        _check("attn.keep_attn_map", getattr(theirs.attn, "keep_attn_map", False), False)
        return theirs.attn.linear, theirs.attn.pool_size, theirs.mlp.relu
    _check_gelu(theirs, *_ACTIVATION)
    relu = type(_get(theirs, "mlp.relu")) is nn.ReLU
    pool = _get(theirs, *_inside("pool"))
    if pool is None:
        return False, POOL_SIZE, relu
    _check("pool", type(pool), nn.AdaptiveAvgPool2d)
    side = pool.output_size[0] if isinstance(pool.output_size, tuple) else pool.output_size
    if type(side) is not int or pool.output_size not in (side, (side, side)):
        raise UnlikeOurs(f"pool.output_size: expected a square, got {pool.output_size}")
    _check_gelu(theirs, *_inside("act"))
    return True, side, relu


def _inside(*names: str) -> tuple[str, ...]:
    return tuple(f"{attention}.{name}" for name in names for attention in _ATTENTION)


def _get(module: nn.Module, *paths: str) -> Any:
    """What the first path leads to, or None."""
    for path in paths:
        found: Any = module
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    return None


def _layer(module: nn.Module, kind: type[Layer], *paths: str) -> Layer:
    path = next((path for path in paths if _get(module, path) is not None), None)
    if path is None:
        raise UnlikeOurs(
            f"{paths[0]}: expected {kind.__name__} under this or a like name, got none"
        )
    layer = _get(module, path)
    timms = kind is nn.LayerNorm and _class(layer) == "timm.layers.norm.LayerNorm"  # adds a switch
    if type(layer) is not kind and not timms:
        raise UnlikeOurs(f"{path}: expected {kind.__name__}, got {type(layer).__name__}")
    return layer


def _take(ours: Block, place: str, theirs: nn.Module, *paths: str) -> None:
    """Put their layer in the place of ours, if it is of the same kind."""
    owner, _, name = place.rpartition(".")
    model = ours.get_submodule(place)
    layer = _layer(theirs, type(model), *paths)
    for setting in _SETTINGS[type(model)]:
        _check(f"{place}.{setting}", getattr(layer, setting), getattr(model, setting))
    if layer.bias is None and not isinstance(layer, nn.Linear) and place != "attn.sr":
        raise UnlikeOurs(f"{place}: expected a bias")
    setattr(ours.get_submodule(owner), name, layer)


def _one_above_the_other(key: nn.Linear, value: nn.Linear) -> nn.Linear:
    for name, layer in (("key", key), ("value", value)):
        _check(f"{name}.out_features", layer.out_features, layer.in_features)
    _check("value.in_features", value.in_features, key.in_features)
    kv = nn.Linear(key.in_features, 2 * key.in_features, device="meta")
    kv.weight = nn.Parameter(torch.cat([key.weight.detach(), value.weight.detach()]))
    biases = [x.weight.new_zeros(len(x.weight)) if x.bias is None else x.bias for x in (key, value)]
    kv.bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]))
    return kv


def _check(name: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise UnlikeOurs(f"{name}: expected {expected}, got {actual}")


def _check_gelu(module: nn.Module, *paths: str) -> None:
    act = _get(module, *paths)
    exact = (
        act is F.gelu
        or (type(act) is nn.GELU and act.approximate == "none")
        or _class(act) == "transformers.activations.GELUActivation"  # exact in all its versions
    )
    if not exact:
        raise UnlikeOurs(f"{paths[0]}: expected the exact GELU, got {act}")


def _check_all_known(theirs: nn.Module, ours: Block) -> None:
    known = {id(parameter) for parameter in ours.parameters()}
    known |= {id(p) for name in (*_KEY, *_VALUE) for p in _parameters(theirs, name)}
    for name, tensor in (*theirs.named_parameters(), *theirs.named_buffers()):
        if id(tensor) not in known:
            raise UnlikeOurs(f"{name}: the published block has no such weight")


def _parameters(theirs: nn.Module, name: str) -> list[nn.Parameter]:
    layer = _get(theirs, *_inside(name))
    return list(layer.parameters()) if isinstance(layer, nn.Module) else []


def _class(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
