"""What people are told of: one event at the onset of something bad, one when it is over.

Events are a pure function of the nights' states. Backfilled nights raise none; a night that was missed and is
measured after all is the end of that.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dualtoken.pipelines.nightly.history import Snapshot
from dualtoken.pipelines.nightly.states import REGRESSED, NightState, State, is_acknowledged

TOLD_NIGHTS = 7
"""Newest nights whose events are still sent: older ones are no news."""
_TOPICS: tuple[State, ...] = ("missed", "failed", "incomplete", "incomparable", "evaluator-changed")
_OPEN: frozenset[State] = frozenset({"planned", "paused", "running"})
"""States of nights that tell nothing yet."""


class Event(NamedTuple):
    """Something to tell."""

    nightly: str
    night: str
    name: str
    """Name among the night's events, such as `regressed-onset`."""
    state: State
    series: tuple[str, ...]
    """Series that it is about."""
    reason: str

    @property
    def key(self) -> str:
        """Mark by which a receiver knows an event that comes twice."""
        return f"{self.nightly}/{self.night}/{self.name}"

    def body(self) -> dict[str, Any]:
        """Return the event as it is sent."""
        return {
            "key": self.key,
            "nightly": self.nightly,
            "night": self.night,
            "event": self.name,
            "state": self.state,
            "series": list(self.series),
            "text": f"{self.nightly}, night {self.night}: {self.reason}",
        }


def events(nightly: str, snapshot: Snapshot, states: Sequence[NightState]) -> list[Event]:
    """Return the events of the newest nights, in order of night."""
    known = [state for state in states if state.state not in _OPEN]
    told = {state.night for state in known[-TOLD_NIGHTS:]}
    found: list[Event] = []
    for topic in _TOPICS:
        found += _topic_events(nightly, snapshot, known, topic)
    found += _regressions(nightly, snapshot, known)
    return sorted(event for event in found if event.night in told)


def _topic_events(
    nightly: str, snapshot: Snapshot, states: Sequence[NightState], topic: State
) -> Iterator[Event]:
    is_standing = False
    onset = f"{topic}-onset"
    for state in states:
        is_measured = snapshot.files(state.night).night is not None
        was_told = any(name.startswith(f"{onset}-") for name in snapshot.files(state.night).alerts)
        if state.state == topic and not state.is_settled and not state.backfilled:
            if not is_standing:
                yield Event(nightly, state.night, onset, topic, (), f"{topic}: {state.reason}")
            is_standing = True
        elif is_measured and state.state != topic and (is_standing or was_told):
            yield Event(
                nightly, state.night, f"{topic}-over", state.state, (), f"no longer {topic}: {state.state}"
            )
            is_standing = False


def _regressions(nightly: str, snapshot: Snapshot, states: Sequence[NightState]) -> Iterator[Event]:
    standing: set[str] = set()
    for state in states:
        if not state.series or state.backfilled:
            continue
        bad = {
            series
            for series, found in state.series.items()
            if found in REGRESSED and not is_acknowledged(snapshot, series, state.night)
        }
        new = tuple(sorted(bad - standing))
        over = tuple(sorted(standing - bad))
        if new and not state.is_settled:
            yield Event(
                nightly, state.night, "regressed-onset", state.state, new, f"regressed: {state.reason}"
            )
        if over:
            reason = f"recovered: {', '.join(over)}"
            yield Event(nightly, state.night, "regressed-over", state.state, over, reason)
        standing = bad
