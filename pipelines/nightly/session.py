"""One command's work on a history: the spec in force, the clock, and where lines go."""

from datetime import datetime

from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.nightly.alerts import tell
from dualtoken.pipelines.nightly.contracts import Nightly
from dualtoken.pipelines.nightly.history import History, Snapshot
from dualtoken.pipelines.nightly.owners import SETTLES
from dualtoken.pipelines.nightly.states import NightState, night_states
from dualtoken.pipelines.nightly.table import write_table


class Session:
    """One command's work on a history."""

    def __init__(self, spec: NightlySpec, nightly: Nightly, history: History | None = None) -> None:
        self.spec = spec
        self.nightly = nightly
        self.history = history or History(spec.root, spec.name)

    def now(self) -> datetime:
        """Return the time."""
        return self.nightly.clock()

    def read(self) -> Snapshot:
        """Return the history with the spec in force, whether or not it has been written."""
        return self.history.read().with_spec(self.spec, self.now())

    def open(self) -> Snapshot:
        """Return the history, in which the spec is written."""
        warn_of_unconditional_puts(self.history, self.nightly.print_line)
        snapshot = self.read()
        version, record = snapshot.specs[-1]
        if not self.history.store.exists(f"spec/{version}.json"):
            self.history.put(record, f"spec/{version}.json")
        return snapshot

    def say(self, line: str) -> None:
        """Print a line."""
        self.nightly.print_line(line)


def warn_of_unconditional_puts(history: History, print_line: PrintLine) -> None:
    """Name a store on which two runs at once have to wait for each other."""
    if not history.puts_only_if_absent:
        print_line(
            f"{history.store.url} ignores If-None-Match: a run waits {SETTLES:g} s before it has a night, "
            "and before it sends an alert, so that two at once see each other"
        )


def close(session: Session) -> list[NightState]:
    """Tell who is to know, write the table of the history anew, and return the states of its nights."""
    snapshot = session.read()
    states = night_states(snapshot, session.now(), session.nightly.chart.version)
    tell(session.spec, session.history, snapshot, states, session.nightly)
    write_table(session.history, snapshot, states)
    return states
