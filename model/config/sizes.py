"""Least sizes of networks, known before anything of these sizes is made."""

from dualtoken.model.config.tokenizer import TokenizerConfig


def least_weights(config: TokenizerConfig) -> int:
    """Return a number of weights that a tokenizer has at least: those of its largest parts.

    A configuration from outside that asks for more than the file beside it holds is refused by it, in place
    of filling the memory.
    """
    width = config.tower.width
    decoder = config.decoder
    channels = decoder.width * max(decoder.multipliers)
    counts = [
        width**2 * config.tower.depth,
        width * config.grid_size**2,
        3 * width * config.tower.patch_size**2,
        width * decoder.latent_width,
        9 * decoder.latent_width * channels,
        18 * (decoder.width * min(decoder.multipliers)) ** 2 * decoder.num_res_blocks,
        width * config.pixel.width,
        width * config.semantic.width,
    ]
    if config.pixel_encoder is not None:
        encoder = config.pixel_encoder
        counts.append(18 * (encoder.width * min(encoder.multipliers)) ** 2 * encoder.num_res_blocks)
    return max(counts)
