"""The state of each night: a pure function of a history's files and the clock.

`missed`: no attempt by the deadline. `failed`: an attempt ended badly, or its lease went stale. Leases count
as live for the allowed clock skew longer than they say, so that no clock ahead of the owner's ends them.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from dualtoken.pipelines.core.receipts import MAX_CLOCK_SKEW
from dualtoken.pipelines.nightly.calendar import Expected, expected_nights
from dualtoken.pipelines.nightly.history import Attempt, NightFiles, Snapshot
from dualtoken.pipelines.nightly.records import SeriesState, VerdictRecord, moment

State = Literal[
    "planned",
    "paused",
    "running",
    "missed",
    "failed",
    "incomplete",
    "incomparable",
    "evaluator-changed",
    "ok",
    "improved",
    "suspected",
    "regressed",
    "drifted",
]
REGRESSED: frozenset[State] = frozenset({"regressed", "drifted"})
ACCEPTABLE: frozenset[State] = frozenset(
    {"regressed", "drifted", "incomplete", "incomparable", "evaluator-changed"}
)
"""Bad states of measured nights, which a person settles by accepting one since as a baseline."""
UNMEASURED: frozenset[State] = frozenset({"missed", "failed"})
"""Bad states of nights without numbers, which a backfill settles."""
AHEAD = timedelta(hours=48)
"""How far ahead nights are planned, so that the next one is there to see."""


class NightState(NamedTuple):
    """What a night is."""

    night: str
    state: State
    starts: datetime | None
    """None for a night that no spec expects."""
    deadline: datetime | None
    reason: str
    """One line for people; empty where the state says it all."""
    backfilled: bool
    is_settled: bool
    """Whether a person has acknowledged or accepted what is bad about it."""
    series: Mapping[str, SeriesState]
    """States of the series that were judged."""

    @property
    def is_bad(self) -> bool:
        """Whether a person should look at it."""
        return self.state in UNMEASURED or (self.state in ACCEPTABLE and not self.is_settled)


def night_states(snapshot: Snapshot, now: datetime, ruleset: str) -> list[NightState]:
    """Return the state of each expected night up to the next one, and of others that have files, in order."""
    expected: dict[str, Expected | None] = {}
    for night in expected_nights(snapshot, now + AHEAD):
        expected[night.night] = night
        if night.starts > now + MAX_CLOCK_SKEW:
            break
    for name, files in snapshot.nights.items():
        if files.night is not None or files.attempts:
            expected.setdefault(name, None)
    return [_state(snapshot, name, expected[name], now, ruleset) for name in sorted(expected)]


def is_live(attempt: Attempt, now: datetime) -> bool:
    """Tell whether an attempt may still be at work: it has not failed, and its lease has not gone stale."""
    if attempt.failed is not None:
        return False
    lease = timedelta(hours=attempt.started.lease_hours)
    return now <= moment(attempt.started.started_at) + lease + MAX_CLOCK_SKEW


def live_attempt(files: NightFiles, now: datetime) -> Attempt | None:
    """Return the attempt at a night that may still be at work."""
    for attempt in files.own_attempts().values():
        if is_live(attempt, now):
            return attempt
    return None


def is_paused(snapshot: Snapshot, night: str) -> str | None:
    """Return why a night is paused, or None."""
    for pause in snapshot.pauses:
        if pause.first.isoformat() <= night <= pause.last.isoformat():
            return f"{pause.reason} ({pause.who})"
    return None


def _state(
    snapshot: Snapshot, name: str, expected: Expected | None, now: datetime, ruleset: str
) -> NightState:
    files = snapshot.files(name)
    verdict = files.verdict(ruleset)
    state: State
    if files.night is not None and verdict is not None:
        state, reason = verdict.state, verdict.reason
    else:
        state, reason = _unjudged(snapshot, name, files, expected, now)
    return NightState(
        night=name,
        state=state,
        starts=expected.starts if expected else None,
        deadline=expected.deadline if expected else None,
        reason=reason,
        backfilled=files.night is not None and files.night.backfilled,
        is_settled=verdict is not None and _is_settled(snapshot, verdict),
        series={series: found.state for series, found in verdict.series.items()} if verdict else {},
    )


def _unjudged(
    snapshot: Snapshot, name: str, files: NightFiles, expected: Expected | None, now: datetime
) -> tuple[State, str]:
    live = live_attempt(files, now)
    if live is not None:
        return "running", f"since {live.started.started_at} ({live.started.where})"
    if files.night is not None:
        return "incomplete", "it was measured, but not judged: the next run does that"
    failed = [attempt for attempt in files.own_attempts().values() if not attempt.started.backfilled]
    if failed:
        return "failed", failure(failed[-1])
    paused = is_paused(snapshot, name)
    if paused is not None:
        return "paused", paused
    if expected is None or now > expected.deadline:
        when = "" if expected is None else f" by {expected.deadline.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        return "missed", f"nobody began it{when}"
    return "planned", ""


def failure(attempt: Attempt) -> str:
    """Say how an attempt failed."""
    if attempt.failed is not None:
        return attempt.failed.reason
    return f"{attempt.started.where} began it at {attempt.started.started_at}, and its lease went stale"


def _is_settled(snapshot: Snapshot, verdict: VerdictRecord) -> bool:
    if verdict.state in ACCEPTABLE and any(
        baseline.night >= verdict.night for _, baseline in snapshot.baselines
    ):
        return True
    if verdict.state not in REGRESSED:
        return False
    return all(is_acknowledged(snapshot, series, verdict.night) for series in bad_series(verdict))


def bad_series(verdict: VerdictRecord) -> list[str]:
    """Return the series of a night that have regressed."""
    return [series for series, found in verdict.series.items() if found.state in REGRESSED]


def is_acknowledged(snapshot: Snapshot, series: str, night: str) -> bool:
    """Tell whether a person knows what a series came to by a night."""
    return any(ack.series == series and ack.night >= night for ack in snapshot.acks)


def standing(states: Sequence[NightState]) -> NightState | None:
    """Return the newest night that was judged, backfilled ones aside: what the model is now."""
    for state in reversed(states):
        if state.series and not state.backfilled:
            return state
    return None
