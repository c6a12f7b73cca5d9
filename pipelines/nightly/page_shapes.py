"""Shapes of a chart over nights, as paths of SVG: a night is one unit wide, the height is `HEIGHT` units."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

HEIGHT = 400


class NightPoint(NamedTuple):
    """A metric's value of a night."""

    slot: int
    value: float
    low: float | None
    high: float | None
    """95 % interval, where one is known."""
    mark: str
    """CSS class of its dot; empty for none."""
    joins: bool
    """Whether the line of values runs through it: numbers of another evaluator stand alone."""
    title: str
    """Text shown when somebody points at it."""
    href: str


class Band(NamedTuple):
    """The values that a night could have without being suspected."""

    slot: int
    low: float
    high: float
    segment: str = ""
    """Nights of unlike segments have areas of their own."""


class Level(NamedTuple):
    """A value that holds from one slot to another."""

    first: int
    last: int
    value: float


class Block(NamedTuple):
    """Nights of one kind, from one slot to another."""

    first: int
    last: int
    number: int
    """Number of its kind; blocks of the next kind have another colour."""


class Scale(NamedTuple):
    """Values at the bottom and at the top of the drawing."""

    low: float
    high: float

    def y(self, value: float) -> int:
        """Return a value's vertical place; one beyond an end is drawn at the end."""
        share = (self.high - value) / (self.high - self.low)
        return round(HEIGHT * min(max(share, 0.0), 1.0))

    def share(self, value: float) -> float:
        """Return how far below the top a value is, from 0 to 1."""
        return (self.high - value) / (self.high - self.low)


def rectangles(blocks: Iterable[tuple[int, int]]) -> str:
    """Return blocks as high as the drawing, from first to last slots."""
    return "".join(
        f"M{first - 0.5:g} 0h{last - first + 1}v{HEIGHT}h{first - last - 1}z" for first, last in blocks
    )


def _runs(points: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield the points of neighbouring slots together."""
    for _, run in groupby(enumerate(points), key=lambda item: item[1][0] - item[0]):
        yield [point for _, point in run]


def _polyline(points: Sequence[tuple[int, int]]) -> str:
    """Return a line's points; those within a level stretch are left out."""
    kept: list[str] = []
    for number, (x, y) in enumerate(points):
        inside = 0 < number < len(points) - 1
        if not inside or points[number - 1][1] != y or points[number + 1][1] != y:
            kept.append(f"{x} {y}")
    return " ".join(kept)


def areas(bands: Sequence[Band], scale: Scale) -> str:
    """Return the areas of bands, those of neighbouring nights in one piece; a night alone is a line."""
    shapes: list[str] = []
    for _, group in groupby(bands, key=lambda band: band.segment):
        of_segment = {band.slot: band for band in group}
        for run in _runs([(band.slot, scale.y(band.high)) for band in of_segment.values()]):
            back = [(slot, scale.y(of_segment[slot].low)) for slot, _ in reversed(run)]
            shapes.append(f"M{_polyline(run)} {_polyline(back)}z")
    return "".join(shapes)


def lines(levels: Iterable[Level], scale: Scale) -> str:
    """Return a level line for each value."""
    return "".join(f"M{level.first - 0.5:g} {scale.y(level.value)}H{level.last + 0.5:g}" for level in levels)


def whiskers(points: Iterable[NightPoint], scale: Scale) -> str:
    """Return an upright line for each interval."""
    return "".join(
        f"M{point.slot} {scale.y(point.low)}V{scale.y(point.high)}"
        for point in points
        if point.low is not None and point.high is not None
    )


def trace(points: Iterable[NightPoint], scale: Scale) -> str:
    """Return the line of the values, which ends before a night without one."""
    joined = [(point.slot, scale.y(point.value)) for point in points if point.joins]
    return "".join(f"M{_polyline(run)}" for run in _runs(joined) if len(run) > 1)


def lone(points: Sequence[NightPoint], scale: Scale) -> str:
    """Return dots for values without neighbours, which no line shows."""
    joined = {point.slot for point in points if point.joins}
    return "".join(
        dot(point, scale)
        for point in points
        if not point.mark and joined.isdisjoint({point.slot - 1, point.slot + 1})
    )


def dot(point: NightPoint, scale: Scale) -> str:
    """Return a line without length, whose round ends are a dot however the drawing is stretched."""
    return f"M{point.slot} {scale.y(point.value)}h0"
