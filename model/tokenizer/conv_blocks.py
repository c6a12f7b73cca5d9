"""What VQGAN's encoder and decoder are made of (arXiv 2012.09841); parameters have the released DualToken checkpoints' names.

B images, I input and O output channels, H by W positions.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ResBlock(nn.Module):
    """Two convolutions beside a skip; the first of `first_kernel` pixels' side, the second of 3."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, first_kernel: int = 3) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, first_kernel, padding=first_kernel // 2)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H W"]:
        """Return the grid with the output channels."""
        hidden = self.conv1(F.silu(self.norm1(grid)))
        return self.nin_shortcut(grid) + self.conv2(F.silu(self.norm2(hidden)))


class AttnBlock(nn.Module):
    """One head of attention over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B I H W"]:
        """Return the grid and what its positions see of each other."""
        normed = self.norm(grid)
        # The one head is a dimension of its own: fused kernels, and ONNX, want four.
        queries, keys, values = (
            layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v)
        )
        seen = F.scaled_dot_product_attention(queries, keys, values)[:, 0]
        return grid + self.proj_out(seen.transpose(1, 2).unflatten(2, grid.shape[2:]))


class Middle(nn.Module):
    """What the lowest level of encoder and decoder has besides its own blocks."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B I H W"]:
        """Return a grid of the same shape."""
        return self.block_2(self.attn_1(self.block_1(grid)))
