"""Checks and resizes fetched images: whether the bytes are an image, of a sane size, whole to the last byte.

img2dataset's resizer is used as it is. The checks are for what it does not tell: images cut short (OpenCV
before 4.14 decodes them without a complaint), and images too large to decode.
"""

import io
import os
import warnings
from enum import StrEnum
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from dualtoken.model.vision.decode import (
    error_text,
    is_cut_short,
    may_be_transparent,
    open_encoded,
    to_8_bits,
    without_pillow_pixel_limit,
)
from dualtoken.pipelines.config.download import DownloadConfig

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_PNG_DEPTH = 24
"""Offset of the bit depth in a PNG's header."""
_RIFF_HEADER = 8
"""Bytes of a RIFF file, such as a WebP, before those that its length counts."""


class ImageReason(StrEnum):
    """Why a fetched body gave no image; with the reasons of `infra.fetch`, a closed list."""

    NOT_AN_IMAGE = "not_an_image"
    """Body of another kind: a page of HTML, or a format that is none of JPEG, PNG, WebP and GIF."""
    TOO_MANY_PIXELS = "too_many_pixels"
    TRUNCATED_IMAGE = "truncated_image"
    BROKEN_IMAGE = "broken_image"
    RESIZE_FAILED = "resize_failed"
    FAILED_IN_SOURCE = "failed_in_source"
    """Row that an existing shard records as failed."""


class Rejected(NamedTuple):
    """Rejection of a body: reason and detail."""

    reason: str
    detail: str


class Prepared(NamedTuple):
    """An encoded image of the size that the recipe asks for."""

    image: bytes
    width: int
    height: int
    original_width: int
    original_height: int


class ImagePreparer:
    """Checks and resizes images.

    One image at a time per process: the resizer redirects the process's output, and the check lifts Pillow's
    limit.
    """

    def __init__(self, config: DownloadConfig) -> None:
        # Read on import, which else asks a server for the latest version.
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from img2dataset.resizer import Resizer  # noqa: PLC0415  (takes seconds)
        self._config = config
        self._resize = Resizer(
            image_size=config.image_size,
            resize_mode=config.resize_mode,
            resize_only_if_bigger=config.resize_only_if_bigger,
            encode_format=config.encode_format,
            encode_quality=config.encode_quality,
        )

    def __call__(self, body: bytes) -> Prepared | Rejected:
        """Return the image, resized and encoded again, or why there is none."""
        checked = check_image(body, self._config)
        if isinstance(checked, Rejected):
            return checked
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # albumentations', of img2dataset's arguments to it
            image, width, height, original_width, original_height, error = self._resize(io.BytesIO(checked))
        if error is not None:
            return Rejected(ImageReason.RESIZE_FAILED, " ".join(error.split())[:200])
        return Prepared(image, width, height, original_width, original_height)


def check_image(body: bytes, config: DownloadConfig) -> bytes | Rejected:
    """Return bytes that OpenCV reads as 8-bit grey, RGB or RGBA, or why not."""
    try:
        # The recipe's max_pixels takes the place of Pillow's limit.
        with without_pillow_pixel_limit(), open_encoded(body, formats=FORMATS, quiet=True) as image:
            too_many = _too_many_pixels(image.width, image.height, config)
            if too_many:
                return Rejected(ImageReason.TOO_MANY_PIXELS, too_many)
            return _readable_by_opencv(image, body)
    except UnidentifiedImageError:
        return Rejected(ImageReason.NOT_AN_IMAGE, f"{len(body)} bytes, none of {', '.join(FORMATS)}")
    except Exception as error:  # noqa: BLE001  (a decoder of hostile bytes may raise anything; it is this row's reason)
        if is_cut_short(error) or _is_short_riff(body):
            return Rejected(ImageReason.TRUNCATED_IMAGE, error_text(error))
        return Rejected(ImageReason.BROKEN_IMAGE, error_text(error))


def _is_short_riff(body: bytes) -> bool:
    """Tell whether a WebP ends before the length in its header, which Pillow's error does not say."""
    return body.startswith(b"RIFF") and len(body) < int.from_bytes(body[4:8], "little") + _RIFF_HEADER


def _too_many_pixels(width: int, height: int, config: DownloadConfig) -> str | None:
    """Return a rejection's detail where the image, or what the resizer makes of it, is over `max_pixels`."""
    pixels = width * height
    shorter, longer = sorted((width, height))
    may_enlarge = config.resize_mode in {"keep_ratio", "center_crop"} and not config.resize_only_if_bigger
    if may_enlarge and 0 < shorter < config.image_size:
        # A line one pixel wide grows to image_size before it is cropped.
        enlarged_pixels = config.image_size**2 * longer // shorter
        pixels = max(pixels, enlarged_pixels)
    if pixels > config.max_pixels:
        return f"{width} x {height}, max_pixels={config.max_pixels}"
    return None


def _readable_by_opencv(image: Image.Image, body: bytes) -> bytes:
    """Decode to the last byte; return the body if OpenCV decodes it alike, else the picture as PNG."""
    transparent = may_be_transparent(image)
    is_plain = image.mode == "RGBA" or (image.mode in {"RGB", "L"} and not transparent)
    is_deep = image.format == "PNG" and body[_PNG_DEPTH] == 16
    is_animated = image.format == "GIF" or getattr(image, "is_animated", False)
    if is_plain and not is_deep and not is_animated:
        if image.format == "JPEG":
            image.draft(image.mode, (1, 1))  # Reads all the data at an eighth of the size, which is faster.
        image.load()
        return body
    image.load()
    if image.mode.startswith("I"):
        picture = to_8_bits(image)
    elif transparent:
        picture = image.convert("RGBA")
    elif image.mode in {"1", "L"}:
        picture = image.convert("L")
    else:
        picture = image.convert("RGB")
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=0)
    return stream.getvalue()
