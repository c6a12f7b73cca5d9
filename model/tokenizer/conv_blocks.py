"""Blocks of VQGAN's encoder and decoder (arXiv 2012.09841).

Parameters have the names of the released DualToken checkpoints. B images, I input and O output channels, H by
W positions.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualtoken.model.group_norm import GroupNorm, norm_silu


class ResBlock(nn.Module):
    """Two convolutions beside a skip; the first has a kernel of side `first_kernel`, the second of 3."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, first_kernel: int = 3) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, first_kernel, padding=first_kernel // 2)
        self.norm2 = GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H W"]:
        """Return the grid with the output channels."""
        hidden = self.conv1(norm_silu(grid, self.norm1))
        return self.nin_shortcut(grid) + self.conv2(norm_silu(hidden, self.norm2))


class AttnBlock(nn.Module):
    """One head of attention over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B I H W"]:
        """Return the grid and what its positions see of each other."""
        normed = self.norm(grid)
        attended = F.scaled_dot_product_attention(
            _as_one_head(self.q(normed)), _as_one_head(self.k(normed)), _as_one_head(self.v(normed))
        )
        tokens = attended[:, 0]
        return grid + self.proj_out(tokens.transpose(1, 2).unflatten(2, grid.shape[2:]))


def _as_one_head(grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B 1 N I"]:
    """Return positions as tokens, in raster order.

    The one head is a dimension of its own: fused kernels, and ONNX, want four.
    """
    return grid.flatten(2).transpose(1, 2)[:, None]


class Middle(nn.Module):
    """Blocks at the lowest resolution of encoder and decoder, besides the level's own."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B I H W"]:
        """Return a grid of the same shape."""
        return self.block_2(self.attn_1(self.block_1(grid)))
