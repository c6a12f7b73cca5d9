"""Decodes encoded images to RGB of 8 bits: the one decoder of image shards, image files and fetched bodies.

How strict a decoder is stands at its call: which formats it takes, whether it turns a picture upright by its EXIF
orientation, and how many pixels it allows. Needs Pillow and numpy only, no torch.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

_CUT_SHORT = ("truncated", "unexpected end")
"""Words in Pillow's errors on data that ends too early, in lower case."""
_MAX_ERROR_CHARACTERS = 200


class TooManyPixelsError(ValueError):
    """An image with more pixels than its reader allows, found before it was decoded."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(f"{width} x {height} pixels")
        self.width = width
        self.height = height


@contextmanager
def open_encoded(
    encoded: bytes | BinaryIO, *, formats: tuple[str, ...] | None = None, quiet: bool = False
) -> Iterator[Image.Image]:
    """Read the header of an encoded image; its pixels are decoded when the block loads it.

    `formats` are Pillow's names of the formats to try; None tries all that Pillow knows. `quiet` silences Pillow's
    warnings in the block, on odd metadata and on large sizes; Python keeps the filters of warnings per process, so
    ask for it only where no other thread decodes.

    Raises `PIL.UnidentifiedImageError` for what is no image of these formats.
    """
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    with ExitStack() as stack:
        if quiet:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield stack.enter_context(Image.open(file, formats=formats))


def decode_rgb(
    encoded: bytes | BinaryIO,
    *,
    formats: tuple[str, ...] | None = None,
    max_pixels: int | None = None,
    upright: bool = False,
    quiet: bool = False,
) -> Image.Image:
    """Decode the first frame of an image, whole, to RGB of 8 bits, transparency over white.

    `formats` and `quiet` are those of `open_encoded`. `max_pixels` is the largest width x height to decode; None
    leaves that to Pillow's own limit. `upright` turns the picture as its EXIF orientation says, which is ignored
    otherwise.

    Raises `TooManyPixelsError`, and OSError or ValueError for damaged data; on hostile bytes a decoder may raise
    anything else.
    """
    with open_encoded(encoded, formats=formats, quiet=quiet) as image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise TooManyPixelsError(image.width, image.height)
        image.load()
        if upright:
            return opaque(ImageOps.exif_transpose(image))
        return opaque(image)


@contextmanager
def without_pillow_pixel_limit() -> Iterator[None]:
    """Lift Pillow's own limit on an image's pixels, for a block whose caller has a limit of its own.

    The limit is one for the whole process (`Image.MAX_IMAGE_PIXELS`): no other thread may rely on it meanwhile.
    """
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


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


def error_text(error: Exception) -> str:
    """Return what a decoder's error says, as one line of at most 200 characters; its type where it says nothing."""
    text = " ".join(str(error).split())
    return text[:_MAX_ERROR_CHARACTERS] or type(error).__name__


def is_cut_short(error: Exception) -> bool:
    """Tell whether a decoder's error says that the data ended too early; Pillow has no class of its own for it."""
    if isinstance(error, EOFError):
        return True
    text = error_text(error).lower()
    return any(words in text for words in _CUT_SHORT)
