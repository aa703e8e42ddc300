"""The building blocks of a Pyramid Vision Transformer, in data-flow order.

``PatchEmbed`` and ``Attention`` take the constructor arguments and hold the parameter names of the
published classification code, so either can replace its namesake in other code. Everything here
can be scripted (``torch.jit.script``) in training and in evaluation mode.

Layout: feature maps are ``[B, C, H, W]``; tokens are ``[B, N, C]`` with ``N = H * W`` in row-major
order. LayerNorm epsilons follow the published models: 1e-6 in a block and after a stage, 1e-5 after
the patch embedding and after the spatial reduction.
"""

import operator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from pvt_ext import reference

BLOCK_EPS = 1e-6
EMBED_EPS = 1e-5
POOL_SIZE = 7  # side of the grid of keys in linear spatial-reduction attention


def to_pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """``value`` as ``(height, width)``; both sides must be whole numbers of at least 1."""
    try:
        height, width = value if isinstance(value, tuple | list) else (value, value)
        pair = check_at_least(name, height, 1), check_at_least(name, width, 1)
    except ValueError:
        raise ValueError(
            f"{name}: expected a positive int or (height, width), got {value!r}"
        ) from None
    return pair


def check_at_least(name: str, value: int, minimum: int) -> int:
    """``value`` as an int; NumPy's and torch's whole numbers are accepted, 2.0 and True are not."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ValueError(f"{name}: expected a whole number, got {value!r}")
    if number < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {number}")
    return number


def check_probability(name: str, value: float) -> None:
    try:
        accepted = 0.0 <= value < 1.0
    except TypeError:
        accepted = False
    if not accepted:
        raise ValueError(f"{name}: expected 0 <= {name} < 1, got {value!r}")


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(*modules: nn.Module) -> bool:
    """Whether an operator may stand for ``modules`` by their parameters: PyTorch's own layers, with
    biases, without hooks. Not so an adapter (LoRA), a parametrisation or a layer that is watched.
    """
    return all(
        type(module) in (nn.Linear, nn.Conv2d, nn.LayerNorm)
        and module.bias is not None
        and not has_hooks(module)
        for module in modules
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called beside ``module`` itself; so are pruning and the older norms."""
    return any(getattr(module, hooks) for hooks in HOOKS)


def as_map(x: Tensor, H: int, W: int) -> Tensor:
    """Tokens ``[B, H * W, C]`` as a feature map ``[B, C, H, W]``: a view, channels last."""
    # Split, then permute: the other order gives a single image strides in which convolutions do not
    # recognise channels last, and a depthwise one is then several times slower.
    return x.unflatten(1, (H, W)).permute(0, 3, 1, 2)


def as_tokens(x: Tensor) -> Tensor:
    """A feature map ``[B, C, H, W]`` as tokens ``[B, H * W, C]``: a view where possible."""
    return x.flatten(2).transpose(1, 2)


class PatchEmbed(nn.Module):
    """Cut a feature map into patches and project each one to a token.

    Args:
        img_size: height and width of the input this layer is designed for. Other sizes work;
            ``H``, ``W`` and ``num_patches`` describe the grid at this size.
        patch_size: side of a patch, also the stride.
        in_chans: channels of the input.
        embed_dim: channels of a token.
        overlap: whether a patch reaches into its neighbours: the convolution's kernel is then
            ``2 * patch_size - 1`` and its padding ``patch_size - 1``.

    Source: PVT v1, section 3.2; with overlap, PVT v2, "Overlapping Patch Embedding".
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        overlap: bool = False,
    ) -> None:
        super().__init__()
        self.img_size = to_pair("img_size", img_size)
        self.patch_size = to_pair("patch_size", patch_size)
        in_chans = check_at_least("in_chans", in_chans, 1)
        embed_dim = check_at_least("embed_dim", embed_dim, 1)
        self.overlap = overlap
        self.H, self.W = self.grid(self.img_size[0], self.img_size[1])
        if self.H < 1 or self.W < 1:
            raise ValueError(f"img_size: expected at least {self.patch_size}, got {self.img_size}")
        self.num_patches = self.H * self.W
        margin = (self.patch_size[0] - 1, self.patch_size[1] - 1) if overlap else (0, 0)
        kernel = (self.patch_size[0] + margin[0], self.patch_size[1] + margin[1])
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel, stride=self.patch_size, padding=margin)
        self.norm = nn.LayerNorm(embed_dim, eps=EMBED_EPS)

    def grid(self, H: int, W: int) -> tuple[int, int]:
        """Patches in each direction of an input of ``H`` x ``W``.

        ``(H + 2 * padding - kernel) // stride + 1``, which is ``H // patch`` without overlap and
        ``ceil(H / patch)`` with it.
        """
        if self.overlap:
            return (H - 1) // self.patch_size[0] + 1, (W - 1) // self.patch_size[1] + 1
        return H // self.patch_size[0], W // self.patch_size[1]

    def forward(self, x: Tensor, position: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Tokens of ``x`` and the grid they form.

        Args:
            x: ``[B, in_chans, H, W]``; without overlap, rows and columns that do not fill a patch
                are dropped.
            position: ``[N, embed_dim]``, added to the tokens of every image.

        Returns:
            tokens ``[B, N, embed_dim]`` and their :meth:`grid`, whose sides multiply to ``N``.
        """
        if x.dim() != 4:
            raise ValueError(f"PatchEmbed: expected x [B, C, H, W], got shape {x.shape}")
        H, W = self.grid(x.shape[2], x.shape[3])
        if H == 0 or W == 0:
            least = (1, 1) if self.overlap else self.patch_size
            raise ValueError(
                f"PatchEmbed: expected an input of at least {least[0]} x {least[1]}, "
                f"got {x.shape[2]} x {x.shape[3]}"
            )
        tokens = self.norm(as_tokens(self.proj(x)))
        return tokens if position is None else tokens + position, (H, W)


class Attention(nn.Module):
    """Spatial-reduction attention: queries from every token, keys and values from a smaller grid.

    Args:
        dim: channels ``C`` of the tokens.
        num_heads: number of heads, a divisor of ``dim``.
        qkv_bias: whether the ``q`` and ``kv`` projections have a bias.
        qk_scale: multiplier of the scores; None means ``head_dim ** -0.5``.
        attn_drop: dropout of the attention probabilities. Above 0, training takes the plain
            PyTorch path, which holds them in memory.
        proj_drop: dropout of the output.
        sr_ratio: side of the patch of tokens that becomes one key; 1 means no reduction, and then
            there is neither ``sr`` nor ``norm``.
        linear: average tokens to a grid of 7 x 7 instead, whatever the grid and ``sr_ratio``, so
            that the cost is linear in the number of tokens; ``sr`` is then a 1 x 1 convolution.
        fused: use the operators of this library; False selects plain PyTorch.

    Source: PVT v1, section 3.3; linear: PVT v2, "Linear Spatial Reduction Attention".
    """

    # Final: the branch not taken is not compiled.
    fused: Final[bool]
    linear: Final[bool]
    drops_probs: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        sr_ratio: int = 1,
        linear: bool = False,
        fused: bool = True,
    ) -> None:
        super().__init__()
        dim = check_at_least("dim", dim, 1)
        num_heads = check_at_least("num_heads", num_heads, 1)
        sr_ratio = check_at_least("sr_ratio", sr_ratio, 1)
        check_probability("attn_drop", attn_drop)
        check_probability("proj_drop", proj_drop)
        if dim % num_heads != 0:
            raise ValueError(f"dim: expected a multiple of num_heads ({num_heads}), got {dim}")
        self.dim = dim
        self.num_heads = num_heads
        self.scale = float((dim // num_heads) ** -0.5 if qk_scale is None else qk_scale)
        self.sr_ratio = sr_ratio
        self.fused = fused
        self.linear = linear
        self.drops_probs = attn_drop > 0.0

        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, dim * 2, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        kernel = 1 if linear else sr_ratio
        reduces = linear or sr_ratio > 1
        self.sr = nn.Conv2d(dim, dim, kernel, stride=kernel) if reduces else None
        self.norm = nn.LayerNorm(dim, eps=EMBED_EPS) if reduces else None
        self.keep_attn_map = False  # whether forward leaves its probabilities in attn_map
        self.attn_map: Tensor | None = None
        self.norm_eps = EMBED_EPS  # TorchScript cannot read it from the norm
        self.pool_size = POOL_SIZE  # nor a number of the module file

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        """Attend from every token of ``x`` to the reduced grid.

        Args:
            x: ``[B, N, C]``. With ``linear`` or ``sr_ratio > 1``, ``N`` is ``H * W``; otherwise the
                grid plays no part and other tokens (a class token) may be among them.
            H, W: the token grid, each at least ``sr_ratio`` (with ``linear``: 1).

        Returns:
            ``[B, N, C]``.
        """
        q = self.q(x)
        kv = self.kv(self._reduce(x, H, W))
        keep = self.keep_attn_map and not is_scripting()
        if self.fused and not (keep or (self.drops_probs and self.training)):
            x = torch.ops.pvt.sra_attention(q, kv, self.num_heads, self.scale)
        else:
            k, v = kv.chunk(2, dim=-1)
            probs = reference.attention_weights(q, k, self.num_heads, self.scale)
            if self.keep_attn_map and not is_scripting():
                self.attn_map = probs
            probs = self.attn_drop(probs)
            v = v.unflatten(-1, (self.num_heads, -1))  # B, kv_len, h, d
            x = torch.einsum("bhqk,bkhd->bqhd", probs, v).flatten(2)
        return self.proj_drop(self.proj(x))

    def attention_map(self, x: Tensor, H: int, W: int) -> Tensor:
        """Attention probabilities, ``[B, num_heads, N, kv_len]``; each row sums to 1.

        Takes the arguments of :meth:`forward`. The keys form the grid ``(H // sr_ratio,
        W // sr_ratio)``, with ``linear`` 7 x 7, in row-major order (after a class token, if ``x``
        has one).
        """
        k, _ = self.kv(self._reduce(x, H, W)).chunk(2, dim=-1)
        return reference.attention_weights(self.q(x), k, self.num_heads, self.scale)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"attn_map": None}  # copies and files are of the module alone

    def _reduce(self, x: Tensor, H: int, W: int) -> Tensor:
        # B, N, C -> B, kv_len, C
        sr = self.sr  # one by one: unpacked from a tuple, TorchScript could not call them
        norm = self.norm
        if sr is None or norm is None:
            return x
        if x.shape[1] != H * W:
            raise ValueError(f"Attention: expected H * W = {H} * {W} tokens, got {x.shape[1]}")
        if self.linear:
            x = F.adaptive_avg_pool2d(as_map(x, H, W), self.pool_size)  # B, C, 7, 7
            return F.gelu(norm(as_tokens(sr(x))))
        if min(H, W) < self.sr_ratio:
            raise ValueError(
                f"Attention: expected a token grid of at least {self.sr_ratio} x {self.sr_ratio} "
                f"(sr_ratio), got {H} x {W}"
            )
        fused = self.fused
        eps = self.norm_eps
        if not is_scripting():
            fused = fused and is_plain(sr, norm)
            eps = norm.eps
        bias = sr.bias
        if fused and bias is not None:
            return torch.ops.pvt.spatial_reduction(
                x, H, W, sr.weight, bias, norm.weight, norm.bias, self.sr_ratio, eps
            )
        return norm(as_tokens(sr(as_map(x, H, W))))

    def __prepare_scriptable__(self) -> "Attention":
        """What torch.jit.script takes this module for: itself, with the norm's number of today."""
        if isinstance(self.norm, nn.LayerNorm):
            self.norm_eps = self.norm.eps
        return self


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, on each token: ``[B, N, C] -> [B, N, C]``.

    Args:
        dim: channels ``C`` of the tokens.
        hidden_dim: channels between the two layers.
        drop: dropout after each layer.
        dwconv: mix each hidden channel over 3 x 3 neighbouring tokens before the GELU (zeros
            around the grid).
        relu: a ReLU before that convolution, which the linear variant has.
        fused: use the operators of this library; False selects plain PyTorch. Without ``dwconv``
            they keep the hidden layer out of memory, unless dropout in training needs it.

    Source: PVT v2, "Convolutional Feed-Forward"; without ``dwconv``, PVT v1.
    """

    relu: Final[bool]
    fused: Final[bool]
    drops: Final[bool]

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        drop: float = 0.0,
        dwconv: bool = False,
        relu: bool = False,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.relu = relu
        self.fused = fused
        self.drops = drop > 0.0
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = (
            nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim) if dwconv else None
        )
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, H: int = 0, W: int = 0) -> Tensor:
        """``[B, N, C] -> [B, N, C]``; with ``dwconv``, ``N`` is the token grid's ``H * W``."""
        dwconv = self.dwconv
        if dwconv is None:
            fused = self.fused and not (self.drops and self.training)
            if not is_scripting():
                fused = fused and is_plain(self.fc1, self.fc2)
            if fused:
                return torch.ops.pvt.mlp(
                    x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
                )
            x = F.gelu(self.fc1(x))  # the exact GELU, as published
        else:
            if x.shape[1] != H * W:
                raise ValueError(f"Mlp: expected H * W = {H} * {W} tokens, got {x.shape[1]}")
            x = self.fc1(x)
            fused = self.fused
            if not is_scripting():
                fused = fused and is_plain(dwconv)
            bias = dwconv.bias
            if fused and bias is not None:
                x = torch.ops.pvt.dwconv_gelu(x, H, W, dwconv.weight, bias, self.relu)
            else:
                x = F.relu(x) if self.relu else x
                x = F.gelu(as_tokens(dwconv(as_map(x, H, W))))
        return self.drop(self.fc2(self.drop(x)))


class DropPath(nn.Module):
    """Stochastic depth: in training, zero the whole residual branch of random samples.

    Each sample is dropped with probability ``drop_prob``; the others are divided by
    ``1 - drop_prob``, so the expectation is unchanged. Identity in evaluation mode.

    Source: Huang et al., Deep Networks with Stochastic Depth, 2016.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        check_probability("drop_prob", drop_prob)
        self.drop_prob = float(drop_prob)

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1.0 - self.drop_prob
        keep = x.new_empty([x.shape[0]] + [1] * (x.dim() - 1)).bernoulli_(keep_prob)
        return x * (keep / keep_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


class Block(nn.Module):
    """A transformer block: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    Args:
        dim, num_heads, sr_ratio, linear, fused: as in :class:`Attention`.
        mlp_ratio: width of the MLP's hidden layer as a multiple of ``dim``.
        drop_path: probability of :class:`DropPath` on both branches.
        dwconv: as in :class:`Mlp`; with ``linear`` its ReLU comes along.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        sr_ratio: int = 1,
        drop_path: float = 0.0,
        fused: bool = True,
        linear: bool = False,
        dwconv: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.attn = Attention(
            dim, num_heads, qkv_bias=True, sr_ratio=sr_ratio, linear=linear, fused=fused
        )
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        hidden_dim = int(dim * mlp_ratio)
        self.mlp = Mlp(dim, hidden_dim, dwconv=dwconv, relu=linear, fused=fused)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        """``[B, N, C] -> [B, N, C]``; ``H`` and ``W`` as in :meth:`Attention.forward`."""
        x = x + self.drop_path(self.attn(self.norm1(x), H, W))
        x = x + self.drop_path(self.mlp(self.norm2(x), H, W))
        return x
