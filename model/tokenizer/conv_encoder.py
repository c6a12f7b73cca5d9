"""A convolutional encoder of pixels alone, VQGAN's (arXiv 2012.09841): the mirror of `decoder.py`.

B images of S by S pixels, I input and O output channels, H by W positions, N = H*W tokens, P channels of a
code.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualtoken.model.config.tokenizer import ConvEncoderConfig
from dualtoken.model.tokenizer.conv_blocks import AttnBlock, Middle, ResBlock


class ConvEncoder(nn.Module):
    """Residual blocks and downsampling from the image to the grid of tokens; attention on that grid only."""

    def __init__(self, config: ConvEncoderConfig, out_width: int) -> None:
        super().__init__()
        groups = config.norm_groups
        channels = [config.width * multiplier for multiplier in config.multipliers]
        lowest = len(channels) - 1
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        # Level 0 is the image's resolution, and runs first.
        self.down = nn.ModuleList()
        for level, out_channels in enumerate(channels):
            in_channels = channels[max(level - 1, 0)]
            self.down.append(
                _Level(
                    in_channels,
                    out_channels,
                    groups,
                    blocks=config.num_res_blocks,
                    attends=level == lowest,
                    downsamples=level < lowest,
                )
            )
        self.mid = Middle(channels[-1], groups)
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], out_width, 3, padding=1)

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B N P"]:
        """Return tokens of images of -1 to 1, in raster order."""
        hidden = self.conv_in(images)
        for level in self.down:
            hidden = level(hidden)
        grid = self.conv_out(F.silu(self.norm_out(self.mid(hidden))))
        return grid.flatten(2).transpose(1, 2)


class _Level(nn.Module):
    """Residual blocks at one resolution, then a step to half of it where `downsamples`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        *,
        blocks: int,
        attends: bool,
        downsamples: bool,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList()
        for _ in range(blocks):
            self.block.append(ResBlock(in_channels, out_channels, groups))
            in_channels = out_channels
        self.attn = nn.ModuleList()
        for _ in range(blocks):
            self.attn.append(AttnBlock(out_channels, groups) if attends else nn.Identity())
        self.downsample = None
        if downsamples:
            self.downsample = nn.Conv2d(out_channels, out_channels, 3, stride=2)

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O T U"]:
        for block, attend in zip(self.block, self.attn, strict=True):
            grid = attend(block(grid))
        if self.downsample is None:
            return grid
        # One more row and column at the far sides only, so that a stride of 2 halves the grid exactly.
        return self.downsample(F.pad(grid, (0, 1, 0, 1)))
