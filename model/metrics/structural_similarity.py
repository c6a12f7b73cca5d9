"""SSIM and MS-SSIM of each image, in float64. B images of H by W pixels.

SSIM is that of Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004;
MS-SSIM that of Wang et al., "Multiscale structural similarity for image quality assessment", 2003. Both are
what torchmetrics gives for images in float64. In float32 the difference of mean squares and squared means
cancels: smooth images are then wrong by up to 1e-4, in torchmetrics as well.

An image is computed alone, so its bits do not depend on its batch.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float64, UInt8
from torch import Tensor

_WINDOW = 11
"""Side of the window, pixels, as its authors have it."""
_BORDER = _WINDOW // 2
"""Pixels by which the image is mirrored at each side."""
_SIGMA = 1.5
"""Standard deviation of the Gaussian window, pixels."""
_STABLE_MEAN = 0.01**2
"""Constant that keeps the comparison of means finite, for images of 0 to 1 (C1 of the paper)."""
_STABLE_VARIANCE = 0.03**2
"""Constant that keeps the comparison of variances finite (C2 of the paper)."""
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM's five scales, the finest first (Wang et al., 2003, section 3.2)."""
MIN_SIDE = _BORDER + 1
"""Least side of an image whose border can be mirrored, pixels."""
MIN_MULTI_SCALE_SIDE = _WINDOW * 2 ** (len(_SCALE_WEIGHTS) - 1)
"""Least side of an image whose coarsest scale still holds a window, pixels."""
_CHUNK = 32
"""Outputs of one row of the matrix products; 64 took 40 % longer (AMD EPYC, 1 thread, 2026-11-29)."""


class _Compared(NamedTuple):
    """Comparison of two images in the window around each pixel, as columns of rows."""

    similarity: Float64[Tensor, "3 W H"]
    """Luminance, contrast and structure together (Wang et al., 2004, eq. 13)."""
    contrast: Float64[Tensor, "3 W H"]
    """Contrast and structure alone."""


def structural_similarity(
    images: UInt8[Tensor, "B 3 H W"], references: UInt8[Tensor, "B 3 H W"]
) -> Float64[Tensor, " B"]:
    """Return the structural similarity of each image, -1 to 1 (Wang et al., 2004, eq. 13 and 17).

    Raises ValueError for images of less than `MIN_SIDE` pixels a side.
    """
    return _one_by_one("SSIM", MIN_SIDE, _single_scale, images, references)


def ms_ssim(images: UInt8[Tensor, "B 3 H W"], references: UInt8[Tensor, "B 3 H W"]) -> Float64[Tensor, " B"]:
    """Return the multi-scale structural similarity of each image, 0 to 1 (Wang et al., 2003, eq. 7).

    Contrast is compared at five scales, each half as large as the one before, and luminance at the coarsest.
    A scale of negative mean counts as 0, as in torchmetrics. Raises ValueError for images of less than
    `MIN_MULTI_SCALE_SIDE` pixels a side.
    """
    return _one_by_one("MS-SSIM", MIN_MULTI_SCALE_SIDE, _multi_scale, images, references)


def _one_by_one(
    name: str,
    min_side: int,
    metric: Callable[[Tensor, Tensor], Tensor],
    images: UInt8[Tensor, "B 3 H W"],
    references: UInt8[Tensor, "B 3 H W"],
) -> Float64[Tensor, " B"]:
    """Apply a metric to each image of 0 to 1 and its reference."""
    height, width = images.shape[2:]
    if min(height, width) < min_side:
        raise ValueError(
            f"{name} needs images of at least {min_side} pixels a side, and these have {height} by {width}"
        )
    values = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for row, (image, reference) in enumerate(zip(images, references, strict=True)):
        values[row] = metric(image.double() / 255, reference.double() / 255)
    return values


def _single_scale(
    image: Float64[Tensor, "3 H W"], reference: Float64[Tensor, "3 H W"]
) -> Float64[Tensor, ""]:
    return _compare(image, reference).similarity.mean()


def _multi_scale(image: Float64[Tensor, "3 H W"], reference: Float64[Tensor, "3 H W"]) -> Float64[Tensor, ""]:
    product = torch.ones((), dtype=torch.float64, device=image.device)
    for weight in _SCALE_WEIGHTS[:-1]:
        # The contrast of windows that reach over the border is left out.
        contrast = _compare(image, reference).contrast[:, _BORDER:-_BORDER, _BORDER:-_BORDER]
        product = product * contrast.mean().clamp(min=0) ** weight
        image = F.avg_pool2d(image, 2)
        reference = F.avg_pool2d(reference, 2)
    return product * _single_scale(image, reference).clamp(min=0) ** _SCALE_WEIGHTS[-1]


def _compare(image: Float64[Tensor, "3 H W"], reference: Float64[Tensor, "3 H W"]) -> _Compared:
    """Compare two images of 0 to 1 around each pixel."""
    borders = (_BORDER, _BORDER, _BORDER, _BORDER)
    x = F.pad(image, borders, mode="reflect")
    y = F.pad(reference, borders, mode="reflect")
    # Of both images' squares only the sum is needed.
    mean_x, mean_y, mean_squares, mean_xy = _local_means(torch.stack((x, y, x * x + y * y, x * y)))
    squares = mean_x.square() + mean_y.square()
    product = mean_x * mean_y
    # In place from here: new memory for each step takes as long as the step.
    variances = mean_squares.sub_(squares)
    covariance = mean_xy.sub_(product)
    contrast = covariance.mul_(2).add_(_STABLE_VARIANCE).div_(variances.add_(_STABLE_VARIANCE))
    luminance = product.mul_(2).add_(_STABLE_MEAN).div_(squares.add_(_STABLE_MEAN))
    return _Compared(similarity=luminance.mul_(contrast), contrast=contrast)


def _local_means(maps: Float64[Tensor, "N 3 P Q"]) -> Float64[Tensor, "N 3 W H"]:
    """Return Gaussian means around the pixels inside the border, with rows and columns exchanged.

    The window is a product of two bells, so that columns and rows are averaged one after the other.
    """
    return _averaged(_averaged(maps).mT)


def _averaged(values: Float64[Tensor, "N 3 P Q"]) -> Float64[Tensor, "N 3 P W"]:
    """Average along the last dimension, as products of short pieces with a band matrix.

    SSIM takes a third of the time that it takes with PyTorch's convolution in float32 (AMD EPYC, 1 thread,
    2026-11-29).
    """
    length = values.shape[-1] - 2 * _BORDER
    chunk = min(_CHUNK, length)
    missing = -length % chunk
    if missing:
        values = F.pad(values, (0, missing))
    pieces = values.unfold(-1, chunk + 2 * _BORDER, chunk)
    # One product of a copy takes half the time of many small products without one.
    averaged = pieces.reshape(-1, chunk + 2 * _BORDER) @ _band(chunk, values.device)
    return averaged.view(*pieces.shape[:-2], -1)[..., :length]


@cache
@torch.inference_mode(mode=False)
def _band(chunk: int, device: torch.device) -> Float64[Tensor, "L C"]:
    """Return the matrix whose columns hold the bell, each one place lower than the column before.

    It is made once: on a picture of 64 pixels a side, that took a tenth of SSIM's time.
    """
    offsets = torch.arange(_WINDOW, dtype=torch.float64, device=device) - _BORDER
    bell = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    bell = bell / bell.sum()
    rows = torch.arange(chunk + 2 * _BORDER, device=device)[:, None] - torch.arange(chunk, device=device)
    is_inside = (rows >= 0) & (rows < _WINDOW)
    return torch.where(is_inside, bell[rows.clamp(0, _WINDOW - 1)], 0.0)
