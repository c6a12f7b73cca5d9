"""A chart over nights is well formed, and what it draws stands where the values are."""

from xml.etree import ElementTree as ET

import pytest

from dualtoken.pipelines.nightly.page_charts import (
    MOST_LINKS,
    Axis,
    Flag,
    NightChart,
    night_chart,
    shared_links,
    strip,
    x_labels,
)
from dualtoken.pipelines.nightly.page_shapes import Band, Block, Level, NightPoint
from tests.helpers.night_history import nights_from

AXIS = Axis(tuple(nights_from("2026-11-02", 20)))


def point(
    slot: int, value: float, low: float | None = None, high: float | None = None, mark: str = ""
) -> NightPoint:
    return NightPoint(slot, value, low, high, mark, mark != "apart", f"night {slot}", f"{slot}.html")


def drawn(points: list[NightPoint], **given: object) -> ET.Element:
    fields = {"label": "PSNR", "axis": AXIS, "points": points, "least_range": 0.0} | given
    return ET.fromstring(night_chart(NightChart(**fields)))  # pyright: ignore[reportArgumentType]


def shape(chart: ET.Element, classes: str) -> str | None:
    found = [path.get("d") for path in chart.iter("path") if path.get("class") == classes]
    assert len(found) <= 1
    return found[0] if found else None


def test_values_stand_at_their_heights_between_the_ticks() -> None:
    # Ticks at 0, 5 and 10: a height of 400 for 10.
    chart = drawn([point(0, 0.0), point(1, 10.0), point(2, 2.5)])
    assert shape(chart, "trace") == "M0 400 1 0 2 300"
    labels = [(span.text, span.get("style")) for span in chart.findall("div[@class='y']/span")]
    assert labels == [("0", "top:100%"), ("5", "top:50%"), ("10", "top:0%")]
    assert shape(chart, "grid") == "M-.5 400h20M-.5 200h20M-.5 0h20"


def test_a_missing_night_is_a_gap_and_a_night_alone_is_a_dot() -> None:
    chart = drawn([point(0, 0.0), point(1, 10.0), point(3, 10.0), point(5, 0.0), point(6, 0.0)])
    assert shape(chart, "trace") == "M0 400 1 0M5 400 6 400"
    assert shape(chart, "dot") == "M3 0h0"


def test_a_level_stretch_is_one_line_and_ends_where_the_values_move() -> None:
    chart = drawn([*(point(slot, 0.0) for slot in range(5)), point(5, 10.0)])
    assert shape(chart, "trace") == "M0 400 4 400 5 0"


def test_numbers_of_another_evaluator_stand_beside_the_line() -> None:
    chart = drawn([point(0, 0.0), point(1, 10.0, mark="apart"), point(2, 0.0), point(3, 0.0)])
    assert shape(chart, "trace") == "M2 400 3 400"
    assert shape(chart, "mark apart") == "M1 0h0"
    assert shape(chart, "dot") == "M0 400h0"


def test_bands_levels_baselines_and_pauses_are_drawn_where_they_hold() -> None:
    chart = drawn(
        [point(0, 0.0), point(1, 10.0)],
        axis=AXIS._replace(pauses=((2, 3),)),
        bands=[Band(0, 0.0, 5.0), Band(1, 2.5, 7.5), Band(3, 0.0, 10.0)],
        levels=[Level(0, 1, 5.0)],
        baselines=[Level(1, 4, 10.0)],
    )
    assert shape(chart, "band") == "M0 200 1 100 1 300 0 400zM3 0 3 400z"
    assert shape(chart, "level") == "M-0.5 200H1.5"
    assert shape(chart, "baseline") == "M0.5 0H4.5"
    assert shape(chart, "pause") == "M1.5 0h2v400h-2z"


def test_references_of_two_segments_are_two_areas() -> None:
    bands = [Band(slot, 0.0, 10.0, segment) for slot, segment in enumerate("aabb")]
    chart = drawn([point(0, 0.0)], bands=bands)
    assert shape(chart, "band") == "M0 0 1 0 1 400 0 400zM2 0 3 0 3 400 2 400z"


def test_intervals_are_whiskers_in_a_chart_with_links_and_one_area_in_others() -> None:
    points = [point(0, 5.0, 0.0, 10.0), point(1, 5.0, 2.5, 7.5), point(2, 5.0)]
    assert shape(drawn(points, has_links=True, least_range=10.0), "whisker") == "M0 400V0M1 300V100"
    assert shape(drawn(points, least_range=10.0), "spread") == "M0 0 1 100 1 300 0 400z"


def test_an_interval_that_would_hide_how_nights_differ_is_cut_at_the_edge() -> None:
    chart = drawn([point(0, 0.0, -500.0, 500.0), point(1, 10.0)], has_links=True)
    ticks = [span.text for span in chart.findall("div[@class='y']/span")]
    assert ticks == ["\u221210", "0", "10", "20"]
    assert shape(chart, "whisker") == "M0 400V0"


def test_values_that_hardly_differ_are_drawn_on_a_range_of_margins() -> None:
    chart = drawn([point(0, 25.0), point(1, 25.001)], least_range=1.0)
    ticks = [float(span.text or "nan") for span in chart.findall("div[@class='y']/span")]
    assert ticks[-1] - ticks[0] >= 1.0


def test_each_night_of_a_chart_with_links_can_be_pointed_at_and_no_keyboard_stops_there() -> None:
    chart = drawn([point(0, 0.0), point(3, 10.0)], has_links=True)
    links = [(a.get("href"), a.get("tabindex"), a.findtext("title")) for a in chart.findall(".//svg/a")]
    assert links == [("0.html", "-1", "night 0"), ("3.html", "-1", "night 3")]
    assert [path.get("d") for path in chart.findall(".//svg/a/path")] == ["M0 0V400", "M3 0V400"]


def test_of_a_year_the_newest_nights_have_texts_of_their_own_and_all_have_a_link() -> None:
    axis = Axis(tuple(nights_from("2026-01-01", 365)))
    points = [point(slot, 0.0, -1.0, 1.0) for slot in range(365)]
    chart = drawn(points, axis=axis, has_links=True)
    drawing = chart.find("svg")
    assert drawing is not None
    kinds = [child.tag for child in drawing if child.tag != "path"]
    assert kinds == ["use", *["a"] * MOST_LINKS], "own links lie above the shared ones"
    assert [a.get("href") for a in drawing.findall("a")][:2] == ["265.html", "266.html"]
    whiskers = shape(chart, "whisker")
    assert whiskers is not None
    assert whiskers.count("M") == 365
    few = drawn(points[:MOST_LINKS], axis=Axis(axis.nights[:MOST_LINKS]), has_links=True)
    assert few.find(".//use") is None


def test_other_charts_use_the_links_that_all_nights_share() -> None:
    use = drawn([point(0, 0.0)]).find(".//use")
    links = ET.fromstring(shared_links([(4, "a <night>", "n.html")]))
    group = links.find(".//g")
    assert use is not None
    assert group is not None
    assert use.get("href") == f"#{group.get('id')}"
    assert links.findtext(".//a/title") == "a <night>"


def test_flags_that_stand_close_are_in_two_lanes_and_a_third_is_left_out() -> None:
    flags = [Flag(slot, letter, "ack", f"<{letter}>", "#") for slot, letter in enumerate("ABC")]
    axis = Axis(tuple(nights_from("2026-01-01", 100)))
    chart = drawn([point(0, 0.0)], axis=axis, flags=[*flags, Flag(50, "D", "ack", "", "#")])
    placed = [(a.text, a.get("style"), a.get("title")) for a in chart.findall("div[@class='flags']/a")]
    assert placed == [
        ("A", "left:0.5%;top:0rem", "<A>"),
        ("B", "left:1.5%;top:1.25rem", "<B>"),
        ("D", "left:50.5%;top:0rem", ""),
    ]
    row = chart.find("div[@class='flags']")
    assert row is not None
    assert row.get("style") == "height:2.5rem"


def test_a_strip_has_blocks_of_alternate_kinds() -> None:
    row = ET.fromstring(strip(AXIS, [Block(0, 2, 0), Block(4, 4, 0), Block(5, 6, 1)], [], "the canary"))
    paths = [(path.get("class"), path.get("d")) for path in row.iter("path")]
    assert paths == [
        ("block even", "M-0.5 0h3v400h-3z"),
        ("block even", "M3.5 0h1v400h-1z"),
        ("block odd", "M4.5 0h2v400h-2z"),
    ]


@pytest.mark.parametrize(
    ("first", "number", "labels"),
    [
        ("2026-11-02", 15, [(0, "2 Nov"), (7, "9 Nov"), (14, "16 Nov")]),
        ("2026-11-30", 80, [(0, "Nov"), (32, "2027"), (63, "Feb")]),
        ("2026-11-02", 0, []),
    ],
)
def test_labels_are_weeks_of_few_nights_and_months_of_many(
    first: str, number: int, labels: list[tuple[int, str]]
) -> None:
    # December stands too close to the label of November's last night.
    assert list(x_labels(Axis(tuple(nights_from(first, number))))) == labels


def test_a_chart_without_values_is_empty_and_whole() -> None:
    chart = drawn([])
    assert shape(chart, "trace") is None
    assert chart.find(".//svg") is not None
