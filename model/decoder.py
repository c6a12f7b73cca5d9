"""The pixel decoder: RQ-VAE's convolutional decoder (arXiv 2203.01941, from VQGAN, arXiv 2012.09841).

B images, I input channels, O output channels, H by W positions, T by U after any
upsampling. Names of parameters are those of the released DualToken checkpoints.
"""

from typing import cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.config import DecoderConfig
from model.upsample import upsample_conv


class Decoder(nn.Module):
    """Residual blocks and upsampling from the latent grid to the image; attention on the latent grid only."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        groups, channels = config.norm_groups, [config.width * multiplier for multiplier in config.multipliers]
        lowest = len(channels) - 1
        self.conv_in = nn.Conv2d(config.latent_width, channels[-1], 3, padding=1)
        self.mid = _Middle(channels[-1], groups)
        # Level 0 is the image's resolution, and runs last.
        self.up = nn.ModuleList(
            _Level(
                channels[min(level + 1, lowest)], channels[level], groups,
                blocks=config.num_res_blocks + 1, attends=level == lowest, upsamples=level > 0,
            )
            for level in range(len(channels))
        )  # fmt: skip
        self.norm_out = nn.GroupNorm(groups, channels[0], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, latent: Float[Tensor, "B I H H"]) -> Float[Tensor, "B 3 S S"]:
        """Return images, about -1 to 1: nothing bounds them."""
        hidden = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class PostQuantBlock(nn.Module):
    """Bring tokens of the tower's width to the decoder's latent width: 1x1, then 3x3 convolution, beside a skip."""

    def __init__(self, in_width: int, out_width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_width, eps=1e-6)
        self.conv1 = nn.Conv2d(in_width, out_width, 1)
        self.norm2 = nn.GroupNorm(groups, out_width, eps=1e-6)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_width == out_width else nn.Conv2d(in_width, out_width, 1)

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H W"]:
        """Return the grid at the latent width."""
        hidden = self.conv1(F.silu(self.norm1(grid)))
        return self.nin_shortcut(grid) + self.conv2(F.silu(self.norm2(hidden)))


class _ResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H W"]:
        hidden = self.conv1(F.silu(self.norm1(grid)))
        return self.nin_shortcut(grid) + self.conv2(F.silu(self.norm2(hidden)))


class _AttnBlock(nn.Module):
    """One head of attention over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B I H W"]:
        normed = self.norm(grid)
        # The one head is a dimension of its own: fused kernels, and ONNX, want four.
        queries, keys, values = (layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(queries, keys, values)[:, 0]
        return grid + self.proj_out(seen.transpose(1, 2).unflatten(2, grid.shape[2:]))


class _Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = _ResBlock(channels, channels, groups)
        self.attn_1 = _AttnBlock(channels, groups)
        self.block_2 = _ResBlock(channels, channels, groups)

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B I H W"]:
        return self.block_2(self.attn_1(self.block_1(grid)))


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B I T U"]:
        assert self.conv.bias is not None
        return upsample_conv(grid, self.conv.weight, self.conv.bias)


class _Level(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int, *, blocks: int, attends: bool, upsamples: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(_ResBlock(in_channels if index == 0 else out_channels, out_channels, groups) for index in range(blocks))
        self.attn = nn.ModuleList(_AttnBlock(out_channels, groups) if attends else nn.Identity() for _ in range(blocks))
        self.upsample = _Upsample(out_channels) if upsamples else nn.Identity()

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O T U"]:
        for block, attend in zip(self.block, self.attn, strict=True):
            grid = attend(block(grid))
        return cast("Tensor", self.upsample(grid))
