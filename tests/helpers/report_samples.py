"""Data of a report for tests of its page, and a parser of the page."""

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
    Reconstruction,
    ReportData,
    StageTime,
    TokenAudit,
    TokenizerFacts,
    ZeroShot,
)

VOID = {"meta", "img", "wbr", "br", "link", "input"}
"""Tags of elements without an end."""


class Element(NamedTuple):
    """An element of a page."""

    tag: str
    attributes: dict[str, str | None]
    pieces: list[str]
    """Pieces of the text within, in order."""

    def matches(self, tag: str, class_name: str) -> bool:
        """Say whether it has a tag and, if one is given, a class."""
        classes = (self.attributes.get("class") or "").split()
        return self.tag == tag and (not class_name or class_name in classes)


class Page(HTMLParser):
    """Parses a page and checks that its elements are nested well."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        """All elements in order of their start."""
        self._open: list[Element] = []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {[element.tag for element in self._open]}"

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.pieces.append(data)

    def texts(self, tag: str, class_name: str = "") -> list[str]:
        """Return the texts of all elements with a tag, and a class if one is given."""
        found = [element for element in self.elements if element.matches(tag, class_name)]
        return [one_line("".join(element.pieces)) for element in found]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements with a tag."""
        return [element.attributes for element in self.elements if element.tag == tag]


def one_line(text: str) -> str:
    """Replace every run of white space by one space."""
    return " ".join(text.split())


def rows(page: Page) -> list[str]:
    """Return the text of each row of all tables, a space between its cells."""
    return [one_line(" ".join(element.pieces)) for element in page.elements if element.tag == "tr"]


def png(shade: int, side: int = 8) -> bytes:
    """Encode a grey image."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def pair(caption: str = "a red circle", side: int = 8) -> Pair:
    """Return an image and its reconstruction."""
    return Pair(
        caption=caption, key="0f" * 16, original=png(10, side), reconstruction=png(20, side), psnr=28.13
    )


def step(stage: str, rows_in: int, **counts: int) -> FunnelStep:
    """Return a step of a funnel; `failed__timeout=3` counts "failed:timeout"."""
    counts = {name.replace("__", ":"): rows for name, rows in counts.items()}
    return FunnelStep(stage=stage, rows_in=rows_in, counts=counts)


def funnel(corpus: str = "web") -> Funnel:
    """Return a corpus's steps, which lose rows to several reasons."""
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
EMPTY = replace(
    DATA, funnels=(), curves=(), pairs=(), reconstruction=None, usage=(), zero_shot=None, stages=()
)
