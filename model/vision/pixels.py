"""Brings decoded pictures of every mode to 8 bits, and to opaque RGB."""

import numpy as np
from PIL import Image


def opaque(image: Image.Image) -> Image.Image:
    """Return a picture as RGB of 8 bits, transparency over white, 16-bit levels by their upper half.

    Raises ValueError for levels of more than 16 bits, or not whole numbers, whose range nothing says.
    """
    image = to_8_bits(image)
    if may_be_transparent(image):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def to_8_bits(image: Image.Image) -> Image.Image:
    """Return a grey picture of 16 bits as one of 8, as Pillow itself does with colours; another as it is.

    Raises ValueError for levels of more than 16 bits, or not whole numbers, whose range nothing says.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > np.iinfo(np.uint16).max:
        raise ValueError(f"has levels of 32 bits (mode {image.mode}): save it with 8 or 16 bits")
    upper_half = levels.astype(np.uint16) >> 8
    return Image.fromarray(upper_half.astype(np.uint8))


def may_be_transparent(image: Image.Image) -> bool:
    """Tell whether a picture may be transparent somewhere."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
