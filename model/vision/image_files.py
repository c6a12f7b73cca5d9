"""Opens image files from anywhere: whole to the last byte, of a sane size, as upright RGB of 8 bits."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import Image

from dualtoken.model.vision.decode import MAX_PIXELS, DecodeLimits, decode_rgb
from dualtoken.model.vision.faults import ImageFault, UnreadableImageError
from dualtoken.model.vision.formats import FORMATS, SUFFIXES

MAX_BYTES = 2**30
"""Size limit of a file; one image of `MAX_PIXELS` takes less in every format."""
Decode = Callable[[bytes, DecodeLimits], Image.Image]
"""Decodes an image within limits; raises `UnreadableImageError`."""


class ImageFileError(ValueError):
    """A file that gives no picture; one line that names it and says why."""


def decode_quietly(data: bytes, limits: DecodeLimits) -> Image.Image:
    """Decode in this process, without Pillow's warnings; for where no other thread decodes."""
    return decode_rgb(data, limits, quiet=True)


def open_image(
    path: str | Path, max_pixels: int = MAX_PIXELS, decode: Decode = decode_quietly
) -> Image.Image:
    """Return a file's picture as RGB: the first frame, upright, in sRGB, transparency over white.

    CMYK, palettes and 16 bits are converted too. `decode` may do the work in another process. Raises
    `ImageFileError`, from the error that it tells of.
    """
    try:
        data = _read(Path(path))
        return decode(data, DecodeLimits(max_pixels=max_pixels))
    except _UnfitError as problem:
        raise ImageFileError(f"{path}: {problem}") from problem
    except UnreadableImageError as error:
        raise ImageFileError(f"{path}: {_in_words(error)}") from error
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


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if not data:
        raise _UnfitError("is empty")
    if len(data) > MAX_BYTES:
        raise _UnfitError(f"has more than {MAX_BYTES:,} bytes: make it smaller")
    return data


def _in_words(error: UnreadableImageError) -> str:
    match error.fault:
        case ImageFault.NOT_AN_IMAGE:
            return f"is no image that can be read ({', '.join(FORMATS)})"
        case ImageFault.TOO_MANY_PIXELS:
            return f"has {error.detail}: make it smaller"
        case ImageFault.TOO_MANY_SCANS | ImageFault.TOO_MANY_PARTS:
            return f"has {error.detail}: save it again"
        case ImageFault.TRUNCATED_IMAGE:
            return f"is cut short ({error.detail})"
        case ImageFault.TOO_SLOW | ImageFault.DECODER_DIED | ImageFault.BROKEN_IMAGE:
            return f"cannot be decoded: {error.detail}"
