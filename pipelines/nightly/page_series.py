"""The charts of a nightly's index: of each series its values, its reference, and what people decided."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dualtoken.pipelines.config.nightly import CANARY
from dualtoken.pipelines.nightly.page_calendar import LETTERS
from dualtoken.pipelines.nightly.page_charts import Axis, Flag, NightChart, night_chart, strip
from dualtoken.pipelines.nightly.page_data import (
    Figures,
    PageData,
    PageNight,
    SeriesName,
    day,
    finite,
    measured,
    p_text,
    primary_series,
    reference_of,
)
from dualtoken.pipelines.nightly.page_links import Links, night_page
from dualtoken.pipelines.nightly.page_shapes import Band, Block, Level, NightPoint
from dualtoken.pipelines.nightly.records import BaselineRecord, SeriesDifference, SeriesValue, SeriesVerdict
from dualtoken.pipelines.nightly.states import State
from dualtoken.pipelines.nightly.verdicts import protocol_key

ALARMS: frozenset[State] = frozenset({"regressed", "drifted", "improved"})
"""States of a series whose first night has a flag."""
MARKED: frozenset[State] = frozenset({"regressed", "drifted", "improved", "suspected"})
"""States of a series whose nights have a dot."""
_DIFFERENCE_MARKS = {"better": "improved", "worse": "regressed"}
"""CSS class of the dot of a difference, by what it is."""
_APART: frozenset[State] = frozenset({"evaluator-changed", "incomparable"})
"""States of nights whose numbers no trend has."""


class SeriesFigure(NamedTuple):
    """A series with its chart and its newest value."""

    name: SeriesName
    newest: str
    """Its newest value, with the unit."""
    newest_interval: str
    newest_night: str
    newest_href: str
    state: State | None
    """State of the series on that night, where it was judged."""
    reason: str
    direction: str
    svg: str
    difference: "DifferenceFigure | None"
    """None where the subject is no recipe, or had one checkpoint alone."""
    movement: str | None
    """`better`, `worse` or `unmoved` on that night, for a series that may not alarm."""


class DifferenceFigure(NamedTuple):
    """A series' differences to the checkpoint before, with the newest one."""

    newest: str
    newest_interval: str
    newest_night: str
    before: str
    """Night of the checkpoint that it is to."""
    p: str
    verdict: str
    svg: str


class _Seen(NamedTuple):
    """A value of a series."""

    slot: int
    night: PageNight
    value: SeriesValue
    href: str
    """Address of its evaluation."""


class Charts:
    """Draws the series of a nightly."""

    def __init__(self, data: PageData, links: Links, pages: frozenset[str]) -> None:
        self._data = data
        self._links = links
        self.pages = pages
        self.axis = Axis(tuple(night.name for night in data.begun), tuple(_pauses(data.begun)))
        self._seen: dict[SeriesName, list[_Seen]] = {}
        for slot, night, record in measured(data.begun):
            for subject_name, subject in record.subjects.items():
                card = links.card(subject)
                for series, value in subject.values.items():
                    name = SeriesName(subject_name, series)
                    self._seen.setdefault(name, []).append(_Seen(slot, night, value, card))

    def night_href(self, night: PageNight) -> str | None:
        """Return the address of a night's page; None where it has none."""
        return night_page(night.name) if night.name in self.pages else None

    def shared(self) -> Iterator[tuple[int, str, str]]:
        """Yield the links that charts share for nights without a link of their own."""
        for slot, night in enumerate(self._data.begun):
            href = self.night_href(night)
            if href is not None:
                yield slot, f"{day(night.name)}: {night.state.state}", href

    def primary(self) -> list[SeriesFigure]:
        """Draw the series that may alarm."""
        wanted = [name for name in primary_series(self._data.spec) if name in self._seen]
        return [self._figure(name, is_primary=True) for name in wanted]

    def others(self) -> list[tuple[str, list[SeriesFigure]]]:
        """Draw all other series, by subject; the canary's come last."""
        primary = set(primary_series(self._data.spec))
        subjects: dict[str, list[SeriesFigure]] = {}
        for name in sorted(self._seen.keys() - primary, key=lambda name: (name.subject == CANARY, name)):
            subjects.setdefault(name.subject, []).append(self._figure(name, is_primary=False))
        for found in subjects.values():
            found.sort(key=lambda figure: figure.movement not in ("better", "worse"))  # stable
        return list(subjects.items())

    def canary(self) -> str:
        """Draw the nights in which the canary came out as the same bits, as blocks of one colour."""
        blocks: list[Block] = []
        flags: list[Flag] = []
        before = ""
        for slot, night, record in measured(self._data.begun):
            subject = record.subjects.get(CANARY)
            if subject is None:
                continue
            if before and subject.scores != before:
                title = f"{day(night.name)}: other bits than the night before"
                href = self.night_href(night) or self._links.card(subject)
                flags.append(Flag(slot, "E", "evaluator-changed", title, href))
            if blocks and blocks[-1].last == slot - 1 and blocks[-1].number == len(flags):
                blocks[-1] = blocks[-1]._replace(last=slot)
            else:
                blocks.append(Block(slot, slot, len(flags)))
            before = subject.scores
        days = ", ".join(flag.title.partition(":")[0] for flag in flags)
        label = f"The canary's scores changed on {days}" if days else "The canary's scores are the same bits"
        return strip(self.axis, blocks, flags, label)

    def _figure(self, name: SeriesName, *, is_primary: bool) -> SeriesFigure:
        seen = self._seen[name]
        newest = seen[-1]
        figures = Figures.of(newest.value)
        verdict = newest.night.judged(name.full)
        chart = NightChart(
            label=f"{name.title} of {name.subject}, {name.pair}: {_course(seen, figures)}",
            axis=self.axis,
            points=[self._point(name, one, figures) for one in seen],
            least_range=4 * newest.value.margin * figures.factor,
            bands=list(_bands(name, seen, figures)),
            levels=_levels(name, seen, figures, self._data.slots),
            baselines=list(self._baselines(name, seen, figures)) if is_primary else (),
            flags=[*self._alarms(name, seen), *self._decisions(name)] if is_primary else (),
            has_links=is_primary,
        )
        return SeriesFigure(
            name=name,
            newest=figures.value(newest.value.value),
            newest_interval=figures.interval(newest.value.low, newest.value.high),
            newest_night=newest.night.name,
            newest_href=newest.href,
            state=_shown_state(verdict),
            reason=verdict.reason if verdict else "",
            direction=newest.value.direction,
            svg=night_chart(chart),
            difference=self._difference(name, seen, figures) if is_primary else None,
            movement=None if is_primary else newest.night.movement(name),
        )

    def _difference(
        self, name: SeriesName, seen: Sequence[_Seen], figures: Figures
    ) -> DifferenceFigure | None:
        """Draw the differences to the checkpoints before, below the same nights."""
        found: list[tuple[_Seen, SeriesDifference]] = []
        for one in seen:
            difference = one.night.difference(name)
            if difference is not None:
                found.append((one, difference))
        if not found:
            return None
        last, newest = found[-1]
        before = last.night.before(name.subject)
        margin = newest.margin * figures.factor
        bands = [Band(slot, -margin, margin) for slot in range(self.axis.num_slots)]
        course = f"{figures.signed(newest.value)} on {day(last.night.name)}"
        chart = NightChart(
            label=f"{name.title} of {name.subject}, differences to the checkpoint before: {course}",
            axis=self.axis,
            points=[self._difference_point(name, *pair, figures) for pair in found],
            least_range=4 * margin,
            bands=bands,
            levels=[Level(0, self.axis.num_slots - 1, 0.0)],
            has_links=True,
        )
        return DifferenceFigure(
            newest=figures.signed(newest.value),
            newest_interval=figures.interval(newest.low, newest.high),
            newest_night=last.night.name,
            before=before,
            p=p_text(newest.p),
            verdict=newest.verdict,
            svg=night_chart(chart),
        )

    def _difference_point(
        self, name: SeriesName, one: _Seen, difference: SeriesDifference, figures: Figures
    ) -> NightPoint:
        interval = figures.interval(difference.low, difference.high)
        title = f"{day(one.night.name)}: {figures.signed(difference.value)}"
        if interval:
            title += f" ({interval})"
        title += f" to the checkpoint of {day(one.night.before(name.subject))}, {difference.verdict}"
        return NightPoint(
            slot=one.slot,
            value=difference.value * figures.factor,
            low=None if difference.low is None else difference.low * figures.factor,
            high=None if difference.high is None else difference.high * figures.factor,
            mark=_DIFFERENCE_MARKS.get(difference.verdict, "undecided"),
            joins=False,
            title=title,
            href=self.night_href(one.night) or one.href,
        )

    def _point(self, name: SeriesName, one: _Seen, figures: Figures) -> NightPoint:
        state = one.night.state.series.get(name.full)
        is_apart = one.night.state.state in _APART
        mark = "apart" if is_apart else ""
        if state in MARKED:
            mark = state
        value = one.value
        interval = figures.interval(value.low, value.high)
        title = f"{day(one.night.name)}: {figures.value(value.value)}"
        if interval:
            title += f" ({interval})"
        if mark:
            title += f", {one.night.state.state if is_apart else mark}"
        return NightPoint(
            slot=one.slot,
            value=value.value * figures.factor,
            low=None if value.low is None else value.low * figures.factor,
            high=None if value.high is None else value.high * figures.factor,
            mark=mark,
            joins=not is_apart,
            title=title,
            href=self.night_href(one.night) or one.href,
        )

    def _alarms(self, name: SeriesName, seen: Sequence[_Seen]) -> Iterator[Flag]:
        """Yield a flag for each night on which a series began to alarm."""
        before: State | None = None
        for one in seen:
            state = one.night.state.series.get(name.full)
            if state != before and state in ALARMS:
                verdict = one.night.judged(name.full)
                title = f"{day(one.night.name)}, {state}: {verdict.reason if verdict else ''}"
                yield Flag(one.slot, LETTERS[state], state, title, self.night_href(one.night) or one.href)
            before = state if state != "too_few" else None

    def _decisions(self, name: SeriesName) -> Iterator[Flag]:
        """Yield a flag for each acknowledgement of a series, and for each baseline."""
        for ack in self._data.snapshot.acks:
            slot = self._data.slots.get(ack.night)
            if ack.series == name.full and slot is not None:
                title = f"{day(ack.night)}, acknowledged by {ack.who}: {ack.reason}"
                yield Flag(slot, "A", "ack", title, "#decisions")
        for number, baseline in self._data.snapshot.baselines:
            slot = self._data.slots.get(baseline.night)
            if slot is not None:
                title = f"{day(baseline.night)}, baseline {number} by {baseline.who}: {baseline.reason}"
                yield Flag(slot, "B", "pinned", title, "#decisions")

    def _baselines(self, name: SeriesName, seen: Sequence[_Seen], figures: Figures) -> Iterator[Level]:
        """Yield each baseline's value from its night on, until the next one or another protocol."""
        pinned = [baseline for _, baseline in self._data.snapshot.baselines]
        for number, baseline in enumerate(pinned):
            value = self._pinned(name, baseline)
            until = pinned[number + 1].night if number + 1 < len(pinned) else "9999"
            nights = [one.slot for one in seen if value and baseline.night <= one.night.name < until]
            same = [one.slot for one in seen if value and protocol_key(one.value) == protocol_key(value)]
            within = sorted(set(nights) & set(same))
            if value is not None and within:
                yield Level(within[0], within[-1], value.value * figures.factor)

    def _pinned(self, name: SeriesName, baseline: BaselineRecord) -> SeriesValue | None:
        night = self._data.snapshot.files(baseline.night).night
        subject = night.subjects.get(name.subject) if night else None
        return subject.values.get(name.series) if subject else None


def _pauses(nights: Sequence[PageNight]) -> Iterator[tuple[int, int]]:
    first: int | None = None
    for slot, night in enumerate(nights):
        is_paused = night.state.state == "paused"
        if is_paused and first is None:
            first = slot
        if not is_paused and first is not None:
            yield first, slot - 1
            first = None
    if first is not None:
        yield first, len(nights) - 1


def _shown_state(verdict: SeriesVerdict | None) -> State | None:
    if verdict is None or verdict.state == "too_few":
        return None
    return verdict.state


def _course(seen: Sequence[_Seen], figures: Figures) -> str:
    """Write where a series begins and ends."""
    first, last = seen[0], seen[-1]
    text = f"{figures.value(last.value.value)} on {day(last.night.name)}"
    if first is last:
        return text
    return f"from {figures.value(first.value.value)} on {day(first.night.name)} to {text}"


def _bands(name: SeriesName, seen: Sequence[_Seen], figures: Figures) -> Iterator[Band]:
    for one in seen:
        verdict = one.night.judged(name.full)
        reference = reference_of(verdict)
        if verdict is not None and reference is not None:
            low, high = reference
            segment = str(verdict.chart.get("segment", ""))
            yield Band(one.slot, low * figures.factor, high * figures.factor, segment)


def _levels(name: SeriesName, seen: Sequence[_Seen], figures: Figures, slots: dict[str, int]) -> list[Level]:
    """Return the level of each segment, which is the middle of its newest reference.

    A segment that an acknowledgement began reaches back to the step, and the one before it ends there.
    """
    found: dict[str, Level] = {}
    for one in seen:
        verdict = one.night.judged(name.full)
        low, high = finite(verdict, "reference_low"), finite(verdict, "reference_high")
        segment = verdict.chart.get("segment") if verdict else None
        if low is None or high is None or not isinstance(segment, str):
            continue
        first = found[segment].first if segment in found else slots.get(segment, 0)
        found[segment] = Level(first, one.slot, figures.factor * (low + high) / 2)
    levels = list(found.values())
    for number, following in enumerate(levels[1:]):
        level = levels[number]
        levels[number] = level._replace(last=max(level.first, min(level.last, following.first - 1)))
    return levels
