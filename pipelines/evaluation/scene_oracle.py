"""Reads scenes back from pictures: which objects stand where, by matched filters over the generator's shapes.

A reconstruction or a drawing is judged by what can be read in it. An object changes the background by its
colour times its mask. The reader takes, for each quadrant, the object whose removal explains most of the
picture's squared difference from the background (least squares), over all shapes, colours, radii and places
that the generator draws.

B pictures of 64 by 64 pixels, Q = 4 quadrants of P = 32 * 32 pixels, C colours, T templates: a shape of one
radius at one place.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dualtoken.pipelines.images.scene_captions import COLOURS, QUADRANTS, SHAPES
from dualtoken.pipelines.images.scene_generator import IMAGE_SIZE, RADII, RGB, places, shape_mask

_HALF = IMAGE_SIZE // 2
_BATCH_SIZE = 64
"""Pictures that are read together: their scores take about 10 MB."""
_NUM_FITS = 10
"""Passes of the background's robust fit."""
_OUTLIER_LEVELS = 20.0
"""Difference from the background, levels of 255, from which on a pixel hardly counts in its fit."""


class ReadObject(NamedTuple):
    """An object as a picture shows it."""

    shape: str
    colour: str
    size: str
    quadrant: str
    evidence: float
    """Squared difference of levels, summed over pixels and channels, that the object explains."""


class _Templates(NamedTuple):
    masks_and_squares: Tensor
    """(2 * P, T), share of each pixel that is covered, 0 to 1, and below it the squares of the shares."""
    areas: Tensor
    """(T,), sums of the squares."""
    names: list[tuple[str, str]]
    """Shape and size of each template."""


def read_scenes(pictures: Tensor, num_objects: int = 2) -> Iterator[list[ReadObject]]:
    """Yield the objects of each picture, most evident first, at most one per quadrant.

    `pictures` are (B, 3, 64, 64), levels of 0 to 255.
    """
    for batch in pictures.split(_BATCH_SIZE):
        found = [_best_in_quadrant(*quadrant) for quadrant in _quadrants(batch.float())]
        for objects in zip(*found, strict=True):
            by_evidence = sorted(objects, key=lambda candidate: -candidate.evidence)
            yield by_evidence[:num_objects]


def read_scenes_alike(pictures: Tensor, num_objects: int = 2) -> list[list[ReadObject]]:
    """Return the same of each picture whatever pictures it is read with: in batches of one size."""
    if not len(pictures):
        return []
    padding = pictures[-1:].expand(-len(pictures) % _BATCH_SIZE, -1, -1, -1)
    return list(read_scenes(torch.cat([pictures, padding]), num_objects))[: len(pictures)]


def _quadrants(pictures: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each quadrant's name, and its pixels and background, both (B, 3, P)."""
    grounds = _background(pictures)
    for name in QUADRANTS:
        top = _HALF * name.startswith("bottom")
        left = _HALF * name.endswith("right")
        rows = slice(top, top + _HALF)
        columns = slice(left, left + _HALF)
        yield name, pictures[:, :, rows, columns].flatten(2), grounds[:, :, rows, columns].flatten(2)


def _best_in_quadrant(name: str, pixels: Tensor, ground: Tensor) -> list[ReadObject]:
    """Return the object that explains most of each picture's quadrant."""
    templates = _templates()
    colours = torch.tensor([RGB[colour] for colour in COLOURS], dtype=torch.float32)
    # With difference d, mask m, colour c and background g, the object explains |d|^2 - |d - m (c - g)|^2,
    # that is 2 c (m d + m^2 g) - (2 m d g + m^2 g^2) - m^2 c^2.
    difference = pixels - ground
    of_colour = torch.cat([difference, ground], dim=2)
    of_none = torch.cat([2 * difference * ground, ground.square()], dim=2).sum(dim=1, keepdim=True)
    fields = torch.cat([of_colour, of_none], dim=1) @ templates.masks_and_squares  # (B, 3 + 1, T)
    own = colours.square().sum(dim=1)[:, None] * templates.areas
    evidence = 2 * (colours @ fields[:, :3]) - fields[:, 3:] - own  # (B, C, T)
    best, index = evidence.flatten(1).max(dim=1)
    found: list[ReadObject] = []
    for value, place in zip(best.tolist(), index.tolist(), strict=True):
        colour, template = divmod(place, len(templates.names))
        shape, size = templates.names[template]
        found.append(ReadObject(shape, COLOURS[colour], size, name, value))
    return found


@cache
def _templates() -> _Templates:
    """Return the masks of all shapes at all places of a quadrant."""
    masks: list[np.ndarray] = []
    names: list[tuple[str, str]] = []
    for size, shape in product(RADII, SHAPES):
        for radius in RADII[size]:
            mask = shape_mask(shape, radius)
            side = len(mask)
            for y, x in product(places(radius), repeat=2):
                top = y - radius - 1
                left = x - radius - 1
                canvas = np.zeros((_HALF, _HALF), np.float32)
                canvas[top : top + side, left : left + side] = mask
                masks.append(canvas.reshape(-1))
                names.append((shape, size))
    columns = torch.from_numpy(np.stack(masks)).T
    squares = columns.square()
    return _Templates(torch.cat([columns, squares]), squares.sum(dim=0), names)


def _background(pictures: Tensor) -> Tensor:
    """Return each picture's background, (B, 3, 64, 64): a plane per channel, fitted to the pixels that agree.

    Iteratively reweighted least squares with the weights of Geman and McClure: an object's pixels drop out.
    """
    steps = torch.linspace(-1, 1, IMAGE_SIZE)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    planes = torch.stack([torch.ones_like(x), x, y]).flatten(1).T  # (pixels, 3)
    levels = pictures.flatten(2).transpose(1, 2)  # (B, pixels, 3)
    weights = torch.ones(levels.shape[:2])
    ground = levels.median(dim=1, keepdim=True).values.expand_as(levels)
    for _ in range(_NUM_FITS):
        distance = (levels - ground).square().sum(dim=2)
        weights = 1 / (1 + distance / _OUTLIER_LEVELS**2).square()
        weighted = planes[None] * weights[..., None]
        solution = torch.linalg.solve(weighted.mT @ planes, weighted.mT @ levels)
        ground = planes @ solution
    return ground.transpose(1, 2).unflatten(2, (IMAGE_SIZE, IMAGE_SIZE))
