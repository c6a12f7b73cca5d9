"""The chart of a metric over nights: SVG with its labels in HTML, styled by the page's CSS, without a script.

The drawing is stretched to whatever width it is given (`page_shapes` has its units). Lines and dots keep
their widths by `vector-effect`; texts stand beside the drawing, in per cent of it. Built as an XML tree, so
that it is well formed and every text is escaped.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

from dualtoken.pipelines.evaluation.charts import nice_ticks, tick_label
from dualtoken.pipelines.nightly.page_shapes import (
    HEIGHT,
    Band,
    Block,
    Level,
    NightPoint,
    Scale,
    areas,
    dot,
    lines,
    lone,
    rectangles,
    trace,
    whiskers,
)

LEAST_SLOTS = 14
"""Nights that a chart has room for, at least."""
WEEKLY_UNTIL = 45
"""Number of nights up to which every seventh is labelled; with more, every month."""
LABEL_GAP = 0.062
"""Least distance of two labels, as a share of the width: that of a month's name on a phone."""
FLAG_GAP = 0.055
FLAG_LANES = 2
"""Rows of flags above a chart; where three stand too close together, the last is left out."""
MOST_LINKS = 100
"""Newest nights that have a link and a text of their own in a chart with links: a year of them in every chart
would make a page of megabytes."""
LINKS_ID = "nights"
"""Id of the links that charts without links of their own share."""


class Axis(NamedTuple):
    """What all charts of a page have in common: a slot for each night."""

    nights: tuple[str, ...]
    """ISO dates, in order."""
    pauses: tuple[tuple[int, int], ...] = ()
    """First and last slots of nights that were paused."""

    @property
    def num_slots(self) -> int:
        """Number of slots."""
        return max(len(self.nights), LEAST_SLOTS)

    def left(self, slot: float) -> str:
        """Return where a slot's middle is, as CSS has it."""
        return f"left:{100 * (slot + 0.5) / self.num_slots:.4g}%"


class Flag(NamedTuple):
    """A letter above the chart, with a line down to the nights."""

    slot: int
    letter: str
    kind: str
    """CSS class."""
    title: str
    href: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NightChart:
    """All that is drawn of one metric."""

    label: str
    """What the chart says, for those who do not see it."""
    axis: Axis
    points: Sequence[NightPoint]
    least_range: float
    """Values that are drawn, from the lowest to the highest, span at least so much."""
    bands: Sequence[Band] = ()
    levels: Sequence[Level] = ()
    baselines: Sequence[Level] = ()
    flags: Sequence[Flag] = ()
    has_links: bool = False
    """Whether each night has a whisker, and the newest a link and a text of their own: most of a page.

    Other nights have the links that charts share. Without, all intervals are one area.
    """


def night_chart(chart: NightChart) -> str:
    """Draw a metric over nights."""
    low, high = _bounds(chart)
    ticks = nice_ticks(low, high, 4)
    scale = Scale(ticks[0], ticks[-1])
    figure = Element("div", {"class": "plot"})
    _draw_flags(figure, chart.axis, chart.flags)
    _draw_y_labels(figure, ticks, scale)
    svg = _drawing(figure, chart.axis, chart.label)
    _path(svg, "pause", rectangles(chart.axis.pauses))
    _path(svg, "grid", "".join(f"M-.5 {scale.y(tick)}h{chart.axis.num_slots}" for tick in ticks))
    _path(svg, "band", areas(chart.bands, scale))
    _path(svg, "level", lines(chart.levels, scale))
    _path(svg, "baseline", lines(chart.baselines, scale))
    for flag in chart.flags:
        _path(svg, f"pole {flag.kind}", f"M{flag.slot} 0v{HEIGHT}")
    if chart.has_links:
        _path(svg, "whisker", whiskers(chart.points, scale))
    else:
        _path(svg, "spread", areas(_intervals(chart.points), scale))
    _path(svg, "trace", trace(chart.points, scale))
    _path(svg, "dot", lone(chart.points, scale))
    _draw_marks(svg, chart.points, scale)
    first_own = len(chart.axis.nights) - MOST_LINKS
    if not chart.has_links or first_own > 0:
        SubElement(svg, "use", {"href": f"#{LINKS_ID}"})
    if chart.has_links:
        _draw_links(svg, [point for point in chart.points if point.slot >= first_own])
    _draw_x_labels(figure, chart.axis)
    return _text_of(figure)


def shared_links(nights: Iterable[tuple[int, str, str]]) -> str:
    """Return the links that charts share for nights without a link of their own: slot, text, address."""
    svg = Element("svg", {"class": "shared", "width": "0", "height": "0", "aria-hidden": "true"})
    group = SubElement(SubElement(svg, "defs"), "g", {"id": LINKS_ID})
    for slot, title, href in nights:
        _link(group, slot, title, href)
    return _text_of(svg)


def strip(axis: Axis, blocks: Sequence[Block], flags: Sequence[Flag], label: str) -> str:
    """Draw nights as blocks; flags mark where something changed."""
    figure = Element("div", {"class": "plot strip"})
    _draw_flags(figure, axis, flags)
    svg = _drawing(figure, axis, label)
    for block in blocks:
        kind = "odd" if block.number % 2 else "even"
        _path(svg, f"block {kind}", rectangles([(block.first, block.last)]))
    SubElement(svg, "use", {"href": f"#{LINKS_ID}"})
    _draw_x_labels(figure, axis)
    return _text_of(figure)


def x_labels(axis: Axis) -> Iterator[tuple[int, str]]:
    """Yield the slots that have a label, with its text: months, or days where there are few nights."""
    last = -math.inf
    for slot, text in _label_places(axis):
        if (slot - last) / axis.num_slots >= LABEL_GAP:
            yield slot, text
            last = slot


def _label_places(axis: Axis) -> Iterator[tuple[int, str]]:
    before = ""
    for slot, night in enumerate(axis.nights):
        year, month, day = night.split("-")
        if len(axis.nights) <= WEEKLY_UNTIL:
            if slot % 7 == 0:
                yield slot, f"{int(day)} {_MONTHS[int(month) - 1]}"
        elif night[:7] != before:
            yield slot, year if month == "01" else _MONTHS[int(month) - 1]
        before = night[:7]


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _bounds(chart: NightChart) -> tuple[float, float]:
    """Return the values that must be in the drawing.

    Intervals over samples are often far wider than nights differ: they are cut where the nights could not be
    told apart otherwise.
    """
    inner = [point.value for point in chart.points]
    for band in chart.bands:
        inner += [band.low, band.high]
    inner += [level.value for level in (*chart.levels, *chart.baselines)]
    if not inner:
        return 0.0, 1.0
    missing = max(chart.least_range - (max(inner) - min(inner)), 0.0)
    low = min(inner) - missing / 2
    high = max(inner) + missing / 2
    room = high - low
    lowest = min((point.low for point in chart.points if point.low is not None), default=low)
    highest = max((point.high for point in chart.points if point.high is not None), default=high)
    return max(min(lowest, low), low - room), min(max(highest, high), high + room)


def _intervals(points: Iterable[NightPoint]) -> list[Band]:
    return [
        Band(point.slot, point.low, point.high)
        for point in points
        if point.low is not None and point.high is not None
    ]


def _drawing(figure: Element, axis: Axis, label: str) -> Element:
    attributes = {
        "class": "nights",
        "viewBox": f"-.5 0 {axis.num_slots} {HEIGHT}",
        "preserveAspectRatio": "none",
        "role": "img",
        "aria-label": label,
    }
    return SubElement(figure, "svg", attributes)


def _path(svg: Element, classes: str, shape: str) -> None:
    if shape:
        SubElement(svg, "path", {"class": classes, "d": shape})


def _draw_marks(svg: Element, points: Sequence[NightPoint], scale: Scale) -> None:
    kinds = sorted({point.mark for point in points} - {""})
    for kind in kinds:
        shape = "".join(dot(point, scale) for point in points if point.mark == kind)
        _path(svg, f"mark {kind}", shape)


def _draw_links(svg: Element, points: Iterable[NightPoint]) -> None:
    for point in points:
        _link(svg, point.slot, point.title, point.href)


def _link(parent: Element, slot: int, title: str, href: str) -> None:
    """Make a whole slot a link; keyboards reach nights by the calendar, not once more in every chart."""
    link = SubElement(parent, "a", {"href": href, "tabindex": "-1"})
    SubElement(link, "title").text = title
    SubElement(link, "path", {"d": f"M{slot} 0V{HEIGHT}"})


def _draw_flags(figure: Element, axis: Axis, flags: Sequence[Flag]) -> None:
    """Place flags from left to right, each in the highest lane that is free there."""
    row = SubElement(figure, "div", {"class": "flags"})
    ends = [-math.inf] * FLAG_LANES
    for flag in sorted(flags, key=lambda flag: flag.slot):
        place = flag.slot / axis.num_slots
        free = [lane for lane, end in enumerate(ends) if place - end >= FLAG_GAP]
        if not free:
            continue
        ends[free[0]] = place
        attributes = {
            "class": f"flag {flag.kind}",
            "style": f"{axis.left(flag.slot)};top:{1.25 * free[0]:g}rem",
            "title": flag.title,
            "href": flag.href,
        }
        SubElement(row, "a", attributes).text = flag.letter
    lanes = sum(end > -math.inf for end in ends)
    row.set("style", f"height:{1.25 * lanes:g}rem")


def _draw_y_labels(figure: Element, ticks: Sequence[float], scale: Scale) -> None:
    column = SubElement(figure, "div", {"class": "y", "aria-hidden": "true"})
    for tick in ticks:
        label = SubElement(column, "span", {"style": f"top:{100 * scale.share(tick):.4g}%"})
        label.text = tick_label(tick, ticks[1] - ticks[0])


def _draw_x_labels(figure: Element, axis: Axis) -> None:
    row = SubElement(figure, "div", {"class": "x", "aria-hidden": "true"})
    for slot, text in x_labels(axis):
        SubElement(row, "span", {"style": axis.left(slot)}).text = text


def _text_of(element: Element) -> str:
    # HTML knows no empty-element tags.
    return tostring(element, encoding="unicode", short_empty_elements=False)
