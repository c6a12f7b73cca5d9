"""The embedded corpus: seeded 64x64 scenes of two objects, so that a whole run needs no download.

Two objects in different quadrants stand on a ramp with stripes and noise, with a few dots that no caption
mentions: what a picture looks like is more than what is said of it. The splits share no combination of
attributes (a pair of objects is in one split only), while each split shows every single attribute value.

All draws are raw words of Philox, whose stream numpy keeps fixed, and all arithmetic is on integers, so
that a scene does not depend on the platform.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dualtoken.pipelines.images.scene_captions import (
    COLOURS,
    QUADRANTS,
    SHAPES,
    SIZES,
    Described,
    canonical_phrase,
    compose,
    questions_about,
)

IMAGE_SIZE = 64
"""Side of a scene, pixels."""
MIN_DOTS, MAX_DOTS = 2, 8
HELDOUT_ONE_IN = 8
"""Of all pairs of objects, one in so many belongs to the held-out split."""
RGB: dict[str, tuple[int, int, int]] = {
    "red": (215, 38, 38), "orange": (244, 150, 26), "yellow": (246, 232, 60), "green": (36, 160, 62),
    "cyan": (70, 212, 226), "blue": (46, 74, 214), "purple": (146, 46, 178), "white": (244, 244, 244),
}  # fmt: skip
RADII: dict[str, tuple[int, ...]] = {"small": (5, 6), "large": (10, 11)}
"""Half the height of an object, pixels; each size has two, far from the other size's."""
_CELL = 8
_SUBSAMPLES = 8

Split = Literal["train", "heldout"]
Attribute = Literal["shape", "colour", "size"]
_VALUES: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}
_Key = tuple[str, str, str, str]


class SceneObject(NamedTuple):
    """A filled shape."""

    shape: str
    colour: str
    size: str
    quadrant: str
    x: int
    """Of the centre, pixels from the left."""
    y: int
    """Of the centre, pixels from the top."""
    radius: int
    rgb: tuple[int, int, int]


class Dot(NamedTuple):
    """A mark of two by two pixels, in no caption."""

    x: int
    y: int
    rgb: tuple[int, int, int]


class Background(NamedTuple):
    """A ramp between two dull colours under a wave of stripes."""

    first: tuple[int, int, int]
    last: tuple[int, int, int]
    slope: tuple[int, int]
    """Share of x and of y in the ramp; they add up to 4."""
    stripes: tuple[int, int, int]
    """Steps of 1/256 of a wave per pixel of x, per pixel of y, and at the origin."""
    amplitude: int
    """Of the stripes, levels of 255."""


@dataclass(frozen=True, slots=True)
class Scene:
    """All that decides a picture and its texts."""

    split: Split
    seed: int
    index: int
    objects: tuple[SceneObject, SceneObject]
    dots: tuple[Dot, ...]
    background: Background
    wording: int
    """64 random bits that choose among the grammar's phrasings."""


class _Draws:
    """A stream of random words that belongs to one name."""

    def __init__(self, *name: object) -> None:
        key = hashlib.blake2b("\0".join(map(str, name)).encode(), digest_size=16).digest()
        self._bits = np.random.Philox(key=int.from_bytes(key, "big"))
        self._words: list[int] = []

    def word(self) -> int:
        if not self._words:
            self._words = self._bits.random_raw(64).tolist()
        return self._words.pop()

    def below(self, stop: int) -> int:
        return self.word() % stop

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def bytes(self, count: int) -> NDArray[np.uint8]:
        return self._bits.random_raw(count // 8).astype("<u8").view(np.uint8)


def split_of(first: _Key, second: _Key) -> Split:
    """Return the split that a pair of (shape, colour, size, quadrant) belongs to, whatever its order and the seed."""
    name = "\0".join("\0".join(key) for key in sorted((first, second)))
    value = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return "train" if value % HELDOUT_ONE_IN else "heldout"


@cache
def _pairs(split: Split) -> tuple[tuple[_Key, _Key], ...]:
    by_place = [[(s, c, z, place) for s in SHAPES for c in COLOURS for z in SIZES] for place in QUADRANTS]
    return tuple(
        (first, second)
        for place, firsts in enumerate(by_place)
        for seconds in by_place[place + 1 :]
        for first in firsts
        for second in seconds
        if split_of(first, second) == split
    )


def scene(split: Split, seed: int, index: int) -> Scene:
    """Return scene number `index` (0 is the first) of a split; the seed changes all but the split's combinations."""
    draws = _Draws("scene", split, seed, index)
    pairs = _pairs(split)
    pair = pairs[draws.below(len(pairs))]
    if draws.below(2):
        pair = (pair[1], pair[0])
    objects = (_place(draws, pair[0]), _place(draws, pair[1]))
    return Scene(split, seed, index, objects, _dots(draws, objects), _background(draws), draws.word())


def _place(draws: _Draws, key: _Key) -> SceneObject:
    shape, colour, size, quadrant = key
    radius = RADII[size][draws.below(len(RADII[size]))]
    half = IMAGE_SIZE // 2
    room = half // 2 - radius - 2
    x = half // 2 + draws.between(-room, room) + half * quadrant.endswith("right")
    y = half // 2 + draws.between(-room, room) + half * quadrant.startswith("bottom")
    red, green, blue = (min(255, max(0, level + draws.between(-10, 10))) for level in RGB[colour])
    return SceneObject(shape, colour, size, quadrant, x, y, radius, (red, green, blue))


def _dots(draws: _Draws, objects: Sequence[SceneObject]) -> tuple[Dot, ...]:
    cells = IMAGE_SIZE // _CELL
    free = [(column * _CELL, row * _CELL) for row in range(cells) for column in range(cells)]
    for thing in objects:
        reach = thing.radius + 1
        free = [
            (x, y)
            for x, y in free
            if abs(2 * x + _CELL - 2 * thing.x) > 2 * reach + _CELL
            or abs(2 * y + _CELL - 2 * thing.y) > 2 * reach + _CELL
        ]
    dots = []
    for _ in range(min(draws.between(MIN_DOTS, MAX_DOTS), len(free))):
        x, y = free.pop(draws.below(len(free)))
        level = 240 * draws.below(2)
        rgb = (level + draws.below(16), level + draws.below(16), level + draws.below(16))
        dots.append(Dot(x + 1 + draws.below(_CELL - 3), y + 1 + draws.below(_CELL - 3), rgb))
    return tuple(dots)


def _background(draws: _Draws) -> Background:
    def dull() -> tuple[int, int, int]:
        grey = draws.between(80, 160)
        return grey + draws.between(-28, 28), grey + draws.between(-28, 28), grey + draws.between(-28, 28)

    slope = draws.below(5)
    stripes = (draws.between(-40, 40), draws.between(-40, 40), draws.below(256))
    return Background(dull(), dull(), (slope, 4 - slope), stripes, draws.between(4, 14))


@cache
def _grid() -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.int32)
    return x, y, np.rint(np.sin(np.arange(256) * (np.pi / 128)) * 128).astype(np.int32)


def _inside(shape: str, x: NDArray[np.int64], y: NDArray[np.int64], r: int) -> NDArray[np.bool_]:
    """Tell which points are in a shape of half height r around the origin; y points down."""
    match shape:
        case "circle":
            return x * x + y * y <= r * r
        case "square":
            return np.maximum(abs(x), abs(y)) * 8 <= r * 7
        case "diamond":
            return abs(x) + abs(y) <= r
        case "triangle":
            return (y * 8 <= r * 7) & (abs(x) * 15 <= (y + r) * 8)
        case "cross":
            return (np.minimum(abs(x), abs(y)) * 3 <= r) & (np.maximum(abs(x), abs(y)) <= r)
        case "ring":
            return (x * x + y * y <= r * r) & (x * x * 25 + y * y * 25 >= r * r * 9)
    raise AssertionError(shape)


@cache
def _mask(shape: str, radius: int) -> NDArray[np.int32]:
    """Return the share of each pixel that the shape covers, 0 to 64, for a centre on a pixel."""
    reach, fine = radius + 1, _SUBSAMPLES
    # Sample points lie at odd multiples of half a subsample, in units of which the radius is 2 * fine per pixel.
    steps = 2 * np.arange((2 * reach + 1) * fine, dtype=np.int64) + 1 - (2 * reach + 1) * fine
    y, x = np.meshgrid(steps, steps, indexing="ij")
    cells = _inside(shape, x, y, radius * 2 * fine).reshape(2 * reach + 1, fine, 2 * reach + 1, fine)
    return cells.sum(axis=(1, 3), dtype=np.int32)[..., None]


def render(scene: Scene) -> Image.Image:
    """Draw a scene, RGB."""
    x, y, wave = _grid()
    ground = scene.background
    ramp = (x * ground.slope[0] + y * ground.slope[1])[..., None]
    first, last = np.array(ground.first, np.int32), np.array(ground.last, np.int32)
    step_x, step_y, origin = ground.stripes
    stripes = wave[(x * step_x + y * step_y + origin) & 255] * ground.amplitude >> 7
    noise = (
        _Draws("noise", scene.split, scene.seed, scene.index)
        .bytes(IMAGE_SIZE**2)
        .reshape(IMAGE_SIZE, IMAGE_SIZE)
    )
    image = (
        first + ((last - first) * ramp >> 8) + (stripes + (noise.astype(np.int32) * 17 >> 8) - 8)[..., None]
    )
    for thing in scene.objects:
        mask, reach = _mask(thing.shape, thing.radius), thing.radius + 1
        window = image[thing.y - reach : thing.y + reach + 1, thing.x - reach : thing.x + reach + 1]
        window += (np.array(thing.rgb, np.int32) - window) * mask >> 6
    for dot in scene.dots:
        image[dot.y : dot.y + 2, dot.x : dot.x + 2] = dot.rgb
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def caption(scene: Scene) -> str:
    """Say size, colour, shape and place of both objects, in one of the grammar's phrasings."""
    return compose(scene.objects, scene.wording)


def canonical_caption(objects: Sequence[Described]) -> str:
    """Say the same in the fixed phrasing that evaluations use; one of those that captions have."""
    return canonical_phrase(objects)


def questions(scene: Scene) -> list[dict[str, str]]:
    """Return question-answer pairs with their kind: shape, colour, size, place, count or dots."""
    return questions_about(scene.objects, len(scene.dots), scene.wording)


def describe(scene: Scene) -> dict[str, Any]:
    """Return all that the picture shows but its noise, as JSON values."""
    return {
        "split": scene.split,
        "seed": scene.seed,
        "index": scene.index,
        "objects": [{**thing._asdict(), "rgb": list(thing.rgb)} for thing in scene.objects],
        "dots": [{**dot._asdict(), "rgb": list(dot.rgb)} for dot in scene.dots],
    }


def attribute_choices(description: dict[str, Any], index: int, attribute: Attribute) -> tuple[list[str], int]:
    """Return canonical captions that differ in one attribute of one object, and which of them is true.

    For zero-shot evaluation: 6 shapes, 8 colours or 2 sizes; chance over the three is 26 %.
    """
    objects, values = [dict(thing) for thing in description["objects"]], _VALUES[attribute]
    right = values.index(objects[index][attribute])
    captions = []
    for value in values:
        objects[index][attribute] = value
        captions.append(canonical_phrase([_described(thing) for thing in objects]))
    return captions, right


def _described(thing: dict[str, Any]) -> SceneObject:
    return SceneObject(**{**thing, "rgb": tuple(thing["rgb"])})
