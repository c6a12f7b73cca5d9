"""A report's data as tests render it, and a reader of the page."""

import io
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import NamedTuple

import numpy as np
from PIL import Image

from dualtoken.pipelines.core.timing import TimeBreakdown
from dualtoken.pipelines.evaluation.report_data import (
    AttributeAccuracy,
    CodebookUsage,
    Curve,
    Funnel,
    FunnelStep,
    Pair,
    ReadingAccuracy,
    Reconstruction,
    ReportData,
    SceneReadings,
    StageTime,
    TokenAudit,
    TokenizerFacts,
    ZeroShot,
)

VOID = {"meta", "img", "wbr", "br", "link", "input"}


class PageElement(NamedTuple):
    """An element of a page."""

    tag: str
    attributes: dict[str, str | None]
    parts: list[str]
    """Pieces of the text within, in order."""

    @property
    def text(self) -> str:
        """The text within, each run of white space as one space."""
        return " ".join("".join(self.parts).split())

    def has_class(self, name: str) -> bool:
        return name in (self.attributes.get("class") or "").split()


class Page(HTMLParser):
    """A page's elements, in order of their start."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[PageElement] = []
        self._open: list[PageElement] = []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append(PageElement(tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.parts.append(data)

    def of_tag(self, tag: str) -> list[PageElement]:
        return [element for element in self.elements if element.tag == tag]

    def texts(self, tag: str, name: str = "") -> list[str]:
        """Return the texts of elements, of those with a class where it is named."""
        return [element.text for element in self.of_tag(tag) if not name or element.has_class(name)]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [element.attributes for element in self.of_tag(tag)]


def png(shade: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def pair(caption: str = "a red circle", side: int = 8) -> Pair:
    return Pair(
        caption=caption, key="0f" * 16, original=png(10, side), reconstruction=png(20, side), psnr=28.13
    )


def step(stage: str, rows_in: int, **counts: int) -> FunnelStep:
    by_reason = {name.replace("__", ":"): rows for name, rows in counts.items()}
    return FunnelStep(stage=stage, rows_in=rows_in, counts=by_reason)


def funnel(corpus: str = "web") -> Funnel:
    steps = (
        step("download", 1000, ok=900, failed__http_404=70, failed__timeout=30),
        step("score", 900, ok=900),
        step("filter", 900, ok=750, rejected__min_side=150),
        step("pretokenize", 750, ok=750),
    )
    return Funnel(corpus=corpus, rows_in=1000, steps=steps)


ZERO_SHOT = ZeroShot(
    num_images=64,
    attributes=(AttributeAccuracy(name="colour", teacher=0.975, quantised=0.9, chance=0.125),),
    teacher=0.931,
    quantised=0.887,
    chance=0.179,
)
DATA = ReportData(
    title="scenes",
    created_at="2026-03-03T14:05:11+00:00",
    recipe_yaml="name: scenes\nroot: data\n",
    facts=TokenizerFacts(
        image_size=64,
        grid_size=8,
        depth=4,
        semantic_codes=256,
        pixel_codes=1024,
        num_parameters=3_214_567,
        fingerprint="9f31c2a07be4",
    ),
    funnels=(funnel(),),
    curves=(
        Curve(stage="teacher", name="loss", unit="", points=((0, 4.5), (10, 2.0))),
        Curve(stage="train", name="semantic", unit="nats", points=((0, 1.0), (10, 0.25)), stream="semantic"),
        Curve(stage="train", name="reconstruction", unit="", points=((0, 0.5), (10, 0.1)), stream="pixel"),
    ),
    pairs=(pair(), pair("a blue square")),
    reconstruction=Reconstruction(
        psnr=25.204, ssim=0.9123, psnr_per_image=(20.0, 24.0, 31.6), ssim_per_image=(0.9, 0.91, 0.93)
    ),
    usage=(
        CodebookUsage(
            stream="semantic",
            num_codes=256,
            usage=1.0,
            usage_per_depth=(0.996, 0.5),
            perplexity_per_depth=(128.0, 64.0),
        ),
        CodebookUsage(
            stream="pixel", num_codes=1024, usage=0.75, usage_per_depth=(0.75,), perplexity_per_depth=(512.0,)
        ),
    ),
    zero_shot=ZERO_SHOT,
    retrieval=None,
    stages=(
        StageTime(
            command="download",
            corpus="web",
            wall_seconds=33.9,
            work_seconds=60.0,
            samples=1000,
            samples_per_second=29.5,
            bytes=91_000_000,
        ),
        StageTime(
            command="train",
            corpus=None,
            wall_seconds=1912.0,
            work_seconds=1900.0,
            samples=0,
            samples_per_second=None,
            bytes=0,
        ),
    ),
)
AUDITS = (
    TokenAudit(
        corpus="web",
        shards=12,
        rows=48,
        psnr_median=24.04,
        psnr_lowest=9.0,
        perplexity={"semantic": (201.5, 99.0), "pixel": (180.0, 150.2)},
        alarms=("shard 00003: drift: PSNR <9> dB",),
    ),
    TokenAudit(
        corpus="quiet",
        shards=1,
        rows=0,
        psnr_median=None,
        psnr_lowest=None,
        perplexity={"semantic": (8.0,), "pixel": (4.0,)},
        alarms=(),
    ),
)
PARTS = (
    TimeBreakdown(
        corpus="web", seconds={"fetch": 1.25, "wait": 60.0, "encode": 30.0, "audit": 5.0, "rest": 3.75}
    ),
)
READINGS = SceneReadings(
    num_images=1024,
    attributes=(
        ReadingAccuracy(name="place", original=1.0, reconstruction=0.998, chance=0.5),
        ReadingAccuracy(name="shape", original=0.997, reconstruction=0.913, chance=1 / 6),
    ),
)
EMPTY = replace(
    DATA, funnels=(), curves=(), pairs=(), reconstruction=None, usage=(), zero_shot=None, stages=()
)


def rows(page: Page) -> list[str]:
    """Return the tables' rows, with a space between cells."""
    texts: list[str] = []
    for row in page.of_tag("tr"):
        words = " ".join(row.parts).split()
        texts.append(" ".join(words))
    return texts
