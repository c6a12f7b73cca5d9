"""How close reconstructed images are to their originals: PSNR. B images of H by W pixels.

Evaluations and reports use `squared_errors`, which are exact; training and commands on image files
`psnr_per_image`, in float32. SSIM is in `structural_similarity.py`.
"""

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from dualtoken.model.metrics.arrays import MAX_PSNR


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
