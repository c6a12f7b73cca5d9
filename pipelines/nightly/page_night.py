"""The page of one night: its attempts, its numbers with what they were judged by, and what changed."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from dualtoken.infra.redaction import redacted
from dualtoken.pipelines.config.nightly import CANARY
from dualtoken.pipelines.nightly.history import Attempt
from dualtoken.pipelines.nightly.page_changes import ChangeReader, Changes
from dualtoken.pipelines.nightly.page_data import (
    Figures,
    PageData,
    PageNight,
    SeriesName,
    finite,
    primary_series,
    reference_of,
)
from dualtoken.pipelines.nightly.page_links import Links
from dualtoken.pipelines.nightly.records import MeasuredSubject, NightRecord, SeriesValue, moment
from dualtoken.pipelines.nightly.states import State, failure, is_live


class AttemptRow(NamedTuple):
    """An attempt at the night."""

    name: str
    began: datetime
    where: str
    end: str


class SeriesRow(NamedTuple):
    """A number of the night."""

    title: str
    series: str
    value: str
    interval: str
    num: int
    reference: str
    residual: str
    state: State | None
    reason: str
    is_primary: bool


class PairTable(NamedTuple):
    """The numbers of a set by a protocol."""

    pair: str
    scores: str
    """Address of the score tables."""
    set_hash: str
    protocol_hash: str
    rows: list[SeriesRow]


class SubjectPart(NamedTuple):
    """A subject of the night."""

    name: str
    subject: MeasuredSubject
    place: str
    """Where its model is, for people."""
    card: str
    model: str | None
    recipe: str | None
    tables: list[PairTable]


class NightPage(NamedTuple):
    """All that the page of a night shows."""

    night: PageNight
    attempts: list[AttemptRow]
    subjects: list[SubjectPart]
    before: str | None
    """The measured night before it."""
    changes: Changes | None


class NightPages:
    """Makes the pages of nights."""

    def __init__(self, data: PageData, links: Links) -> None:
        self._data = data
        self._links = links
        self._changes = ChangeReader()
        self._primary = frozenset(primary_series(data.spec))

    def page(self, night: PageNight, before: NightRecord | None) -> NightPage:
        """Return what a night's page shows; `before` is the measured night before it."""
        record = night.record
        subjects: list[SubjectPart] = []
        if record is not None:
            names = sorted(record.subjects, key=lambda name: (name == CANARY, name))
            subjects = [self._subject(night, name, record.subjects[name]) for name in names]
        attempts = [self._attempt(night, name, found) for name, found in night.files.attempts.items()]
        changes = self._changes.between(before, record) if before is not None and record is not None else None
        return NightPage(
            night=night,
            attempts=sorted(attempts, key=lambda row: (row.began, row.name)),
            subjects=subjects,
            before=before.night if before else None,
            changes=changes,
        )

    def _attempt(self, night: PageNight, name: str, attempt: Attempt) -> AttemptRow:
        started = attempt.started
        if night.record is not None and night.record.attempt == name:
            end = f"gave the night's numbers, {night.record.finished_at[:16].replace('T', ' ')} UTC"
        elif attempt.failed is not None or (
            started.confirms is None and not is_live(attempt, self._data.made_at)
        ):
            end = f"failed: {failure(attempt)}"
        elif started.confirms is not None:
            end = f"measured {started.confirms} once more"
        elif night.record is not None:
            end = "another attempt was complete first"
        else:
            end = "under way"
        if started.backfilled:
            end += ", backfilled"
        return AttemptRow(name, moment(started.started_at), started.where, end)

    def _subject(self, night: PageNight, name: str, subject: MeasuredSubject) -> SubjectPart:
        pairs: dict[str, list[tuple[SeriesName, SeriesValue]]] = {}
        for series, value in subject.values.items():
            own = SeriesName(name, series)
            pairs.setdefault(own.pair, []).append((own, value))
        return SubjectPart(
            name=name,
            subject=subject,
            place=redacted(subject.place) if subject.place is not None else "made by the evaluator",
            card=self._links.card(subject),
            model=self._links.model(subject),
            recipe=self._links.recipe(subject),
            tables=[self._table(night, subject, pair, values) for pair, values in sorted(pairs.items())],
        )

    def _table(
        self,
        night: PageNight,
        subject: MeasuredSubject,
        pair: str,
        values: Sequence[tuple[SeriesName, SeriesValue]],
    ) -> PairTable:
        rows = sorted(self._rows(night, values), key=lambda row: not row.is_primary)
        _, first = values[0]
        return PairTable(
            pair=pair,
            scores=self._links.scores(subject, pair),
            set_hash=first.set_hash,
            protocol_hash=first.protocol_hash,
            rows=rows,
        )

    def _rows(
        self, night: PageNight, values: Sequence[tuple[SeriesName, SeriesValue]]
    ) -> Iterator[SeriesRow]:
        for name, value in values:
            figures = Figures.of(value)
            verdict = night.judged(name.full)
            reference = reference_of(verdict)
            residual = finite(verdict, "residual")
            yield SeriesRow(
                title=name.title,
                series=name.series.rpartition("/")[2],
                value=figures.value(value.value),
                interval=figures.interval(value.low, value.high),
                num=value.n,
                reference=figures.interval(*reference) if reference else "",
                residual="" if residual is None else f"{residual:+.2f}".replace("-", "\u2212"),
                state=verdict.state if verdict and verdict.state != "too_few" else None,
                reason=verdict.reason if verdict else "",
                is_primary=name in self._primary,
            )
