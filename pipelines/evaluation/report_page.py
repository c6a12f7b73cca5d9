"""Renders a run's report as one static HTML file: no script, no request, every text escaped.

The template is `report.html.jinja`; this module prepares what it shows and how figures are written.
"""

import base64
import io
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from dualtoken.pipelines.core.timing import PARTS
from dualtoken.pipelines.evaluation.charts import Bar, bar_chart, line_chart
from dualtoken.pipelines.evaluation.report_data import (
    CodebookUsage,
    Curve,
    FunnelStep,
    Reconstruction,
    ReportData,
    Retrieval,
    ZeroShot,
)

TEMPLATE = "report.html.jinja"
STEP_NAMES = {
    "scenes": "Generated",
    "download": "Downloaded",
    "decode": "Decodable",
    "score": "Decodable",
    "filter": "Kept",
    "targets": "With targets",
    "pretokenize": "Tokens",
}
"""What a row is once a stage has passed it on; a stage that is not listed shows its own name."""
TRAINING_NAMES = {"teacher": "Teacher", "train": "Tokenizer"}
CAPTION_CHARACTERS = 100
"""A longer caption is folded."""
ALT_CHARACTERS = 120
REASONS_SHOWN = 5
"""Further reasons are folded."""
ALARMS_SHOWN = 20
"""Of a corpus; further ones are folded."""
PIXELATED_BELOW = 160
"""Images less wide than this, in pixels, are enlarged without smoothing."""


class Shot(NamedTuple):
    """An image as the page embeds it."""

    source: str
    width: int
    height: int

    @property
    def is_small(self) -> bool:
        """Whether it is shown enlarged."""
        return self.width < PIXELATED_BELOW


def render(data: ReportData) -> str:
    """Return the page."""
    # Captions, URLs' reasons and recipes come from elsewhere: nothing reaches the page unescaped but the charts, which escape their own.
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=count,
        short_count=short_count,
        percent=percent,
        decimal=decimal,
        duration=duration,
        size=size,
        shorten=shorten,
        shot=shot,
        day=day,
        step_name=lambda step: STEP_NAMES.get(step.stage, step.stage),
        curve_chart=curve_chart,
        last_value=last_value,
        num_gaps=lambda curve: sum(not math.isfinite(value) for _, value in curve.points),
        usage_chart=usage_chart,
        accuracy_chart=accuracy_chart,
        retrieval_chart=retrieval_chart,
    )
    return environment.get_template(TEMPLATE).render(
        data=data,
        rows_in=sum(funnel.rows_in for funnel in data.funnels),
        rows_out=sum(funnel.rows_out for funnel in data.funnels),
        ledgers_close=all(funnel.closes for funnel in data.funnels),
        bars=funnel_bar,
        trainings=[
            (TRAINING_NAMES.get(stage, stage), [c for c in data.curves if c.stage == stage])
            for stage in _stages(data.curves)
        ],
        spreads=spreads(data.reconstruction),
        num_alarms=sum(len(audit.alarms) for audit in data.audits),
        caption_characters=CAPTION_CHARACTERS,
        alt_characters=ALT_CHARACTERS,
        reasons_shown=REASONS_SHOWN,
        alarms_shown=ALARMS_SHOWN,
        part_names=PARTS,
    )


def _stages(curves: Sequence[Curve]) -> list[str]:
    return list(dict.fromkeys(curve.stage for curve in curves))


def count(number: float) -> str:
    """Write a whole number with thousands separated."""
    return f"{number:,.0f}"


def short_count(number: float) -> str:
    """Write a number to about three figures where it has seven digits or more."""
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if number >= unit:
            part = number / unit
            return f"{part:,.{2 if part < 10 else 1 if part < 100 else 0}f}{letter}"
    return count(number)


def percent(share: float) -> str:
    """Write a share with one decimal; only a whole is 100%, and only nothing is 0%."""
    if not math.isfinite(share):
        return "–"
    if 0 < share < 0.0005:
        return "<0.1%"
    if share in {0, 1}:
        return f"{share:.0%}"
    return ">99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def decimal(value: float, places: int = 2) -> str:
    """Write a figure with a fixed number of decimals, a true minus sign, and ∞ where it has no bound."""
    if math.isnan(value):
        return "–"
    text = "∞" if math.isinf(value) else f"{abs(value):,.{places}f}"
    return f"\u2212{text}" if value < 0 else text


def duration(seconds: float) -> str:
    """Write a time in its two largest units."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"


def size(num_bytes: float) -> str:
    """Write bytes in decimal units."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.1f} {name}"
    return f"{num_bytes:,.0f} B"


def day(created_at: str) -> str:
    """Write a time for people: `3 May 2026, 14:05 UTC`."""
    time = datetime.fromisoformat(created_at)
    return f"{time.day} {time:%B %Y, %H:%M} {time.tzname() or ''}".strip()


def shorten(text: str, limit: int) -> str:
    """Cut a text to `limit` characters, at a space where there is one near the end."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    at = head.rfind(" ")
    return f"{head[:at] if at > limit * 2 // 3 else head}…"


def shot(png: bytes) -> Shot:
    """Embed a PNG file."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        width, height = image.size
    return Shot(f"data:image/png;base64,{base64.b64encode(png).decode()}", width, height)


def funnel_bar(step: FunnelStep, rows_in: int) -> dict[str, str]:
    """Return the widths of a step's bar, as shares of the source's rows: what went on, and what was lost here."""
    whole = max(rows_in, step.rows_in, 1)
    return {
        "kept": f"{100 * step.rows_ok / whole:.2f}%",
        "lost": f"{100 * sum(rows for _, rows in step.lost) / whole:.2f}%",
    }


def spreads(reconstruction: Reconstruction | None) -> list[dict[str, Any]]:
    """Return mean, lowest, median and highest of each figure of reconstruction."""
    if reconstruction is None:
        return []
    figures = (
        ("PSNR, dB", 2, reconstruction.psnr, reconstruction.psnr_per_image),
        ("SSIM", 3, reconstruction.ssim, reconstruction.ssim_per_image),
    )
    rows = [
        (name, places, (mean, min(each), median(each), max(each)))
        for name, places, mean, each in figures
        if each
    ]
    return [
        {"name": name, "figures": [decimal(value, places) for value in values]}
        for name, places, values in rows
    ]


def last_value(curve: Curve) -> str:
    """Write a curve's last value and its unit; empty where it has none."""
    if not curve.points:
        return ""
    value = curve.points[-1][1]
    return f"{value:.4g} {curve.unit}".strip() if math.isfinite(value) else "not finite"


def curve_chart(curve: Curve) -> str:
    """Draw a curve in its stream's colour."""
    values = [f"{value:.4g}" for _, value in curve.points]
    course = (
        f"from {values[0]} at step {curve.points[0][0]:,} to {values[-1]} at step {curve.points[-1][0]:,}"
        if values
        else "no values"
    )
    label = f"{curve.name} of the {TRAINING_NAMES.get(curve.stage, curve.stage).lower()}{curve.unit and f', {curve.unit}'}: {course}"
    return line_chart(curve.points, label=label, unit=curve.unit, tone=curve.stream or "neutral")


def usage_chart(usage: CodebookUsage) -> str:
    """Draw a bar per depth: the share of codes used, with perplexity as a mark on the same scale."""
    bars = [
        Bar(
            label=f"depth {depth}",
            value=share,
            text=percent(share),
            title=f"depth {depth}: {percent(share)} of {usage.num_codes:,} codes used, perplexity {perplexity:,.1f}",
            mark=perplexity / usage.num_codes,
        )
        for depth, (share, perplexity) in enumerate(
            zip(usage.usage_per_depth, usage.perplexity_per_depth, strict=True), start=1
        )
    ]
    label = f"Share of {usage.stream} codes used per depth. {'; '.join(bar.title for bar in bars)}"
    return bar_chart(bars, label=label, tone=usage.stream)


def accuracy_chart(zero_shot: ZeroShot) -> str:
    """Draw a bar per attribute: accuracy from quantised features, with the teacher's as a mark."""
    return _comparison(
        [(one.name, one.teacher, one.quantised) for one in zero_shot.attributes], "Zero-shot accuracy"
    )


def retrieval_chart(retrieval: Retrieval) -> str:
    """Draw one bar: retrieval by quantised features, with the teacher's as a mark."""
    return _comparison([("R@1", retrieval.teacher, retrieval.quantised)], "Image-to-text retrieval")


def _comparison(rows: Sequence[tuple[str, float, float]], subject: str) -> str:
    bars = [
        Bar(
            label=name,
            value=quantised,
            text=percent(quantised),
            title=f"{name}: teacher {percent(teacher)}, quantised {percent(quantised)}",
            mark=teacher,
        )
        for name, teacher, quantised in rows
    ]
    return bar_chart(bars, label=f"{subject}. {'; '.join(bar.title for bar in bars)}", tone="semantic")
