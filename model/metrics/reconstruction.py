"""How close reconstructed images are to their originals: PSNR and SSIM. B images of H by W pixels.

Reports and training use `psnr_per_image` and `ssim`, in float32, and store all their digits. Evaluations use
`squared_errors`, which are exact, and `structural_similarity.py`, in float64.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from dualtoken.model.metrics.arrays import MAX_PSNR

_WINDOW = 11
"""Side of SSIM's window, pixels, as its authors have it."""
_SIGMA = 1.5
"""Standard deviation of SSIM's Gaussian window, pixels."""
_STABLE_MEAN = 0.01**2
"""Constant that keeps the comparison of means finite, for images of 0 to 1 (C1 of the paper)."""
_STABLE_VARIANCE = 0.03**2
"""Constant that keeps the comparison of variances finite (C2 of the paper)."""


def psnr_per_image(
    images: UInt8[Tensor, "B 3 H W"], references: UInt8[Tensor, "B 3 H W"]
) -> Float[Tensor, " B"]:
    """Return the peak signal-to-noise ratio of each image, dB; infinite where the two are equal."""
    error = (images / 255 - references / 255).square().mean(dim=(1, 2, 3))
    return -10 * error.log10()


def squared_errors(
    images: UInt8[Tensor, "B 3 H W"], references: UInt8[Tensor, "B 3 H W"]
) -> Int64[Tensor, " B"]:
    """Return the sum over each image of squared differences of levels.

    It is a whole number, so neither batch nor device nor the order of sums changes it.
    """
    differences = images.int() - references.int()
    return differences.square().sum(dim=(1, 2, 3), dtype=torch.int64)


def psnr_from(errors: Int64[Tensor, " B"], num_values: int) -> Float64[Tensor, " B"]:
    """Return the peak signal-to-noise ratio, dB, of sums of `squared_errors` over `num_values` values each.

    An image of H by W pixels has 3 H W values. Errors and values of several images can be added first: that
    gives the ratio of the mean error. It is at most `MAX_PSNR`, as with `arrays.psnr`.
    """
    if num_values < 1:
        raise ValueError(f"num_values={num_values}: give how many values each sum of errors is over")
    mean_squares = errors.double() / num_values
    return (10 * (255**2 / mean_squares).log10()).clamp(max=MAX_PSNR)


def ssim(images: UInt8[Tensor, "B 3 H W"], references: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the structural similarity of each image, -1 to 1 (Wang et al., 2004, eq. 13).

    The window is a Gaussian of 11 pixels and sigma 1.5; images have at least 6 pixels a side. The result is
    that of torchmetrics, whose import takes 7 s, more than all else that a report needs.
    """
    x = _padded(images)
    y = _padded(references)
    # One convolution gives all five local means.
    local_means = F.conv2d(torch.cat((x, y, x * x, y * y, x * y)), _gaussian_window(x.device), groups=3)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = local_means.chunk(5)
    # Rounding can make the variance of a flat patch negative.
    variances = (mean_xx - mean_x.square()).clamp(min=0) + (mean_yy - mean_y.square()).clamp(min=0)
    covariance = mean_xy - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + _STABLE_MEAN) * (2 * covariance + _STABLE_VARIANCE)
    denominator = (mean_x.square() + mean_y.square() + _STABLE_MEAN) * (variances + _STABLE_VARIANCE)
    return (numerator / denominator).mean(dim=(1, 2, 3))


def _padded(images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 P Q"]:
    """Scale levels to 0 to 1 and mirror the borders by half a window."""
    side = _WINDOW // 2
    return F.pad(images / 255, (side, side, side, side), mode="reflect")


def _gaussian_window(device: torch.device) -> Float[Tensor, "3 1 L L"]:
    """Return the Gaussian window of side L as a kernel per colour, summing to 1."""
    offsets = torch.arange(_WINDOW, device=device) - _WINDOW // 2
    bell = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    window = bell[:, None] * bell / bell.sum().square()
    return window.expand(3, 1, -1, -1)
