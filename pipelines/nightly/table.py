"""`history.parquet`: all values of all nights with their states, made from the other files."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.pipelines.nightly.history import CACHE_FILE, History, Snapshot
from dualtoken.pipelines.nightly.states import NightState

SCHEMA = pa.schema(
    [
        ("night", pa.string()),
        ("state", pa.string()),
        ("backfilled", pa.bool_()),
        ("subject", pa.string()),
        ("series", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n", pa.int64()),
        ("set_hash", pa.string()),
        ("protocol_hash", pa.string()),
        ("series_state", pa.string()),
    ]
)
"""A row for each value of a night; a night without values has one row without a series."""


def history_table(snapshot: Snapshot, states: Sequence[NightState]) -> pa.Table:
    """Return the table of a history."""
    rows: list[dict[str, Any]] = []
    for state in states:
        rows += _rows(snapshot, state)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _rows(snapshot: Snapshot, state: NightState) -> Iterator[dict[str, Any]]:
    whole = {"night": state.night, "state": state.state, "backfilled": state.backfilled}
    night = snapshot.files(state.night).night
    if night is None:
        yield whole
        return
    for name, subject in night.subjects.items():
        for series, value in subject.values.items():
            yield whole | {
                "subject": name,
                "series": series,
                "value": value.value,
                "low": value.low,
                "high": value.high,
                "n": value.n,
                "set_hash": value.set_hash,
                "protocol_hash": value.protocol_hash,
                "series_state": state.series.get(f"{name}/{series}"),
            }


def write_table(history: History, snapshot: Snapshot, states: Sequence[NightState]) -> None:
    """Write the table of nights that are over, if it is not that already."""
    table = history_table(snapshot, [state for state in states if state.state != "planned"])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    if history.store.size(CACHE_FILE) != len(data) or history.store.read(CACHE_FILE) != data:
        history.store.put_bytes(data, CACHE_FILE)
