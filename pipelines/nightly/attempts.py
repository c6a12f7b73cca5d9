"""Attempts at a night: their start is a lease, put only if absent, so that one run at a time has a night.

An attempt that failed, whose process is gone from this machine, or whose lease went stale, leaves its place
to the next number.
"""

import uuid
from datetime import datetime
from typing import NamedTuple

from dualtoken.pipelines.nightly.contracts import AGAIN, Clock
from dualtoken.pipelines.nightly.history import Attempt, History, NightFiles, night_path
from dualtoken.pipelines.nightly.owners import become_owner
from dualtoken.pipelines.nightly.records import (
    AttemptRecord,
    FailedRecord,
    one_line,
    stamp,
    this_process,
)
from dualtoken.pipelines.nightly.states import is_live


class Claim(NamedTuple):
    """An attempt of this process."""

    night: str
    name: str
    spec: str
    """Hash of the spec in force."""

    def path(self, name: str) -> str:
        """Name a file of the attempt."""
        return night_path(self.night, "attempts", self.name, name)


class Taken(NamedTuple):
    """An attempt of another process that is at work."""

    where: str


def claim(
    history: History,
    night: str,
    files: NightFiles,
    terms: "Terms",
    clock: Clock,
) -> Claim | Taken:
    """Begin an attempt at a night, or say who is at work on it."""
    number = 1
    for name, attempt in files.own_attempts().items():
        if is_live(attempt, clock()) and not attempt.started.is_dead_here():
            return Taken(attempt.started.where)
        bury(history, night, name, attempt, clock())
        number = max(number, int(name) + 1)
    begun = Claim(night, f"{number:04d}", terms.spec)
    return _begin(history, begun, terms, clock())


class Terms(NamedTuple):
    """What an attempt's record says beside its owner."""

    spec: str
    lease_hours: float
    backfilled: bool = False
    confirms: str | None = None


def _begin(history: History, begun: Claim, terms: Terms, now: datetime) -> Claim | Taken:
    record = _started(terms, now)
    owner = become_owner(history, record, begun.path("started.json"))
    return begun if owner.token == record.token else Taken(owner.where)


def _started(terms: Terms, now: datetime) -> AttemptRecord:
    return AttemptRecord(
        started_at=stamp(now),
        token=uuid.uuid4().hex,
        lease_hours=terms.lease_hours,
        spec=terms.spec,
        backfilled=terms.backfilled,
        confirms=terms.confirms,
        **this_process(),
    )


def claim_again(history: History, first: Claim, terms: Terms, now: datetime) -> Claim:
    """Begin the attempt that repeats this process's own; nobody else may."""
    again = Claim(first.night, f"{first.name}{AGAIN}", first.spec)
    history.put(_started(terms._replace(confirms=first.name), now), again.path("started.json"))
    return again


def bury(history: History, night: str, name: str, attempt: Attempt, now: datetime) -> None:
    """Write down that an attempt is over, of which nobody else did."""
    if attempt.failed is not None:
        return
    started = attempt.started
    reason = f"{started.where} began it at {started.started_at}, and ended without a word"
    history.put(
        FailedRecord(reason=reason, failed_at=stamp(now)),
        Claim(night, name, started.spec).path("failed.json"),
    )


def fail(history: History, own: Claim, error: BaseException, now: datetime) -> None:
    """Write down why this process's attempt failed; an error of the store is a note of the first one."""
    try:
        history.put(FailedRecord(reason=one_line(error), failed_at=stamp(now)), own.path("failed.json"))
    except Exception as second:  # noqa: BLE001  (the first error is the one to be raised)
        error.add_note(f"nor could that be written down: {one_line(second)}")
