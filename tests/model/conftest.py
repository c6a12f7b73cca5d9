"""Shapes in signatures are checked while these tests run."""

from jaxtyping import install_import_hook

# Before anything imports model: the hook only sees modules that are yet to be imported.
install_import_hook("dualtoken.model", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

from dualtoken.model.config.tokenizer import TokenizerConfig  # noqa: E402
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer  # noqa: E402
from tests.helpers.tiny_tokenizer import tiny_tokenizer_config  # noqa: E402

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
