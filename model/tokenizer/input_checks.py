"""Checks of the images that a tokenizer is given, which name what is wrong with them.

B images of S by S pixels.
"""

import math

import torch
from torch import Tensor

from dualtoken.model.vision.transform import Transform

_ROUNDING = 1e-3
"""How far values of pictures may lie outside of their range: they may have been rounded."""


def require_shape_of_pictures(images: Tensor, side: int) -> None:
    """Raise ValueError unless images are floats of (B, 3, side, side)."""
    if not images.is_floating_point() or images.shape[1:] != (3, side, side):
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}: pass floats of -1 to 1, "
            f"(images, 3, {side}, {side}), as tokenizer.transform(pictures) gives them"
        )


def require_values_of_pictures(images: Tensor, transform: Transform) -> None:
    """Raise ValueError for NaN, and for values outside the range that a transform gives.

    It waits for the images' device. On the device `meta` there are no values.
    """
    if not images.is_floating_point() or not images.numel() or images.is_meta:
        return
    low, high = transform.value_range
    least, most = torch.stack(torch.aminmax(images.detach())).tolist()
    if low - _ROUNDING <= least and most <= high + _ROUNDING:
        return
    what = "NaN" if math.isnan(least) else f"values of {least:.4g} to {most:.4g}"
    raise ValueError(
        f"images hold {what}: pass floats of {low:.4g} to {high:.4g}, as tokenizer.transform(pictures) "
        "gives them"
    )
