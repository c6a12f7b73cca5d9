"""The pixel decoder: RQ-VAE's convolutional decoder (arXiv 2203.01941, from VQGAN, arXiv 2012.09841).

Parameters have the names of the released DualToken checkpoints. B images of S by S pixels, I input channels,
O output channels, H by W positions, T by U after any upsampling.
"""

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from dualtoken.model.config.tokenizer import DecoderConfig
from dualtoken.model.group_norm import GroupNorm, norm_silu
from dualtoken.model.tokenizer.conv_blocks import AttnBlock, Middle, ResBlock
from dualtoken.model.tokenizer.upsample import upsample_conv


class Decoder(nn.Module):
    """Residual blocks and upsampling from the latent grid to the image.

    Attention is on the latent grid, and on the levels that the configuration names.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        channels = [config.width * multiplier for multiplier in config.multipliers]
        lowest = len(channels) - 1
        self.conv_in = nn.Conv2d(config.latent_width, channels[-1], 3, padding=1)
        self.mid = Middle(channels[-1], groups)
        # Level 0 is the image's resolution, and runs last.
        self.up = nn.ModuleList()
        for level, out_channels in enumerate(channels):
            in_channels = channels[min(level + 1, lowest)]
            self.up.append(
                _Level(
                    in_channels,
                    out_channels,
                    groups,
                    blocks=config.num_res_blocks + 1,
                    attends=level in config.attends,
                    upsamples=level > 0,
                )
            )
        self.norm_out = GroupNorm(groups, channels[0], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, latent: Float[Tensor, "B I H H"]) -> Float[Tensor, "B 3 S S"]:
        """Return images, about -1 to 1: nothing bounds them."""
        return self.conv_out(self.last_features(latent))

    def last_features(self, latent: Float[Tensor, "B I H H"]) -> Float[Tensor, "B O S S"]:
        """Return what `conv_out`, the last layer, makes images of."""
        hidden = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            hidden = level(hidden)
        return norm_silu(hidden, self.norm_out)


class _Upsample(nn.Module):
    """Doubles a grid's side by nearest neighbours and a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B I T U"]:
        assert self.conv.bias is not None
        return upsample_conv(grid, self.conv.weight, self.conv.bias)


class _Level(nn.Module):
    """Residual blocks at one resolution, then a step to twice of it where `upsamples`."""

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, *, blocks: int, attends: bool, upsamples: bool
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList()
        for _ in range(blocks):
            self.block.append(ResBlock(in_channels, out_channels, groups))
            in_channels = out_channels
        self.attn = nn.ModuleList()
        for _ in range(blocks):
            self.attn.append(AttnBlock(out_channels, groups) if attends else nn.Identity())
        self.upsample = _Upsample(out_channels) if upsamples else nn.Identity()

    def forward(self, grid: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O T U"]:
        for block, attend in zip(self.block, self.attn, strict=True):
            grid = attend(block(grid))
        return cast("Tensor", self.upsample(grid))
