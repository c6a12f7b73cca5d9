"""`nightly check`: is every night there, and is the model what it was? It needs no lease and no scheduler."""

from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.errors import ExitCode
from dualtoken.pipelines.nightly.alerts import tell
from dualtoken.pipelines.nightly.records import one_line
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.states import REGRESSED, night_states, standing


def check(session: Session, num_nights: int) -> ExitCode:
    """Print a line for each bad night among the newest ones, and send alerts that are due.

    A regression counts while it stands: until a later night is without it, or a person settles it.
    """
    snapshot = session.read()
    states = night_states(snapshot, session.now(), session.nightly.chart.version)
    over = [state for state in states if state.state not in ("planned", "running")]
    newest = over[-num_nights:]
    bad = [state for state in newest if state.is_bad]
    for state in bad:
        session.say(f"{state.night}: {state.state}{', ' + state.reason if state.reason else ''}")
    if not bad:
        session.say(f"{session.spec.name}: nothing bad in {pluralized(len(newest), 'night')}")
    if session.spec.alerts:
        try:
            tell(session.spec, session.history, snapshot, states, session.nightly)
        except PermissionError as error:  # whoever may only read can still look
            session.say(f"alerts cannot be sent from here: {one_line(error)}")
    if any(state.state == "missed" for state in bad):
        return ExitCode.MISSED
    now = standing(states)
    if now is not None and now.state in REGRESSED and now.is_bad:
        return ExitCode.REGRESSED
    if any(state.state not in REGRESSED for state in bad):
        return ExitCode.BUG
    return ExitCode.DONE
