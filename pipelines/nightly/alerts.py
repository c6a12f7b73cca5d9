"""Tells people of events, by each sink once: what is about to be sent is written down before, and after.

Below `nights/<night>/alerts/`, put only if absent: `<event>-<sink>.sending-<n>.json`, then
`<event>-<sink>.json`, or `<event>-<sink>.unsent-<n>.json`, after which the next command tries again. Of a
process that died in between nobody knows whether it had sent: the event is sent once more, with the same key.
"""

import re
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.nightly.contracts import Nightly
from dualtoken.pipelines.nightly.events import Event, events
from dualtoken.pipelines.nightly.history import History, Snapshot, night_path
from dualtoken.pipelines.nightly.owners import become_owner
from dualtoken.pipelines.nightly.records import (
    SendingRecord,
    SentRecord,
    UnsentRecord,
    moment,
    stamp,
    this_process,
)
from dualtoken.pipelines.nightly.sinks import NotSent, send
from dualtoken.pipelines.nightly.states import NightState

SENDING_ENDS = timedelta(minutes=45)
"""Time after which a process that began to send counts as dead: the longest sending, and clocks apart."""


def tell(
    spec: NightlySpec,
    history: History,
    snapshot: Snapshot,
    states: Sequence[NightState],
    nightly: Nightly,
) -> None:
    """Send what has not been sent; a sink that fails costs a line."""
    for event in events(spec.name, snapshot, states):
        there = snapshot.files(event.night).alerts
        for sink in spec.alerts:
            if f"{event.name}-{sink}.json" not in there:
                _Telling(spec, history, nightly, event, sink).tell(there)


class _Telling:
    """One event on its way to one sink."""

    def __init__(
        self, spec: NightlySpec, history: History, nightly: Nightly, event: Event, sink: str
    ) -> None:
        self._sink = spec.alerts[sink]
        self._sink_name = sink
        self._history = history
        self._nightly = nightly
        self._event = event

    def tell(self, there: set[str]) -> None:
        """Send the event unless another process is at it, or has done it."""
        number = self._free_number(there)
        if number is None or not self._claim(number) or self._history.store.exists(self._path("")):
            return
        try:
            send(self._sink, self._event.body())
        except NotSent as error:
            record = UnsentRecord(reason=str(error), failed_at=stamp(self._now()))
            self._history.put(record, self._path(f".unsent-{number}"))
            self._nightly.print_line(
                f"{self._event.night}: {self._event.name} was not sent to {self._sink_name}, {error}; "
                "the next command tries again"
            )
            return
        sent = SentRecord(sent_at=stamp(self._now()), event=self._event.body())
        self._history.put(sent, self._path(""))

    def _now(self) -> datetime:
        return self._nightly.clock()

    def _path(self, what: str) -> str:
        return night_path(self._event.night, "alerts", f"{self._event.name}-{self._sink_name}{what}.json")

    def _free_number(self, there: set[str]) -> int | None:
        """Return the number of the next try, None where one is under way."""
        prefix = re.escape(f"{self._event.name}-{self._sink_name}.sending-")
        numbers = [int(found[1]) for name in there if (found := re.fullmatch(rf"{prefix}(\d+)\.json", name))]
        if not numbers:
            return 1
        newest = max(numbers)
        if f"{self._event.name}-{self._sink_name}.unsent-{newest}.json" not in there:
            begun = self._history.get(SendingRecord, self._path(f".sending-{newest}"))
            if self._now() <= moment(begun.started_at) + SENDING_ENDS and not begun.is_dead_here():
                return None
        return newest + 1

    def _claim(self, number: int) -> bool:
        record = SendingRecord(started_at=stamp(self._now()), token=uuid.uuid4().hex, **this_process())
        owner = become_owner(self._history, record, self._path(f".sending-{number}"))
        return owner.token == record.token
