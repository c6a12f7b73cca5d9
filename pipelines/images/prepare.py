"""Checks and resizes fetched images: whether the bytes are an image, of a sane size, whole to the last byte.

img2dataset's resizer is used as it is. The checks are for what it does not tell, such as images cut short
(OpenCV before 4.14 decodes them without a complaint); and what OpenCV would show otherwise than our opener,
such as pictures that lie on their side, it is given as the opener's own pixels.
"""

import io
import os
import re
import warnings
from collections.abc import Callable
from enum import StrEnum
from functools import cache, partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.model.vision.containers import without_metadata
from dualtoken.model.vision.decode import DecodeLimits, EncodedImage, use_image, without_pillow_pixel_limit
from dualtoken.model.vision.faults import ImageFault, UnreadableImageError
from dualtoken.model.vision.pixels import may_be_transparent
from dualtoken.pipelines.config.download import DownloadConfig
from dualtoken.pipelines.images.decoding import raise_machine_trouble

Result = TypeVar("Result")
_PNG_DEPTH = 24
"""Offset of the bit depth in a PNG's header."""
_LONGEST_SIDE = {"jpg": 65_500, "png": 1_000_000, "webp": 16_383}
"""Longest side that an encoder writes, pixels."""
_SYSTEM_ERROR = re.compile(r"\[Errno (\d+)\] ")
"""Start of an OSError's text, which is all that the resizer says of one."""


class ImageReason(StrEnum):
    """Why a readable image was not stored.

    With `ImageFault` and the reasons of `infra.fetch`, a closed list.
    """

    SIDE_TOO_LONG = "side_too_long"
    """Longer, once resized, than the recipe's `encode_format` can hold."""
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


class EncodedSize(NamedTuple):
    """Size of a stored image's upright picture, pixels."""

    width: int
    height: int
    is_on_its_side: bool
    """Whether it is stored with width and height in each other's place."""


class ImagePreparer:
    """Checks and resizes images.

    One image at a time per process: the resizer redirects the process's output, and the check lifts Pillow's
    limit.
    """

    def __init__(self, config: DownloadConfig) -> None:
        self._config = config
        self._resize = _resizer_class()(
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
            _raise_if_machines(error)
            return Rejected(ImageReason.RESIZE_FAILED, " ".join(error.split())[:200])
        return Prepared(image, width, height, original_width, original_height)


@cache
def _resizer_class() -> type[Any]:
    """Import img2dataset's resizer alone: its package takes ten seconds more, and brings torch and pandas."""
    # Read on import, which else asks a server for the latest version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    package = find_spec("img2dataset")
    assert package is not None
    assert package.submodule_search_locations is not None
    (folder,) = package.submodule_search_locations
    module_spec = spec_from_file_location("img2dataset.resizer", Path(folder) / "resizer.py")
    assert module_spec is not None
    assert module_spec.loader is not None
    module = module_from_spec(module_spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module_spec.loader.exec_module(module)
    return module.Resizer


def check_image(body: bytes, config: DownloadConfig) -> bytes | Rejected:
    """Return bytes that OpenCV reads as the opener's picture, 8-bit grey or RGB, or why not."""
    return _opened(body, config, partial(_checked, config=config))


def check_stored_image(data: bytes, config: DownloadConfig) -> EncodedSize | Rejected:
    """Decode an image that is taken over as it is; return its size, or why it gives no picture."""
    return _opened(data, config, _decoded_size)


def _opened(
    data: bytes, config: DownloadConfig, use: Callable[[EncodedImage], Result | Rejected]
) -> Result | Rejected:
    """Return what `use` makes of an image that is opened within the recipe's limits, or why it is none."""
    limits = DecodeLimits(max_pixels=config.max_pixels, max_scans=config.max_scans)
    try:
        # The recipe's max_pixels takes the place of Pillow's limit.
        with without_pillow_pixel_limit():
            return use_image(data, limits, use, quiet=True)
    except UnreadableImageError as error:
        raise_machine_trouble(error)
        return Rejected(error.fault, error.detail)


def _decoded_size(encoded: EncodedImage) -> EncodedSize:
    size = EncodedSize(*encoded.size, encoded.is_on_its_side)
    _decode_whole(encoded)
    return size


def _checked(encoded: EncodedImage, config: DownloadConfig) -> bytes | Rejected:
    width, height = encoded.size
    resized_width, resized_height = resized_size(width, height, config)
    if max(resized_width * resized_height, width * height) > config.max_pixels:
        return Rejected(ImageFault.TOO_MANY_PIXELS, f"{width} x {height}, max_pixels={config.max_pixels}")
    side = max(resized_width, resized_height)
    if config.resize_mode == "center_crop":
        side = min(side, config.image_size)
    if side > _LONGEST_SIDE[config.encode_format]:
        holds = f"{config.encode_format} holds {_LONGEST_SIDE[config.encode_format]:,}"
        return Rejected(ImageReason.SIDE_TOO_LONG, f"a side of {side:,} pixels, {holds}")
    return _readable_by_opencv(encoded)


def resized_size(width: int, height: int, config: DownloadConfig) -> tuple[int, int]:
    """Return the size that the resizer brings an image to, before it cuts out a centre, pixels."""
    shorter, longer = sorted((width, height))
    if config.resize_mode == "no" or shorter == 0:
        return width, height
    fits_shorter = config.resize_mode in {"keep_ratio", "center_crop"}
    side = shorter if fits_shorter else longer
    if config.resize_only_if_bigger and side <= config.image_size:
        return width, height
    return width * config.image_size // side, height * config.image_size // side


def _readable_by_opencv(encoded: EncodedImage) -> bytes:
    """Decode to the last byte; return the data if OpenCV decodes it alike, else the picture as PNG."""
    image = encoded.image
    if _is_plain(encoded):
        _decode_whole(encoded)
        bare = without_metadata(encoded.data) if image.format == "PNG" else None
        return encoded.data if bare is None else bare.data
    is_grey = image.mode.startswith(("1", "L", "I")) and image.mode != "LAB"
    keeps_grey = is_grey and not may_be_transparent(image) and encoded.profile is None
    picture = encoded.decode()
    if keeps_grey:
        picture = picture.convert("L")
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def _is_plain(encoded: EncodedImage) -> bool:
    """Tell whether OpenCV decodes an image as the opener does: still, upright, opaque sRGB of 8 bits."""
    image = encoded.image
    if image.format == "MPO":  # A JPEG with others behind it, which are not read.
        is_still = True
    else:
        is_still = image.format in {"JPEG", "PNG", "WEBP"} and not getattr(image, "is_animated", False)
    is_deep = image.format == "PNG" and encoded.data[_PNG_DEPTH] == 16
    is_opaque = image.mode in {"RGB", "L"} and not may_be_transparent(image)
    return is_still and is_opaque and not is_deep and encoded.is_as_stored


def _decode_whole(encoded: EncodedImage) -> None:
    """Decode to the last byte, and keep nothing; a JPEG at an eighth of its size, which is faster."""
    if encoded.image.format == "JPEG":
        encoded.image.draft(encoded.image.mode, (1, 1))
    encoded.image.load()


def _raise_if_machines(resizer_error: str) -> None:
    """Raise an error of the resizer, which it gives as text alone, if it says nothing about the image."""
    number = _SYSTEM_ERROR.match(resizer_error)
    error = OSError(int(number[1]), resizer_error) if number else OSError(resizer_error)
    if is_machine_trouble(error) or not resizer_error:
        raise error
