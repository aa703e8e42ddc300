"""A model for inference: each block is three operators on packed weights.

:func:`pack` copies a trained :class:`~pvt_ext.model.PVT` into one that answers the same, faster,
and is what :func:`pvt_ext.export.export_torchscript` writes. The tokens of a stage stay in one
buffer that the operators update in place, so a forward pass allocates next to nothing. There are no
gradients: to train, keep the original.
"""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pvt_ext.backbone import Pyramid
from pvt_ext.nn import Attention, Block, DropPath, Mlp, PatchEmbed, has_hooks
from pvt_ext.packing import pack_convolution, pack_weight
from pvt_ext.stage import Stage


class _Packed(nn.Module):
    """Holds weights as buffers: matrices packed in ``dtype``, vectors in float32. A layer that is
    None leaves None, a layer without a bias zeros."""

    def hold_norm(self, name: str, norm: nn.LayerNorm | None) -> None:
        self.register_buffer(f"{name}_weight", None if norm is None else _float(norm.weight))
        self.register_buffer(f"{name}_bias", None if norm is None else _float(norm.bias))

    def hold_layer(
        self, name: str, layer: nn.Linear | nn.Conv2d | None, dtype: torch.dtype
    ) -> None:
        weight = bias = None
        if layer is not None:
            pack_layer = pack_weight if isinstance(layer, nn.Linear) else pack_convolution
            weight = pack_layer(layer.weight.detach(), dtype)
            bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
            bias = _float(bias)
        self.register_buffer(f"{name}_weight", weight)
        self.register_buffer(f"{name}_bias", bias)


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)


class PackedPatchEmbed(_Packed):
    """:class:`~pvt_ext.nn.PatchEmbed` as one operator.

    Its tokens have the dtype of :meth:`as_tokens_dtype`.
    """

    proj_weight: Tensor

    def __init__(self, embed: PatchEmbed, dtype: torch.dtype, narrow_on_gpu: bool) -> None:
        super().__init__()
        self.narrow_on_gpu = narrow_on_gpu
        self.hold_layer("proj", embed.proj, dtype)
        self.hold_norm("norm", embed.norm)
        self.eps = embed.norm.eps
        self.H, self.W = embed.H, embed.W
        conv = embed.proj
        self.kernel_size, self.stride = conv.kernel_size[0], conv.stride[0]
        self.padding = int(conv.padding[0])

    def grid(self, H: int, W: int) -> tuple[int, int]:
        """As :meth:`PatchEmbed.grid <pvt_ext.nn.PatchEmbed.grid>`."""
        margin = 2 * self.padding - self.kernel_size
        return (H + margin) // self.stride + 1, (W + margin) // self.stride + 1

    def as_tokens_dtype(self, x: Tensor) -> Tensor:
        """``x`` in the dtype of the stage's tokens: on a GPU, whose kernels take tokens and weights
        alike, that of weights of 16 bits."""
        return x.to(self.proj_weight.dtype) if self.narrow_on_gpu and x.is_cuda else x

    def forward(self, x: Tensor, position: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        tokens = torch.ops.pvt.patch_embed(
            self.as_tokens_dtype(x),
            self.proj_weight,
            self.proj_bias,
            self.norm_weight,
            self.norm_bias,
            self.eps,
            position,
            self.kernel_size,
            self.stride,
            self.padding,
        )
        return tokens, self.grid(x.shape[2], x.shape[3])


class PackedAttention(_Packed):
    """``x <- x + attn(norm(x))``, in place."""

    def __init__(self, norm: nn.LayerNorm, attn: Attention, dtype: torch.dtype) -> None:
        super().__init__()
        self.hold_norm("norm", norm)
        self.eps = norm.eps
        self.hold_layer("q", attn.q, dtype)
        self.hold_layer("kv", attn.kv, dtype)
        self.hold_layer("proj", attn.proj, dtype)
        self.num_heads = attn.num_heads
        self.scale = attn.scale
        self.sr_ratio = attn.sr_ratio
        self.sr_eps = attn.norm_eps if attn.norm is None else attn.norm.eps
        self.hold_layer("sr", attn.sr, dtype)
        self.hold_norm("sr_norm", attn.norm)

    def forward(self, x: Tensor, H: int, W: int) -> None:
        kv = self.reduce_kv(x, H, W)
        torch.ops.pvt.attention_block_(
            x,
            kv,
            self.norm_weight,
            self.norm_bias,
            self.eps,
            self.q_weight,
            self.q_bias,
            self.proj_weight,
            self.proj_bias,
            self.num_heads,
            self.scale,
        )

    def reduce_kv(self, x: Tensor, H: int, W: int) -> Tensor:
        """Keys and values, ``[B, kv_len, 2 * C]``."""
        return torch.ops.pvt.reduce_kv(
            x,
            H,
            W,
            self.norm_weight,
            self.norm_bias,
            self.eps,
            self.sr_weight,
            self.sr_bias,
            self.sr_norm_weight,
            self.sr_norm_bias,
            self.sr_eps,
            self.kv_weight,
            self.kv_bias,
            self.sr_ratio,
        )


class PackedLinearAttention(PackedAttention):
    """The same with the linear reduction of PVT v2."""

    def __init__(self, norm: nn.LayerNorm, attn: Attention, dtype: torch.dtype) -> None:
        super().__init__(norm, attn, dtype)
        self.pool_size = attn.pool_size

    def reduce_kv(self, x: Tensor, H: int, W: int) -> Tensor:
        return torch.ops.pvt.pool_kv(
            x,
            H,
            W,
            self.norm_weight,
            self.norm_bias,
            self.eps,
            self.pool_size,
            self.sr_weight,
            self.sr_bias,
            self.sr_norm_weight,
            self.sr_norm_bias,
            self.sr_eps,
            self.kv_weight,
            self.kv_bias,
        )


class PackedMlp(_Packed):
    """``x <- x + mlp(norm(x))``, in place."""

    def __init__(self, norm: nn.LayerNorm, mlp: Mlp, dtype: torch.dtype) -> None:
        super().__init__()
        self.hold_norm("norm", norm)
        self.eps = norm.eps
        self.hold_layer("fc1", mlp.fc1, dtype)
        self.hold_layer("fc2", mlp.fc2, dtype)

    def forward(self, x: Tensor, H: int, W: int) -> None:
        torch.ops.pvt.mlp_block_(
            x,
            self.norm_weight,
            self.norm_bias,
            self.eps,
            self.fc1_weight,
            self.fc1_bias,
            self.fc2_weight,
            self.fc2_bias,
        )


class PackedConvMlp(PackedMlp):
    """The same with the depthwise convolution of PVT v2."""

    def __init__(self, norm: nn.LayerNorm, mlp: Mlp, dtype: torch.dtype) -> None:
        super().__init__(norm, mlp, dtype)
        conv = mlp.dwconv
        assert conv is not None
        assert conv.bias is not None
        self.relu = mlp.relu
        # hidden, 1, 3, 3 -> 3, 3, hidden
        self.register_buffer("dwconv_weight", _float(conv.weight[:, 0].permute(1, 2, 0)))
        self.register_buffer("dwconv_bias", _float(conv.bias))

    def forward(self, x: Tensor, H: int, W: int) -> None:
        torch.ops.pvt.conv_mlp_block_(
            x,
            H,
            W,
            self.norm_weight,
            self.norm_bias,
            self.eps,
            self.fc1_weight,
            self.fc1_bias,
            self.relu,
            self.dwconv_weight,
            self.dwconv_bias,
            self.fc2_weight,
            self.fc2_bias,
        )


class PackedBlock(nn.Module):
    """:class:`~pvt_ext.nn.Block`, in place."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        attention = PackedLinearAttention if block.attn.linear else PackedAttention
        mlp = PackedMlp if block.mlp.dwconv is None else PackedConvMlp
        self.attn = attention(block.norm1, block.attn, dtype)
        self.mlp = mlp(block.norm2, block.mlp, dtype)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        self.attn(x, H, W)
        self.mlp(x, H, W)
        return x


class PackedHead(nn.Module):
    """The head, whose scores do not depend on the batch they are computed in. The weight is as in
    :class:`torch.nn.Linear`: few rows are multiplied by it."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        bias = head.weight.new_zeros(len(head.weight)) if head.bias is None else head.bias
        self.register_buffer("weight", _float(head.weight))
        self.register_buffer("bias", _float(bias))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.pvt.head(x, self.weight, self.bias)


Model = TypeVar("Model", bound=Pyramid)

# What a packed model knows how to stand for.
_KNOWN = (
    *(PatchEmbed, Block, Attention, Mlp, nn.ModuleList, DropPath, nn.Dropout, nn.Identity),
    *(nn.Linear, nn.Conv2d, nn.LayerNorm),
)


def _check_all_known(stage: Stage, number: int) -> None:
    """Whether the weights of its layers say all that they do."""
    for name, module in stage.named_modules(prefix=f"model.stages.{number}"):
        if module is stage or module is stage.norm or ".parametrizations" in name:
            continue
        kind = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
        if kind not in _KNOWN:
            raise ValueError(
                f"{name}: expected PyTorch's or this library's own layer, of which a packed model "
                f"keeps the weights, got {kind.__name__}; merge an adapter into the weights first"
            )
        if has_hooks(module):
            raise ValueError(
                f"{name}: expected no hooks, which a packed model does not call; remove them first "
                "(of pruned layers by torch.nn.utils.prune.remove)"
            )


def pack(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    """A copy of ``model`` for inference, in evaluation mode and without gradients.

    Args:
        model: a PVT or a Backbone, any variant; it is not changed.
        dtype: of the weights of linear layers and convolutions and of what is multiplied by them,
            torch.float32, torch.bfloat16, torch.int8 or, for GPUs, torch.float16, for which
            there are no CPU kernels. Tokens, biases, norms, positions, sums and softmax are
            float32 in all; in int8 patch embeddings and attention itself are bfloat16, the head
            float32. Nothing has to be calibrated: activations are quantised with a scale of their
            own for every 256 inputs of a token (:mod:`pvt_ext.block_ops`). On a GPU tokens are of
            the dtype of weights of 16 bits.

    Returns:
        a model of the same class whose patch embeddings, blocks and head are those of this module
        (a head of another kind, or with hooks, stays as it is). All its weights are buffers;
        ``forward`` and ``features`` take and give float32.

    Raises:
        ValueError: another dtype, a model that is packed already, or one with layers that do more
            than their weights say: an adapter in the place of a layer, or hooks.
    """
    if not isinstance(model, Pyramid):
        raise ValueError(f"model: expected a PVT or a Backbone, got {type(model).__name__}")
    if any(isinstance(module, PackedPatchEmbed) for module in model.modules()):
        raise ValueError("model: expected one that is not packed yet")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
        raise ValueError(
            "dtype: expected torch.float32, torch.bfloat16, torch.float16 or torch.int8, "
            f"got {dtype}"
        )
    for number, stage in enumerate(model.stages):
        assert isinstance(stage, Stage)
        _check_all_known(stage, number)
    embed_dtype = torch.bfloat16 if dtype == torch.int8 else dtype
    packed = deepcopy(model).float().eval()
    packed.float_output = True
    for stage, original in zip(packed.stages, model.stages, strict=True):
        assert isinstance(original, Stage)
        stage.patch_embed = PackedPatchEmbed(
            original.patch_embed, embed_dtype, narrow_on_gpu=embed_dtype == dtype != torch.float32
        )
        blocks: list[Block] = list(original.blocks)  # type: ignore[arg-type]
        stage.blocks = nn.ModuleList(PackedBlock(block, dtype) for block in blocks)
    head = getattr(packed, "head", None)
    if type(head) is nn.Linear and not has_hooks(head):
        packed.head = PackedHead(head)
    for module in packed.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return packed.eval()
