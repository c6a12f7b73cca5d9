"""Least sizes of networks, known before anything of these sizes is made."""

from dualtoken.model.config.tokenizer import DecoderConfig, TokenizerConfig
from dualtoken.model.config.transformer_decoder import TransformerDecoderConfig


def least_weights(config: TokenizerConfig) -> int:
    """Return a number of weights that a tokenizer has at least: those of its largest parts.

    A configuration from outside that asks for more than the file beside it holds is refused by it, in place
    of filling the memory.
    """
    width = config.tower.width
    counts = [
        width**2 * config.tower.depth,
        width * config.grid_size**2,
        3 * width * config.tower.patch_size**2,
        *_of_decoder(config.decoder, width),
        width * config.pixel.width,
        width * config.semantic.width,
    ]
    if config.pixel_encoder is not None:
        encoder = config.pixel_encoder
        counts.append(18 * (encoder.width * min(encoder.multipliers)) ** 2 * encoder.num_res_blocks)
    return max(counts)


def _of_decoder(decoder: DecoderConfig | TransformerDecoderConfig, tower_width: int) -> list[int]:
    """Return numbers of weights of a decoder's parts."""
    if isinstance(decoder, TransformerDecoderConfig):
        return [
            tower_width * decoder.width,
            decoder.latent_size**2 * decoder.width,
            (4 * decoder.width**2 + 2 * decoder.width * decoder.mlp_width) * decoder.depth,
            decoder.width * decoder.patch_channels * decoder.patch_size**2,
        ]
    channels = decoder.width * max(decoder.multipliers)
    return [
        tower_width * decoder.latent_width,
        9 * decoder.latent_width * channels,
        18 * (decoder.width * min(decoder.multipliers)) ** 2 * decoder.num_res_blocks,
    ]
