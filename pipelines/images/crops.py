"""Which squares of an image become rows of tokens, and where they lie: arithmetic of the recipe, the image's size and its key.

The same key gives the same squares whatever the order, batch or worker, so that all tables of a sample agree.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from PIL import Image

from dualtoken.pipelines.config.crops import AnyCrops, CenterCrop, GridCrops, RandomCrops

Fit = Literal["crop", "squash"]
"""The tokenizer's own: whether it shows an image's centre, or all of it, squeezed."""

CROP_FIELDS = (
    pa.field("variant", pa.int16(), nullable=False),
    pa.field("crop_left", pa.int32(), nullable=False),
    pa.field("crop_top", pa.int32(), nullable=False),
    pa.field("crop_width", pa.int32(), nullable=False),
    pa.field("crop_height", pa.int32(), nullable=False),
    pa.field("flipped", pa.bool_(), nullable=False),
)
"""Columns beside the captions, where the recipe asks for other rows than one of the whole image."""


class Crop(NamedTuple):
    """What a row of tokens shows of an image; pixels of the image as stored."""

    left: int
    top: int
    width: int
    height: int
    flipped: bool = False


class View(NamedTuple):
    """A part of a picture, still to be resized by the tokenizer's transform."""

    picture: Image.Image
    crops: tuple[Crop, ...]
    """One, or two where the part is taken mirrored too."""


def views(picture: Image.Image, crops: Sequence[AnyCrops], key: bytes, fit: Fit = "crop") -> Iterator[View]:
    """Yield the parts of a picture in order of variant."""
    for config in crops:
        for box in _boxes(config, picture.size, key, fit):
            # The centre is cut by the transform itself, after resizing: whole images then have the codes that they always had.
            part = picture if isinstance(config, CenterCrop) else picture.crop(_corners(box))
            yield View(part, (box, box._replace(flipped=True)) if config.flip else (box,))


def first_view(picture: Image.Image, crops: Sequence[AnyCrops], key: bytes) -> Image.Image:
    """Return the part that variant 0 shows, which is never mirrored."""
    return next(views(picture, crops, key)).picture


def _boxes(config: AnyCrops, size: tuple[int, int], key: bytes, fit: Fit) -> Iterator[Crop]:
    width, height = size
    shorter = min(size)
    if isinstance(config, CenterCrop):
        yield (
            Crop(0, 0, width, height)
            if fit == "squash"
            else Crop((width - shorter) // 2, (height - shorter) // 2, shorter, shorter)
        )
    elif isinstance(config, GridCrops):
        side = max(1, round(config.scale * shorter))
        for row in range(config.rows):
            for column in range(config.columns):
                yield Crop(
                    _spread(column, config.columns, width - side),
                    _spread(row, config.rows, height - side),
                    side,
                    side,
                )
    else:
        yield from _random(config, size, key)


def _spread(place: int, places: int, room: int) -> int:
    return round(room * place / (places - 1)) if places > 1 else room // 2


def _random(config: RandomCrops, size: tuple[int, int], key: bytes) -> Iterator[Crop]:
    seed = hashlib.blake2b(key, digest_size=8, salt=config.seed.to_bytes(16, "big", signed=True)).digest()
    chance = random.Random(int.from_bytes(seed, "big")).random
    for _ in range(config.number):
        scale = config.min_scale + (config.max_scale - config.min_scale) * chance()
        side = max(1, round(scale * min(size)))
        left, top = (int(chance() * (length - side + 1)) for length in size)
        yield Crop(left, top, side, side)


def _corners(box: Crop) -> tuple[int, int, int, int]:
    return box.left, box.top, box.left + box.width, box.top + box.height


def crop_columns(crops: Sequence[Sequence[Crop]]) -> dict[str, pa.Array]:
    """Return `CROP_FIELDS` of samples' crops, a row each."""
    rows: list[tuple[Any, ...]] = [
        (variant, *crop) for of_sample in crops for variant, crop in enumerate(of_sample)
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(CROP_FIELDS)
    return {
        field.name: pa.array(values, field.type) for field, values in zip(CROP_FIELDS, columns, strict=True)
    }
