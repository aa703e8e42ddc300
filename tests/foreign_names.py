"""A model's weights as Hugging Face and mmdetection name and shape them: what readers must undo.

Written from their side, one name at a time. ``test_transformers.py`` holds the first against the
real classes. The second was compared once with mmdetection 3.3.0: names, shapes and values of its
``pvt_tiny`` and ``pvt_v2_b0`` are these, and with the published eps in its norms (it has 1e-6 in
all) features differ by at most 1e-6 relative.
"""

import re

from torch import Tensor

State = dict[str, Tensor]


def hf_state(state: State) -> State:
    """As ``PvtForImageClassification`` or, without position tables, ``PvtV2For...`` has it."""
    v1 = any(name.endswith("pos_embed") for name in state)
    out: State = {}
    for name, tensor in state.items():
        if ".attn.kv." in name:
            key, value = tensor.chunk(2)
            attention = "attention.self" if v1 else "attention"
            name = _hf_block(name, v1)
            out[name.replace("attn.kv", f"{attention}.key")] = key
            out[name.replace("attn.kv", f"{attention}.value")] = value
        elif ".blocks." in name:
            out[_hf_attention(_hf_block(name, v1), v1)] = tensor
        elif name.startswith("head."):
            out[name.replace("head", "classifier")] = tensor
        elif name.startswith("norm."):
            out["pvt.encoder.layer_norm." + name.removeprefix("norm.")] = tensor
        else:
            out[_hf_stage(name, v1)] = tensor
    return out


def _hf_block(name: str, v1: bool) -> str:
    _, stage, _, block, rest = name.split(".", 4)
    rest = re.sub(r"^norm([12])", r"layer_norm_\1", rest)
    rest = rest.replace("mlp.fc", "mlp.dense").replace("mlp.dwconv", "mlp.dwconv.dwconv")
    where = f"pvt.encoder.block.{stage}.{block}"
    return f"{where if v1 else f'pvt_v2.encoder.layers.{stage}.blocks.{block}'}.{rest}"


def _hf_attention(name: str, v1: bool) -> str:
    for ours, theirs_v1, theirs_v2 in [
        ("attn.q.", "attention.self.query.", "attention.query."),
        ("attn.sr.", "attention.self.sequence_reduction.", "attention.spatial_reduction."),
        ("attn.norm.", "attention.self.layer_norm.", "attention.layer_norm."),
        ("attn.proj.", "attention.output.dense.", "attention.proj."),
    ]:
        name = name.replace(ours, theirs_v1 if v1 else theirs_v2)
    return name


def _hf_stage(name: str, v1: bool) -> str:
    _, stage, rest = name.split(".", 2)
    if not v1:
        rest = rest.replace("patch_embed", "patch_embedding").replace("norm", "layer_norm")
        return f"pvt_v2.encoder.layers.{stage}.{rest}"
    rest = rest.replace("pos_embed", "position_embeddings")
    rest = rest.replace("patch_embed.proj", "projection").replace("patch_embed.norm", "layer_norm")
    return f"pvt.encoder.patch_embeddings.{stage}.{rest}"


def mmdet_state(state: State) -> State:
    """As mmdetection's ``PyramidVisionTransformer(V2)`` has it, of a backbone's weights."""
    first = int(any(name.endswith("pos_embed") for name in state))
    out: State = {}
    for name, tensor in state.items():
        _, stage, part, *rest = name.split(".")
        if part == "patch_embed":
            layer = "projection" if rest[0] == "proj" else "norm"
            out[f"layers.{stage}.0.{layer}.{rest[1]}"] = tensor
        elif part == "pos_embed":
            out[f"layers.{stage}.1.0.pos_embed"] = tensor
        elif part == "norm":
            out[f"layers.{stage}.2.{rest[0]}"] = tensor
        else:
            block = f"layers.{stage}.1.{int(rest[0]) + first}"
            _mmdet_block(out, block, ".".join(rest[1:]), tensor, bool(first))
    joined = {name: tensor for name, tensor in out.items() if ".q." not in name}
    for name, q in out.items():
        if ".q." in name:
            kv = joined.pop(name.replace(".q.", ".kv."))
            joined[name.replace(".q.", ".attn.in_proj_")] = q.new_tensor(
                [*q.tolist(), *kv.tolist()]
            )
    return joined


def _mmdet_block(out: State, block: str, name: str, tensor: Tensor, v1: bool) -> None:
    layer = {"mlp.fc1": 0, "mlp.dwconv": 1, "mlp.fc2": 3 if v1 else 4}
    part, _, kind = name.rpartition(".")
    if part in layer:
        is_matrix = part != "mlp.dwconv" and kind == "weight"
        out[f"{block}.ffn.layers.{layer[part]}.{kind}"] = (
            tensor[:, :, None, None] if is_matrix else tensor
        )
    elif part == "attn.proj":
        out[f"{block}.attn.attn.out_proj.{kind}"] = tensor
    else:
        out[f"{block}.{name}"] = tensor
