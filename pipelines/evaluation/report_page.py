"""Renders a run's report as one static HTML file: no script, no request, every text escaped.

The template is `report.html.jinja`; this module prepares what it shows and how figures are written.
"""

import base64
import io
import math
from collections.abc import Sequence
from datetime import datetime
from statistics import median
from typing import NamedTuple

from jinja2 import Environment
from PIL import Image

from dualtoken.pipelines.core.timing import PARTS
from dualtoken.pipelines.evaluation.charts import Bar, bar_chart, line_chart
from dualtoken.pipelines.evaluation.evaluation_card import shown, title
from dualtoken.pipelines.evaluation.pages import page_environment
from dualtoken.pipelines.evaluation.report_data import (
    CodebookUsage,
    Curve,
    FunnelStep,
    Reconstruction,
    ReportData,
    Retrieval,
    SceneReadings,
    ZeroShot,
)
from dualtoken.pipelines.runtime.stages import all_stages

TEMPLATE = "report.html.jinja"
CAPTION_CHARACTERS = 100
"""Length beyond which a caption is folded."""
ALT_CHARACTERS = 120
"""Length beyond which an image's alternative text is cut."""
REASONS_SHOWN = 5
"""Reasons shown at a stage; further ones are folded."""
ALARMS_SHOWN = 20
"""Alarms shown of a corpus; further ones are folded."""
PIXELATED_BELOW = 160
"""Width, in pixels, under which images are enlarged without smoothing."""


class Shot(NamedTuple):
    """An image as the page embeds it."""

    source: str
    width: int
    height: int

    @property
    def is_small(self) -> bool:
        """Whether it is shown enlarged."""
        return self.width < PIXELATED_BELOW


class Spread(NamedTuple):
    """A figure of reconstruction over all images, as the page writes it."""

    name: str
    figures: list[str]
    """Mean, lowest, median and highest."""


def render(data: ReportData) -> str:
    """Return the page."""
    rows_in = 0
    rows_out = 0
    ledgers_close = True
    for funnel in data.funnels:
        rows_in += funnel.rows_in
        rows_out += funnel.rows_out
        ledgers_close = ledgers_close and funnel.closes
    template = _environment().get_template(TEMPLATE)
    return template.render(
        data=data,
        found=data.examination,
        pictures={picture.name: picture.png for picture in data.pictures},
        rows_in=rows_in,
        rows_out=rows_out,
        ledgers_close=ledgers_close,
        bars=funnel_bar,
        trainings=_curves_by_training(data.curves),
        spreads=spreads(data.reconstruction),
        num_alarms=sum(len(audit.alarms) for audit in data.audits),
        caption_characters=CAPTION_CHARACTERS,
        alt_characters=ALT_CHARACTERS,
        reasons_shown=REASONS_SHOWN,
        alarms_shown=ALARMS_SHOWN,
        part_names=PARTS,
    )


def _environment() -> Environment:
    """Return the template's environment."""
    environment = page_environment()
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
        step_name=step_name,
        curve_chart=curve_chart,
        last_value=last_value,
        num_gaps=num_gaps,
        usage_chart=usage_chart,
        accuracy_chart=accuracy_chart,
        readings_chart=readings_chart,
        retrieval_chart=retrieval_chart,
        metric_title=title,
        measured_value=shown,
    )
    return environment


def _curves_by_training(curves: Sequence[Curve]) -> list[tuple[str, list[Curve]]]:
    """Return the curves of each training under its name, trainings in the order of their first curves."""
    trainings: list[tuple[str, list[Curve]]] = []
    by_stage: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve.stage not in by_stage:
            by_stage[curve.stage] = []
            trainings.append((_training_name(curve.stage), by_stage[curve.stage]))
        by_stage[curve.stage].append(curve)
    return trainings


def _training_name(stage: str) -> str:
    """Name what a stage trains; a page may be made of figures whose stages are not declared here."""
    names = {declared.name: declared.trains for declared in all_stages()}
    return names.get(stage) or stage


def step_name(step: FunnelStep) -> str:
    """Name the rows that a stage has passed on."""
    names = {declared.name: declared.passed_on for declared in all_stages()}
    return names.get(step.stage) or step.stage


def count(number: float) -> str:
    """Write a whole number with thousands separated."""
    return f"{number:,.0f}"


def short_count(number: float) -> str:
    """Write a number to about three figures where it has seven digits or more."""
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if number >= unit:
            return _three_figures(number / unit) + letter
    return count(number)


def _three_figures(number: float) -> str:
    if number < 10:
        return f"{number:,.2f}"
    if number < 100:
        return f"{number:,.1f}"
    return f"{number:,.0f}"


def percent(share: float) -> str:
    """Write a share with one decimal; only a whole is 100%, and only nothing is 0%."""
    if not math.isfinite(share):
        return "–"
    if 0 < share < 0.0005:
        return "<0.1%"
    if share in {0, 1}:
        return f"{share:.0%}"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.1%}"


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
    last_space = head.rfind(" ")
    if last_space > limit * 2 // 3:
        head = head[:last_space]
    return f"{head}…"


def shot(png: bytes) -> Shot:
    """Embed a PNG file."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        width, height = image.size
    encoded = base64.b64encode(png).decode()
    return Shot(f"data:image/png;base64,{encoded}", width, height)


def funnel_bar(step: FunnelStep, rows_in: int) -> dict[str, str]:
    """Return the widths of a step's bar, as shares of the source's rows: rows kept, and rows lost here."""
    whole = max(rows_in, step.rows_in, 1)
    rows_lost = sum(rows for _, rows in step.lost)
    return {"kept": f"{100 * step.rows_ok / whole:.2f}%", "lost": f"{100 * rows_lost / whole:.2f}%"}


def spreads(reconstruction: Reconstruction | None) -> list[Spread]:
    """Return the spread of each figure of reconstruction; none where there is no image."""
    if reconstruction is None:
        return []
    rows: list[Spread] = []
    if reconstruction.psnr_per_image:
        rows.append(_spread("PSNR, dB", reconstruction.psnr, reconstruction.psnr_per_image, places=2))
    if reconstruction.ssim_per_image:
        rows.append(_spread("SSIM", reconstruction.ssim, reconstruction.ssim_per_image, places=3))
    return rows


def _spread(name: str, mean: float, values: Sequence[float], places: int) -> Spread:
    figures = (mean, min(values), median(values), max(values))
    return Spread(name, [decimal(figure, places) for figure in figures])


def last_value(curve: Curve) -> str:
    """Write a curve's last value and its unit; empty where it has none."""
    if not curve.points:
        return ""
    _, value = curve.points[-1]
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.4g} {curve.unit}".strip()


def num_gaps(curve: Curve) -> int:
    """Count the values that are not finite."""
    return sum(not math.isfinite(value) for _, value in curve.points)


def curve_chart(curve: Curve) -> str:
    """Draw a curve in its stream's colour."""
    subject = f"{curve.name} of the {_training_name(curve.stage).lower()}"
    if curve.unit:
        subject += f", {curve.unit}"
    label = f"{subject}: {_course(curve.points)}"
    return line_chart(curve.points, label=label, unit=curve.unit, tone=curve.stream or "neutral")


def _course(points: Sequence[tuple[int, float]]) -> str:
    """Write where a curve begins and ends."""
    if not points:
        return "no values"
    first_step, first_value = points[0]
    last_step, last_value = points[-1]
    return f"from {first_value:.4g} at step {first_step:,} to {last_value:.4g} at step {last_step:,}"


def usage_chart(usage: CodebookUsage) -> str:
    """Draw a bar per depth: the share of codes used, with perplexity as a mark on the same scale."""
    bars: list[Bar] = []
    depths = zip(usage.usage_per_depth, usage.perplexity_per_depth, strict=True)
    for depth, (share, perplexity) in enumerate(depths, start=1):
        used = f"{percent(share)} of {usage.num_codes:,} codes used"
        bar = Bar(
            label=f"depth {depth}",
            value=share,
            text=percent(share),
            title=f"depth {depth}: {used}, perplexity {perplexity:,.1f}",
            mark=perplexity / usage.num_codes,
        )
        bars.append(bar)
    label = f"Share of {usage.stream} codes used per depth. {_titles(bars)}"
    return bar_chart(bars, label=label, tone=usage.stream)


def accuracy_chart(zero_shot: ZeroShot) -> str:
    """Draw a bar per attribute: accuracy from quantised features, with the teacher's as a mark."""
    bars: list[Bar] = []
    for attribute in zero_shot.attributes:
        bar = _comparison_bar(attribute.name, attribute.teacher, attribute.quantised)
        bars.append(bar)
    return bar_chart(bars, label=f"Zero-shot accuracy. {_titles(bars)}", tone="semantic")


def readings_chart(readings: SceneReadings) -> str:
    """Draw a bar per attribute: what is read from reconstructions, with the originals' as a mark."""
    bars: list[Bar] = []
    for attribute in readings.attributes:
        read = percent(attribute.reconstruction)
        bar = Bar(
            label=attribute.name,
            value=attribute.reconstruction,
            text=read,
            title=f"{attribute.name}: originals {percent(attribute.original)}, reconstructions {read}",
            mark=attribute.original,
        )
        bars.append(bar)
    return bar_chart(bars, label=f"Attributes read by the oracle. {_titles(bars)}", tone="pixel")


def retrieval_chart(retrieval: Retrieval) -> str:
    """Draw one bar: retrieval by quantised features, with the teacher's as a mark."""
    bars = [_comparison_bar("R@1", retrieval.teacher, retrieval.quantised)]
    return bar_chart(bars, label=f"Image-to-text retrieval. {_titles(bars)}", tone="semantic")


def _comparison_bar(name: str, teacher: float, quantised: float) -> Bar:
    return Bar(
        label=name,
        value=quantised,
        text=percent(quantised),
        title=f"{name}: teacher {percent(teacher)}, quantised {percent(quantised)}",
        mark=teacher,
    )


def _titles(bars: Sequence[Bar]) -> str:
    return "; ".join(bar.title for bar in bars)
