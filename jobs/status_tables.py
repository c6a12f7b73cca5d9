"""The tables that `plan` and `status` print."""

import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from dualtoken.pipelines.core.timing import PARTS, TimeBreakdown
from dualtoken.pipelines.core.totals import Totals, sum_receipts
from dualtoken.pipelines.runtime.plan import PlannedStage

PIPE_WIDTH = 200
"""Columns where the output is no terminal, so that a log keeps a row on a line."""

SAMPLED_RECEIPTS = 10_000
"""Most receipts read for the status of a stage under way; of more, an even sample is read, and sums get a
≈."""


class _Status(NamedTuple):
    """A planned stage and the sum of its receipts."""

    planned: PlannedStage
    totals: Totals | None
    """None while the stage's fingerprint is not known."""


def show(table: Table) -> None:
    """Print a table at the terminal's width."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(width=width).print(table)


def plan_table(plan: Iterable[PlannedStage]) -> Table:
    """Tabulate what is done and to do."""
    table = Table("stage", "corpus", "fingerprint", box=None, pad_edge=False)
    for heading in ("units done", "to do", "rows in", "bytes"):
        table.add_column(heading, justify="right")
    table.add_column("state")
    for planned in plan:
        table.add_row(planned.stage, planned.corpus or "", *_plan_cells(planned))
    return table


def _plan_cells(planned: PlannedStage) -> list[str]:
    """Return the cells after stage and corpus; numbers of a stage that still waits are upper bounds."""
    fingerprint = planned.job.fingerprint if planned.job else ""
    bound = "≤ " if planned.num_rows and not planned.job else ""
    to_do = f"{bound}{planned.num_units - len(planned.done)}"
    rows = f"{bound}{planned.num_rows:,}" if planned.num_rows else ""
    return [fingerprint, str(len(planned.done)), to_do, rows, _plan_bytes(planned, bound), _state(planned)]


def _plan_bytes(planned: PlannedStage, bound: str) -> str:
    if not planned.output_bytes:
        return ""
    size = bytes_in_words(planned.output_bytes)
    if planned.manifest:
        return size
    return f"{bound or '~ '}{size}"


def _state(planned: PlannedStage) -> str:
    if planned.waits_for:
        stages = dict.fromkeys(waiting.stage for waiting in planned.waits_for)
        return f"waits for {', '.join(stages)}"
    if planned.manifest:
        return "done"
    return "begun" if planned.done else "ready"


def status_tables(plan: Iterable[PlannedStage], most: int | None = None) -> list[Table]:
    """Tabulate the receipts of unfinished stages, `most` of each read, and the manifests of finished ones.

    A second table tells where the time of encoding went, once a receipt does.
    """
    statuses = [_Status(planned, _totals(planned, most)) for planned in plan]
    timed = [status for status in statuses if status.totals and status.totals.parts]
    tables = [_status_table(statuses)]
    if timed:
        tables.append(_time_table(timed))
    return tables


def _totals(planned: PlannedStage, most: int | None) -> Totals | None:
    if planned.job is None:
        return None
    if planned.manifest:
        return Totals.of_manifest(planned.manifest, planned.num_units)
    return sum_receipts(planned.job.store(), planned.done, most)


def _status_table(statuses: Sequence[_Status]) -> Table:
    table = Table("stage", "corpus", box=None, pad_edge=False)
    for heading in ("units", "written", "work", "rows/s"):
        table.add_column(heading, justify="right")
    table.add_column("last unit")
    table.add_column("samples")
    for planned, totals in statuses:
        cells = ["", "", "", "", "", "waiting"]
        if totals:
            cells = _status_cells(planned, totals)
        table.add_row(planned.stage, planned.corpus or "", *cells)
    return table


def _status_cells(planned: PlannedStage, totals: Totals) -> list[str]:
    about = "≈ " if totals.estimated else ""
    written = work = rate = ""
    if totals.bytes:
        written = about + bytes_in_words(totals.bytes)
    if totals.units:
        work = f"{about}{totals.seconds:.1f} s"
    if totals.rows and totals.seconds:
        rate = f"{totals.rows / totals.seconds:,.0f}"
    samples = [f"{about}{count:,} {status}" for status, count in sorted(totals.counts.items())]
    last_unit = totals.last_finished_at[:19]
    return [f"{totals.units}/{planned.num_units}", written, work, rate, last_unit, ", ".join(samples)]


def _time_table(timed: Sequence[_Status]) -> Table:
    table = Table("seconds of", "corpus", box=None, pad_edge=False)
    for heading in (*PARTS, "encoder idle"):
        table.add_column(heading, justify="right")
    table.add_column("idle longest in")
    for planned, totals in timed:
        assert totals is not None
        about = "≈ " if totals.estimated else ""
        time = TimeBreakdown(corpus=planned.corpus or "", seconds=totals.parts)
        cells: list[str] = []
        for part in PARTS:
            cells.append(f"{about}{time.seconds[part]:,.1f}" if part in time.seconds else "")
        table.add_row(planned.stage, time.corpus, *cells, f"{time.encoder_waits:.0%}", time.longest_wait)
    return table


def bytes_in_words(size: float) -> str:
    """Return a number of bytes in a unit of three digits or fewer."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
