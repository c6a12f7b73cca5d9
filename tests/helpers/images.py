"""Images of noise, and image files."""

import io
from typing import Any

import numpy as np
from PIL import Image


def noise_image(size: tuple[int, int] = (80, 60), mode: str = "RGB") -> Image.Image:
    """Return noise; `size` is (width, height), pixels."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    """Return an image as a file of a kind that Pillow knows; `settings` are its encoder's."""
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def same_picture(first: Image.Image, second: Image.Image) -> bool:
    """Tell whether two pictures have the same pixels."""
    return np.array_equal(np.asarray(first), np.asarray(second))
