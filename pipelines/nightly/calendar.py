"""The nights that are expected: by cron line, time zone and first date of the specs in force."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from dualtoken.pipelines.config.nightly import ScheduleConfig
from dualtoken.pipelines.core.receipts import MAX_CLOCK_SKEW
from dualtoken.pipelines.nightly.history import Snapshot
from dualtoken.pipelines.nightly.records import moment


class Expected(NamedTuple):
    """A night that is expected, pauses aside."""

    night: str
    """Local date on which it starts."""
    starts: datetime
    deadline: datetime
    """Moment at which it is missed unless it was begun."""

    @property
    def closes(self) -> datetime:
        """Return the last moment at which a run may begin it, by the run's own clock.

        That is before the deadline, so that no machine whose clock is ahead calls the night missed first.
        """
        return self.deadline - min(MAX_CLOCK_SKEW, (self.deadline - self.starts) / 2)


def expected_nights(snapshot: Snapshot, until: datetime) -> list[Expected]:
    """Return the nights that start by `until`, in order.

    A new spec takes over the date on which it came into force, unless a night of that date had started, or it
    would have come too late for it.
    """
    found: dict[str, Expected] = {}
    for place, (_, record) in enumerate(snapshot.specs):
        since = moment(record.since) if place else datetime.min.replace(tzinfo=UTC)
        before = until
        if place + 1 < len(snapshot.specs):
            before = min(until, moment(snapshot.specs[place + 1][1].since))
        for night in _nights(record.schedule, since, before):
            if night.deadline > since and night.starts <= before:
                found.setdefault(night.night, night)
    return sorted(found.values())


def _nights(schedule: ScheduleConfig, since: datetime, until: datetime) -> list[Expected]:
    zone = schedule.zone
    first = schedule.start
    if since.year > 1:
        first = max(first, since.astimezone(zone).date())
    last = (until + timedelta(days=1)).astimezone(zone).date()
    if schedule.end is not None:
        last = min(last, schedule.end)
    allowed = timedelta(hours=schedule.deadline_hours)
    nights: list[Expected] = []
    for local in schedule.line.first_fires(first, last, zone):
        starts = local.astimezone(UTC)
        nights.append(Expected(local.date().isoformat(), starts, starts + allowed))
    return nights


def night_at(nights: Sequence[Expected], now: datetime) -> Expected | None:
    """Return the night that a run at this moment is for: the newest that has started.

    The clock of the machine that calls the run may be ahead of this one's.
    """
    started = [night for night in nights if night.starts <= now + MAX_CLOCK_SKEW]
    return started[-1] if started else None
