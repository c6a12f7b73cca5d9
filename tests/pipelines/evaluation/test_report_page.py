"""The report page shows the run's figures, escapes foreign texts, and asks nothing of the network."""

import json
import math
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from dualtoken.pipelines.evaluation.report import curves
from dualtoken.pipelines.evaluation.report_data import Funnel, FunnelStep, Retrieval, to_json
from dualtoken.pipelines.evaluation.report_page import (
    count,
    decimal,
    duration,
    percent,
    render,
    short_count,
    shorten,
    size,
)
from tests.helpers.report_samples import AUDITS, DATA, EMPTY, PARTS, READINGS, Page, funnel, pair, rows, step


def test_the_headline_tells_the_run_in_five_figures() -> None:
    page = Page(render(DATA))
    assert page.texts("dd", "big") == ["25.20 dB", "0.912", "93.1% → 88.7%", "100% · 75.0%", "1,000 → 750"]
    assert page.texts("time") == ["3 March 2026, 14:05 UTC"]


def test_the_tokenizer_facts_are_those_of_its_sizes() -> None:
    assert (DATA.facts.bits_per_image, DATA.facts.bits_per_pixel) == (64 * 4 * (8 + 10), 1.125)
    facts = Page(render(DATA)).texts("dd")
    assert {"64 × 64 px", "8 × 8", "4,608", "1.125", "3.21M", "9f31c2a07be4"} <= set(facts)


def test_the_funnel_shows_what_is_left_and_every_reason() -> None:
    page = Page(render(DATA))
    assert rows(page)[1:6] == [
        "Rows in 1,000",
        "Downloaded 900 90.0% failed: http_404 70 failed: timeout 30",
        "Decodable 900 90.0%",
        "Kept 750 75.0% rejected: min_side 150",
        "Tokens 750 75.0%",
    ]
    assert page.texts("p", "good") == ["✓ ledger closes"]
    assert page.texts("ul", "faults") == []


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (replace(funnel(), rows_in=1001), "the source has 1,001 rows and download took 1,000"),
        (
            replace(funnel(), steps=(step("download", 1000, ok=990, failed__timeout=9),)),
            "download took 1,000 rows and accounts for 999",
        ),
        (
            replace(funnel(), steps=(step("download", 1000, ok=1000), step("score", 997, ok=997))),
            "download passed on 1,000 rows and score took 997",
        ),
    ],
)
def test_a_ledger_that_does_not_close_is_flagged(broken: Funnel, fault: str) -> None:
    page = Page(render(replace(DATA, funnels=(funnel(), broken))))
    assert broken.faults == (fault,)
    assert page.texts("ul", "faults") == [fault]
    assert page.texts("p", "good") == ["✓ ledger closes"]
    assert page.texts("p", "bad") == ["✕ ledger does not close"]
    assert page.texts("span", "bad") == ["ledger does not close"]


def test_further_reasons_are_folded_and_none_is_left_out() -> None:
    counts = {f"failed:http_{code}": code - 399 for code in range(400, 420)}
    many = FunnelStep(stage="download", rows_in=1000, counts={"ok": 1000 - sum(counts.values())} | counts)
    page = Page(render(replace(DATA, funnels=(Funnel(corpus="web", rows_in=1000, steps=(many,)),))))
    shown = [text for text in page.texts("code") if text.startswith("failed:")]
    assert shown == [f"failed:http_{code}" for code in range(419, 399, -1)]
    assert page.texts("summary")[0] == "15 more reasons"


def test_ten_corpora_are_added_up() -> None:
    names = [f"corpus-{number}" for number in range(10)]
    page = Page(render(replace(DATA, funnels=tuple(map(funnel, names)))))
    assert page.texts("dd", "big")[-1] == "10,000 → 7,500"
    assert page.texts("h3")[:10] == names


def test_a_corpus_of_which_nothing_is_kept_is_shown() -> None:
    none = Funnel(corpus="web", rows_in=4, steps=(step("download", 4, failed__timeout=4), step("filter", 0)))
    page = Page(render(replace(DATA, funnels=(none,))))
    assert rows(page)[1:4] == ["Rows in 4", "Downloaded 0 0% failed: timeout 4", "Kept 0 0%"]
    assert none.closes


def test_each_pair_has_two_images_with_sizes_and_texts() -> None:
    images = Page(render(replace(DATA, pairs=(pair(),) * 32))).attributes("img")
    assert len(images) == 64
    assert images[0]["alt"] == "Original: a red circle"
    assert images[1]["alt"] == "Reconstruction: a red circle"
    for image in images:
        assert (image["width"], image["height"], image["class"]) == ("8", "8", "small")


def test_a_large_image_is_smoothed() -> None:
    assert "class" not in Page(render(replace(DATA, pairs=(pair(side=256),)))).attributes("img")[0]


@pytest.mark.parametrize(
    "hostile",
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style></title>&lt;b&gt;{{ 7 * 7 }}"],
)
def test_texts_from_elsewhere_stay_texts(hostile: str) -> None:
    hostile_step = FunnelStep(stage=hostile, rows_in=1, counts={hostile: 1})
    data = replace(
        DATA,
        title=hostile,
        recipe_yaml=hostile,
        pairs=(pair(hostile),),
        funnels=(Funnel(corpus=hostile, rows_in=1, steps=(hostile_step,)),),
        curves=(replace(DATA.curves[0], stage=hostile, name=hostile, unit=hostile),),
        stages=(replace(DATA.stages[0], command=hostile, corpus=hostile),),
    )
    page = Page(render(data))
    assert page.texts("script") == []
    assert len(page.attributes("img")) == 2
    assert page.texts("h1") == page.texts("pre") == [hostile]
    assert f"Original: {hostile}" in [image["alt"] for image in page.attributes("img")]
    for element in page.elements:
        for name in element.attributes:
            assert not name.startswith("on")


def test_a_long_caption_is_folded_and_whole() -> None:
    caption = "a very long caption " * 200
    page = Page(render(replace(DATA, pairs=(pair(caption),))))
    assert len(caption) == 4000
    assert caption.strip() in page.texts("p")
    assert page.texts("bdi") == [shorten(caption, 100)]
    for image in page.attributes("img"):
        assert len(image["alt"] or "") <= 140


def test_emoji_reach_the_page() -> None:
    assert "🦊 and 👩‍🚀" in Page(render(replace(DATA, pairs=(pair("🦊 and 👩‍🚀"),)))).texts("p")


def test_every_chart_is_well_formed_and_in_its_streams_colour() -> None:
    charts = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", render(DATA), re.DOTALL)]
    assert [chart.get("class") for chart in charts] == [
        *("chart line neutral", "chart line semantic", "chart line pixel"),
        *("chart bars semantic", "chart bars pixel", "chart bars semantic"),
    ]
    assert (
        charts[1].get("aria-label") == "semantic of the tokenizer, nats: from 1 at step 0 to 0.25 at step 10"
    )
    titles = [title.text for title in charts[3].iter("{http://www.w3.org/2000/svg}title")]
    assert titles == [
        "depth 1: 99.6% of 256 codes used, perplexity 128.0",
        "depth 2: 50.0% of 256 codes used, perplexity 64.0",
    ]


def test_values_that_are_not_finite_are_counted() -> None:
    curve = replace(DATA.curves[0], points=((0, 1.0), (1, math.nan), (2, math.inf)))
    page = Page(render(replace(DATA, curves=(curve,))))
    assert page.texts("p", "bad") == ["2 of 3 values are not finite"]


def test_reconstructions_are_summed_up() -> None:
    page = Page(render(DATA))
    assert [row for row in rows(page) if row.startswith(("PSNR", "SSIM"))] == [
        "PSNR, dB 25.20 20.00 24.00 31.60",
        "SSIM 0.912 0.900 0.910 0.930",
    ]


def test_zero_shot_accuracies_stand_in_a_table() -> None:
    shown = rows(Page(render(DATA)))
    assert "colour 12.5% 97.5% 90.0%" in shown
    assert "All 17.9% 93.1% 88.7%" in shown


def test_without_attributes_retrieval_is_shown_instead() -> None:
    retrieval = Retrieval(num_pairs=500, teacher=0.412, quantised=0.336)
    page = Page(render(replace(DATA, zero_shot=None, retrieval=retrieval)))
    assert page.texts("dd", "big")[2] == "41.2% → 33.6%"
    assert "Zero-shot accuracy" not in page.texts("h2")
    assert {"Teacher 41.2%", "Quantised 33.6%"} <= set(rows(page))
    notes = " ".join(page.texts("p", "note"))
    assert "among 500, is its own (R@1). Guessing gives 0.2%." in notes


def test_stage_times_are_listed_and_added_up() -> None:
    shown = rows(Page(render(DATA)))
    assert "download web 33.9 s 1 min 00 s 1,000 29.5 91.0 MB" in shown
    assert "train – 31 min 52 s 31 min 40 s – – 0 B" in shown
    assert "All 32 min 40 s 91.0 MB" in shown


def test_an_empty_run_has_a_page() -> None:
    page = Page(render(EMPTY))
    assert len(page.texts("p", "empty")) == 6
    assert page.attributes("img") == page.attributes("svg") == []


def test_the_page_asks_nothing_of_the_network() -> None:
    html = render(DATA)
    page = Page(html)
    assert not re.search(r"url\(|@import", html)
    for image in page.attributes("img"):
        assert (image["src"] or "").startswith("data:image/png;base64,")
    for tag in ("link", "script", "iframe", "object", "form"):
        assert page.of_tag(tag) == []
    anchors = {element.attributes.get("id") for element in page.elements}
    for link in page.attributes("a"):
        href = link["href"] or ""
        assert href.startswith("#")
        assert href.removeprefix("#") in anchors


def test_every_table_has_scoped_headers_and_every_chart_a_label() -> None:
    page = Page(render(DATA))
    for header in page.attributes("th"):
        assert header.get("scope") in {"col", "row"}
    for svg in page.attributes("svg"):
        assert svg.get("role") == "img"
        assert svg.get("aria-label")


def test_json_has_every_figure_and_no_image() -> None:
    written = json.loads(to_json(replace(DATA, pairs=(replace(pair(), psnr=math.inf),))))
    assert written["pairs"] == [
        {"caption": "a red circle", "key": "0f" * 16, "psnr": None, "reading": "", "is_read_right": False}
    ]
    assert written["funnels"][0]["closes"] is True
    assert written["funnels"][0]["rows_out"] == 750
    assert written["funnels"][0]["steps"][0]["rows_ok"] == 900
    assert written["facts"]["bits_per_image"] == 4608
    assert written["curves"][1]["points"] == [[0, 1.0], [10, 0.25]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(1), "100%"),
        (percent(0.99999), ">99.9%"),
        (percent(0), "0%"),
        (percent(1e-5), "<0.1%"),
        (percent(math.nan), "–"),
        (count(12_000), "12,000"),
        (short_count(999_999), "999,999"),
        (short_count(999_600_000), "1,000M"),
        (short_count(12_345_678), "12.3M"),
        (decimal(math.inf), "∞"),
        (decimal(-0.5), "\u22120.50"),
        (duration(3.25), "3.2 s"),
        (duration(59.97), "1 min 00 s"),
        (duration(3725), "1 h 02 min"),
        (duration(90_000), "1 d 01 h"),
        (size(999), "999 B"),
        (size(1_500_000_000), "1.5 GB"),
        (shorten("one two three", 20), "one two three"),
        (shorten("one two three", 10), "one two…"),
        (shorten("x" * 30, 10), "x" * 9 + "…"),
    ],
)
def test_figures_are_written_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_an_audits_alarms_stand_at_the_top_and_beside_its_figures() -> None:
    page = Page(render(replace(DATA, audits=AUDITS)))
    assert page.texts("p", "faults") == ["1 token shard is unlike the others: see the audit."]
    assert "web 12 48 24.0 9.0 201.5 · 99.0 180.0 · 150.2 1" in rows(page)
    assert "quiet 1 0 – – 8.0 4.0 none" in rows(page)
    assert page.texts("ul", "faults") == ["shard 00003: drift: PSNR <9> dB"]
    assert 'href="#audit"' in render(replace(DATA, audits=AUDITS))
    assert 'href="#audit"' not in render(DATA)


def test_a_report_says_what_share_of_the_time_the_encoder_waits_and_for_what() -> None:
    found = rows(Page(render(replace(DATA, parts=PARTS))))
    assert "Corpus Fetch Wait Encode Write Captions Audit Commit Rest Encoder idle Idle longest in" in found
    assert "web 1.2 60.0 30.0 – – 5.0 – 3.8 70.0% wait" in found
    assert json.loads(to_json(replace(DATA, parts=PARTS)))["parts"][0]["encoder_waits"] == pytest.approx(0.7)
    assert "Encoder idle" not in render(DATA)


def test_a_curve_that_begins_later_is_shown_from_where_it_begins() -> None:
    lines = [
        {"step": 0, "loss": 3.0},
        {"step": 10, "loss": 2.0, "adaptive_weight": 0.5},
        {"step": 20, "loss": 1.0, "adaptive_weight": 0.4, "num_steps": 10},
    ]
    loss, weight = curves("train", lines)
    assert loss.name == "loss"
    assert loss.points == ((0, 3.0), (10, 2.0), (20, 1.0))
    assert weight.name == "adaptive weight"
    assert weight.points == ((10, 0.5), (20, 0.4))


def test_what_can_be_read_in_reconstructions_is_shown() -> None:
    right = replace(DATA.pairs[0], reading="a small red ring at the top left", is_read_right=True)
    wrong = replace(DATA.pairs[1], reading="a small red cross at the top left")
    page = Page(render(replace(DATA, readings=READINGS, pairs=(right, wrong))))
    tiles = page.texts("dd", "big")
    assert "91.3%" in tiles
    assert page.texts("p", "reading") == ["✓ reads as drawn", "✕ reads a small red cross at the top left"]
    section = next(element.text for element in page.of_tag("section") if "oracle" in element.text)
    assert "1,024 × 2 objects" in section
    assert "50.0% of places, 16.7% of shapes." in section


def test_pictures_that_are_no_scenes_have_no_readings() -> None:
    assert not Page(render(DATA)).texts("p", "reading")
