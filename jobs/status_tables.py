"""The tables that `plan` and `status` print."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from dualtoken.pipelines.core.timing import PARTS, TimeBreakdown
from dualtoken.pipelines.core.totals import Totals, sum_receipts
from dualtoken.pipelines.runtime.plan import Planned

PIPE_WIDTH = 200
"""Columns where the output is no terminal, so that a log keeps a row on a line."""

SAMPLED_RECEIPTS = 10_000
"""Of a stage that is under way, read for its status; of more, these are an even sample, and sums get a ≈."""


def show(table: Table) -> None:
    """Print a table at the terminal's width."""
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def plan_table(plan: Iterable[Planned]) -> Table:
    """Tabulate what is done and to do."""
    table = Table("stage", "corpus", "fingerprint", box=None, pad_edge=False)
    for heading in ("units done", "to do", "rows in", "bytes"):
        table.add_column(heading, justify="right")
    table.add_column("state")
    for one in plan:
        table.add_row(one.step, one.corpus or "", *_plan_cells(one))
    return table


def _plan_cells(one: Planned) -> list[str]:
    """Numbers of a step that still waits are upper bounds."""
    most = "≤ " if one.num_rows and not one.job else ""
    rows = f"{most}{one.num_rows:,}" if one.num_rows else ""
    size = f"{'' if one.manifest else most or '~ '}{_bytes(one.output_bytes)}" if one.output_bytes else ""
    print_ = one.job.fingerprint if one.job else ""
    return [print_, str(len(one.done)), f"{most}{one.num_units - len(one.done)}", rows, size, _state(one)]


def _state(one: Planned) -> str:
    if one.waits_for:
        steps = dict.fromkeys(label.split()[0] for label in one.waits_for)
        return f"waits for {', '.join(steps)}"
    return "done" if one.manifest else "begun" if one.done else "ready"


def status_tables(plan: Iterable[Planned], most: int | None = None) -> list[Table]:
    """Tabulate what the receipts of unfinished stages say, `most` of each read, and the manifests of finished ones.

    A second table tells where the time of encoding went, once a receipt does.
    """
    known = [(one, _totals(one, most) if one.job else None) for one in plan]
    timed = [(one, totals) for one, totals in known if totals and totals.parts]
    return [_status_table(known), *([_parts_table(timed)] if timed else [])]


def _status_table(known: Sequence[tuple[Planned, Totals | None]]) -> Table:
    table = Table("stage", "corpus", box=None, pad_edge=False)
    for heading in ("units", "written", "work", "rows/s"):
        table.add_column(heading, justify="right")
    table.add_column("last unit")
    table.add_column("samples")
    for one, totals in known:
        table.add_row(
            one.step,
            one.corpus or "",
            *(_status_cells(one, totals) if totals else ["", "", "", "", "", "waiting"]),
        )
    return table


def _parts_table(timed: Sequence[tuple[Planned, Totals]]) -> Table:
    table = Table("seconds of", "corpus", box=None, pad_edge=False)
    for heading in (*PARTS, "encoder waits"):
        table.add_column(heading, justify="right")
    table.add_column("most for")
    for one, totals in timed:
        parts, about = (
            TimeBreakdown(corpus=one.corpus or "", seconds=totals.parts),
            "≈ " if totals.estimated else "",
        )
        cells = [f"{about}{parts.seconds[name]:,.1f}" if name in parts.seconds else "" for name in PARTS]
        table.add_row(one.step, parts.corpus, *cells, f"{parts.encoder_waits:.0%}", parts.longest_wait)
    return table


def _totals(one: Planned, most: int | None) -> Totals:
    assert one.job is not None
    return (
        Totals.of_manifest(one.manifest, one.num_units)
        if one.manifest
        else sum_receipts(one.job.store(), one.done, most)
    )


def _status_cells(one: Planned, totals: Totals) -> list[str]:
    about = "≈ " if totals.estimated else ""
    return [
        f"{totals.units}/{one.num_units}",
        about + _bytes(totals.bytes) if totals.bytes else "",
        f"{about}{totals.seconds:.1f} s" if totals.units else "",
        f"{totals.rows / totals.seconds:,.0f}" if totals.rows and totals.seconds else "",
        totals.last_finished_at[:19],
        ", ".join(f"{about}{count:,} {status}" for status, count in sorted(totals.counts.items())),
    ]


def _bytes(size: float | None) -> str:
    if size is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
