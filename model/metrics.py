"""Figures for reports: what reconstructions lose, how codes are used, whether embeddings still tell captions apart.

B images, C candidates, D depths, K codes, E channels of an embedding.
"""

from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from model.vision_imports import vision_imports

with vision_imports():
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


class CodebookUse(NamedTuple):
    """How evenly a codebook is used."""

    usage: Float[Tensor, ""]  # share of codes chosen at any depth
    usage_per_depth: Float[Tensor, " D"]  # share of codes chosen at that depth
    perplexity_per_depth: Float[Tensor, " D"]  # 2 to the entropy in bits: 1 to K


def psnr(images: UInt8[Tensor, "B 3 H W"], references: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the peak signal-to-noise ratio of each image, dB; infinite where the two are equal."""
    return peak_signal_noise_ratio(images / 255, references / 255, data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(images: UInt8[Tensor, "B 3 H W"], references: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the structural similarity of each image, -1 to 1, with an 11-pixel Gaussian window of sigma 1.5."""
    return cast("Tensor", structural_similarity_index_measure(images / 255, references / 255, data_range=1.0, reduction="none"))


def count_codes(ids: Int[Tensor, "*B D"], num_codes: int) -> Int[Tensor, "D K"]:
    """Return how often each code is chosen at each depth; counts of several batches add up."""
    flat = ids.reshape(-1, ids.shape[-1])
    offsets = torch.arange(flat.shape[1], device=ids.device) * num_codes
    return torch.bincount((flat + offsets).flatten(), minlength=flat.shape[1] * num_codes).view(-1, num_codes)


def codebook_use(counts: Int[Tensor, "D K"]) -> CodebookUse:
    """Return how evenly codes are used, from the sums of `count_codes`."""
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    perplexity = torch.exp(-torch.xlogy(shares, shares).sum(dim=1))
    return CodebookUse((counts.sum(dim=0) > 0).double().mean(), (counts > 0).double().mean(dim=1), perplexity)


def choice_accuracy(images: Float[Tensor, "B E"], candidates: Float[Tensor, "B C E"], right: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return the share of images nearest in angle to the right one of their own candidate texts; ties to the first."""
    cosines = torch.cosine_similarity(images[:, None], candidates, dim=-1)
    return (cosines.argmax(dim=1) == right).double().mean()
