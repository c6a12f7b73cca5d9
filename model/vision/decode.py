"""Opens encoded images: the one opener of image shards, image files and fetched bodies.

A picture is upright, by its EXIF orientation, in sRGB, by its colour profile, and opaque, over white.
Metadata that is damaged or very large costs no picture: it is left out, and the picture decoded without it.
What is allowed stands at each call, in its `DecodeLimits`. Needs Pillow and numpy only, no torch.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, TypeVar

from PIL import ExifTags, Image

from dualtoken.model.vision.colour import base_mode, to_srgb, transform_to_srgb
from dualtoken.model.vision.containers import (
    BarePicture,
    count_scans,
    has_more_parts,
    png_exif,
    without_metadata,
)
from dualtoken.model.vision.faults import ImageFault, UnreadableImageError, fault_of
from dualtoken.model.vision.formats import FORMATS
from dualtoken.model.vision.pixels import opaque

MAX_PIXELS = 2**27
"""Pixel limit of an image: 134 million, 400 MB as RGB; a larger one is refused before it is decoded."""
MAX_SCANS = 100
"""Limit of a JPEG's scans: progressive ones have about 10, and each draws the whole picture once."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation."""
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
"""Orientations of a picture whose width is stored as its height."""

Result = TypeVar("Result")


class DecodeLimits(NamedTuple):
    """What an image may be, all of it found before its pixels are decoded."""

    formats: tuple[str, ...] = FORMATS
    """Pillow's names of the formats that are read."""
    max_pixels: int | None = MAX_PIXELS
    """None leaves it to Pillow's own limit."""
    max_scans: int = MAX_SCANS
    """Scans of a JPEG."""
    max_parts: int | None = None
    """Segments of a JPEG, or chunks of a PNG; None for any number."""


DEFAULT_LIMITS = DecodeLimits()


class EncodedImage(NamedTuple):
    """An encoded image whose header is read, and whose pixels are not decoded yet."""

    data: bytes
    """The encoded bytes, without the metadata where they are damaged."""
    image: Image.Image
    orientation: int
    """EXIF orientation to turn the picture by: 1 is upright."""
    profile: bytes | None
    """ICC profile of its colours."""

    @property
    def is_on_its_side(self) -> bool:
        """Whether width and height change places when it is turned upright."""
        return self.orientation in _ON_ITS_SIDE

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture, pixels."""
        width, height = self.image.size
        if self.is_on_its_side:
            return height, width
        return width, height

    @property
    def is_as_stored(self) -> bool:
        """Whether the stored pixels are upright and in sRGB."""
        if self.orientation != 1 or self.image.mode == "LAB":
            return False
        return self.profile is None or transform_to_srgb(self.profile, base_mode(self.image)) is None

    def decode(self) -> Image.Image:
        """Decode the first frame, whole, to upright sRGB of 8 bits, transparency over white."""
        self.image.load()
        picture = opaque(to_srgb(self.image, self.profile))
        if self.orientation in _UPRIGHT:
            return picture.transpose(_UPRIGHT[self.orientation])
        return picture


def decode_rgb(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS, *, quiet: bool = False) -> Image.Image:
    """Return the first frame of an image, whole, as upright sRGB of 8 bits, transparency over white.

    `quiet` is that of `use_image`. Raises `UnreadableImageError`, from the decoder's own error.
    """
    return use_image(data, limits, EncodedImage.decode, quiet=quiet)


def use_image(
    data: bytes, limits: DecodeLimits, use: Callable[[EncodedImage], Result], *, quiet: bool = False
) -> Result:
    """Return what `use` makes of an encoded image; where it fails, once more without the metadata.

    `quiet` silences Pillow's warnings, on odd metadata and on large sizes; Python keeps the filters of
    warnings per process, so ask for it only where no other thread decodes.

    Raises `UnreadableImageError`, from the decoder's own error, which on hostile bytes may be anything;
    `MemoryError` as it is.
    """
    _check_parts(data, limits)
    with ExitStack() as stack:
        if quiet:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        try:
            return _use_once(data, limits, use)
        except UnreadableImageError as error:
            bare = without_metadata(data)
            if bare is None or error.fault == ImageFault.TOO_MANY_PIXELS:
                raise
            return _use_once(bare.data, limits, use, bare)


@contextmanager
def without_pillow_pixel_limit() -> Iterator[None]:
    """Lift Pillow's own limit on an image's pixels, for a block whose caller has a limit of its own.

    The limit is one for the whole process (`Image.MAX_IMAGE_PIXELS`): no other thread may rely on it
    meanwhile.
    """
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_parts(data: bytes, limits: DecodeLimits) -> None:
    """Refuse what would take long to read for the number of its parts, whatever their size."""
    if limits.max_parts is not None and has_more_parts(data, limits.max_parts):
        raise UnreadableImageError(ImageFault.TOO_MANY_PARTS, f"more than {limits.max_parts}")
    if count_scans(data, limits.max_scans) > limits.max_scans:
        raise UnreadableImageError(ImageFault.TOO_MANY_SCANS, f"more than {limits.max_scans} scans")


def _use_once(
    data: bytes,
    limits: DecodeLimits,
    use: Callable[[EncodedImage], Result],
    bare: BarePicture | None = None,
) -> Result:
    try:
        with Image.open(io.BytesIO(data), formats=limits.formats) as image:
            _check_pixels(image, limits)
            if bare is None:
                exif = png_exif(data)
                profile = image.info.get("icc_profile")
            else:
                exif = bare.exif
                profile = bare.profile
            return use(EncodedImage(data, image, _orientation(image, exif), profile))
    except (MemoryError, UnreadableImageError):
        raise
    except Exception as error:
        raise fault_of(error, data) from error


def _check_pixels(image: Image.Image, limits: DecodeLimits) -> None:
    pixels = image.width * image.height
    if limits.max_pixels is not None and pixels > limits.max_pixels:
        detail = f"{image.width} x {image.height} = {pixels:,} pixels, more than {limits.max_pixels:,}"
        raise UnreadableImageError(ImageFault.TOO_MANY_PIXELS, detail)


def _orientation(image: Image.Image, exif: bytes | None) -> int:
    """Return an image's EXIF orientation; 1 where it says none, or nothing that can be read.

    `exif` is what Pillow does not know of yet.
    """
    if image.format == "TIFF":
        return 1  # Pillow turns these itself.
    if exif is not None:
        image.info["exif"] = exif
    try:
        # Not a PNG's own method, which decodes the pixels for it, and whose errors must not be passed over.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  (a parser of damaged metadata may raise anything)
        return 1
    return orientation if orientation in _UPRIGHT else 1
