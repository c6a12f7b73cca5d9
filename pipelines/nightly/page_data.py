"""What the pages of a nightly are made from, and how they write nights, numbers and names."""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Any, NamedTuple

from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.evaluation.compared import SIGNIFICANT
from dualtoken.pipelines.evaluation.metric_catalogue import CATALOGUE, SHARE
from dualtoken.pipelines.evaluation.report_page import decimal
from dualtoken.pipelines.nightly.history import NightFiles, Snapshot
from dualtoken.pipelines.nightly.records import (
    DetailsRecord,
    NightRecord,
    SeriesDifference,
    SeriesValue,
    SeriesVerdict,
    VerdictRecord,
)
from dualtoken.pipelines.nightly.states import NightState

MOST_NIGHTS = 400
"""Newest nights that the index shows; older ones are counted."""


class PageNight(NamedTuple):
    """A night as the pages show it."""

    state: NightState
    files: NightFiles
    verdict: VerdictRecord | None
    details: DetailsRecord | None
    """What is told beside the verdict."""
    is_begun: bool
    """Whether it is neither planned nor a pause that is still to come."""

    @property
    def name(self) -> str:
        """Its date."""
        return self.state.night

    @property
    def record(self) -> NightRecord | None:
        """Its numbers, if it was measured."""
        return self.files.night

    def judged(self, series: str) -> SeriesVerdict | None:
        """Return what the chart said of a series, `<subject>/<set>/<protocol>/<metric>`."""
        return self.verdict.series.get(series) if self.verdict else None

    def difference(self, name: "SeriesName") -> SeriesDifference | None:
        """Return a series' difference to the checkpoint before; None where there is no other one."""
        subjects = self.details.differences if self.details else {}
        return subjects[name.subject].series.get(name.series) if name.subject in subjects else None

    def before(self, subject: str) -> str:
        """Return the night of the checkpoint that a subject's differences are to."""
        assert self.details is not None
        return self.details.differences[subject].before

    def movement(self, name: "SeriesName") -> str | None:
        """Return `better`, `worse` or `unmoved` of a series that may not alarm; None where nobody can say."""
        found = self.details.movements.get(name.full) if self.details else None
        if found is None:
            return None
        if found.p > SIGNIFICANT:
            return "unmoved"
        return "better" if found.residual > 0 else "worse"


@dataclass(frozen=True)
class PageData:
    """What all pages of a nightly are made from."""

    spec: NightlySpec
    snapshot: Snapshot
    all_nights: tuple[PageNight, ...]
    """In order, planned ones too."""
    made_at: datetime
    arguments: tuple[str, ...]
    """How a command line names the spec."""

    @cached_property
    def nights(self) -> tuple[PageNight, ...]:
        """The nights that the index shows."""
        return self.all_nights[-MOST_NIGHTS:]

    @cached_property
    def begun(self) -> tuple[PageNight, ...]:
        """Those of them that have begun: the slots of all charts."""
        return tuple(night for night in self.nights if night.is_begun)

    @cached_property
    def slots(self) -> dict[str, int]:
        """Slot of each of these nights."""
        return {night.name: slot for slot, night in enumerate(self.begun)}

    def command(self, name: str, *rest: str) -> str:
        """Write a command line that can be copied."""
        return shlex.join(["dualtoken", "nightly", name, *self.arguments, *rest])


def read_pages(
    spec: NightlySpec,
    snapshot: Snapshot,
    states: Sequence[NightState],
    ruleset: str,
    made_at: datetime,
    arguments: Sequence[str],
) -> PageData:
    """Gather what the pages are made from."""
    nights: list[PageNight] = []
    for state in states:
        files = snapshot.files(state.night)
        verdict = files.verdict(ruleset) if files.night is not None else None
        details = files.details.get(verdict.ruleset) if verdict is not None else None
        is_ahead = state.state == "paused" and state.starts is not None and state.starts > made_at
        is_begun = state.state != "planned" and not is_ahead
        nights.append(PageNight(state, files, verdict, details, is_begun))
    return PageData(spec, snapshot, tuple(nights), made_at, tuple(arguments))


class SeriesName(NamedTuple):
    """A metric of a subject on a set by a protocol."""

    subject: str
    series: str
    """`<set>/<protocol>/<metric>`."""

    @property
    def full(self) -> str:
        """Name in verdicts and acknowledgements."""
        return f"{self.subject}/{self.series}"

    @property
    def pair(self) -> str:
        """Set and protocol, `<set>/<protocol>`."""
        return self.series.rpartition("/")[0]

    @property
    def title(self) -> str:
        """The metric's name for people."""
        metric = self.series.rpartition("/")[2]
        for known, entry in CATALOGUE.items():
            if known == metric:
                return entry.title
        return metric


def primary_series(spec: NightlySpec) -> list[SeriesName]:
    """Return the series that may alarm, subject by subject."""
    return [SeriesName(subject, series) for subject in spec.subjects for series in spec.primary]


class Figures(NamedTuple):
    """How a series' numbers are written: shares in per cent, with a digit more than its margin has."""

    factor: float
    unit: str
    decimals: int | None

    @classmethod
    def of(cls, value: SeriesValue) -> "Figures":
        """Return how numbers of a series are written."""
        factor, unit = (100.0, "%") if value.unit == SHARE else (1.0, value.unit)
        margin = value.margin * factor
        decimals = max(0, 1 - math.floor(math.log10(margin) + 1e-9)) if margin > 0 else None
        return cls(factor, unit, decimals)

    def number(self, value: float) -> str:
        """Write a number without its unit."""
        if self.decimals is None:
            return f"{self.factor * value:.6g}"
        return decimal(self.factor * value, self.decimals)

    def value(self, value: float) -> str:
        """Write a number with its unit."""
        return f"{self.number(value)} {self.unit}".strip()

    def signed(self, value: float) -> str:
        """Write a difference with its sign and unit."""
        sign = "+" if value > 0 else ""
        unit = "points" if self.unit == "%" else self.unit
        return f"{sign}{self.number(value)} {unit}".strip()

    def interval(self, low: float | None, high: float | None) -> str:
        """Write an interval; empty where none is known."""
        if low is None or high is None:
            return ""
        return f"{self.number(low)} to {self.number(high)}"


def p_text(p: float | None) -> str:
    """Write a p-value for people; empty where there is none."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def day(night: str) -> str:
    """Write a night's date for people: `28 Nov 2026`."""
    then = date.fromisoformat(night)
    return f"{then.day} {then:%b %Y}"


def finite(verdict: SeriesVerdict | None, field: str) -> float | None:
    """Return a number that a chart gave of a night; None where it gave none."""
    value: Any = verdict.chart.get(field) if verdict else None
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def reference_of(verdict: SeriesVerdict | None) -> tuple[float, float] | None:
    """Return the values that a night could have without being suspected."""
    low, high = finite(verdict, "reference_low"), finite(verdict, "reference_high")
    return (low, high) if low is not None and high is not None else None


def measured(nights: Sequence[PageNight]) -> Iterator[tuple[int, PageNight, NightRecord]]:
    """Yield the nights that have numbers, with their places."""
    for slot, night in enumerate(nights):
        if night.record is not None:
            yield slot, night, night.record
