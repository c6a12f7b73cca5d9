"""What Dagster calls a nightly, and its calendar there: nights are the partitions of an asset."""

from datetime import timedelta
from typing import NamedTuple, Protocol

import dagster as dg

from dualtoken.pipelines.config.cron import Cron
from dualtoken.pipelines.config.nightly import NightlySpec, ScheduleConfig
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.nightly.session import Session

TAG = "dualtoken/nightly"
"""Tag of a nightly's runs; its value is the spec's name."""


class OpenSession(Protocol):
    """Opens the history of a spec."""

    def __call__(self, spec: NightlySpec, print_line: PrintLine, /) -> Session:
        """Return one command's work on it; lines go to `print_line`."""
        ...


class NightlyFace(NamedTuple):
    """A nightly under its names in Dagster."""

    spec: NightlySpec
    open_session: OpenSession

    @property
    def asset(self) -> str:
        """Name of the asset; Dagster's names have neither dots nor dashes."""
        return f"nightly_{self.spec.name.replace('-', '_').replace('.', '_')}"

    @property
    def job(self) -> str:
        """Name of the job that measures and checks one night."""
        return f"{self.asset}_job"

    @property
    def checks_job(self) -> str:
        """Name of the job that checks one night, however it was measured."""
        return f"{self.asset}_checks_job"

    def open(self, print_line: PrintLine) -> Session:
        """Open the history, for one run or one look."""
        return self.open_session(self.spec, print_line)

    def partitions(self) -> dg.DailyPartitionsDefinition:
        """Return the nights."""
        return night_partitions(self.spec.schedule)


def night_partitions(schedule: ScheduleConfig) -> dg.DailyPartitionsDefinition:
    """Return the nights as partitions, each of the local date on which it starts.

    Without `end_offset` the newest partition would be yesterday's, and a tick would fill that one.
    """
    end = schedule.end + timedelta(days=1) if schedule.end is not None else None
    return dg.DailyPartitionsDefinition(
        start_date=schedule.start.isoformat(),
        end_date=end.isoformat() if end is not None else None,
        timezone=schedule.timezone,
        end_offset=1,
        exclusions=_days_off(schedule.line) or None,
    )


def dagster_cron_line(cron: Cron) -> str:
    """Write a cron line in numbers alone, which all schedulers read alike."""
    fields = (
        (cron.minutes, range(60)),
        (cron.hours, range(24)),
        (cron.days, range(1, 32)),
        (cron.months, range(1, 13)),
        (cron.weekdays, range(7)),
    )
    return " ".join(_cron_field(values, every) for values, every in fields)


def _cron_field(values: "tuple[int, ...] | frozenset[int]", every: range) -> str:
    return "*" if len(values) == len(every) else ",".join(str(value) for value in sorted(values))


def _days_off(cron: Cron) -> list[str]:
    """Return cron lines of the days without a night; none where days of month and week are a union."""
    months = set(range(1, 13)) - cron.months
    off = [f"0 0 * {_cron_field(frozenset(months), range(0))} *"] if months else []
    days = set(range(1, 32)) - cron.days
    weekdays = set(range(7)) - cron.weekdays
    if days and weekdays:
        return off
    if days:
        off.append(f"0 0 {_cron_field(frozenset(days), range(0))} * *")
    if weekdays:
        off.append(f"0 0 * * {_cron_field(frozenset(weekdays), range(0))}")
    return off
