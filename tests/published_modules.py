"""The published models as modules: the attributes that the authors' code has, written again.

Only what a program meets that holds such a model: ``block1.0.attn.kv`` and so on, called as
``block(x, H, W)``. Dropout and the initialisation are left out. :mod:`published` and
:mod:`published_v2` are the formula; this is what carries its weights elsewhere.
"""

from functools import partial

from torch import Tensor, nn


class DWConv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, 1, 1, bias=True, groups=dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        return tokens(self.dwconv(as_map(x, H, W)))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, version: int, linear: bool, act: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        if version == 2:
            self.dwconv = DWConv(hidden)
        self.act = act
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(0.1)
        self.linear = linear
        if linear:
            self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = self.fc1(x)
        if self.linear:
            x = self.relu(x)
        if hasattr(self, "dwconv"):
            x = self.dwconv(x, H, W)
        return self.drop(self.fc2(self.drop(self.act(x))))


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, sr_ratio: int, linear: bool):
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, dim * 2, bias=qkv_bias)
        self.attn_drop = nn.Dropout(0.1)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.1)
        self.linear = linear
        self.sr_ratio = sr_ratio
        if linear:
            self.pool = nn.AdaptiveAvgPool2d(7)
            self.sr = nn.Conv2d(dim, dim, kernel_size=1, stride=1)
            self.norm = nn.LayerNorm(dim)
            self.act = nn.GELU()
        elif sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        source = x
        if self.linear:
            source = self.act(self.norm(tokens(self.sr(self.pool(as_map(x, H, W))))))
        elif self.sr_ratio > 1:
            source = self.norm(tokens(self.sr(as_map(x, H, W))))
        k, v = (self._heads(t) for t in self.kv(source).chunk(2, dim=-1))
        scores = (self._heads(self.q(x)) @ k.transpose(-2, -1)) * self.scale
        x = self.attn_drop(scores.softmax(dim=-1)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # B, heads, N, d


class DropPath(nn.Module):
    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.drop_prob)
        return x * keep / (1 - self.drop_prob)


class Block(nn.Module):
    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.1,
        sr_ratio: int = 1,
        linear: bool = False,
        version: int = 2,
        act_layer: type[nn.Module] | partial = nn.GELU,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias, sr_ratio, linear)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), version, linear, act_layer())

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), H, W))
        return x + self.drop_path(self.mlp(self.norm2(x), H, W))


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        kernel = 2 * patch_size - 1
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel, patch_size, patch_size - 1)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        return self.norm(tokens(x)), x.shape[2], x.shape[3]


class PyramidVisionTransformer(nn.Module):
    """Stages as attributes with numbers, as published; ``options`` go to every :class:`Block`."""

    def __init__(
        self,
        embed_dims: tuple[int, ...] = (16, 24, 40, 48),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[int, ...] = (4, 4, 2, 2),
        depths: tuple[int, ...] = (1, 2, 1, 1),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        num_classes: int = 10,
        **options: object,
    ) -> None:
        super().__init__()
        self.num_stages = len(depths)
        chans = (3, *embed_dims)
        for i in range(self.num_stages):
            patch_embed = PatchEmbed(4 if i == 0 else 2, chans[i], embed_dims[i])
            blocks = [
                Block(embed_dims[i], num_heads[i], mlp_ratios[i], sr_ratio=sr_ratios[i], **options)  # type: ignore[arg-type]
                for _ in range(depths[i])
            ]
            setattr(self, f"patch_embed{i + 1}", patch_embed)
            setattr(self, f"block{i + 1}", nn.ModuleList(blocks))
            setattr(self, f"norm{i + 1}", nn.LayerNorm(embed_dims[i], eps=1e-6))
        self.head = nn.Linear(embed_dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.num_stages + 1):
            x, H, W = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = block(x, H, W)
            x = as_map(getattr(self, f"norm{i}")(x), H, W)
        return self.head(x.mean(dim=(2, 3)))


def as_map(x: Tensor, H: int, W: int) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (H, W))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)
