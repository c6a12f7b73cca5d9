"""How evenly a codebook is used, what its codes cost, and whether two encodings agree. D depths, K codes.

Counts are int64, so those of parts add up to those of the whole in any order.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int, Int64, Integer
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


def entropy_bits(counts: Int[Tensor, "D K"]) -> Float64[Tensor, " D"]:
    """Return the entropy of each depth's codes, bits: 0 to log2 K, and 0 where nothing was counted.

    It is that of the shares found. From n counted codes it is too low by about (K - 1) / (2 n ln 2) (Miller,
    1955), so compare it at equal n.
    """
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    return -torch.xlogy(shares, shares).sum(dim=1) / math.log(2)


def dead_codes(counts: Int[Tensor, "D K"]) -> Int64[Tensor, " D"]:
    """Return how many codes are never chosen at each depth."""
    return (counts == 0).sum(dim=1)


class CodeRate(NamedTuple):
    """Bits that the codes of one stream take."""

    stored_per_image: float
    """Each code in log2 K bits."""
    stored_per_pixel: float
    entropy_per_image: float
    """Each code in its depth's entropy: the size after an ideal coder that knows the shares alone."""
    entropy_per_pixel: float


def code_rate(counts: Int[Tensor, "D K"], num_positions: int, num_pixels: int) -> CodeRate:
    """Return the bits of an image's codes: `num_positions` of D depths each, for `num_pixels` pixels."""
    depth, num_codes = counts.shape
    stored = num_positions * depth * math.log2(num_codes)
    entropy = num_positions * entropy_bits(counts).sum().item()
    return CodeRate(
        stored_per_image=stored,
        stored_per_pixel=stored / num_pixels,
        entropy_per_image=entropy,
        entropy_per_pixel=entropy / num_pixels,
    )


def equal_codes(codes: Integer[Tensor, "B *P D"], others: Integer[Tensor, "B *P D"]) -> Int64[Tensor, "B D"]:
    """Return at how many positions of each image two encodings of one stream chose the same code."""
    return (codes.long() == others.long()).flatten(1, -2).sum(dim=1)


def agreement(equal: Int64[Tensor, "B D"], num_positions: int) -> Float64[Tensor, " D"]:
    """Return the share of equal codes at each depth over all images, from rows of `equal_codes`."""
    return equal.sum(dim=0).double() / (len(equal) * num_positions)
