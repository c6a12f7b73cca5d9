"""`nightly backfill`: measures missed and failed nights, with the model of then and the code of today."""

from dualtoken.pipelines.errors import ExitCode, UserError
from dualtoken.pipelines.nightly.calendar import Expected, expected_nights
from dualtoken.pipelines.nightly.history import Snapshot
from dualtoken.pipelines.nightly.night import begin, find_subjects_or_fail, judge, measure_night
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.states import UNMEASURED, NightState, night_states
from dualtoken.pipelines.nightly.table import write_table


def backfill(session: Session, first: str, last: str) -> ExitCode:
    """Measure the nights from one date to another that have no numbers, oldest first. Nobody is told.

    Of a recipe it takes the model that was the newest when the night started.
    """
    if last < first:
        raise UserError(f"--from {first} is after --to {last}: exchange them")
    snapshot = session.open()
    expected = {night.night: night for night in expected_nights(snapshot, session.now())}
    states = night_states(snapshot, session.now(), session.nightly.chart.version)
    session.nightly.require_measurable(session.spec)
    wanted = [state for state in states if first <= state.night <= last and state.night in expected]
    code = ExitCode.DONE
    for state in wanted:
        if state.state not in UNMEASURED:
            session.say(f"{state.night}: {state.state}, nothing to do")
        elif not _measure(session, snapshot, state, expected[state.night]):
            code = ExitCode.CONFIGURATION
    if not wanted:
        session.say(f"no night has started from {first} to {last}")
    snapshot = session.read()
    states = night_states(snapshot, session.now(), session.nightly.chart.version)
    write_table(session.history, snapshot, states)
    return code


def _measure(session: Session, snapshot: Snapshot, state: NightState, expected: Expected) -> bool:
    """Measure and judge a night; False where it had no model yet, which is said."""
    files = session.read().files(state.night)
    own = begin(session, snapshot, state.night, files, backfilled=True)
    if own is None:
        return True
    try:
        requests = find_subjects_or_fail(session, own, expected.starts)
    except UserError as error:
        session.say(f"{state.night}: {error}")
        return False
    judge(session, own, measure_night(session, own, requests))
    return True
