"""A nightly's pages say what each night is, what to do and what changed; numbers lead to evaluations."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.core.receipts import STAGE_FILE, StageRecord
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.nightly.page import write_pages
from dualtoken.pipelines.nightly.page_calendar import LETTERS, MEANINGS
from dualtoken.pipelines.nightly.page_charts import LINKS_ID
from dualtoken.pipelines.nightly.page_data import MOST_NIGHTS
from dualtoken.pipelines.nightly.records import Confirmation
from tests.helpers.night_history import CHART, ENVIRONMENT, WrittenHistory, digest, nights_from, noon, spec_of
from tests.helpers.report_samples import Page

PSNR = "heldout/plain/psnr"
SHAPE = "heldout/plain/attribute_shape"
NIGHTS = nights_from("2026-11-02", 22)
MISSED, FAILED, OK, CHANGED, LAST = NIGHTS[15], NIGHTS[16], NIGHTS[18], NIGHTS[20], NIGHTS[21]
WORSE = "Worse by 0.5 on average of 2 nights since 2026-11-22."
EVIL = "RuntimeError: <script>alert('x')</script> & more"
"""Reason of a failed attempt."""


def psnr(number: int) -> float:
    return 25.31 + (0.01 if number % 2 else -0.01)


def record_of(number: int, root: str) -> dict[str, Any]:
    return {"kind": "recipe", "place": f"{root}/models/{number}"}


def write_stage(root: str, number: int, **recipe: Any) -> None:
    record = StageRecord(
        stage="train", corpus=None, fingerprint=str(number), identity={}, inputs={}, recipe=recipe
    )
    Store(f"{root}/models/{number}").put_bytes(record.to_bytes(), STAGE_FILE)


def write_story(root: Path) -> WrittenHistory:
    """Write 22 nights: the sixteenth is missed, the next one fails, the last two have regressed."""
    written = WrittenHistory(spec_of(str(root), canary={"folder": None}))
    write_stage(str(root), 0, name="scenes", train={"steps": 100, "seed": 1})
    write_stage(str(root), 1, name="scenes", train={"steps": 50, "seed": 1}, source="s3://k:secret@b/x")
    for number, night in enumerate(NIGHTS):
        if night == MISSED:
            continue
        if night == FAILED:
            written.attempt(night, "0001", EVIL)
            written.attempt(night, "0002", "OSError: disk full")
            continue
        is_bad = night >= CHANGED
        environment = ENVIRONMENT
        if night >= OK:
            environment = ENVIRONMENT.model_copy(
                update={"packages": {"torch": "2.9.1", "pillow": "12.0.0"}, "device": "NVIDIA H200"}
            )
        values = {PSNR: psnr(number) - (0.5 if is_bad else 0.0), SHAPE: 0.93}
        tokenizer = written.subject(
            night,
            "tokenizer",
            values,
            environment=environment,
            digest=digest(is_bad),
            **record_of(int(is_bad), str(root)),
        )
        canary = written.subject(night, "canary", {PSNR: 11.2}, environment=environment)
        written.night(night, ("tokenizer", tokenizer), ("canary", canary))
        confirmation = None
        if night == CHANGED:
            written.attempt(night, "0001-again", confirms="0001")
            confirmation = Confirmation(attempt="0001-again", differing=())
        written.judge(night, confirmation)
        for subject in (tokenizer, canary):
            folder = written.history.store.at(subject.folder)
            folder.put_bytes(b"card", f"summaries/{subject.evaluation}/README.md")
            folder.put_bytes(b"table", "scores/heldout/plain/ab12/scores.parquet")
    return written


def write(written: WrittenHistory, now: datetime, out: Path, **given: Any) -> Page:
    """Write the pages and return the index."""
    arguments: dict[str, Any] = {"arguments": ("nightly.yaml",)} | given
    index = write_pages(
        written.spec, written.read(), written.states(now), CHART.version, lambda: now, out, **arguments
    )
    return Page(index.read_text(encoding="utf-8"))


def night_page(out: Path, night: str) -> Page:
    return Page((out / f"nights/{night}.html").read_text(encoding="utf-8"))


def words(page: Page, tag: str, name: str = "") -> list[str]:
    """Return the texts of elements, with a space between the elements within."""
    found = [one for one in page.of_tag(tag) if not name or one.has_class(name)]
    return [" ".join(" ".join(one.parts).split()) for one in found]


def cells(page: Page) -> list[tuple[str, str]]:
    """Return the calendar's cells: letter and classes."""
    found = [one for one in page.elements if one.has_class("cell") and one.attributes.get("style")]
    return [(one.text, (one.attributes["class"] or "").removeprefix("cell ")) for one in found]


def hrefs(page: Page) -> list[str]:
    return [one["href"] or "" for one in page.attributes("a")]


def shape(page: Page, classes: str) -> list[str]:
    return [one["d"] or "" for one in page.attributes("path") if one.get("class") == classes]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> WrittenHistory:
    return write_story(tmp_path_factory.mktemp("story"))


@pytest.fixture(scope="module")
def out(story: WrittenHistory) -> Path:
    folder = Path(story.history.store.path("pages"))
    write(story, noon(LAST), folder)
    return folder


@pytest.fixture(scope="module")
def index(out: Path) -> Page:
    return Page((out / "index.html").read_text(encoding="utf-8"))


def test_the_newest_night_is_said_in_one_sentence(index: Page) -> None:
    assert words(index, "p", "headline") == [
        f"R The night of 23 Nov 2026 has regressed: tokenizer/heldout/plain/psnr: {WORSE}"
    ]
    assert "The next night starts on 2026-11-24 01:00 UTC." in index.texts("p", "note")


def test_the_calendar_has_a_lettered_cell_for_each_night_with_its_reason(index: Page) -> None:
    assert cells(index) == [
        *[("O", "ok")] * 15,
        ("M", "missed"),
        ("F", "failed"),
        *[("O", "ok")] * 3,
        *[("R", "regressed")] * 2,
        ("N", "planned"),
    ]
    titles = [one.attributes["title"] for one in index.elements if one.attributes.get("title")]
    assert "17 Nov 2026: missed, nobody began it by 2026-11-17 07:00 UTC" in titles
    assert "18 Nov 2026: failed, OSError: disk full" in titles
    assert words(index, "li")[:5] == [
        "O 18 ok , like the nights before",
        "R 2 regressed , worse",
        "F 1 failed , begun, and not finished",
        "M 1 missed , not begun by its deadline",
        "N 1 planned , still to come",
    ]


def test_a_nights_cell_stands_in_its_week_under_its_weekday(index: Page) -> None:
    places = [one.attributes.get("style") for one in index.elements if one.has_class("cell")]
    # 2 November 2026 is a Monday of the second row, the 8th its Sunday.
    assert [place for place in places if place][:8] == [
        *(f"grid-area:2/{column}" for column in range(1, 8)),
        "grid-area:3/1",
    ]


def test_every_state_has_a_letter_of_its_own_and_a_meaning() -> None:
    assert len(set(LETTERS.values())) == len(LETTERS) == len(MEANINGS)


def test_what_is_bad_comes_with_command_lines_that_settle_it(index: Page) -> None:
    assert index.texts("pre") == [
        f"dualtoken nightly ack nightly.yaml tokenizer/{PSNR} {LAST} --reason=WHY",
        f"dualtoken nightly accept nightly.yaml {LAST} --reason=WHY",
        f"dualtoken nightly backfill nightly.yaml --from={FAILED} --to={FAILED}",
        f"dualtoken nightly backfill nightly.yaml --from={MISSED} --to={MISSED}",
    ]
    assert words(index, "h3")[1:4] == [
        "R tokenizer/heldout/plain/psnr has regressed",
        "F The night of 18 Nov 2026 failed",
        "M The night of 17 Nov 2026 was missed",
    ]
    assert (
        "Worse by 0.5 on average of 2 nights since 2026-11-22. It alarms since 22 Nov 2026."
        in index.texts("p", "note")
    )


def test_a_primary_metric_has_its_newest_value_and_a_chart(index: Page) -> None:
    figure = words(index, "figure")[0]
    assert figure.startswith("PSNR R regressed 24.820 dB tokenizer · heldout/plain · higher is better ")
    assert " 24.720 to 24.920, 23 Nov 2026 R " in figure
    assert figure.endswith(WORSE)
    [trace, *_] = shape(index, "trace")
    assert [part.split()[0] for part in trace.split("M")[1:]] == ["0", "17"]
    assert len(shape(index, "band")) == 1
    assert len(shape(index, "mark regressed")) == 1
    label = next(one["aria-label"] for one in index.attributes("svg") if one.get("role") == "img")
    assert label == (
        "PSNR of tokenizer, heldout/plain: from 25.300 dB on 2 Nov 2026 to 24.820 dB on 23 Nov 2026"
    )


def test_an_alarms_first_night_has_a_flag_and_no_other(index: Page) -> None:
    flags = [one for one in index.of_tag("a") if one.has_class("flag")]
    assert [(one.text, one.attributes["href"], one.attributes["title"]) for one in flags] == [
        ("R", f"nights/{CHANGED}.html", "22 Nov 2026, regressed: Worse by 0.51 in one night.")
    ]


def test_each_night_of_a_primary_chart_tells_its_value_and_leads_to_its_page(index: Page) -> None:
    titles = index.texts("title")
    assert "2 Nov 2026: 25.300 dB (25.200 to 25.400)" in titles
    assert "22 Nov 2026: 24.800 dB (24.700 to 24.900), regressed" in titles
    assert len([text for text in titles if " dB (" in text]) == 20


def test_other_metrics_are_folded_and_share_their_links(index: Page) -> None:
    assert index.texts("summary") == ["tokenizer: 1 metric", "canary: 1 metric"]
    assert {"href": f"#{LINKS_ID}"} in index.attributes("use")
    assert [one["id"] for one in index.attributes("g")] == [LINKS_ID]
    assert "Shapes told by codes 93.00 %" in index.texts("details")[0]


def test_the_canarys_row_is_one_block_but_for_nights_without_numbers(index: Page) -> None:
    assert shape(index, "block even") == ["M-0.5 0h15v400h-15z", "M16.5 0h5v400h-5z"]
    assert shape(index, "block odd") == []


@pytest.mark.parametrize("page", ["index", "night"])
def test_a_page_asks_nothing_of_the_network_and_escapes_every_text(page: str, out: Path) -> None:
    file = out / ("index.html" if page == "index" else f"nights/{FAILED}.html")
    text = file.read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"\ssrc=|<link|url\(|@import", text)
    assert "default-src 'none'" in text
    if page == "night":
        assert f"failed: {EVIL}" in night_page(out, FAILED).texts("td")


def test_names_and_reasons_of_people_are_escaped_on_the_index(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    written.pause("2026-11-02", "2026-11-03", reason=EVIL, who="<b>eva")
    page = write(written, noon(NIGHTS[0]), tmp_path / "pages")
    assert words(page, "p", "headline") == [f"Z The night of 2 Nov 2026 is paused: {EVIL} (<b>eva)."]
    assert page.texts("td")[1:3] == [EVIL, "<b>eva"]
    assert page.texts("b") == ["2 paused"]
    assert not page.of_tag("script")


def test_every_link_of_every_page_leads_to_a_file(out: Path) -> None:
    pages = sorted(out.rglob("*.html"))
    assert len(pages) == 23
    for file in pages:
        for href in hrefs(Page(file.read_text(encoding="utf-8"))):
            if href.startswith("#"):
                continue
            place = Path(href.removeprefix("file://")) if "://" in href else file.parent / unquote(href)
            assert place.exists(), (file, href)


def test_every_number_of_a_night_leads_to_its_evaluation(story: WrittenHistory, out: Path) -> None:
    page = night_page(out, LAST)
    record = story.read().files(LAST).night
    assert record is not None
    cards = {
        name: f"../../evaluations/{LAST}/0001/{name}/summaries/{subject.evaluation}/README.md"
        for name, subject in record.subjects.items()
    }
    numbers = [one for one in page.of_tag("a") if one.text in ("24.820 dB", "93.00 %", "11.200 dB")]
    assert [(one.text, one.attributes["href"]) for one in numbers] == [
        ("24.820 dB", cards["tokenizer"]),
        ("93.00 %", cards["tokenizer"]),
        ("11.200 dB", cards["canary"]),
    ]
    links = {one.text: one.attributes["href"] for one in page.of_tag("a")}
    assert links["Scores"] == f"../../evaluations/{LAST}/0001/canary/scores/heldout/plain/"
    assert links["Model folder"] == (Path(story.spec.root) / "models/1").as_uri()
    assert links["Recipe"] == (Path(story.spec.root) / "models/1/stage.json").as_uri()


def test_the_newest_value_of_a_metric_leads_to_its_evaluation(story: WrittenHistory, index: Page) -> None:
    record = story.read().files(LAST).night
    assert record is not None
    subject = record.subjects["tokenizer"]
    [newest] = [one for one in index.of_tag("a") if one.text == "24.820 dB"]
    assert newest.attributes["href"] == f"../{subject.folder}/summaries/{subject.evaluation}/README.md"


def test_pages_elsewhere_link_into_the_history_by_relative_paths(
    story: WrittenHistory, tmp_path: Path
) -> None:
    page = write(story, noon(LAST), tmp_path / "a b", num_nights=1)
    href = next(href for href in hrefs(page) if "evaluations/" in href)
    assert (tmp_path / "a b" / unquote(href)).is_file()


def test_a_night_tells_its_numbers_with_what_they_were_judged_by(out: Path) -> None:
    rows = words(night_page(out, LAST), "tr")
    assert (
        "PSNR psnr 24.820 dB 24.720 to 24.920 1,000 25.273 to 25.347 \u22128.99 R regressed " + WORSE
    ) in rows
    assert "Shapes told by codes attribute_shape 93.00 % 83.00 to 103.00 1,000 – – not judged" in rows


def test_a_night_tells_how_its_attempts_ended(out: Path) -> None:
    assert words(night_page(out, FAILED), "tr")[1:] == [
        f"0001 2026-11-18 01:00 UTC process 41 on node7 failed: {EVIL}",
        "0002 2026-11-18 01:00 UTC process 41 on node7 failed: OSError: disk full",
    ]
    assert words(night_page(out, CHANGED), "tr")[1:3] == [
        "0001 2026-11-22 01:00 UTC process 41 on node7 gave the night's numbers, 2026-11-22 01:25 UTC",
        "0001-again 2026-11-22 01:00 UTC process 41 on node7 measured 0001 once more",
    ]
    assert "Nobody began it." in night_page(out, MISSED).texts("p", "empty")


def test_a_night_tells_its_confirmation(out: Path) -> None:
    facts = night_page(out, CHANGED).texts("dd")
    assert "0001-again gave the same bits" in facts
    assert "not measured again" in night_page(out, LAST).texts("dd")


def test_a_night_tells_what_changed_since_the_measured_night_before_it(
    out: Path, story: WrittenHistory
) -> None:
    assert night_page(out, OK).texts("li") == ["device: cpu to NVIDIA H200", "torch: 2.9.0 to 2.9.1"]
    root = story.spec.root
    changed = night_page(out, CHANGED)
    assert changed.texts("h2")[1] == "What changed since 21 Nov 2026"
    assert changed.texts("li") == [
        f"tokenizer: model {digest(False)[:12]} to {digest(True)[:12]}",
        f"tokenizer: {root}/models/0 to {root}/models/1",
        "tokenizer: source: nothing to s3://b/x",
        "tokenizer: train.steps: 100 to 50",
    ]
    nothing = "Nothing: the same models, recipes, protocols and environment."
    assert night_page(out, LAST).texts("p", "empty") == [nothing]
    assert night_page(out, NIGHTS[17]).texts("h2")[1] == "What changed since 16 Nov 2026"
    assert night_page(out, NIGHTS[0]).texts("p", "empty") == ["No night before it has numbers."]


def test_nights_lead_to_their_neighbours(out: Path) -> None:
    assert hrefs(night_page(out, FAILED))[:3] == ["../index.html", f"{MISSED}.html", f"{NIGHTS[17]}.html"]
    assert hrefs(night_page(out, LAST))[:3][1:2] == [f"{CHANGED}.html"]


def test_only_the_newest_nights_have_pages_if_so_wanted(story: WrittenHistory, tmp_path: Path) -> None:
    page = write(story, noon(LAST), tmp_path, num_nights=2)
    assert sorted(file.name for file in (tmp_path / "nights").iterdir()) == [
        f"{CHANGED}.html",
        f"{LAST}.html",
    ]
    older = [one for one in page.elements if (one.attributes.get("title") or "").startswith("2 Nov 2026")]
    assert [one.tag for one in older] == ["span"]
    assert len([href for href in hrefs(page) if href.endswith("README.md")]) >= 18
    assert night_page(tmp_path, CHANGED).texts("h2")[1] == "What changed since 21 Nov 2026"
    assert f"{NIGHTS[19]}.html" not in hrefs(night_page(tmp_path, CHANGED))


def test_no_night_has_a_page_where_none_is_wanted(story: WrittenHistory, tmp_path: Path) -> None:
    write(story, noon(LAST), tmp_path, num_nights=0)
    assert list((tmp_path / "nights").iterdir()) == []


def test_a_history_that_has_not_begun_says_when_it_does(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    page = write(written, datetime(2026, 11, 1, tzinfo=UTC), tmp_path / "pages")
    assert words(page, "p", "headline") == ["No night yet: the first starts on 2 Nov 2026 at 01:00 UTC."]
    assert cells(page) == [("N", "planned")]
    assert page.texts("p", "empty") == [
        "Nothing: all is well, or settled.",
        "No night has numbers yet.",
        "No pause, no baseline, no acknowledgement.",
    ]
    assert not page.of_tag("figure")


def test_a_history_without_any_night_is_a_page(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    page = write(written, datetime(2020, 1, 1, tzinfo=UTC), tmp_path / "pages")
    assert words(page, "p", "headline") == ["No night is expected."]
    assert page.texts("p", "empty")[0] == "No night yet."


def test_nights_that_were_all_missed_have_one_command_and_no_chart(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    page = write(written, noon(NIGHTS[4]), tmp_path / "pages")
    assert cells(page) == [*[("M", "missed")] * 5, ("N", "planned")]
    assert page.texts("pre") == ["dualtoken nightly backfill nightly.yaml --from=2026-11-02 --to=2026-11-06"]
    assert "M 5 nights were missed, 2 Nov 2026 to 6 Nov 2026" in words(page, "h3")
    assert not page.of_tag("figure")


def test_a_night_that_failed_can_be_run_again_until_its_deadline(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    written.attempt(NIGHTS[0], "0001", "OSError: disk full")
    backfill = f"dualtoken nightly backfill nightly.yaml --from={NIGHTS[0]} --to={NIGHTS[0]}"
    early = write(written, datetime(2026, 11, 2, 2, tzinfo=UTC), tmp_path / "pages")
    assert early.texts("pre") == ["dualtoken nightly run nightly.yaml", backfill]
    late = write(written, noon(NIGHTS[0]), tmp_path / "pages")
    assert late.texts("pre") == [backfill]


def test_command_lines_are_quoted_for_a_shell(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    page = write(
        written, noon(NIGHTS[0]), tmp_path / "pages", arguments=("my spec.yaml", "--root=s3://b/x;y")
    )
    assert page.texts("pre")[0].startswith(
        "dualtoken nightly backfill 'my spec.yaml' '--root=s3://b/x;y' --from"
    )


def settled(tmp_path: Path) -> WrittenHistory:
    """Write a history whose regression is acknowledged, with a baseline, a pause and backfilled nights."""
    written = WrittenHistory(spec_of(str(tmp_path)))
    for number, night in enumerate(NIGHTS[:20]):
        if number == 16:
            written.pause(night, night)
            continue
        value = psnr(number) - (0.5 if number > 17 else 0.0)
        written.night(
            night, ("tokenizer", written.subject(night, "tokenizer", {PSNR: value})), backfilled=number == 3
        )
        written.judge(night)
        if number == 1:
            written.accept(1, night)
        if number == 19:
            written.acknowledge(f"tokenizer/{PSNR}", night)
    return written


def test_what_people_decided_is_drawn_and_listed(tmp_path: Path) -> None:
    page = write(settled(tmp_path), noon(NIGHTS[19]), tmp_path / "pages")
    assert cells(page)[3] == ("O", "ok backfilled")
    assert cells(page)[16:20] == [
        ("Z", "paused"),
        ("O", "ok"),
        ("R", "regressed settled"),
        ("R", "regressed settled"),
    ]
    assert words(page, "p", "headline")[0].startswith(
        "R The night of 21 Nov 2026 has regressed, which a person has settled: "
    )
    assert page.texts("pre") == []
    assert words(page, "tr")[1:] == [
        "Pause 2026-11-18 to 2026-11-18 the cluster moves eva 2026-11-18",
        "Baseline 1 2026-11-03 the first good one ada 2026-11-03",
        f"Acknowledged 2026-11-21, tokenizer/{PSNR} a new loss ada 2026-11-21",
    ]
    flags = [(one.text, one.attributes["title"]) for one in page.of_tag("a") if one.has_class("flag")]
    assert flags == [
        ("B", "3 Nov 2026, baseline 1 by ada: the first good one"),
        ("R", "20 Nov 2026, regressed: Worse by 0.5113 in one night."),
        ("A", "21 Nov 2026, acknowledged by ada: a new loss"),
    ]
    assert shape(page, "pause") == ["M15.5 0h1v400h-1z"]
    [baseline] = shape(page, "baseline")
    assert re.fullmatch(r"M0\.5 \d+H19\.5", baseline)


def test_a_new_segment_has_a_level_of_its_own_from_the_step_on(tmp_path: Path) -> None:
    written = settled(tmp_path)
    later = nights_from("2026-11-22", 16)
    for number, night in enumerate(later):
        written.night(night, ("tokenizer", written.subject(night, "tokenizer", {PSNR: psnr(number) - 0.5})))
        written.judge(night)
    page = write(written, noon(later[-1]), tmp_path / "pages")
    [levels] = shape(page, "level")
    # The baseline of the second night began the first segment, the acknowledged step the second one.
    assert [re.sub(r" \d+", "", part) for part in levels.split("M")[1:]] == ["0.5H17.5", "17.5H35.5"]
    heights = [int(height) for height in re.findall(r" (\d+)H", levels)]
    assert heights[0] < heights[1]


def evaluator_changed(tmp_path: Path) -> WrittenHistory:
    written = WrittenHistory(spec_of(str(tmp_path)))
    for number, night in enumerate(NIGHTS[:4]):
        written.night(
            night,
            ("tokenizer", written.subject(night, "tokenizer", {PSNR: 25.3})),
            ("canary", written.subject(night, "canary", {PSNR: 11.2 if number < 3 else 11.3})),
        )
        written.judge(night)
    return written


def test_an_evaluator_that_changed_is_flagged_at_the_canary_and_accepted_by_a_command(tmp_path: Path) -> None:
    page = write(evaluator_changed(tmp_path), noon(NIGHTS[3]), tmp_path / "pages")
    assert page.texts("pre") == [f"dualtoken nightly accept nightly.yaml {NIGHTS[3]} --reason=WHY"]
    flags = [(one.text, one.attributes["title"]) for one in page.of_tag("a") if one.has_class("flag")]
    assert flags == [("E", "5 Nov 2026: other bits than the night before")]
    assert shape(page, "block even") == ["M-0.5 0h3v400h-3z"]
    assert shape(page, "block odd") == ["M2.5 0h1v400h-1z"]
    assert shape(page, "mark apart")[0].startswith("M3 ")
    assert "5 Nov 2026: 25.300 dB (25.200 to 25.400), evaluator-changed" in page.texts("title")


def test_a_protocol_that_changed_is_named_by_its_field(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    for night, size in zip(NIGHTS[:2], (64, 96), strict=True):
        subject = written.subject(night, "tokenizer", {PSNR: 25.3}, protocol={"resolution": size})
        written.night(night, ("tokenizer", subject))
        written.judge(night)
    write(written, noon(NIGHTS[1]), tmp_path / "pages")
    page = night_page(tmp_path / "pages", NIGHTS[1])
    assert page.texts("li") == ["the protocol plain changed in resolution 64 to 96"]
    assert words(page, "p", "headline")[0].startswith("U incomparable : the protocol plain changed")


def test_a_model_whose_record_is_gone_hides_no_night(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    for number, night in enumerate(NIGHTS[:2]):
        subject = written.subject(
            night, "tokenizer", {PSNR: 25.3}, digest=digest(number), **record_of(number, str(tmp_path))
        )
        written.night(night, ("tokenizer", subject))
    write(written, noon(NIGHTS[1]), tmp_path / "pages")
    lines = night_page(tmp_path / "pages", NIGHTS[1]).texts("li")
    assert lines[2].startswith(
        f"tokenizer: the recipe of {tmp_path}/models/0 cannot be read: FileNotFoundError: "
    )


def test_a_night_that_is_measured_and_not_judged_is_run_again(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    written.night(NIGHTS[0], ("tokenizer", written.subject(NIGHTS[0], "tokenizer", {PSNR: 25.3})))
    page = write(written, noon(NIGHTS[0]), tmp_path / "pages")
    assert cells(page)[0] == ("P", "incomplete")
    assert page.texts("pre") == ["dualtoken nightly run nightly.yaml"]


@pytest.mark.parametrize(
    ("place", "href"),
    [
        ("s3://bucket/model", "s3://bucket/model"),
        ("https://key:secret@host/model?sig=1", "https://host/model"),
        ("javascript://%0aalert(1)", None),
        ("simplecache::s3://bucket/model", None),
    ],
)
def test_a_model_is_linked_only_where_a_browser_may_go(tmp_path: Path, place: str, href: str | None) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    subject = written.subject(NIGHTS[0], "tokenizer", {PSNR: 25.3}, place=place)
    written.night(NIGHTS[0], ("tokenizer", subject))
    write(written, noon(NIGHTS[0]), tmp_path / "pages")
    links = {
        one.text: one.attributes["href"] for one in night_page(tmp_path / "pages", NIGHTS[0]).of_tag("a")
    }
    assert links.get("Model folder") == href
    assert "secret" not in (tmp_path / f"pages/nights/{NIGHTS[0]}.html").read_text()


def test_a_history_on_a_store_is_linked_by_its_address(tmp_path: Path) -> None:
    spec: NightlySpec = spec_of("memory://history-of-pages")
    written = WrittenHistory(spec)
    written.night(NIGHTS[0], ("tokenizer", written.subject(NIGHTS[0], "tokenizer", {PSNR: 25.3})))
    write(written, noon(NIGHTS[0]), tmp_path)
    links = {one.text: one.attributes["href"] for one in night_page(tmp_path, NIGHTS[0]).of_tag("a")}
    assert links["Scores"] == (
        f"memory:///history-of-pages/nightly/small/evaluations/{NIGHTS[0]}/0001/tokenizer/scores/heldout/plain/"
    )


def test_numbers_are_written_with_a_digit_more_than_their_margin(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    values = {f"heldout/plain/{name}": 0.123456 for name in ("psnr", "ssim", "zero_shot", "perplexity_pixel")}
    written.night(NIGHTS[0], ("tokenizer", written.subject(NIGHTS[0], "tokenizer", values)))
    write(written, noon(NIGHTS[0]), tmp_path / "pages")
    texts = night_page(tmp_path / "pages", NIGHTS[0]).texts("td")
    assert {"0.123 dB", "0.1235", "12.35 %", "0.1"} <= set(texts)


def test_pages_are_written_over_and_leave_nothing_beside_them(story: WrittenHistory, tmp_path: Path) -> None:
    write(story, noon(LAST), tmp_path, num_nights=1)
    first = (tmp_path / "index.html").read_bytes()
    write(story, noon(LAST), tmp_path, num_nights=1)
    assert (tmp_path / "index.html").read_bytes() == first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index.html", "nights"]
    assert [file.name for file in (tmp_path / "nights").iterdir()] == [f"{LAST}.html"]


def test_a_regression_that_a_baseline_settles_asks_for_nothing(tmp_path: Path) -> None:
    written = regressed(tmp_path)
    assert len(write(written, noon(NIGHTS[16]), tmp_path / "pages").texts("pre")) == 4
    written.accept(1, NIGHTS[16])
    assert write(written, noon(NIGHTS[16]), tmp_path / "pages").texts("pre") == []


def test_of_two_regressed_metrics_only_the_one_that_nobody_knows_of_is_a_task(tmp_path: Path) -> None:
    written = regressed(tmp_path)
    written.acknowledge(f"tokenizer/{PSNR}", NIGHTS[16])
    page = write(written, noon(NIGHTS[16]), tmp_path / "pages")
    assert page.texts("pre") == [
        f"dualtoken nightly ack nightly.yaml tokenizer/{SHAPE} {NIGHTS[16]} --reason=WHY",
        f"dualtoken nightly accept nightly.yaml {NIGHTS[16]} --reason=WHY",
    ]


def regressed(tmp_path: Path) -> WrittenHistory:
    """Write a history whose two primary metrics are both worse in the last night."""
    written = WrittenHistory(spec_of(str(tmp_path), primary=[PSNR, SHAPE]))
    for number, night in enumerate(NIGHTS[:17]):
        loss = 0.5 if number == 16 else 0.0
        values = {
            "heldout/plain/lpips": 0.2,
            SHAPE: 0.93 - loss + psnr(number) / 100,
            PSNR: psnr(number) - loss,
        }
        written.night(night, ("tokenizer", written.subject(night, "tokenizer", values)))
        written.judge(night)
    return written


def test_primary_metrics_come_first_on_a_nights_page(tmp_path: Path) -> None:
    write(regressed(tmp_path), noon(NIGHTS[16]), tmp_path / "pages")
    rows = words(night_page(tmp_path / "pages", NIGHTS[16]), "tr")
    assert [row.split()[0] for row in rows if "1,000" in row] == ["Shapes", "PSNR", "LPIPS"]


def test_a_folder_has_no_recipe_to_link(tmp_path: Path) -> None:
    write(regressed(tmp_path), noon(NIGHTS[16]), tmp_path / "pages")
    texts = night_page(tmp_path / "pages", NIGHTS[16]).texts("a")
    assert "Model folder" in texts
    assert "Recipe" not in texts


def test_an_accepted_evaluator_is_no_task(tmp_path: Path) -> None:
    written = evaluator_changed(tmp_path)
    written.accept(1, NIGHTS[3])
    page = write(written, noon(NIGHTS[3]), tmp_path / "pages")
    assert page.texts("pre") == []
    assert cells(page)[3] == ("E", "evaluator-changed settled")


def test_the_index_shows_the_newest_nights_and_counts_the_others(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path), schedule={"start": "2025-01-01"}))
    page = write(written, noon("2026-11-29"), tmp_path / "pages", num_nights=0)
    assert len(cells(page)) == MOST_NIGHTS
    assert f"{698 + 1 - MOST_NIGHTS} older nights are in history.parquet" in " ".join(page.texts("p", "note"))


def test_tasks_beyond_the_newest_are_folded_and_none_is_left_out(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    for night in NIGHTS[:8:2]:
        written.attempt(night, "0001", "OSError: disk full")
    page = write(written, noon(NIGHTS[7]), tmp_path / "pages")
    assert len(page.texts("pre")) == 8
    assert page.texts("summary") == ["2 more"]


def test_a_folder_that_cannot_be_written_is_named(story: WrittenHistory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/pages cannot be written \(Not a directory\): set --out to"):
        write(story, noon(LAST), tmp_path / "file/pages")


def test_primary_charts_stand_in_the_specs_order_each_with_its_own_acknowledgements(tmp_path: Path) -> None:
    written = regressed(tmp_path)
    written.acknowledge(f"tokenizer/{SHAPE}", NIGHTS[16])
    figures = words(write(written, noon(NIGHTS[16]), tmp_path / "pages"), "figure")
    assert [figure.split()[0] for figure in figures] == ["PSNR", "Shapes", "LPIPS"]
    assert [" A " in figure for figure in figures] == [False, True, False]


def test_a_share_is_drawn_in_per_cent_with_its_interval_around_it(tmp_path: Path) -> None:
    page = write(regressed(tmp_path), noon(NIGHTS[16]), tmp_path / "pages")
    [_, trace] = shape(page, "trace")[:2]
    [_, whiskers] = shape(page, "whisker")
    value = int(trace.split()[1])
    low, high = (int(place) for place in re.findall(r"M0 (\d+)V(\d+)", whiskers)[0])
    assert low > value > high
    assert low + high == pytest.approx(2 * value, abs=2)
    assert "2 Nov 2026: 118.30 % (108.30 to 128.30)" in page.texts("title")


def test_a_failed_night_that_no_spec_expects_is_told_without_a_command(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    written.attempt("2026-10-01", "0001", "OSError: disk full")
    page = write(written, datetime(2026, 11, 1, tzinfo=UTC), tmp_path / "pages")
    assert "F The night of 1 Oct 2026 failed" in words(page, "h3")
    assert page.texts("pre") == []


def test_a_model_within_the_history_is_linked_by_a_relative_path(tmp_path: Path) -> None:
    written = WrittenHistory(spec_of(str(tmp_path)))
    place = f"{tmp_path}/nightly/small/models/a b"
    written.night(
        NIGHTS[0], ("tokenizer", written.subject(NIGHTS[0], "tokenizer", {PSNR: 25.3}, place=place))
    )
    out = tmp_path / "nightly/small/pages"
    write(written, noon(NIGHTS[0]), out)
    links = {one.text: one.attributes["href"] for one in night_page(out, NIGHTS[0]).of_tag("a")}
    assert links["Model folder"] == "../../models/a%20b"
