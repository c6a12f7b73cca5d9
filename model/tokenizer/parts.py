"""Parts of the dual tokenizer that its configuration may leave out or choose between."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualtoken.model.config.open_clip import HALF
from dualtoken.model.config.tokenizer import DecoderConfig, NamedTower, TokenizerConfig
from dualtoken.model.config.transformer_decoder import TransformerDecoderConfig
from dualtoken.model.tokenizer.conv_blocks import ResBlock
from dualtoken.model.tokenizer.decoder import Decoder
from dualtoken.model.tokenizer.transformer_decoder import TransformerDecoder

_PREFIX_STD = 0.02
"""Standard deviation of a fresh learned prefix."""


class DecodingParts(NamedTuple):
    """The way from widened pixel tokens to an image."""

    post_quant: nn.Module
    """Brings tokens of the tower's width to the decoder's input."""
    decoder: Decoder | TransformerDecoder


def decoding_parts(config: DecoderConfig | TransformerDecoderConfig, width: int) -> DecodingParts:
    """Return a decoder with fresh weights, and what brings tokens of the tower's `width` to it."""
    if isinstance(config, TransformerDecoderConfig):
        return DecodingParts(nn.Identity(), TransformerDecoder(config, width))
    # The released code's first convolution is of single positions.
    post_quant = ResBlock(width, config.latent_width, config.norm_groups, first_kernel=1)
    return DecodingParts(post_quant, Decoder(config))


def learned_prefix(config: TokenizerConfig, count: int) -> nn.Parameter | None:
    """Return what stands for the tower's `count` class tokens beside semantic codes, (1, count, width).

    None where the tower has no class token, or its own is used.
    """
    if not isinstance(config.tower, NamedTower) or config.tower.prefix == "tower" or not count:
        return None
    return nn.Parameter(nn.init.normal_(torch.empty(1, count, config.tower.width), std=_PREFIX_STD))


class InputChange(NamedTuple):
    """Change of images of -1 to 1 to what the tower expects; both are None where that is the same."""

    scale: Float[Tensor, "3 1 1"] | None
    shift: Float[Tensor, "3 1 1"] | None


def input_change(config: TokenizerConfig) -> InputChange:
    """Return what brings images of -1 to 1 to what the tower expects."""
    if not isinstance(config.tower, NamedTower) or config.tower.statistics == HALF:
        return InputChange(None, None)
    statistics = config.tower.statistics
    mean = torch.tensor(statistics[0]).view(3, 1, 1)
    std = torch.tensor(statistics[1]).view(3, 1, 1)
    return InputChange(scale=0.5 / std, shift=(0.5 - mean) / std)
