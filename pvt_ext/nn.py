"""The building blocks of a Pyramid Vision Transformer, in data-flow order.

``PatchEmbed`` and ``Attention`` take the constructor arguments and hold the parameter names of the
published classification code, so either can replace its namesake in other code. Everything here
can be scripted (``torch.jit.script``) in training and in evaluation mode.

Layout: feature maps are ``[B, C, H, W]``; tokens are ``[B, N, C]`` with ``N = H * W`` in row-major
order. LayerNorm epsilons follow the published models: 1e-6 in a block, 1e-5 after the patch
embedding and after the spatial reduction.
"""

import operator
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_ext import reference

BLOCK_EPS = 1e-6
EMBED_EPS = 1e-5


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


class PatchEmbed(nn.Module):
    """Cut a feature map into patches and project each one to a token.

    Args:
        img_size: height and width of the input this layer is designed for. Other sizes work;
            ``H``, ``W`` and ``num_patches`` describe the grid at this size.
        patch_size: side of a patch, also the stride.
        in_chans: channels of the input.
        embed_dim: channels of a token.

    Source: PVT v1, section 3.2.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
    ) -> None:
        super().__init__()
        self.img_size = to_pair("img_size", img_size)
        self.patch_size = to_pair("patch_size", patch_size)
        in_chans = check_at_least("in_chans", in_chans, 1)
        embed_dim = check_at_least("embed_dim", embed_dim, 1)
        self.H = self.img_size[0] // self.patch_size[0]
        self.W = self.img_size[1] // self.patch_size[1]
        if self.H < 1 or self.W < 1:
            raise ValueError(f"img_size: expected at least {self.patch_size}, got {self.img_size}")
        self.num_patches = self.H * self.W
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, stride=self.patch_size)
        self.norm = nn.LayerNorm(embed_dim, eps=EMBED_EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens of ``x`` and the grid they form.

        Args:
            x: ``[B, in_chans, H, W]``; rows and columns that do not fill a patch are dropped.

        Returns:
            tokens ``[B, (H // patch) * (W // patch), embed_dim]`` and ``(H // patch, W // patch)``.
        """
        if x.dim() != 4:
            raise ValueError(f"PatchEmbed: expected x [B, C, H, W], got shape {x.shape}")
        H, W = x.shape[2] // self.patch_size[0], x.shape[3] // self.patch_size[1]
        if H == 0 or W == 0:
            raise ValueError(
                f"PatchEmbed: expected an input of at least {self.patch_size[0]} x "
                f"{self.patch_size[1]}, got {x.shape[2]} x {x.shape[3]}"
            )
        x = self.proj(x).flatten(2).transpose(1, 2)  # B, C, H, W -> B, N, C
        return self.norm(x), (H, W)


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
        fused: use the operators of this library; False selects plain PyTorch.

    Source: PVT v1, section 3.3.
    """

    # Final: the branch not taken is not compiled.
    fused: Final[bool]
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
        self.drops_probs = attn_drop > 0.0

        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, dim * 2, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio) if sr_ratio > 1 else None
        self.norm = nn.LayerNorm(dim, eps=EMBED_EPS) if sr_ratio > 1 else None
        self.norm_eps = EMBED_EPS  # TorchScript cannot read it from the norm

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        """Attend from every token of ``x`` to the reduced grid.

        Args:
            x: ``[B, N, C]``. With ``sr_ratio > 1``, ``N`` is ``H * W``; with ``sr_ratio == 1`` the
                grid plays no part and other tokens (a class token) may be among them.
            H, W: the token grid, each at least ``sr_ratio``.

        Returns:
            ``[B, N, C]``.
        """
        q = self.q(x)
        kv = self.kv(self._reduce(x, H, W))
        if self.fused and not (self.drops_probs and self.training):
            x = torch.ops.pvt.sra_attention(q, kv, self.num_heads, self.scale)
        else:
            k, v = kv.chunk(2, dim=-1)
            probs = reference.attention_weights(q, k, self.num_heads, self.scale)
            probs = self.attn_drop(probs)
            v = v.unflatten(-1, (self.num_heads, -1))  # B, kv_len, h, d
            x = torch.einsum("bhqk,bkhd->bqhd", probs, v).flatten(2)
        return self.proj_drop(self.proj(x))

    def attention_map(self, x: Tensor, H: int, W: int) -> Tensor:
        """Attention probabilities, ``[B, num_heads, N, kv_len]``; each row sums to 1.

        Takes the arguments of :meth:`forward`. The keys form the grid ``(H // sr_ratio,
        W // sr_ratio)`` in row-major order (after a class token, if ``x`` has one).
        """
        k, _ = self.kv(self._reduce(x, H, W)).chunk(2, dim=-1)
        return reference.attention_weights(self.q(x), k, self.num_heads, self.scale)

    def _reduce(self, x: Tensor, H: int, W: int) -> Tensor:
        # B, N, C -> B, kv_len, C
        sr, norm = self.sr, self.norm
        if sr is None or norm is None:
            return x
        if x.shape[1] != H * W:
            raise ValueError(f"Attention: expected H * W = {H} * {W} tokens, got {x.shape[1]}")
        if min(H, W) < self.sr_ratio:
            raise ValueError(
                f"Attention: expected a token grid of at least {self.sr_ratio} x {self.sr_ratio} "
                f"(sr_ratio), got {H} x {W}"
            )
        bias = sr.bias
        assert bias is not None
        if self.fused:
            return torch.ops.pvt.spatial_reduction(
                x, H, W, sr.weight, bias, norm.weight, norm.bias, self.sr_ratio, self.norm_eps
            )
        return reference.spatial_reduction(
            x, H, W, sr.weight, bias, norm.weight, norm.bias, self.sr_ratio, self.norm_eps
        )


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, on each token: ``[B, N, C] -> [B, N, C]``."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.gelu(self.fc1(x)))  # the exact GELU, as published
        return self.drop(self.fc2(x))


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
        dim, num_heads, sr_ratio, fused: as in :class:`Attention`.
        mlp_ratio: width of the MLP's hidden layer as a multiple of ``dim``.
        drop_path: probability of :class:`DropPath` on both branches.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        sr_ratio: int = 1,
        drop_path: float = 0.0,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.attn = Attention(dim, num_heads, qkv_bias=True, sr_ratio=sr_ratio, fused=fused)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        """``[B, N, C] -> [B, N, C]``; ``H`` and ``W`` as in :meth:`Attention.forward`."""
        x = x + self.drop_path(self.attn(self.norm1(x), H, W))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x
