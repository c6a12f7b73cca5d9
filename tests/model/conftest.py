"""What tests of the model share: a tiny tokenizer, and images for it."""

import pytest
import torch

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from tests.helpers.tiny_tokenizer import tiny_tokenizer_config

# One thread: tiny matrices, and other test processes beside this one.
torch.set_num_threads(1)


@pytest.fixture
def config() -> TokenizerConfig:
    """A tiny tokenizer's config."""
    return tiny_tokenizer_config()


@pytest.fixture
def tokenizer(config: TokenizerConfig) -> DualTokenizer:
    torch.manual_seed(0)
    return DualTokenizer(config)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
