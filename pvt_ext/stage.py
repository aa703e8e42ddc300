"""One stage of the pyramid: patch embedding, positions, blocks, norm.

Source: PVT v1, section 3.2 and figure 3.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._jit_internal import is_scripting
from torch.utils.checkpoint import checkpoint

from pvt_ext.nn import BLOCK_EPS, Block, PatchEmbed
from pvt_ext.variants import StageSpec


class Stage(nn.Module):
    """Patch embedding, positions, blocks and norm of one resolution.

    The position table, if there is one, belongs to the grid of ``img_size``. On any other grid it
    is resized bilinearly, as in the published formula; the decision compares heights and widths.
    The position of a class token is row 0 of the table.

    Args:
        spec: the numbers of this stage.
        img_size: ``(height, width)`` of the input that the position table is made for.
        in_chans: channels of the input.
        drop_path: stochastic depth probability of each block.
        fused: use the operators of this library; False selects plain PyTorch.
    """

    def __init__(
        self,
        spec: StageSpec,
        img_size: tuple[int, int],
        in_chans: int,
        drop_path: Sequence[float],
        fused: bool = True,
    ) -> None:
        super().__init__()
        if spec.cls_token and (spec.sr_ratio > 1 or spec.linear or spec.dwconv):
            raise ValueError(
                "cls_token: expected sr_ratio 1, linear False and dwconv False in the same stage "
                f"(they need a grid of tokens), got {spec}"
            )
        dim = spec.embed_dim
        self.patch_embed = PatchEmbed(img_size, spec.patch_size, in_chans, dim, spec.overlap)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if spec.cls_token else None
        num_positions = self.patch_embed.num_patches + int(spec.cls_token)
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, num_positions, dim)) if spec.positions else None
        )
        self.blocks = nn.ModuleList(
            Block(
                dim,
                spec.num_heads,
                spec.mlp_ratio,
                spec.sr_ratio,
                rate,
                fused,
                linear=spec.linear,
                dwconv=spec.dwconv,
            )
            for rate in drop_path
        )
        self.norm = nn.LayerNorm(dim, eps=BLOCK_EPS) if spec.norm else None
        self.fan_out_init = spec.fan_out_init
        self.grad_checkpointing = False

    def forward(self, x: Tensor, with_cls: bool = True) -> tuple[Tensor, tuple[int, int]]:
        """Tokens of this stage and the grid ``(H, W)`` they form.

        Args:
            x: feature map, ``[B, in_chans, H_in, W_in]``.
            with_cls: whether the class token of this stage, if it has one, takes part.

        Returns:
            tokens ``[B, H * W, embed_dim]``, with the class token ``[B, 1 + H * W, embed_dim]``.
        """
        x, (H, W) = self._embed(x, with_cls)
        for block in self.blocks:
            if self.grad_checkpointing and not is_scripting():
                x = checkpoint(block, x, H, W, use_reentrant=False)
            else:
                x = block(x, H, W)
        norm = self.norm
        if norm is not None:
            x = norm(x.to(norm.weight.dtype))
        return x, (H, W)

    def _embed(self, x: Tensor, with_cls: bool) -> tuple[Tensor, tuple[int, int]]:
        # Tokens with their positions, and their grid.
        cls_token, table = self.cls_token, self.pos_embed
        position: Tensor | None = None
        if table is not None:
            H, W = self.patch_embed.grid(x.shape[2], x.shape[3])
            num_cls = 0 if cls_token is None else 1
            position = self._resize(table[0, num_cls:], H, W)
        x, (H, W) = self.patch_embed(x, position)
        if cls_token is not None and with_cls:
            cls = cls_token if table is None else cls_token + table[:, :1]
            x = torch.cat((cls.expand(x.shape[0], -1, -1).to(x.dtype), x), dim=1)
        return x, (H, W)

    def _resize(self, table: Tensor, H: int, W: int) -> Tensor:
        # H0 * W0, C -> H * W, C
        H0, W0 = self.patch_embed.H, self.patch_embed.W
        if (H == H0 and W == W0) or min(H, W) < 1:  # an input without a patch has no position
            return table
        table = table.unflatten(0, (H0, W0)).permute(2, 0, 1)[None]  # N, C -> 1, C, H0, W0
        table = F.interpolate(table, size=[H, W], mode="bilinear", align_corners=False)
        return table[0].flatten(1).transpose(0, 1)
