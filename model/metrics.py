"""Figures for reports: what reconstructions lose, how codes are used, whether embeddings still tell captions apart.

B images, C candidates, D depths, K codes, E channels of an embedding.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

_WINDOW, _SIGMA = 11, 1.5
"""Pixels; of structural similarity, as its authors have it."""
_STABLE = (0.01**2, 0.03**2)


class CodebookUse(NamedTuple):
    """How evenly a codebook is used."""

    usage: Float[Tensor, ""]  # share of codes chosen at any depth
    usage_per_depth: Float[Tensor, " D"]  # share of codes chosen at that depth
    perplexity_per_depth: Float[Tensor, " D"]  # 2 to the entropy in bits: 1 to K


def psnr(images: UInt8[Tensor, "B 3 H W"], references: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the peak signal-to-noise ratio of each image, dB; infinite where the two are equal."""
    return -10 * (images / 255 - references / 255).square().mean(dim=(1, 2, 3)).log10()


def ssim(images: UInt8[Tensor, "B 3 H W"], references: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the structural similarity of each image (Wang et al., 2004), -1 to 1, with an 11-pixel Gaussian window of sigma 1.5.

    It is that of torchmetrics, whose import takes 7 s, more than all else that a report needs. At least 6 pixels a side.
    """
    side = _WINDOW // 2
    one, other = (
        F.pad(each / 255, (side, side, side, side), mode="reflect") for each in (images, references)
    )
    bell = torch.exp(-(torch.arange(_WINDOW, device=one.device) - side).square() / (2 * _SIGMA**2))
    window = (bell[:, None] * bell / bell.sum().square()).expand(3, 1, -1, -1)
    parts = F.conv2d(torch.cat((one, other, one * one, other * other, one * other)), window, groups=3)
    mean, mean_other, square, square_other, product = parts.chunk(5)
    variances = (square - mean.square()).clamp(min=0) + (square_other - mean_other.square()).clamp(min=0)
    likeness = (2 * mean * mean_other + _STABLE[0]) * (2 * (product - mean * mean_other) + _STABLE[1])
    return (likeness / ((mean.square() + mean_other.square() + _STABLE[0]) * (variances + _STABLE[1]))).mean(
        dim=(1, 2, 3)
    )


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


def choice_accuracy(
    images: Float[Tensor, "B E"], candidates: Float[Tensor, "B C E"], right: Int[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Return the share of images nearest in angle to the right one of their own candidate texts; ties to the first."""
    cosines = torch.cosine_similarity(images[:, None], candidates, dim=-1)
    return (cosines.argmax(dim=1) == right).double().mean()
