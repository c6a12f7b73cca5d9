"""Charts are well-formed SVG whose lengths are those of the data."""

import math
from xml.etree import ElementTree as ET

import pytest

from dualtoken.pipelines.evaluation.charts import (
    BOTTOM,
    LEFT,
    MAX_HOVERS,
    RIGHT,
    TOP,
    Bar,
    bar_chart,
    line_chart,
    nice_ticks,
    tick_label,
)

NS = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def of_class(svg: ET.Element, tag: str, name: str) -> list[ET.Element]:
    return [element for element in svg.iter(NS + tag) if name in element.get("class", "").split()]


def texts(svg: ET.Element) -> list[str | None]:
    return [element.text for element in svg.iter(NS + "text")]


def one_bar(value: float, mark: float | None = None) -> ET.Element:
    bar = Bar(label="depth 1", value=value, text="t", title="all of it", mark=mark)
    return parse(bar_chart([bar], label="use"))


def width(svg: ET.Element, name: str) -> float:
    return float(of_class(svg, "rect", name)[0].get("width", "nan"))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, (0.0, 0.5, 1.0)),
        (0.0, 0.34, (0.0, 0.1, 0.2, 0.3, 0.4)),
        (281.0, 334.0, (280.0, 300.0, 320.0, 340.0)),
        (-1.5, 1.0, (-2.0, -1.0, 0.0, 1.0)),
        (0.0, 390.0, (0.0, 100.0, 200.0, 300.0, 400.0)),
        (2e-6, 1e-3, (0.0, 0.0005, 0.001)),
    ],
)
def test_ticks_are_round_and_enclose_the_data(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert nice_ticks(low, high) == ticks


@pytest.mark.parametrize("value", [0.0, 2.5, -3.0, 1e-7])
def test_a_single_value_lies_within_its_ticks(value: float) -> None:
    ticks = nice_ticks(value, value)
    assert ticks[0] < value < ticks[-1]


def test_values_that_differ_in_the_last_bit_count_as_equal() -> None:
    assert nice_ticks(1.0, math.nextafter(1.0, 2.0)) == nice_ticks(1.0, 1.0)


def test_steps_have_whole_ticks() -> None:
    assert nice_ticks(0, 2, whole=True) == (0.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0.0, 0.1, "0"),
        (0.5, 0.1, "0.5"),
        (1.0, 0.5, "1.0"),
        (0.0005, 0.0005, "0.0005"),
        (2e-5, 1e-5, "2e-05"),
        (-0.4, 0.2, "\u22120.4"),
        (-2e-5, 1e-5, "\u22122e-05"),
        (300.0, 100.0, "300"),
        (20_000.0, 5000.0, "20k"),
        (1_500_000.0, 5e5, "1.5M"),
        (1010.0, 5.0, "1,010"),
    ],
)
def test_ticks_are_written_as_their_step_needs(value: float, step: float, text: str) -> None:
    assert tick_label(value, step) == text


def test_a_line_runs_from_corner_to_corner_of_its_area() -> None:
    svg = parse(line_chart([(0, 0.0), (5, 0.5), (10, 1.0)], label="a rise"))
    path = of_class(svg, "path", "trace")[0].get("d")
    assert path == f"M{LEFT} {BOTTOM} L{(LEFT + RIGHT) // 2} {(TOP + BOTTOM) // 2} L{RIGHT} {TOP}"
    assert svg.get("aria-label") == "a rise"
    assert svg.get("role") == "img"


def test_a_value_that_is_not_finite_leaves_a_gap_and_a_lone_point_becomes_a_dot() -> None:
    svg = parse(line_chart([(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.5), (4, math.inf)], label="gaps"))
    assert (of_class(svg, "path", "trace")[0].get("d") or "").count("M") == 2
    assert len(of_class(svg, "circle", "dot")) == 1


def test_one_point_is_drawn_in_the_middle() -> None:
    svg = parse(line_chart([(7, 2.5)], label="one"))
    (dot,) = of_class(svg, "circle", "dot")
    assert dot.get("cx") == f"{(LEFT + RIGHT) // 2}"


@pytest.mark.parametrize(("points", "text"), [([], "no values"), ([(0, math.nan)], "no finite values")])
def test_a_chart_with_nothing_to_draw_says_so(points: list[tuple[int, float]], text: str) -> None:
    assert texts(parse(line_chart(points, label="none"))) == [text]


@pytest.mark.parametrize("number", [1, 2, MAX_HOVERS, MAX_HOVERS + 1, 2004])
def test_pointing_at_a_curve_tells_of_at_most_so_many_points_and_always_the_last(number: int) -> None:
    svg = parse(line_chart([(step, step / 4) for step in range(number)], label="long", unit="nats"))
    titles = [title.text for title in svg.iter(NS + "title")]
    assert min(number, MAX_HOVERS / 2) <= len(titles) <= MAX_HOVERS + 1
    assert titles[-1] == f"step {number - 1:,}: {(number - 1) / 4:.4g} nats"
    bands_width = sum(float(band.get("width", 0)) for band in of_class(svg, "rect", "band"))
    assert bands_width == pytest.approx(RIGHT - LEFT, abs=1)


def test_a_bar_is_as_long_as_its_share() -> None:
    svg = one_bar(0.25)
    assert width(svg, "fill") == pytest.approx(width(svg, "track") / 4, abs=0.01)


@pytest.mark.parametrize(("value", "share"), [(-1.0, 0.0), (2.0, 1.0), (math.nan, 0.0)])
def test_a_bar_stays_within_its_track(value: float, share: float) -> None:
    svg = one_bar(value)
    assert width(svg, "fill") == share * width(svg, "track")


def test_a_mark_stands_on_the_scale_of_its_bar() -> None:
    svg = one_bar(0.5, mark=0.5)
    fill = of_class(svg, "rect", "fill")[0]
    end = float(fill.get("x", 0)) + float(fill.get("width", 0))
    (mark,) = of_class(svg, "line", "mark")
    assert float(mark.get("x1", 0)) == pytest.approx(end, abs=0.01)
    assert not of_class(one_bar(0.5), "line", "mark")


def test_texts_are_escaped() -> None:
    hostile = '</svg><script>alert("1")</script>&'
    svg = parse(bar_chart([Bar(label=hostile, value=1, text=hostile, title=hostile)], label=hostile))
    assert svg.get("aria-label") == hostile
    assert texts(svg) == [hostile, hostile]
    assert not list(svg.iter("script"))
    assert not list(svg.iter(NS + "script"))
