"""Converts pictures with a colour profile to sRGB, in which all of them are compared and stored.

ICC.1:2010; the intent is perceptual, as a picture's viewers take it. A profile that is damaged, or belongs to
another kind of colours than the picture has, is ignored.
"""

import io
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image, ImageCms

from dualtoken.model.vision.pixels import may_be_transparent, to_8_bits

_SPACE = slice(16, 20)
"""Place of a profile's colour space in its header."""
_SPACE_OF_MODE = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK", "LAB": b"Lab "}
_MAX_PROFILE_BYTES = 2**22
"""Size of the largest profile that is used; the largest of printing presses have 3 MB."""
_STEPS = (0, 16, 32, 64, 96, 128, 160, 192, 224, 255)
"""Levels of each colour that tell whether a profile is sRGB's own."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return a picture in sRGB: RGB or RGBA where its profile says something else, as it is where not."""
    if image.mode == "LAB":
        profile = profile or _lab_profile()
    if profile is None:
        return image
    colours, alpha = _split(image)
    transform = transform_to_srgb(profile, colours.mode)
    if transform is None:
        return image
    converted = transform.apply(colours)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@lru_cache(maxsize=16)  # pictures of one camera or editor share their profile
def transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion of pictures of a mode; None where they look right without one."""
    if profile[_SPACE] != _SPACE_OF_MODE[mode] or len(profile) > _MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if _changes_nothing(transform, mode) else transform


def base_mode(image: Image.Image) -> str:
    """Return the mode of a picture's colours, without transparency, as its profile is to describe them."""
    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F")):
        return "L"
    if image.mode in ("CMYK", "LAB"):
        return image.mode
    return "RGB"


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return a picture's colours, and how opaque they are where they may not be."""
    image = to_8_bits(image)
    mode = base_mode(image)
    if not may_be_transparent(image):
        return image.convert(mode), None
    with_alpha = image.convert("RGBA")
    return with_alpha.convert(mode), with_alpha.getchannel("A")


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Tell whether a conversion moves no colour by more than a level, as sRGB's own profiles do."""
    if mode == "RGB":
        levels = np.array(list(product(_STEPS, repeat=3)), np.uint8)[None]
    elif mode == "L":
        levels = np.arange(256, dtype=np.uint8)[None]
    else:
        return False
    probe = Image.fromarray(levels)
    moved = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe.convert("RGB"))
    return bool(np.abs(moved).max() <= 1)


@lru_cache(maxsize=1)
def _lab_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
