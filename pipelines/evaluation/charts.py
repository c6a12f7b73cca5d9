"""Charts as SVG strings: line charts and horizontal bars, styled by the page's CSS and read without a script.

Built as an XML tree, so that every chart is well formed and every text is escaped. Lengths are in view box units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement, tostring

LINE_WIDTH, LINE_HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 346, 14, 160
"""The line chart's plotting area."""
MAX_HOVERS = 80
"""Points that can be pointed at; a longer curve has every n-th, and the last."""
BAR_WIDTH, BAR_ROW, BAR_THICKNESS = 400, 30, 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One row of a bar chart."""

    label: str
    value: float
    text: str
    """What stands to the right of the bar."""
    title: str
    """What pointing at the row says."""
    mark: float | None = None
    """Where a vertical line stands, for comparison."""


def nice_ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> tuple[float, ...]:
    """Return about `count` ticks, 1, 2 or 5 times a power of ten apart, the first at most `low` and the last at least `high`."""
    assert math.isfinite(low), low
    assert math.isfinite(high), high
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(low) / 2 or 1.0
        low, high = low - room, low + room
    raw = (high - low) / max(count - 1, 1)
    exponent = math.floor(math.log10(raw))
    factor = next(factor for factor in (1, 2, 5, 10) if factor * 10.0**exponent >= raw * (1 - 1e-9))
    step = max(factor * 10.0**exponent, 1.0) if whole else factor * 10.0**exponent
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(float(f"{number * step:.12g}") for number in range(first, last + 1))


def tick_label(value: float, step: float) -> str:
    """Write a tick with as many decimals as its neighbours `step` away need; thousands as k, millions as M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size and step >= size / 10:
            return f"{value / size:.4g}{suffix}"
    if not value:
        return "0"
    if step < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def line_chart(
    points: Sequence[tuple[int, float]], *, label: str, unit: str = "", tone: str = "neutral"
) -> str:
    """Draw values over steps; a value that is not finite leaves a gap. `tone` is the CSS class that gives the colour."""
    svg = _svg(LINE_WIDTH, LINE_HEIGHT, label, f"chart line {tone}")
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if not finite:
        _text(
            svg, LINE_WIDTH / 2, LINE_HEIGHT / 2, "no finite values" if points else "no values", "none middle"
        )
        return tostring(svg, encoding="unicode")
    steps, values = [step for step, _ in points], [value for _, value in finite]
    low, high = min(values), max(values)
    y_ticks = nice_ticks(0.0 if 0 < low < high / 2 else low, high)
    x_ticks = [tick for tick in nice_ticks(steps[0], steps[-1], whole=True) if steps[0] <= tick <= steps[-1]]

    def x_of(step: float) -> float:
        width = steps[-1] - steps[0]
        return round(LEFT + (RIGHT - LEFT) * ((step - steps[0]) / width if width else 0.5), 2)

    def y_of(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 2)

    for tick in y_ticks:
        _line(svg, LEFT, y_of(tick), RIGHT, y_of(tick), "grid")
        _text(svg, LEFT - 7, y_of(tick) + 4, tick_label(tick, y_ticks[1] - y_ticks[0]), "tick end")
    for tick in x_ticks:
        _line(svg, x_of(tick), BOTTOM, x_of(tick), BOTTOM + 4, "axis")
        _text(
            svg,
            x_of(tick),
            BOTTOM + 17,
            tick_label(tick, x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else 1.0),
            "tick middle",
        )
    _line(svg, LEFT, BOTTOM, RIGHT, BOTTOM, "axis")
    _text(svg, (LEFT + RIGHT) / 2, LINE_HEIGHT - 5, "step", "tick middle")
    _trace(svg, [(x_of(step), y_of(value) if math.isfinite(value) else None) for step, value in points])
    _hovers(
        svg,
        [
            (x_of(step), y_of(value), f"step {step:,}: {value:.4g}{unit and f' {unit}'}")
            for step, value in finite
        ],
    )
    return tostring(svg, encoding="unicode")


def bar_chart(bars: Sequence[Bar], *, label: str, maximum: float = 1.0, tone: str = "neutral") -> str:
    """Draw a horizontal bar per row, from 0 to `maximum`; `tone` is the CSS class that gives the colour."""
    left, right = min(16 + 7.2 * max((len(bar.label) for bar in bars), default=0), 130.0), 300
    svg = _svg(BAR_WIDTH, max(BAR_ROW * len(bars), 1), label, f"chart bars {tone}")
    for number, bar in enumerate(bars):
        middle = BAR_ROW * number + BAR_ROW / 2
        row = SubElement(svg, "g", {"class": "row"})
        SubElement(row, "title").text = bar.title
        _text(row, 0, middle + 4, bar.label, "name")
        _rect(row, left, middle - BAR_THICKNESS / 2, right - left, BAR_THICKNESS, "track")
        _rect(
            row,
            left,
            middle - BAR_THICKNESS / 2,
            (right - left) * _share(bar.value, maximum),
            BAR_THICKNESS,
            "fill",
        )
        if bar.mark is not None:
            x = round(left + (right - left) * _share(bar.mark, maximum), 2)
            for classes in ("halo", "mark"):
                _line(row, x, middle - BAR_THICKNESS / 2 - 4, x, middle + BAR_THICKNESS / 2 + 4, classes)
        _text(row, right + 12, middle + 4, bar.text, "value")
    return tostring(svg, encoding="unicode")


def _share(value: float, maximum: float) -> float:
    return min(max(value / maximum, 0.0), 1.0) if math.isfinite(value) else 0.0


def _trace(svg: Element, points: Sequence[tuple[float, float | None]]) -> None:
    """Draw one path, broken at gaps; a point between two gaps becomes a dot."""
    whole = [None, *(y for _, y in points), None]
    path = []
    for number, (x, y) in enumerate(points):
        if y is None:
            continue
        before, after = whole[number], whole[number + 2]
        path.append(f"{'M' if before is None else 'L'}{x:g} {y:g}")
        if before is None and after is None:
            SubElement(svg, "circle", {"class": "dot", "cx": f"{x:g}", "cy": f"{y:g}", "r": "3.5"})
    SubElement(svg, "path", {"class": "trace", "d": " ".join(path)})


def _hovers(svg: Element, points: Sequence[tuple[float, float, str]]) -> None:
    """Give each shown point a band as high as the chart, so that it is easily pointed at."""
    shown = list(points[:: -(-len(points) // MAX_HOVERS)])
    if shown[-1] != points[-1]:
        shown.append(points[-1])
    places = [x for x, _, _ in shown]
    edges = [LEFT, *((a + b) / 2 for a, b in pairwise(places)), RIGHT]
    for (x, y, title), start, end in zip(shown, edges, edges[1:], strict=False):
        group = SubElement(svg, "g", {"class": "hover"})
        SubElement(group, "title").text = title
        _rect(group, start, TOP, end - start, BOTTOM - TOP, "band")
        SubElement(group, "circle", {"cx": f"{x:g}", "cy": f"{y:g}", "r": "3.5"})


def _svg(width: float, height: float, label: str, classes: str) -> Element:
    names = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width:g} {height:g}", "class": classes}
    return Element("svg", names | {"role": "img", "aria-label": label})


def _rect(parent: Element, x: float, y: float, width: float, height: float, classes: str) -> None:
    lengths = {"x": x, "y": y, "width": width, "height": height}
    SubElement(
        parent,
        "rect",
        {"class": classes} | {name: f"{round(length, 2):g}" for name, length in lengths.items()},
    )


def _line(parent: Element, x1: float, y1: float, x2: float, y2: float, classes: str) -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    SubElement(
        parent, "line", {"class": classes} | {name: f"{round(place, 2):g}" for name, place in ends.items()}
    )


def _text(parent: Element, x: float, y: float, text: str, classes: str) -> None:
    SubElement(
        parent, "text", {"class": classes, "x": f"{round(x, 2):g}", "y": f"{round(y, 2):g}"}
    ).text = text
