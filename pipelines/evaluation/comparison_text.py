"""A comparison as text: aligned lines for a terminal, or a Markdown table."""

import math

from dualtoken.pipelines.evaluation.compared import ComparedSeries, Comparison

HEAD = ("series", "n", "A", "B", "B - A", "95 % interval", "p", "margin", "finds", "verdict")
TEXT_COLUMNS = (0, len(HEAD) - 1)
"""Columns that are flush left."""
GAP = "  "
FEW = 2
"""Series that a note names one by one."""


def comparison_lines(comparison: Comparison) -> list[str]:
    """Return the table as lines of equal width but for the last column, with what the columns say below."""
    rows = [HEAD, *map(cells, comparison.series)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        padded: list[str] = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padded.append(cell.ljust(width) if place in TEXT_COLUMNS else cell.rjust(width))
        lines.append(GAP.join(padded).rstrip())
    return [*_sides(comparison), "", *lines, "", *notes(comparison)]


def comparison_markdown(comparison: Comparison) -> str:
    """Return the same as a Markdown document."""
    rule = ["---" if place in TEXT_COLUMNS else "---:" for place in range(len(HEAD))]
    rows = [HEAD, rule, *map(cells, comparison.series)]
    table = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows]
    sides = [f"- {_escaped(line)}" for line in _sides(comparison)]
    below = [f"- {_escaped(line)}" for line in notes(comparison)]
    return "\n".join([*sides, "", *table, "", *below]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _sides(comparison: Comparison) -> list[str]:
    lines: list[str] = []
    for letter, side in (("A", comparison.first), ("B", comparison.second)):
        lines.append(f"{letter}: {side.name} ({side.digest[:12]}), evaluated {side.measured_at}")
        lines.extend(f"{letter}: {note}" for note in side.notes)
    return lines


def notes(comparison: Comparison) -> list[str]:
    """Return what the columns say, a line each."""
    lines = ["p: Holm over the primary series, Benjamini-Hochberg over the others, which stand in brackets"]
    lines.append(
        "* is an adjusted p of .05 or less; finds: the loss that these samples find 4 times out of 5"
    )
    methods: dict[str, list[str]] = {}
    for series in comparison.series:
        methods.setdefault(series.method, []).append(series.series)
    for method, names in methods.items():
        which = ", ".join(names) if len(names) <= FEW else f"{len(names)} series, such as {names[0]}"
        lines.append(f"interval of {which}: {method}")
    if comparison.only_first:
        lines.append(f"only in A: {', '.join(comparison.only_first)}")
    if comparison.only_second:
        lines.append(f"only in B: {', '.join(comparison.only_second)}")
    return lines


def cells(series: ComparedSeries) -> tuple[str, ...]:
    """Return a series' row under `HEAD`."""
    digits = _digits(series)
    interval = "none"
    if series.low is not None and series.high is not None:
        interval = f"{series.low:+.{digits}f} to {series.high:+.{digits}f}"
    finds = "unknown"
    if series.least_detectable_loss is not None:
        finds = f"{series.least_detectable_loss:.{digits}f}"
    name = series.series
    if series.unit:
        name = f"{name} ({series.unit})"
    return (
        name,
        f"{series.n}",
        f"{series.first:.{digits}f}",
        f"{series.second:.{digits}f}",
        f"{series.difference:+.{digits}f}",
        interval,
        _p_text(series),
        f"{series.margin:g}",
        finds,
        series.verdict,
    )


def _p_text(series: ComparedSeries) -> str:
    if series.adjusted_p is None:
        return "none"
    text = f"{series.adjusted_p:.4f}" if series.adjusted_p >= 0.0001 else "<.0001"
    if series.is_marked:
        text = f"{text}*"
    return text if series.is_primary else f"[{text}]"


def _digits(series: ComparedSeries) -> int:
    """Return the decimals that show two digits of the interval's width, or of what else there is."""
    width = series.margin
    if series.low is not None and series.high is not None and series.high > series.low:
        width = series.high - series.low
    if width == 0:
        width = abs(series.first) / 1000
    if width == 0:
        return 4
    return min(9, max(0, 1 - math.floor(math.log10(width))))
