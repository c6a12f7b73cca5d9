"""Why an encoded image gives no picture: a closed list, and the error that carries its members."""

import re
from enum import StrEnum

from PIL import Image, UnidentifiedImageError

from dualtoken.model.vision.formats import FORMATS

_CUT_SHORT = ("truncated", "unexpected end")
"""Words in Pillow's errors on data that ends too early, in lower case."""
_RIFF_HEADER = 8
"""Bytes of a RIFF file, such as a WebP, before those that its length counts."""
_PIXELS = re.compile(r"\d+ pixels")
_MAX_ERROR_CHARACTERS = 200


class ImageFault(StrEnum):
    """Why an encoded image gives no picture."""

    NOT_AN_IMAGE = "not_an_image"
    """Data of another kind: a page of HTML, or a format that is not read."""
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_MANY_SCANS = "too_many_scans"
    """A JPEG that is drawn over and over, each time in full."""
    TOO_MANY_PARTS = "too_many_parts"
    """More chunks or segments than its reader takes in its own process."""
    TRUNCATED_IMAGE = "truncated_image"
    BROKEN_IMAGE = "broken_image"
    TOO_SLOW = "too_slow"
    """Decoding was ended at its time limit."""
    DECODER_DIED = "decoder_died"
    """The process that decoded it crashed, twice."""


class UnreadableImageError(ValueError):
    """An encoded image gives no picture: which fault, and a detail for people."""

    def __init__(self, fault: ImageFault, detail: str) -> None:
        super().__init__(f"{fault}: {detail}")
        self.fault = fault
        self.detail = detail


def fault_of(error: Exception, data: bytes) -> UnreadableImageError:
    """Return what a decoder's error means for the data that it was decoding."""
    if isinstance(error, UnidentifiedImageError):
        return UnreadableImageError(
            ImageFault.NOT_AN_IMAGE, f"{len(data)} bytes, none of {', '.join(FORMATS)}"
        )
    if isinstance(error, Image.DecompressionBombError):
        found = _PIXELS.search(str(error))
        return UnreadableImageError(ImageFault.TOO_MANY_PIXELS, found[0] if found else error_text(error))
    if _is_cut_short(error) or _is_short_riff(data):
        return UnreadableImageError(ImageFault.TRUNCATED_IMAGE, error_text(error))
    return UnreadableImageError(ImageFault.BROKEN_IMAGE, error_text(error))


def error_text(error: Exception) -> str:
    """Return a decoder's error as one line of at most 200 characters; its type where it has no text."""
    text = " ".join(str(error).split())
    return text[:_MAX_ERROR_CHARACTERS] or type(error).__name__


def _is_cut_short(error: Exception) -> bool:
    """Tell whether a decoder's error means data that ended too early; Pillow has no class for it."""
    if isinstance(error, EOFError):
        return True
    text = error_text(error).lower()
    return any(words in text for words in _CUT_SHORT)


def _is_short_riff(data: bytes) -> bool:
    """Tell whether a WebP ends before the length in its header, which Pillow's error does not say."""
    return data.startswith(b"RIFF") and len(data) < int.from_bytes(data[4:8], "little") + _RIFF_HEADER
