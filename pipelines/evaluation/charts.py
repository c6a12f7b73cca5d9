"""Charts as SVG strings: line charts and horizontal bars, styled by the page's CSS, without a script.

Built as an XML tree, so that every chart is well formed and every text is escaped. Lengths are in view box
units.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

LINE_WIDTH = 360
LINE_HEIGHT = 200
LEFT = 48
RIGHT = 346
TOP = 14
BOTTOM = 160
"""Bottom edge of the line chart's plotting area, which `LEFT`, `RIGHT` and `TOP` bound too."""
MAX_HOVERS = 80
"""Points that can be pointed at; a longer curve has every n-th, and the last."""
BAR_WIDTH = 400
BAR_ROW = 30
BAR_THICKNESS = 14
BAR_RIGHT = 300
"""Right end of a bar chart's bars."""
MAX_LABEL_WIDTH = 130.0
LABEL_CHARACTER_WIDTH = 7.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One row of a bar chart."""

    label: str
    value: float
    text: str
    """Text to the right of the bar."""
    title: str
    """Text shown when somebody points at the row."""
    mark: float | None = None
    """Value at which a vertical line stands, for comparison."""


def nice_ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> tuple[float, ...]:
    """Return about `count` ticks, 1, 2 or 5 times a power of ten apart.

    The first is at most `low`, the last at least `high`. With `whole` they are whole numbers.
    """
    assert math.isfinite(low), low
    assert math.isfinite(high), high
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(low) / 2 or 1.0
        high = low + room
        low -= room
    step = _tick_step((high - low) / max(count - 1, 1))
    if whole:
        step = max(step, 1.0)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return tuple(float(f"{number * step:.12g}") for number in range(first, last + 1))


def _tick_step(smallest: float) -> float:
    """Return the least step of 1, 2 or 5 times a power of ten that is not under `smallest`."""
    power = 10.0 ** math.floor(math.log10(smallest))
    for factor in (1, 2, 5):
        if factor * power >= smallest * (1 - 1e-9):
            return factor * power
    return 10 * power


def tick_label(value: float, step: float) -> str:
    """Write a tick with the decimals that neighbours `step` away need; thousands as k, millions as M."""
    if value < 0:
        return f"\u2212{tick_label(-value, step)}"
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size and step >= size / 10:
            return f"{value / size:.4g}{suffix}"
    if not value:
        return "0"
    if step < 1e-4:
        return f"{value:.3g}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}"


class _Point(NamedTuple):
    """A point of a line chart, in view box units."""

    x: float
    y: float | None
    """None where the value is not finite."""


class _Hover(NamedTuple):
    """A point that can be pointed at."""

    x: float
    y: float
    title: str


def line_chart(
    points: Sequence[tuple[int, float]], *, label: str, unit: str = "", tone: str = "neutral"
) -> str:
    """Draw values over steps; one that is not finite leaves a gap. `tone` is the CSS class of the colour."""
    svg = _svg(LINE_WIDTH, LINE_HEIGHT, label, f"chart line {tone}")
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if not finite:
        text = "no finite values" if points else "no values"
        _text(svg, LINE_WIDTH / 2, LINE_HEIGHT / 2, text, "none middle")
        return tostring(svg, encoding="unicode")

    x_of = _x_scale(first=points[0][0], last=points[-1][0])
    y_ticks = _y_ticks([value for _, value in finite])
    y_of = _y_scale(y_ticks)
    _draw_y_axis(svg, y_ticks, y_of)
    _draw_x_axis(svg, points[0][0], points[-1][0], x_of)

    trace: list[_Point] = []
    for step, value in points:
        y = y_of(value) if math.isfinite(value) else None
        trace.append(_Point(x_of(step), y))
    _draw_trace(svg, trace)

    suffix = f" {unit}" if unit else ""
    hovers: list[_Hover] = []
    for step, value in finite:
        title = f"step {step:,}: {value:.4g}{suffix}"
        hovers.append(_Hover(x_of(step), y_of(value), title))
    _draw_hovers(svg, hovers)
    return tostring(svg, encoding="unicode")


def _x_scale(first: int, last: int) -> Callable[[float], float]:
    """Return the function from a step to its horizontal place; a single step lies in the middle."""
    width = last - first

    def x_of(step: float) -> float:
        share = (step - first) / width if width else 0.5
        return round(LEFT + (RIGHT - LEFT) * share, 2)

    return x_of


def _y_ticks(values: Sequence[float]) -> tuple[float, ...]:
    """Return the ticks of an axis that holds the values, and 0 unless that would leave it half empty."""
    low = min(values)
    high = max(values)
    if 0 < low < high / 2:
        low = 0.0
    return nice_ticks(low, high)


def _y_scale(ticks: Sequence[float]) -> Callable[[float], float]:
    """Return the function from a value to its vertical place."""

    def y_of(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)

    return y_of


def _draw_y_axis(svg: Element, ticks: Sequence[float], y_of: Callable[[float], float]) -> None:
    step = ticks[1] - ticks[0]
    for tick in ticks:
        y = y_of(tick)
        _line(svg, LEFT, y, RIGHT, y, "grid")
        _text(svg, LEFT - 7, y + 4, tick_label(tick, step), "tick end")


def _draw_x_axis(svg: Element, first: int, last: int, x_of: Callable[[float], float]) -> None:
    ticks = [tick for tick in nice_ticks(first, last, whole=True) if first <= tick <= last]
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    for tick in ticks:
        x = x_of(tick)
        _line(svg, x, BOTTOM, x, BOTTOM + 4, "axis")
        _text(svg, x, BOTTOM + 17, tick_label(tick, step), "tick middle")
    _line(svg, LEFT, BOTTOM, RIGHT, BOTTOM, "axis")
    _text(svg, (LEFT + RIGHT) / 2, LINE_HEIGHT - 5, "step", "tick middle")


def _draw_trace(svg: Element, points: Sequence[_Point]) -> None:
    """Draw one path, broken at gaps; a point between two gaps becomes a dot."""
    path: list[str] = []
    for number, (x, y) in enumerate(points):
        if y is None:
            continue
        begins = number == 0 or points[number - 1].y is None
        ends = number == len(points) - 1 or points[number + 1].y is None
        command = "M" if begins else "L"
        path.append(f"{command}{x:g} {y:g}")
        if begins and ends:
            SubElement(svg, "circle", {"class": "dot", "cx": f"{x:g}", "cy": f"{y:g}", "r": "3.5"})
    SubElement(svg, "path", {"class": "trace", "d": " ".join(path)})


def _draw_hovers(svg: Element, points: Sequence[_Hover]) -> None:
    """Give each shown point a band as high as the chart, so that it is easily pointed at."""
    every = math.ceil(len(points) / MAX_HOVERS)
    shown = list(points[::every])
    if shown[-1] != points[-1]:
        shown.append(points[-1])

    # A band reaches halfway to the next point.
    start = LEFT
    ends = [(point.x + following.x) / 2 for point, following in pairwise(shown)]
    for point, end in zip(shown, [*ends, RIGHT], strict=True):
        group = SubElement(svg, "g", {"class": "hover"})
        SubElement(group, "title").text = point.title
        _rect(group, start, TOP, end - start, BOTTOM - TOP, "band")
        SubElement(group, "circle", {"cx": f"{point.x:g}", "cy": f"{point.y:g}", "r": "3.5"})
        start = end


def bar_chart(bars: Sequence[Bar], *, label: str, maximum: float = 1.0, tone: str = "neutral") -> str:
    """Draw a horizontal bar per row, from 0 to `maximum`; `tone` is the CSS class of the colour."""
    longest_label = max((len(bar.label) for bar in bars), default=0)
    left = min(16 + LABEL_CHARACTER_WIDTH * longest_label, MAX_LABEL_WIDTH)
    svg = _svg(BAR_WIDTH, max(BAR_ROW * len(bars), 1), label, f"chart bars {tone}")
    for number, bar in enumerate(bars):
        row = SubElement(svg, "g", {"class": "row"})
        _draw_bar(row, bar, left, middle=BAR_ROW * number + BAR_ROW / 2, maximum=maximum)
    return tostring(svg, encoding="unicode")


def _draw_bar(row: Element, bar: Bar, left: float, middle: float, maximum: float) -> None:
    """Draw a row's name, track, bar, mark and text around the height `middle`."""
    top = middle - BAR_THICKNESS / 2
    bottom = middle + BAR_THICKNESS / 2
    width = BAR_RIGHT - left
    SubElement(row, "title").text = bar.title
    _text(row, 0, middle + 4, bar.label, "name")
    _rect(row, left, top, width, BAR_THICKNESS, "track")
    _rect(row, left, top, width * _share(bar.value, maximum), BAR_THICKNESS, "fill")
    if bar.mark is not None:
        x = round(left + width * _share(bar.mark, maximum), 2)
        for classes in ("halo", "mark"):
            _line(row, x, top - 4, x, bottom + 4, classes)
    _text(row, BAR_RIGHT + 12, middle + 4, bar.text, "value")


def _share(value: float, maximum: float) -> float:
    """Return a value's share of the maximum, from 0 to 1; 0 where it is not finite."""
    if not math.isfinite(value):
        return 0.0
    return min(max(value / maximum, 0.0), 1.0)


def _svg(width: float, height: float, label: str, classes: str) -> Element:
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {width:g} {height:g}",
        "class": classes,
        "role": "img",
        "aria-label": label,
    }
    return Element("svg", attributes)


def _rect(parent: Element, x: float, y: float, width: float, height: float, classes: str) -> None:
    attributes = {
        "class": classes,
        "x": _length(x),
        "y": _length(y),
        "width": _length(width),
        "height": _length(height),
    }
    SubElement(parent, "rect", attributes)


def _line(parent: Element, x1: float, y1: float, x2: float, y2: float, classes: str) -> None:
    attributes = {
        "class": classes,
        "x1": _length(x1),
        "y1": _length(y1),
        "x2": _length(x2),
        "y2": _length(y2),
    }
    SubElement(parent, "line", attributes)


def _text(parent: Element, x: float, y: float, text: str, classes: str) -> None:
    element = SubElement(parent, "text", {"class": classes, "x": _length(x), "y": _length(y)})
    element.text = text


def _length(value: float) -> str:
    return f"{round(value, 2):g}"
