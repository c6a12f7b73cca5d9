"""The page of a comparison: its table, and the samples that lost most.

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


class ShownPicture(NamedTuple):
    """A picture of a sample."""

    source: str
    """A `data:` URL."""
    alt: str
    label: str
    """Whose picture it is, with its value, such as `A 25.1`."""


class ShownReply(NamedTuple):
    """What both models say of a sample."""

    question: str
    """Empty where a description was asked for."""
    expected: str
    first: str
    """Reply of A."""
    second: str

    @property
    def verdicts(self) -> tuple[str, str]:
        """Tell of each answer whether it is `good` or `bad`; descriptions are neither by their words."""
        if not self.question:
            return "", ""
        first, second = ("good" if reply == self.expected else "bad" for reply in (self.first, self.second))
        return first, second


class ShownSample(NamedTuple):
    """A sample of the page."""

    name: str
    captions: tuple[str, ...]
    loss: LostSample
    pictures: tuple[ShownPicture, ...]
    """The image as the tokenizers see it, and what each model made of it where that is a picture."""
    replies: tuple[ShownReply, ...] = ()


class ShownSeries(NamedTuple):
    """The samples that lost most by one series."""

    series: str
    samples: list[ShownSample]
    note: str = ""
    """What of them is shown."""


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
