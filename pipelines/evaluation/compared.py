"""The record of a comparison of two evaluations."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dualtoken.pipelines.core.receipts import Record, Sha256
from dualtoken.pipelines.evaluation.summary import Direction

Verdict = Literal["better", "worse", "equal within margin", "undecided"]

SIGNIFICANT = 0.05
"""Adjusted p-values up to here count."""


class ComparedSubject(Record):
    """One of the two sides."""

    evaluation: str
    name: str
    digest: Sha256
    measured_at: str
    notes: tuple[str, ...] = ()


class ComparedSeries(Record):
    """A metric of a set by a protocol, of both sides."""

    series: str
    """`<set>/<protocol>/<metric>`."""
    is_primary: bool
    n: int
    """Paired samples."""
    first: float
    second: float
    difference: float
    """B less A."""
    low: float | None
    """Lower end of the difference's 95 % interval; None where there is none, and `method` says why."""
    high: float | None
    method: str
    p: float | None
    """Two-sided, of this series alone."""
    adjusted_p: float | None
    """By Holm over the primary series, by Benjamini-Hochberg over the others."""
    is_marked: bool
    """Whether the adjusted p-value is .05 or less."""
    direction: Direction
    unit: str
    margin: float
    """Least difference that matters: the larger of both sides' margins."""
    least_detectable_loss: float | None
    """Loss that these samples find with a power of .8, one-sided at .01."""
    verdict: Verdict


class Comparison(Record):
    """What B is against A."""

    advice: ClassVar[str] = "compare once more"

    schema_version: int = 1
    first: ComparedSubject
    """A."""
    second: ComparedSubject
    """B."""
    series: Annotated[tuple[ComparedSeries, ...], Field(min_length=1)]
    """The primary ones first."""
    only_first: tuple[str, ...] = ()
    """Series that B lacks."""
    only_second: tuple[str, ...] = ()
