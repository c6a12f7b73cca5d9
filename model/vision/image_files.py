"""Opens image files that anybody may have made: whole to the last byte, of a sane size, as upright RGB of 8 bits."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from dualtoken.model.vision.decode import TooManyPixelsError, decode_rgb, error_text, is_cut_short

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Suffixes of the files that count as images where a folder is named."""
MAX_PIXELS = 2**27
"""Pixel limit of a file: 134 million, 400 MB as RGB; a larger picture is refused before it is decoded."""


class ImageFileError(ValueError):
    """A file that gives no picture; one line that names it and says why."""


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a file's picture as RGB: the first frame, upright, transparency over white; CMYK, palettes and 16 bits too.

    Raises `ImageFileError`.
    """
    try:
        with Path(path).open("rb") as file:
            return _decode(file, max_pixels)
    except _UnfitError as problem:
        raise ImageFileError(f"{path}: {problem}") from problem
    except FileNotFoundError as error:
        raise ImageFileError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ImageFileError(f"{path}: {error.strerror or error}") from error


def find_images(paths: Iterable[str | Path]) -> Iterator[Path | ImageFileError]:
    """Yield the files that paths name, in order: a folder stands for the images in it and below, sorted.

    A folder without images is yielded as the error that it is.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        images = sorted(file for file in path.rglob("*") if _is_image(file))
        if images:
            yield from images
        else:
            yield ImageFileError(f"{path}: has no image in it ({', '.join(SUFFIXES)})")


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file()


class _UnfitError(Exception):
    """Why a file gives no picture, without its name."""


def _decode(file: BinaryIO, max_pixels: int) -> Image.Image:
    if not file.read(1):
        raise _UnfitError("is empty")
    file.seek(0)
    try:
        return decode_rgb(file, formats=FORMATS, max_pixels=max_pixels, upright=True, quiet=True)
    except UnidentifiedImageError as error:
        raise _UnfitError(f"is no image that can be read ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise _UnfitError(f"has far more than {max_pixels:,} pixels: make it smaller") from error
    except TooManyPixelsError as error:
        size = f"{error.width} x {error.height} = {error.width * error.height:,} pixels"
        raise _UnfitError(f"has {size}, more than {max_pixels:,}: make it smaller") from error
    except Exception as error:  # a decoder of hostile bytes may raise anything
        if is_cut_short(error):
            raise _UnfitError(f"is cut short ({error_text(error)})") from error
        raise _UnfitError(f"cannot be decoded: {error_text(error)}") from error
