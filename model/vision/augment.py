"""Random crops of pictures for training, by torchvision's rule but a generator of our own."""

import math

import numpy as np
from PIL import Image

from dualtoken.model.config.training import RandomCropConfig
from dualtoken.model.vision.decode import opaque

_TRIES = 10
"""Draws that may not fit into the picture before its centre is taken, as in torchvision."""


def random_crop(
    image: Image.Image, size: int, config: RandomCropConfig, generator: np.random.Generator
) -> Image.Image:
    """Return a random part of a picture as a square of `size` pixels, resized bicubically; transparency over white."""
    return (
        opaque(image)
        .crop(crop_box(image.size, config, generator))
        .resize((size, size), Image.Resampling.BICUBIC)
    )


def crop_box(
    size: tuple[int, int], config: RandomCropConfig, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw left, top, right and bottom within a picture of `size`; ratios are drawn evenly in their logarithm."""
    whole_width, whole_height = size
    for _ in range(_TRIES):
        area = whole_width * whole_height * generator.uniform(config.scale[0], config.scale[1])
        ratio = math.exp(generator.uniform(math.log(config.ratio[0]), math.log(config.ratio[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= whole_width and 0 < height <= whole_height:
            left, top = (
                int(generator.integers(room + 1)) for room in (whole_width - width, whole_height - height)
            )
            return left, top, left + width, top + height
    return _centre(size, config.ratio)


def _centre(size: tuple[int, int], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """Return the largest centred box with an allowed ratio."""
    width, height = size
    if width / height < ratio[0]:
        height = round(width / ratio[0])
    elif width / height > ratio[1]:
        width = round(height * ratio[1])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height
