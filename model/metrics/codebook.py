"""How evenly a codebook is used. D depths, K codes."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class CodebookUse(NamedTuple):
    """How evenly a codebook is used."""

    usage: Float[Tensor, ""]
    """Share of codes chosen at any depth."""
    usage_per_depth: Float[Tensor, " D"]
    """Share of codes chosen at that depth."""
    perplexity_per_depth: Float[Tensor, " D"]
    """2 to the entropy in bits: 1 to K."""


def count_codes(ids: Int[Tensor, "*B D"], num_codes: int) -> Int[Tensor, "D K"]:
    """Return how often each code is chosen at each depth; counts of several batches add up."""
    flat = ids.reshape(-1, ids.shape[-1])
    depth = flat.shape[1]
    # Each depth has its own range of bins, so that one pass counts them all.
    offsets = torch.arange(depth, device=ids.device) * num_codes
    return torch.bincount((flat + offsets).flatten(), minlength=depth * num_codes).view(-1, num_codes)


def codebook_use(counts: Int[Tensor, "D K"]) -> CodebookUse:
    """Return how evenly codes are used, from the sums of `count_codes`."""
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = -torch.xlogy(shares, shares).sum(dim=1)
    return CodebookUse(
        usage=(counts.sum(dim=0) > 0).double().mean(),
        usage_per_depth=(counts > 0).double().mean(dim=1),
        perplexity_per_depth=torch.exp(entropy),
    )
