"""Chooses the squares of an image that become rows of tokens, by the recipe, the image's size and its key.

The same key gives the same squares whatever the order, batch or worker, so that all tables of a sample agree.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import pyarrow as pa
from PIL import Image

from dualtoken.pipelines.config.crops import AnyCrops, CenterCrop, GridCrops, RandomCrops

Fit = Literal["crop", "squash"]
"""Fit of the tokenizer's transform: whether it shows an image's centre, or all of it, squeezed."""

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
    """The part of an image that a row of tokens shows, in pixels of the image as stored."""

    left: int
    top: int
    width: int
    height: int
    flipped: bool = False


class View(NamedTuple):
    """A part of a picture, still to be resized by the tokenizer's transform."""

    picture: Image.Image
    crops: tuple[Crop, ...]
    """One crop, or two where the part is taken mirrored too."""


def views(picture: Image.Image, crops: Sequence[AnyCrops], key: bytes, fit: Fit = "crop") -> Iterator[View]:
    """Yield the parts of a picture in order of variant."""
    for config in crops:
        for crop in _crops(config, picture.size, key, fit):
            if isinstance(config, CenterCrop):
                # The transform itself cuts the centre, after resizing, so that whole images keep their codes.
                part = picture
            else:
                part = picture.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
            if config.flip:
                yield View(part, (crop, crop._replace(flipped=True)))
            else:
                yield View(part, (crop,))


def first_view(picture: Image.Image, crops: Sequence[AnyCrops], key: bytes) -> Image.Image:
    """Return the part that variant 0 shows, which is never mirrored."""
    return next(views(picture, crops, key)).picture


def _crops(config: AnyCrops, size: tuple[int, int], key: bytes, fit: Fit) -> Iterator[Crop]:
    if isinstance(config, CenterCrop):
        yield _center_crop(size, fit)
    elif isinstance(config, GridCrops):
        yield from _grid_crops(config, size)
    else:
        yield from _random_crops(config, size, key)


def _center_crop(size: tuple[int, int], fit: Fit) -> Crop:
    width, height = size
    if fit == "squash":
        return Crop(0, 0, width, height)
    side = min(size)
    return Crop((width - side) // 2, (height - side) // 2, side, side)


def _grid_crops(config: GridCrops, size: tuple[int, int]) -> Iterator[Crop]:
    width, height = size
    side = max(1, round(config.scale * min(size)))
    for row in range(config.rows):
        top = _spread(row, config.rows, height - side)
        for column in range(config.columns):
            left = _spread(column, config.columns, width - side)
            yield Crop(left, top, side, side)


def _spread(index: int, count: int, room: int) -> int:
    """Return the offset of one of `count` squares spread evenly over the room; a single one is centred."""
    if count == 1:
        return room // 2
    return round(room * index / (count - 1))


def _random_crops(config: RandomCrops, size: tuple[int, int], key: bytes) -> Iterator[Crop]:
    width, height = size
    salt = config.seed.to_bytes(16, "big", signed=True)
    seed = hashlib.blake2b(key, digest_size=8, salt=salt).digest()
    generator = random.Random(int.from_bytes(seed, "big"))
    for _ in range(config.number):
        # The order of the draws decides the crops: scale, left, top.
        scale = config.min_scale + (config.max_scale - config.min_scale) * generator.random()
        side = max(1, round(scale * min(size)))
        left = int(generator.random() * (width - side + 1))
        top = int(generator.random() * (height - side + 1))
        yield Crop(left, top, side, side)


def crop_columns(crops: Sequence[Sequence[Crop]]) -> dict[str, pa.Array]:
    """Return the columns `CROP_FIELDS` of samples' crops, a row each."""
    values: list[list[int]] = [[] for _ in CROP_FIELDS]
    for sample_crops in crops:
        for variant, crop in enumerate(sample_crops):
            for column, value in zip(values, (variant, *crop), strict=True):
                column.append(value)
    columns: dict[str, pa.Array] = {}
    for field, column in zip(CROP_FIELDS, values, strict=True):
        columns[field.name] = pa.array(column, field.type)
    return columns
