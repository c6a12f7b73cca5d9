"""Opens image files that anybody may have made: whole to the last byte, of a sane size, as upright RGB of 8 bits."""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from dualtoken.model.vision.transform import opaque

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Of the files that count as images where a folder is named."""
MAX_PIXELS = 2**27
"""134 million, 400 MB as RGB; a larger picture is refused before it is decoded."""


class ImageFileError(ValueError):
    """A file that gives no picture; one line that names it and says why."""


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a file's picture as RGB: the first frame, upright, transparency over white; CMYK, palettes and 16 bits too.

    Raises `ImageFileError`.
    """
    try:
        with Path(path).open("rb") as file:
            return _decode(file, max_pixels)
    except _Unfit as problem:
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
        inside = sorted(
            file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        yield from inside or [ImageFileError(f"{path}: has no image in it ({', '.join(SUFFIXES)})")]


class _Unfit(Exception):
    """Why a file gives no picture, without its name."""


def _decode(file: BinaryIO, max_pixels: int) -> Image.Image:
    if not file.read(1):
        raise _Unfit("is empty")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on odd metadata, and on sizes that are judged here
            with Image.open(file, formats=FORMATS) as image:
                _check_size(image, max_pixels)
                image.load()
                return opaque(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise _Unfit(f"is no image that can be read ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise _Unfit(f"has far more than {max_pixels:,} pixels: make it smaller") from error
    except _Unfit:
        raise
    except Exception as error:  # a decoder of hostile bytes may raise anything
        text = " ".join(str(error).split())[:200] or type(error).__name__
        cut = isinstance(error, EOFError) or any(
            word in text.lower() for word in ("truncated", "unexpected end")
        )
        raise _Unfit(f"is cut short ({text})" if cut else f"cannot be decoded: {text}") from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if (pixels := image.width * image.height) > max_pixels:
        raise _Unfit(
            f"has {image.width} x {image.height} = {pixels:,} pixels, more than {max_pixels:,}: make it smaller"
        )
