"""The tiny tokenizer of the tests of model code and of the commands on image files."""

from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.tokenizer import DecoderConfig, ShortcutConfig, TokenizerConfig, TowerConfig


def tiny_tokenizer_config() -> TokenizerConfig:
    """Return a config whose patches do not divide the image and whose grid differs from the decoder's."""
    quantizer = QuantizerConfig(num_codes=32, depth=3, width=8)
    return TokenizerConfig(
        image_size=16,
        tower=TowerConfig(patch_size=5, width=32, depth=4, num_heads=2, mlp_width=48),
        pixel_block=2,
        semantic_block=3,
        shortcut=ShortcutConfig(block=1),
        pixel=quantizer,
        semantic=quantizer,
        decoder=DecoderConfig(
            latent_size=4,
            latent_width=16,
            width=8,
            multipliers=(1, 2, 2),
            num_res_blocks=1,
            norm_groups=4,
        ),
    )
