"""What Dagster shows of a night: its numbers, and three checks of its state.

Checks never block, and a night that has regressed is no failed run: Dagster's failures are nights without
numbers. What has no numbers passes no check.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

import dagster as dg

from dualtoken.infra.redaction import redacted
from dualtoken.pipelines.nightly.history import NightFiles, Snapshot
from dualtoken.pipelines.nightly.records import NightRecord
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.states import REGRESSED, UNMEASURED, NightState, State, night_states
from dualtoken.pipelines.workflow.metadata import Metadata

CheckName = Literal["ran", "comparable", "not_regressed"]
CHECKS: dict[CheckName, str] = {
    "ran": "The night was measured.",
    "comparable": "The night is whole, and its numbers compare with those of other nights.",
    "not_regressed": "No primary series is worse than chance and margin explain.",
}
"""The checks of each night, with what they say."""
OPEN: frozenset[State] = frozenset({"planned", "paused", "running"})
"""States of nights of which nothing can be said yet."""
_NOT_COMPARABLE: frozenset[State] = frozenset({"incomplete", "incomparable", "evaluator-changed"})


class CheckedNight(NamedTuple):
    """Whether a night passes a check."""

    name: CheckName
    passed: bool
    severity: dg.AssetCheckSeverity
    """A warning where the check itself could not be made."""
    description: str
    metadata: Metadata


def states_of(session: Session, snapshot: Snapshot) -> list[NightState]:
    """Return the states of all nights."""
    return night_states(snapshot, session.now(), session.nightly.chart.version)


def find_state(states: Sequence[NightState], night: str) -> NightState | None:
    """Return the state of a night, or None where no spec expects it."""
    for state in states:
        if state.night == night:
            return state
    return None


def checked_night(state: NightState) -> Iterator[CheckedNight]:
    """Yield the three checks of a night that is over."""
    ran = state.state not in UNMEASURED
    comparable = ran and (state.state not in _NOT_COMPARABLE or state.is_settled)
    passed: dict[CheckName, bool] = {
        "ran": ran,
        "comparable": comparable,
        "not_regressed": comparable and (state.state not in REGRESSED or state.is_settled),
    }
    made: dict[CheckName, bool] = {"ran": True, "comparable": ran, "not_regressed": comparable}
    for name, is_passed in passed.items():
        severity = dg.AssetCheckSeverity.ERROR if made[name] else dg.AssetCheckSeverity.WARN
        yield CheckedNight(name, is_passed, severity, _sentence(state), state_metadata(state))


def state_metadata(state: NightState) -> Metadata:
    """Return a night's state, why it is what it is, and the series that are not as they were."""
    metadata: Metadata = {
        "state": dg.MetadataValue.text(state.state),
        "reason": dg.MetadataValue.text(redacted(state.reason) or state.state),
        "backfilled": dg.MetadataValue.bool(state.backfilled),
        "settled": dg.MetadataValue.bool(state.is_settled),
    }
    for series, found in state.series.items():
        if found not in ("ok", "too_few"):
            metadata[series] = dg.MetadataValue.text(found)
    return metadata


def night_metadata(session: Session, state: NightState, files: NightFiles) -> Metadata:
    """Return what a measured night shows: its state, and its primary values as numbers, which are plotted."""
    night = files.night
    assert night is not None, state.night
    finished_at = datetime.fromisoformat(night.finished_at)
    metadata: Metadata = {
        "state": dg.MetadataValue.text(state.state),
        "reason": dg.MetadataValue.text(redacted(state.reason) or state.state),
        "backfilled": dg.MetadataValue.bool(night.backfilled),
        "attempt": dg.MetadataValue.text(night.attempt),
        "finished_at": dg.MetadataValue.timestamp(finished_at),
        "history": dg.MetadataValue.path(redacted(session.history.store.url)),
    }
    for subject in session.spec.subjects:
        measured = night.subjects.get(subject)
        for series in session.spec.primary:
            value = measured.values.get(series) if measured else None
            if value is not None:
                metadata[f"{subject}/{series}"] = dg.MetadataValue.float(value.value)
    return metadata


def data_version(night: NightRecord) -> str:
    """Return a version of a night's numbers."""
    return "-".join(sorted(subject.scores[:12] for subject in night.subjects.values()))


def _sentence(state: NightState) -> str:
    reason = f", {redacted(state.reason)}" if state.reason else ""
    return f"{state.night}: {state.state}{reason}"
