"""Generates the embedded corpus: seeded 64x64 scenes of two objects, so that a whole run needs no download.

Two objects in different quadrants stand on a colour ramp with stripes and noise. A few dots are in no
caption: a picture shows more than its caption says. The splits share no combination of attributes (a pair of
objects is in one split only), while each split shows every single attribute value.

All random numbers are raw words of Philox, a stream that numpy keeps fixed, and all arithmetic is on
integers, so that a scene does not depend on the platform. The order of the draws decides a scene: keep it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
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
MIN_DOTS = 2
MAX_DOTS = 8
HELDOUT_ONE_IN = 8
"""Share of the held-out split: one pair of objects in so many."""
RGB: dict[str, tuple[int, int, int]] = {
    "red": (215, 38, 38), "orange": (244, 150, 26), "yellow": (246, 232, 60), "green": (36, 160, 62),
    "cyan": (70, 212, 226), "blue": (46, 74, 214), "purple": (146, 46, 178), "white": (244, 244, 244),
}  # fmt: skip
RADII: dict[str, tuple[int, ...]] = {"small": (5, 6), "large": (10, 11)}
"""Half the height of an object, pixels; each size has two, far from the other size's."""
_CELL = 8
"""Side of the cells that dots are placed in, pixels."""
_SUBSAMPLES = 8
"""Sample points per pixel along each axis, for the edges of objects."""

Split = Literal["train", "heldout"]
Attribute = Literal["shape", "colour", "size"]
_VALUES: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}
_Attributes = tuple[str, str, str, str]
"""Shape, colour, size and quadrant of an object."""
_Pair = tuple[_Attributes, _Attributes]


class SceneObject(NamedTuple):
    """A filled shape."""

    shape: str
    colour: str
    size: str
    quadrant: str
    x: int
    """Centre, pixels from the left."""
    y: int
    """Centre, pixels from the top."""
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
    """Weights of x and of y in the ramp; they add up to 4."""
    stripes: tuple[int, int, int]
    """Phase of the wave, in 1/256: per pixel of x, per pixel of y, and at the origin."""
    amplitude: int
    """Height of the stripes, levels of 255."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene: all that decides its picture and its texts."""

    split: Split
    seed: int
    index: int
    objects: tuple[SceneObject, SceneObject]
    dots: tuple[Dot, ...]
    background: Background
    wording: int
    """64 random bits that choose among the grammar's phrasings."""


class _Draws:
    """A stream of random numbers, seeded by a name."""

    def __init__(self, *name: object) -> None:
        key = hashlib.blake2b("\0".join(map(str, name)).encode(), digest_size=16).digest()
        self._bits = np.random.Philox(key=int.from_bytes(key, "big"))
        self._words: list[int] = []

    def word(self) -> int:
        """Return 64 random bits."""
        if not self._words:
            self._words = self._bits.random_raw(64).tolist()
        return self._words.pop()

    def below(self, stop: int) -> int:
        """Return a number in [0, stop)."""
        return self.word() % stop

    def between(self, low: int, high: int) -> int:
        """Return a number in [low, high]."""
        return low + self.below(high - low + 1)

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """Return random bytes, a multiple of 8."""
        return self._bits.random_raw(count // 8).astype("<u8").view(np.uint8)


def split_of(first: _Attributes, second: _Attributes) -> Split:
    """Return the split of a pair of (shape, colour, size, quadrant), whatever its order and the seed."""
    name = "\0".join("\0".join(attributes) for attributes in sorted((first, second)))
    value = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    if value % HELDOUT_ONE_IN:
        return "train"
    return "heldout"


@cache
def _pairs(split: Split) -> tuple[_Pair, ...]:
    """Return all pairs of a split, first by their two quadrants, then by the attributes of each."""
    pairs: list[_Pair] = []
    for first_quadrant, second_quadrant in combinations(QUADRANTS, 2):
        firsts = product(SHAPES, COLOURS, SIZES, [first_quadrant])
        seconds = list(product(SHAPES, COLOURS, SIZES, [second_quadrant]))
        pairs += [pair for pair in product(firsts, seconds) if split_of(*pair) == split]
    return tuple(pairs)


def scene(split: Split, seed: int, index: int) -> Scene:
    """Return scene number `index` (0 is the first) of a split.

    The seed changes all but the split's combinations of attributes.
    """
    draws = _Draws("scene", split, seed, index)
    pairs = _pairs(split)
    first, second = pairs[draws.below(len(pairs))]
    if draws.below(2):
        first, second = second, first
    objects = (_place(draws, first), _place(draws, second))
    dots = _dots(draws, objects)
    background = _background(draws)
    return Scene(split, seed, index, objects, dots, background, wording=draws.word())


def _place(draws: _Draws, attributes: _Attributes) -> SceneObject:
    """Place an object in its quadrant, so that it keeps off the borders, and vary its colour a little."""
    shape, colour, size, quadrant = attributes
    radius = RADII[size][draws.below(len(RADII[size]))]
    half = IMAGE_SIZE // 2
    centres = places(radius)
    x = centres[draws.below(len(centres))] + half * quadrant.endswith("right")
    y = centres[draws.below(len(centres))] + half * quadrant.startswith("bottom")
    red, green, blue = RGB[colour]
    rgb = (_varied(draws, red), _varied(draws, green), _varied(draws, blue))
    return SceneObject(shape, colour, size, quadrant, x, y, radius, rgb)


def places(radius: int) -> range:
    """Return the pixels at which an object's centre may lie along a side of its quadrant, off its borders."""
    middle = IMAGE_SIZE // 4
    room = middle - radius - 2
    return range(middle - room, middle + room + 1)


def _varied(draws: _Draws, level: int) -> int:
    return min(255, max(0, level + draws.between(-10, 10)))


def _dots(draws: _Draws, objects: Sequence[SceneObject]) -> tuple[Dot, ...]:
    """Place dots in cells that no object touches, at most one in each."""
    num_cells = IMAGE_SIZE // _CELL
    free: list[tuple[int, int]] = []
    for row in range(num_cells):
        for column in range(num_cells):
            x = column * _CELL
            y = row * _CELL
            if not _is_near_any(objects, x, y):
                free.append((x, y))
    dots: list[Dot] = []
    for _ in range(min(draws.between(MIN_DOTS, MAX_DOTS), len(free))):
        x, y = free.pop(draws.below(len(free)))
        level = 240 * draws.below(2)
        rgb = (level + draws.below(16), level + draws.below(16), level + draws.below(16))
        dots.append(Dot(x + 1 + draws.below(_CELL - 3), y + 1 + draws.below(_CELL - 3), rgb))
    return tuple(dots)


def _is_near_any(objects: Sequence[SceneObject], x: int, y: int) -> bool:
    """Tell whether the cell at x, y touches the square around an object."""
    # In half pixels, so that centres are whole numbers.
    for placed in objects:
        reach = 2 * (placed.radius + 1) + _CELL
        distance_x = abs(2 * x + _CELL - 2 * placed.x)
        distance_y = abs(2 * y + _CELL - 2 * placed.y)
        if distance_x <= reach and distance_y <= reach:
            return True
    return False


def _background(draws: _Draws) -> Background:
    slope = draws.below(5)
    stripes = (draws.between(-40, 40), draws.between(-40, 40), draws.below(256))
    first = _dull_colour(draws)
    last = _dull_colour(draws)
    return Background(first, last, (slope, 4 - slope), stripes, amplitude=draws.between(4, 14))


def _dull_colour(draws: _Draws) -> tuple[int, int, int]:
    grey = draws.between(80, 160)
    return grey + draws.between(-28, 28), grey + draws.between(-28, 28), grey + draws.between(-28, 28)


@cache
def _grid() -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Return each pixel's x and y, and one wave of a sine in 256 steps, -128 to 128."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.int32)
    wave = np.rint(np.sin(np.arange(256) * (np.pi / 128)) * 128)
    return x, y, wave.astype(np.int32)


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
    side = 2 * (radius + 1) + 1
    num_steps = side * _SUBSAMPLES
    # Sample points lie at odd multiples of half a subsample; a pixel is 2 * _SUBSAMPLES of these units wide.
    steps = 2 * np.arange(num_steps, dtype=np.int64) + 1 - num_steps
    y, x = np.meshgrid(steps, steps, indexing="ij")
    inside = _inside(shape, x, y, radius * 2 * _SUBSAMPLES)
    cells = inside.reshape(side, _SUBSAMPLES, side, _SUBSAMPLES)
    return cells.sum(axis=(1, 3), dtype=np.int32)[..., None]


def shape_mask(shape: str, radius: int) -> NDArray[np.float32]:
    """Return the share of each pixel that a shape covers, 0 to 1: a square of side 2 * (radius + 1) + 1."""
    return (_mask(shape, radius)[..., 0] / _SUBSAMPLES**2).astype(np.float32)


def render(scene: Scene) -> Image.Image:
    """Draw a scene, RGB."""
    image = _draw_background(scene)
    for placed in scene.objects:
        mask = _mask(placed.shape, placed.radius)
        reach = placed.radius + 1
        rows = slice(placed.y - reach, placed.y + reach + 1)
        columns = slice(placed.x - reach, placed.x + reach + 1)
        window = image[rows, columns]
        window += (np.array(placed.rgb, np.int32) - window) * mask >> 6
    for dot in scene.dots:
        image[dot.y : dot.y + 2, dot.x : dot.x + 2] = dot.rgb
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def _draw_background(scene: Scene) -> NDArray[np.int32]:
    """Return the ramp with stripes and noise, levels that may lie a little outside 0 to 255."""
    x, y, wave = _grid()
    ground = scene.background
    slope_x, slope_y = ground.slope
    ramp = (x * slope_x + y * slope_y)[..., None]
    first = np.array(ground.first, np.int32)
    last = np.array(ground.last, np.int32)
    step_x, step_y, origin = ground.stripes
    stripes = wave[(x * step_x + y * step_y + origin) & 255] * ground.amplitude >> 7
    noise_bytes = _Draws("noise", scene.split, scene.seed, scene.index).bytes(IMAGE_SIZE**2)
    noise = noise_bytes.reshape(IMAGE_SIZE, IMAGE_SIZE).astype(np.int32)
    texture = stripes + (noise * 17 >> 8) - 8
    return first + ((last - first) * ramp >> 8) + texture[..., None]


def caption(scene: Scene) -> str:
    """Name size, colour, shape and quadrant of both objects, in one of the grammar's phrasings."""
    return compose(scene.objects, scene.wording)


def canonical_caption(objects: Sequence[Described]) -> str:
    """Return the caption in the fixed phrasing that evaluations use; it is one of the grammar's."""
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
        "objects": [_json_values(placed) for placed in scene.objects],
        "dots": [_json_values(dot) for dot in scene.dots],
    }


def _json_values(drawn: SceneObject | Dot) -> dict[str, Any]:
    return {**drawn._asdict(), "rgb": list(drawn.rgb)}


def attribute_choices(description: dict[str, Any], index: int, attribute: Attribute) -> tuple[list[str], int]:
    """Return canonical captions that differ in one attribute of one object, and the index of the true one.

    For zero-shot evaluation: 6 shapes, 8 colours or 2 sizes; chance over the three is 26 %.
    """
    objects = [SceneObject(**values) for values in description["objects"]]
    options = _VALUES[attribute]
    true_option = options.index(getattr(objects[index], attribute))
    captions: list[str] = []
    for option in options:
        objects[index] = objects[index]._replace(**{attribute: option})
        captions.append(canonical_phrase(objects))
    return captions, true_option
