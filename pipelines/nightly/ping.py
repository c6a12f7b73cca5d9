"""The dead man's ping: a call after each finished night, so that somebody else notices when none comes.

Whatever begins nights cannot tell that it did not begin one. A service such as healthchecks.io, or a command
of one's own, expects a call each night. `nightly run` calls whenever its night is finished, also one that
another run measured: two calls do no harm, and a lost one would be a false alarm.
"""

from collections.abc import Sequence

from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.sinks import NotSent, send
from dualtoken.pipelines.nightly.states import NightState

_UNFINISHED = frozenset({"planned", "running", "missed", "failed"})
"""States of nights that are not called for."""


def is_finished(states: Sequence[NightState], night: str) -> bool:
    """Tell whether a night has its verdict, good or bad, or is paused: nothing is to be begun any more."""
    return any(state.night == night and state.state not in _UNFINISHED for state in states)


def ping(session: Session, night: str) -> None:
    """Call who expects a call each night; what goes wrong costs a line."""
    sink = session.spec.ping
    if sink is None:
        return
    name = session.spec.name
    body = {
        "key": f"{name}/{night}/finished",
        "nightly": name,
        "night": night,
        "event": "finished",
        "text": f"{name}, night {night}: finished",
    }
    try:
        send(sink, body)
    except NotSent as error:
        session.say(f"{night}: the ping was not sent, {error}; the next run calls again")
