"""The names that PVT's weights have in other libraries, and here.

Five formats are read; their names for the same tensors, here for stage 2, block 1::

    official     patch_embed2.proj.weight              block2.0.attn.kv.weight
    timm         stages.1.downsample.proj.weight       stages.1.blocks.0.attn.kv.weight
    hf  (v1)     encoder.patch_embeddings.1.projection.weight
                                                       encoder.block.1.0.attention.self.key.weight
    hf  (v2)     encoder.layers.1.patch_embedding.proj.weight
                                                       encoder.layers.1.blocks.0.attention.key.weight
    mmdet        layers.1.0.projection.weight          layers.1.1.1.attn.attn.in_proj_weight
    pvt_ext      stages.1.patch_embed.proj.weight      stages.1.blocks.0.attn.kv.weight

Hugging Face splits ``kv`` into ``key`` and ``value``; mmdetection joins ``q`` to it, has 1 x 1
convolutions for linear layers, no class token, and counts the position table as block 0 (v1).

Sources: github.com/whai362/PVT (the authors), timm.models.pvt_v2, transformers.models.pvt and
pvt_v2, mmdet.models.backbones.pvt.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pvt_ext.checkpoint import check_weights, refuse

State = dict[str, Tensor]


class Translation(NamedTuple):
    """Tensors under this library's names."""

    format: str  # official, timm, hf, mmdet or pvt_ext
    tensors: State
    outside: tuple[str, ...]  # names beside the backbone's, such as a detector's neck


# ---- official: both ways ----

_PUBLISHED_NAME = re.compile(r"(patch_embed|pos_embed|block|norm)([1-4])(\..+)?")
_LIBRARY_NAME = re.compile(r"stages\.([0-3])\.(patch_embed|pos_embed|blocks|norm)(\..+)?")


def library_name(name: str) -> str:
    """Name here of a parameter of the authors' code; any other name is returned as it is."""
    if name == "cls_token":
        return "stages.3.cls_token"
    match = _PUBLISHED_NAME.fullmatch(name)
    if match is None:
        return name
    part, stage, rest = match.groups(default="")
    part = "blocks" if part == "block" else part
    rest = rest.replace(".mlp.dwconv.dwconv.", ".mlp.dwconv.")
    return f"stages.{int(stage) - 1}.{part}{rest}"


def published_name(name: str) -> str:
    """The reverse of :func:`library_name`."""
    if name == "stages.3.cls_token":
        return "cls_token"
    match = _LIBRARY_NAME.fullmatch(name)
    if match is None:
        return name
    stage, part, rest = match.groups(default="")
    rest = rest.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv.")
    return f"{part.removesuffix('s')}{int(stage) + 1}{rest}"


def to_official(state: State) -> State:
    """A model's tensors under the names of the authors' code."""
    return {published_name(name): tensor for name, tensor in state.items()}


def _from_official(state: State) -> State:
    return _renamed(state, library_name)


# ---- timm: both ways ----


def to_timm(state: State) -> State:
    """A v2 model's tensors under the names of timm's ``pvt_v2_*``.

    Raises:
        ValueError: there are positions, so it is v1, which timm does not have.
    """
    if any(name.endswith(("pos_embed", "cls_token")) for name in state):
        raise ValueError("format: expected official or pvt_ext, as timm has no PVT v1, got timm")
    first = "stages.0.patch_embed."
    return {
        name.removeprefix("stages.0.")
        if name.startswith(first)
        else name.replace(".patch_embed.", ".downsample."): tensor
        for name, tensor in state.items()
    }


def _from_timm(state: State) -> State:
    return _renamed(
        state,
        _substitution(
            (r"^patch_embed\.", "stages.0.patch_embed."),
            (r"^stages[._](\d+)\.", r"stages.\1."),  # its feature extractor writes stages_0
            (r"^(stages\.\d+)\.downsample\.", r"\1.patch_embed."),
        ),
    )


# ---- Hugging Face ----


def _from_hf(state: State) -> State:
    state = _renamed(
        state,
        _substitution(
            (r"^pvt(_v2)?\.", ""),
            # v1
            (r"^encoder\.patch_embeddings\.(\d+)\.position_embeddings$", r"stages.\1.pos_embed"),
            (r"^encoder\.patch_embeddings\.(\d+)\.cls_token$", r"stages.\1.cls_token"),
            (r"^encoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embed."),
            (r"^encoder\.block\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.attention\.self\.", ".attention."),
            (r"\.attention\.output\.dense\.", ".attention.proj."),
            (r"\.sequence_reduction\.", ".sr."),
            (r"^encoder\.layer_norm\.", "norm."),
            # v2
            (r"^encoder\.layers\.(\d+)\.patch_embedding\.", r"stages.\1.patch_embed."),
            (r"^encoder\.layers\.(\d+)\.", r"stages.\1."),
            (r"\.spatial_reduction\.", ".sr."),
            (r"\.mlp\.dwconv\.dwconv\.", ".mlp.dwconv."),
            # both
            (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
            (r"\.layer_norm_([12])\.", r".norm\1."),
            (r"\.layer_norm\.", ".norm."),
            (r"\.attention\.query\.", ".attn.q."),
            (r"\.attention\.", ".attn."),
            (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
            (r"^classifier\.", "head."),
        ),
    )
    for name in [name for name in state if ".attn.key." in name]:
        key, value = state[name], state.get(name.replace(".key.", ".value."))
        if value is not None and value.shape == key.shape:
            state[name.replace(".key.", ".kv.")] = torch.cat((key, value))
            del state[name], state[name.replace(".key.", ".value.")]
    return state


# ---- mmdetection ----


def _from_mmdet(state: State) -> State:
    first = int(any(name.endswith(".pos_embed") for name in state))  # number of the first block
    fc2 = 3 if first else 4  # v2 has the depthwise convolution, 1, before activation and dropout

    def block(match: re.Match[str]) -> str:
        return f"stages.{match[1]}.blocks.{int(match[2]) - first}."

    state = _renamed(
        state,
        _substitution(
            (r"^layers\.(\d+)\.0\.projection\.", r"stages.\1.patch_embed.proj."),
            (r"^layers\.(\d+)\.0\.", r"stages.\1.patch_embed."),
            (r"^layers\.(\d+)\.1\.0\.pos_embed$", r"stages.\1.pos_embed"),
            (r"^layers\.(\d+)\.1\.(\d+)\.", block),
            (r"^layers\.(\d+)\.2\.", r"stages.\1.norm."),
            (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
            (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
            (r"\.ffn\.layers\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.dwconv."),
            (rf"\.ffn\.layers\.{fc2}\.", ".mlp.fc2."),
        ),
    )
    for name in list(state):
        tensor = state[name]
        if ".mlp.fc" in name and tensor.shape[2:] == (1, 1):
            state[name] = tensor.flatten(1)
        if ".attn.qkv." in name and tensor.dim() > 0 and tensor.shape[0] % 3 == 0:
            rows = tensor.shape[0] // 3
            state[name.replace(".qkv.", ".q.")] = tensor[:rows]
            state[name.replace(".qkv.", ".kv.")] = tensor[rows:]
            del state[name]
    return state


# ---- which format ----

_PREFIX = r"(?P<prefix>(?:[A-Za-z_]\w*\.)*?)"  # module., _orig_mod., backbone., ...
_NAMES = {
    "pvt_ext": r"stages\.\d\.(patch_embed|pos_embed|cls_token|blocks|norm)\b.*",
    "official": r"((patch_embed|block|norm)[1-4]\..+|pos_embed[1-4])",
    "timm": r"(patch_embed|stages[._]\d\.(downsample|blocks|norm))\..+",
    "hf": r"(pvt\.|pvt_v2\.)?encoder\.(patch_embeddings|block|layers)\.\d\..+",
    "mmdet": r"layers\.\d\.[012]\..+",
}
_PATTERNS = {format: re.compile(_PREFIX + names) for format, names in _NAMES.items()}
_READERS: dict[str, Callable[[State], State]] = {
    "pvt_ext": dict,
    "official": _from_official,
    "timm": _from_timm,
    "hf": _from_hf,
    "mmdet": _from_mmdet,
}
WRITERS: dict[str, Callable[[State], State]] = {
    "pvt_ext": dict,
    "official": to_official,
    "timm": to_timm,
}
_PARTS_OF_MORE = {"backbone", "bottom_up", "encoder"}  # what detectors and segmenters call one


def translate(state: State, origin: str) -> Translation:
    """Tensors of any of the formats under this library's names.

    What stands before every name, as DistributedDataParallel, ``torch.compile`` and detectors
    write it, is taken away. Of a detector, what is not its backbone is left out.

    Raises:
        ValueError: the names are of none of the formats, two mean the same tensor, there are two
            models, or a tensor cannot be a weight (sparse, complex, on the meta device, ...).
    """
    matches = {
        format: [match for name in state if (match := pattern.fullmatch(name))]
        for format, pattern in _PATTERNS.items()
    }
    format = max(matches, key=lambda format: len(matches[format]))
    if not matches[format]:
        refuse(origin, f"names of no known format ({', '.join(_NAMES)})", list(state))
    prefixes = Counter(match["prefix"] for match in matches[format])
    prefix = prefixes.most_common(1)[0][0]
    inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    outside = [name for name in state if not name.startswith(prefix)]
    for other in prefixes:
        if other != prefix and not inside.keys().isdisjoint(_under(other, outside)):
            raise ValueError(
                f"{origin}: nothing was loaded: it holds two models, under {prefix!r} and "
                f"{other!r}; pass the names of one"
            )
    if not _PARTS_OF_MORE.intersection(prefix.split(".")):
        refuse(origin, f"not under {prefix!r} as the others", outside)
    check_weights(inside, origin)
    try:
        return Translation(format, _READERS[format](inside), tuple(outside))
    except _GivenTwice as error:
        raise ValueError(f"{origin}: nothing was loaded: {error}") from None


def _under(prefix: str, names: list[str]) -> set[str]:
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


class _GivenTwice(ValueError):
    pass


def _renamed(state: State, rename: Callable[[str], str]) -> State:
    renamed: State = {}
    for name, tensor in state.items():
        if rename(name) in renamed:
            raise _GivenTwice(f"1 given under two names: {rename(name)}")
        renamed[rename(name)] = tensor
    return renamed


def _substitution(
    *rules: tuple[str, str | Callable[[re.Match[str]], str]],
) -> Callable[[str], str]:
    """A function that applies every rule, a pattern and its replacement, in order."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(name: str) -> str:
        for pattern, replacement in compiled:
            name = pattern.sub(replacement, name)
        return name

    return rename
