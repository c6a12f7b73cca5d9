"""Random crops of pictures for training, by torchvision's rule but a generator of our own."""

import math

import numpy as np
from PIL import Image

from dualtoken.model.config.training import RandomCropConfig
from dualtoken.model.vision.pixels import opaque

_TRIES = 10
"""Number of draws that may not fit into the picture before its centre is taken, as in torchvision."""


def random_crop(
    image: Image.Image, size: int, config: RandomCropConfig, generator: np.random.Generator
) -> Image.Image:
    """Return a random part of a picture as a square of `size` pixels a side.

    It is resized bicubically; transparency becomes white.
    """
    crop = opaque(image).crop(crop_box(image.size, config, generator))
    return crop.resize((size, size), Image.Resampling.BICUBIC)


def crop_box(
    size: tuple[int, int], config: RandomCropConfig, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw left, top, right and bottom, pixels, within a picture of `size`.

    Ratios are drawn evenly in their logarithm.
    """
    whole_width, whole_height = size
    for _ in range(_TRIES):
        area = whole_width * whole_height * generator.uniform(config.scale[0], config.scale[1])
        ratio = math.exp(generator.uniform(math.log(config.ratio[0]), math.log(config.ratio[1])))
        width = round(math.sqrt(area * ratio))
        height = round(math.sqrt(area / ratio))
        if 0 < width <= whole_width and 0 < height <= whole_height:
            left = int(generator.integers(whole_width - width + 1))
            top = int(generator.integers(whole_height - height + 1))
            return left, top, left + width, top + height
    return _centre(size, config.ratio)


def _centre(size: tuple[int, int], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """Return the largest centred box with an allowed ratio."""
    width, height = size
    if width / height < ratio[0]:
        height = round(width / ratio[0])
    elif width / height > ratio[1]:
        width = round(height * ratio[1])
    left = (size[0] - width) // 2
    top = (size[1] - height) // 2
    return left, top, left + width, top + height
