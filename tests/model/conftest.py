"""Shapes in signatures are checked while these tests run."""

from jaxtyping import install_import_hook

# Before anything imports model: the hook only sees modules that are yet to be imported.
install_import_hook("dualtoken.model", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

from dualtoken.model.config.quantizer import QuantizerConfig  # noqa: E402
from dualtoken.model.config.tokenizer import (  # noqa: E402
    DecoderConfig,
    ShortcutConfig,
    TokenizerConfig,
    TowerConfig,
)
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer  # noqa: E402

# One thread: tiny matrices, and other test processes beside this one.
torch.set_num_threads(1)


@pytest.fixture
def config() -> TokenizerConfig:
    """A tiny tokenizer whose patches do not divide the image and whose grid differs from the decoder's."""
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
            latent_size=4, latent_width=16, width=8, multipliers=(1, 2, 2), num_res_blocks=1, norm_groups=4
        ),
    )


@pytest.fixture
def tokenizer(config: TokenizerConfig) -> DualTokenizer:
    torch.manual_seed(0)
    return DualTokenizer(config)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
