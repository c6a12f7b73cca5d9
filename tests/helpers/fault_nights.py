"""Nights of a folder's model, measured for real in this process, before and with a planted fault."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.evaluation.summary import EvaluationSummary
from dualtoken.pipelines.nightly import measure
from dualtoken.pipelines.nightly.contracts import Nightly, SubjectRequest
from dualtoken.pipelines.nightly.history import History
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.states import NightState, night_states
from dualtoken.pipelines.nightly.wiring import open_chart, require_measurable

Patch = Callable[[pytest.MonkeyPatch], None]
FIRST = datetime(2026, 11, 1, 3, tzinfo=UTC)
SECOND = datetime(2026, 11, 2, 3, tzinfo=UTC)


class FaultNights:
    """Two nights of a folder's model, on the set `s` by the protocol `p`."""

    def __init__(self, folder: Path, model: Path, primary: str) -> None:
        self.folder = folder
        self.model = model
        self._primary = primary

    def write(self, sets: object, protocols: object) -> None:
        """Write the evaluation file."""
        values = {"name": "faults", "in_process": True, "sets": sets, "protocols": protocols}
        (self.folder / "evaluation.yaml").write_text(json.dumps(values))

    def _session(self, now: datetime) -> Session:
        spec = NightlySpec.model_validate(
            {
                "name": "faults",
                "root": str(self.folder / "history"),
                "schedule": {"cron": "0 2 * * *", "timezone": "UTC", "start": "2026-11-01"},
                "subjects": {"model": {"kind": "folder", "folder": str(self.model)}},
                "evaluation": str(self.folder / "evaluation.yaml"),
                "sets": ["s"],
                "protocols": ["p"],
                "primary": [self._primary],
            }
        )
        nightly = Nightly(_measure_here, open_chart({}), lambda: now, lambda _: None, require_measurable)
        return Session(spec, nightly, History(spec.root, spec.name))

    def run(self, now: datetime) -> NightState:
        """Run the night of a moment, and return what it is."""
        session = self._session(now)
        run_night(session)
        return self._state(session, now)

    def state(self, now: datetime) -> NightState:
        """Return what the night of a moment is."""
        return self._state(self._session(now), now)

    def _state(self, session: Session, now: datetime) -> NightState:
        version = session.nightly.chart.version
        states = {state.night: state for state in night_states(session.read(), now, version)}
        return states[f"{now:%Y-%m-%d}"]


def _measure_here(subject: SubjectRequest, folder: Store, night: str, attempt: str) -> EvaluationSummary:
    """Measure in this process, the second time too: the same fault is in every worker."""
    return measure._measure(subject, folder.url, f"{night} {attempt}")


def changed(target: Any, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Patch:
    """Return a patch that puts a changed function in the place of one of ours."""
    return lambda patch: patch.setattr(target, name, change(getattr(target, name)))
