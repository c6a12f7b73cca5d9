"""The page of a comparison shows its table with the verdict first, and escapes every text."""

from typing import Any

from dualtoken.pipelines.evaluation.compared import ComparedSeries, ComparedSubject, Comparison
from dualtoken.pipelines.evaluation.comparison import LostSample
from dualtoken.pipelines.evaluation.comparison_page import (
    ShownPicture,
    ShownReply,
    ShownSample,
    ShownSeries,
    render_comparison,
)
from tests.helpers.report_samples import Page

PICTURE = "data:image/png;base64,AA=="
SHOWN = ShownPicture(PICTURE, "a picture", "image")
EVIL = "<script>alert(1)</script>"


def side(name: str) -> ComparedSubject:
    return ComparedSubject(
        evaluation="ab", name=name, digest="9f31c2a0" * 8, measured_at="2026-11-28T02:14:05+00:00"
    )


def series(**changes: Any) -> ComparedSeries:
    values: dict[str, Any] = {
        "series": "scenes/plain/psnr",
        "is_primary": True,
        "n": 500,
        "first": 25.31,
        "second": 24.82,
        "difference": -0.49,
        "low": -0.52,
        "high": -0.46,
        "method": "paired, t",
        "p": 1e-9,
        "adjusted_p": 1e-9,
        "is_marked": True,
        "direction": "higher",
        "unit": "dB",
        "margin": 0.05,
        "least_detectable_loss": 0.02,
        "verdict": "worse",
    }
    return ComparedSeries.model_validate(values | changes)


def sample(captions: tuple[str, ...]) -> ShownSample:
    loss = LostSample(key=b"k" * 16, first=25.1, second=21.3, loss=3.8)
    return ShownSample("0f0f", captions, loss, (SHOWN, SHOWN, SHOWN))


def page(*shown: ShownSeries) -> Page:
    rows = (
        series(),
        series(series="scenes/plain/usage", is_primary=False, low=None, high=None, verdict="better"),
    )
    return Page(render_comparison(Comparison(first=side("a"), second=side(EVIL), series=rows), shown))


def test_a_row_has_its_verdict_beside_its_name_and_all_that_it_rests_on() -> None:
    found = page()
    assert found.texts("th")[:3] == ["series", "verdict", "n"]
    cells = found.texts("td")
    assert cells[:9] == [
        *("worse", "500", "25.310", "24.820", "\u22120.490"),
        *("\u22120.520 to \u22120.460", "<.0001*", "0.05", "0.020"),
    ]
    assert (found.texts("td", "bad"), found.texts("td", "good")) == (["worse"], ["better"])
    assert found.texts("span", "aside") == ["not primary"]
    assert "interval of scenes/plain/psnr, scenes/plain/usage: paired, t" in found.texts("li")


def test_the_sides_are_named_and_escaped() -> None:
    notes = page().texts("p", "note")
    assert notes[:2] == [
        "A a 9f31c2a09f31, evaluated 28 November 2026, 02:14 UTC",
        f"B {EVIL} 9f31c2a09f31, evaluated 28 November 2026, 02:14 UTC",
    ]
    assert not page().of_tag("script")


def test_a_sample_is_named_once_and_described_where_it_has_a_caption() -> None:
    found = page(ShownSeries("scenes/plain/psnr", [sample(()), sample((EVIL,))]), ShownSeries("x/y/z", []))
    assert found.texts("figcaption") == ["0f0f, lost 3.8", f"{EVIL} · 0f0f, lost 3.8"]
    assert [image["src"] for image in found.attributes("img")] == [PICTURE] * 6
    assert found.texts("p", "empty") == ["No sample is worse in B."]


def test_replies_stand_beside_the_image_and_the_true_one_and_are_escaped() -> None:
    replies = (ShownReply("what colour?", "red", "red", EVIL), ShownReply("what shape?", "ring", "", "ring"))
    loss = LostSample(key=b"k" * 16, first=1.0, second=0.5, loss=0.5)
    asked = ShownSample("0f0f", ("a red ring",), loss, (SHOWN,), replies)
    found = page(ShownSeries("scenes/plain/answer", [asked], "What of them."))
    assert found.texts("dt") == ["what colour?", "what shape?"]
    assert found.texts("dd") == [f"true red A red B {EVIL}", "true ring A nothing B ring"]
    assert found.texts("span", "good") == ["red", "ring"]
    assert found.texts("span", "bad") == [EVIL, "nothing"]
    assert found.texts("figcaption") == ["a red ring · 0f0f, A 1, B 0.5, lost 0.5"]
    assert "What of them." in found.texts("p", "note")
    assert not found.of_tag("script")


def test_a_description_is_neither_right_nor_wrong_by_its_words() -> None:
    described = sample(("a red ring",))._replace(replies=(ShownReply("", "a red ring", "a ring", "a dot"),))
    found = page(ShownSeries("scenes/plain/described_whole", [described]))
    assert found.texts("dd") == ["true a red ring A a ring B a dot"]
    assert not found.texts("span", "good")
    assert not found.texts("span", "bad")
    assert not found.of_tag("dt")
