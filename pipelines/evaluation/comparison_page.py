"""The page of a comparison: its table, and the samples that lost most as pictures.

Static HTML without a script: nothing is asked of the network, and every text is escaped.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dualtoken.pipelines.evaluation.compared import Comparison
from dualtoken.pipelines.evaluation.comparison import LostSample
from dualtoken.pipelines.evaluation.comparison_text import HEAD, cells, notes
from dualtoken.pipelines.evaluation.pages import page_environment
from dualtoken.pipelines.evaluation.report_page import day

TEMPLATE = "comparison.html.jinja"
_TEXTS = ("series", "verdict")
"""Columns that the page places first, for narrow screens."""


class ShownSample(NamedTuple):
    """A sample of the page."""

    name: str
    captions: tuple[str, ...]
    loss: LostSample
    original: str
    """Picture as the tokenizers see it, a `data:` URL."""
    first: str
    """Reconstruction by A."""
    second: str


class ShownSeries(NamedTuple):
    """The samples that lost most by one series."""

    series: str
    samples: list[ShownSample]


def render_comparison(comparison: Comparison, shown: Sequence[ShownSeries]) -> str:
    """Return the page of a comparison with samples whose pictures are at hand."""
    environment = page_environment()
    environment.filters["day"] = day
    return environment.get_template(TEMPLATE).render(
        comparison=comparison,
        rows=[(series, dict(zip(HEAD, cells(series), strict=True))) for series in comparison.series],
        numbers=[head for head in HEAD if head not in _TEXTS],
        notes=notes(comparison),
        shown=shown,
    )
