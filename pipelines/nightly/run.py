"""`nightly run`: one night, from its lease to its alerts. Killed anywhere, the next run goes on."""

from collections.abc import Sequence

from dualtoken.pipelines.errors import ExitCode, UserError
from dualtoken.pipelines.nightly.calendar import Expected, expected_nights, night_at
from dualtoken.pipelines.nightly.history import NightFiles, Snapshot
from dualtoken.pipelines.nightly.night import begin, find_subjects_or_fail, judge, measure_night
from dualtoken.pipelines.nightly.ping import is_finished, ping
from dualtoken.pipelines.nightly.session import Session, close
from dualtoken.pipelines.nightly.states import AHEAD, REGRESSED, NightState, is_paused


def run_night(session: Session, night: str | None = None) -> ExitCode:
    """Measure and judge the night that has started, or the one named, and tell who is to know.

    Nights before it that were measured and not judged are judged first.
    """
    snapshot = session.open()
    expected = _wanted(session, snapshot, night)
    try:
        for name, files in snapshot.nights.items():
            if files.night is not None and files.verdict(session.nightly.chart.version) is None:
                _finish(session, name, files)
                snapshot = session.read()
        if expected is not None:
            _begin(session, snapshot, expected)
    except Exception:
        close(session)
        raise
    states = close(session)
    if expected is not None and is_finished(states, expected.night):
        ping(session, expected.night)
    return _exit_code(session, expected, states)


def _wanted(session: Session, snapshot: Snapshot, night: str | None) -> Expected | None:
    nights = expected_nights(snapshot, session.now() + AHEAD)
    if night is None:
        found = night_at(nights, session.now())
        if found is None:
            first = (
                f"the first is {nights[0].night}" if nights else f"they start {session.spec.schedule.start}"
            )
            session.say(f"no night has started yet: {first}")
        return found
    for expected in nights:
        if expected.night == night and expected == night_at([expected], session.now()):
            return expected
    raise UserError(f"{night} is no night of {session.spec.name} that has started: see `nightly history`")


def _begin(session: Session, snapshot: Snapshot, expected: Expected) -> None:
    """Measure a night unless that is done, somebody is at it, or it is too late."""
    night = expected.night
    files = snapshot.files(night)
    if files.night is not None:
        return
    paused = is_paused(snapshot, night)
    if paused is not None:
        session.say(f"{night}: paused, {paused}")
        return
    if session.now() > expected.closes:
        closed = f"{expected.closes:%Y-%m-%d %H:%M} UTC"
        session.say(
            f"{night}: could be begun until {closed}; measure it by `nightly backfill --from {night}`"
        )
        return
    session.nightly.require_measurable(session.spec)
    own = begin(session, snapshot, night, files, backfilled=False)
    if own is not None:
        record = measure_night(session, own, find_subjects_or_fail(session, own))
        judge(session, own, record)


def _finish(session: Session, night: str, files: NightFiles) -> None:
    """Judge a night whose run ended before it did."""
    assert files.night is not None
    snapshot = session.read()
    own = begin(session, snapshot, night, snapshot.files(night), backfilled=files.night.backfilled)
    if own is not None:
        judge(session, own, files.night)


def _exit_code(session: Session, expected: Expected | None, states: Sequence[NightState]) -> ExitCode:
    """Return what a run ends with: the state of its night."""
    if expected is None:
        return ExitCode.DONE
    for state in states:
        if state.night == expected.night and not state.is_settled:
            if state.state in REGRESSED:
                return ExitCode.REGRESSED
            if state.state == "missed" or (state.state == "planned" and session.now() > expected.closes):
                return ExitCode.MISSED
            return ExitCode.BUG if state.is_bad else ExitCode.DONE
    return ExitCode.DONE
