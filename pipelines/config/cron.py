"""Cron lines, evaluated exactly: minute, hour, day of month, month and day of week, in a time zone.

A line has numbers, ranges, lists, steps and English names. What cron, Kubernetes and Dagster read in
different ways is refused. A local time that a clock change skips stands for the first instant after the gap;
one that comes twice stands for its first occurrence.
"""

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_ITEM = re.compile(r"(?:\*|(?P<low>\w+)(?:-(?P<high>\w+))?)(?:/(?P<step>\d+))?")


class _Field(NamedTuple):
    """One of the five fields."""

    name: str
    low: int
    high: int
    names: dict[str, int]


_FIELDS = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day of month", 1, 31, {}),
    _Field("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    _Field("day of week", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)}),
)
_SUNDAY = 7
"""Sunday's other number, beside 0."""


class Cron(NamedTuple):
    """A cron line that fires at some time."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """Days of the week, Sunday as 0."""

    def is_on(self, day: date) -> bool:
        """Tell whether the line fires on a local date. Days of month and of week, both given, are a union."""
        if day.month not in self.months:
            return False
        by_day = day.day in self.days
        by_weekday = day.isoweekday() % 7 in self.weekdays
        if len(self.days) < 31 and len(self.weekdays) < 7:
            return by_day or by_weekday
        return by_day and by_weekday

    def fires(self, first: date, last: date, zone: ZoneInfo) -> Iterator[datetime]:
        """Yield the instants of local dates, in order, each once, as times of the zone."""
        before: datetime | None = None
        day = first
        while day <= last:
            if self.is_on(day):
                for hour in self.hours:
                    for minute in self.minutes:
                        instant = first_instant(datetime.combine(day, time(hour, minute)), zone)
                        if before is None or instant > before:
                            yield instant.astimezone(zone)
                            before = instant
            day += timedelta(days=1)

    def first_fires(self, first: date, last: date, zone: ZoneInfo) -> Iterator[datetime]:
        """Yield the first instant of each local date on which the line fires."""
        time_of_day = time(self.hours[0], self.minutes[0])
        before: datetime | None = None
        day = first
        while day <= last:
            if self.is_on(day):
                local = first_instant(datetime.combine(day, time_of_day), zone).astimezone(zone)
                if before is None or local.date() > before.date():
                    yield local
                    before = local
            day += timedelta(days=1)


def first_instant(local: datetime, zone: ZoneInfo) -> datetime:
    """Return the instant, in UTC, of a local time without a zone; after a gap where there is no such time."""
    instant = local.replace(tzinfo=zone).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == local:
        return instant
    # Before and after a gap clocks differ, so that the two readings of the time lie on both sides of it.
    before = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    offset_before = before.astimezone(zone).utcoffset()
    after = instant
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=(after - before) // timedelta(seconds=1) // 2)
        if middle.astimezone(zone).utcoffset() == offset_before:
            before = middle
        else:
            after = middle
    return after


def parse_cron(line: str) -> Cron:
    """Read a cron line; raises ValueError, one sentence, for what is none or never fires."""
    parts = line.lower().split()
    if len(parts) != len(_FIELDS):
        raise ValueError(f"{line!r} has {len(parts)} fields: give minute, hour, day, month and day of week")
    values = [_parse_field(field, text) for field, text in zip(_FIELDS, parts, strict=True)]
    minutes, hours, days, months, weekdays = values
    cron = Cron(
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=frozenset(days),
        months=frozenset(months),
        weekdays=frozenset(day % _SUNDAY for day in weekdays),
    )
    _check_days(line, parts, cron)
    return cron


def _check_days(line: str, parts: list[str], cron: Cron) -> None:
    is_union = len(cron.days) < 31 and len(cron.weekdays) < 7
    both_given = parts[2] != "*" and parts[4] != "*"
    if both_given and (not is_union or parts[2].startswith("*") or parts[4].startswith("*")):
        raise ValueError(
            f"{line!r} has days of the month and of the week, and all days or a step of * for one of them, "
            "which schedulers read in different ways: write * for one, or list the days"
        )
    longest = max(_LONGEST_MONTHS[month - 1] for month in cron.months)
    if not is_union and min(cron.days) > longest:
        raise ValueError(f"{line!r} never fires: no such month has a day {min(cron.days)}")


def _parse_field(field: _Field, text: str) -> set[int]:
    values: set[int] = set()
    for item in text.split(","):
        values.update(_parse_item(field, item))
    return values


def _parse_item(field: _Field, item: str) -> range:
    found = _ITEM.fullmatch(item)
    if found is None:
        raise ValueError(f"{item!r} is no {field.name}: use numbers, ranges, lists, steps and names")
    step = int(found["step"] or 1)
    if step < 1:
        raise ValueError(f"{item!r}: set the step of the {field.name} above 0")
    if found["low"] is None:
        return range(field.low, field.high + 1, step) if field.high != _SUNDAY else range(0, 7, step)
    low = _number(field, found["low"])
    if found["high"] is None:
        if found["step"]:
            raise ValueError(f"{item!r}: write the range, as {low}-{field.high}/{step}")
        return range(low, low + 1)
    high = _number(field, found["high"])
    if high == 0 and found["high"] in field.names:
        high = _SUNDAY  # as in sat-sun
    if low >= high:
        raise ValueError(f"{item!r}: a range goes up: write two, such as {low}-{field.high},{field.low}-...")
    return range(low, high + 1, step)


def _number(field: _Field, text: str) -> int:
    number = field.names.get(text)
    if number is None:
        if not (text.isascii() and text.isdecimal()):
            raise ValueError(f"{text!r} is no {field.name}: use {field.low} to {field.high}")
        number = int(text)
    if not field.low <= number <= field.high:
        raise ValueError(f"{text} is no {field.name}: use {field.low} to {field.high}")
    return number
