"""`dualtoken nightly`: evaluates models every night, and says when one is worse, or a night is missing."""

import getpass
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dualtoken.jobs.output_paths import ANOTHER_PLACE
from dualtoken.jobs.recipe_arguments import print_line
from dualtoken.jobs.status_tables import show
from dualtoken.pipelines.config.nightly import load_nightly
from dualtoken.pipelines.core.writable import require_writable
from dualtoken.pipelines.errors import ExitCode
from dualtoken.pipelines.nightly.backfill import backfill as backfill_nights
from dualtoken.pipelines.nightly.check import check as check_nights
from dualtoken.pipelines.nightly.decisions import Person, acknowledge
from dualtoken.pipelines.nightly.decisions import accept as accept_night
from dualtoken.pipelines.nightly.decisions import calibrate as calibrate_rules
from dualtoken.pipelines.nightly.decisions import pause as pause_nights
from dualtoken.pipelines.nightly.history import night_name
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.states import night_states
from dualtoken.pipelines.nightly.wiring import open_session, propose

app = typer.Typer(
    no_args_is_help=True, help="Evaluate models every night; say when one is worse or a night is missing."
)

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A nightly's YAML file: a path or an fsspec URL.")
]
RootOption = Annotated[
    str | None, typer.Option("--root", help="Where the history is: a folder or an fsspec URL.")
]
NightOption = Annotated[
    str | None, typer.Option("--night", help="A night that has started; default: the newest.")
]
NightsOption = Annotated[int, typer.Option("--nights", min=1, help="Newest nights to look at.")]
FromOption = Annotated[str, typer.Option("--from", metavar="DATE", help="First night.")]
ToOption = Annotated[
    str | None, typer.Option("--to", metavar="DATE", help="Last night; default: the first one.")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it is kept in the history.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Who decides; default: the system's user.")]
NightArgument = Annotated[str, typer.Argument(metavar="NIGHT", help="Its date, such as 2026-11-28.")]
AcceptedArgument = Annotated[
    str | None, typer.Argument(metavar="NIGHT", help="Its date; default: the newest that was measured.")
]
MetricArgument = Annotated[
    str, typer.Argument(metavar="METRIC", help="A primary series: [SUBJECT/]SET/PROTOCOL/METRIC.")
]


def _session(spec: str, root: str | None) -> Session:
    return open_session(load_nightly(spec, root), print_line)


def _end(code: ExitCode) -> None:
    if code != ExitCode.DONE:
        raise typer.Exit(code)


def _person(by: str | None, reason: str) -> Person:
    return Person(by or getpass.getuser(), reason)


@app.command()
def run(spec: SpecArgument, root: RootOption = None, night: NightOption = None) -> None:
    """Measure and judge the night that has started, and tell who is to know; at once done if it is done."""
    _end(run_night(_session(spec, root), night_name(night) if night else None))


@app.command()
def check(spec: SpecArgument, root: RootOption = None, nights: NightsOption = 14) -> None:
    """Print the bad nights, from any machine: exit code 4 if nights were missed, 3 if a model regressed."""
    _end(check_nights(_session(spec, root), nights))


@app.command()
def backfill(spec: SpecArgument, first: FromOption, last: ToOption = None, root: RootOption = None) -> None:
    """Measure nights that were missed or failed, with the model of then and the code of today."""
    first = night_name(first)
    _end(backfill_nights(_session(spec, root), first, night_name(last) if last else first))


@app.command()
def calibrate(spec: SpecArgument, root: RootOption = None) -> None:
    """Store rules whose limits fit the history's own noise; a spec names them by `ruleset`."""
    calibrate_rules(_session(spec, root), propose)


@app.command()
def accept(
    spec: SpecArgument,
    reason: ReasonOption,
    night: AcceptedArgument = None,
    by: ByOption = None,
    root: RootOption = None,
) -> None:
    """Pin a night as the one that later nights are compared with."""
    accept_night(_session(spec, root), night_name(night) if night else None, _person(by, reason))


@app.command()
def ack(
    spec: SpecArgument,
    metric: MetricArgument,
    night: NightArgument,
    reason: ReasonOption,
    by: ByOption = None,
    root: RootOption = None,
) -> None:
    """Acknowledge a step of a metric at a night: it alarms no more."""
    acknowledge(_session(spec, root), metric, night_name(night), _person(by, reason))


@app.command()
def pause(
    spec: SpecArgument,
    first: FromOption,
    reason: ReasonOption,
    last: ToOption = None,
    by: ByOption = None,
    root: RootOption = None,
) -> None:
    """Expect no nights from one date to another."""
    start = night_name(first)
    end = night_name(last) if last else start
    pause_nights(
        _session(spec, root), date.fromisoformat(start), date.fromisoformat(end), _person(by, reason)
    )


@app.command()
def history(spec: SpecArgument, root: RootOption = None, nights: NightsOption = 30) -> None:
    """Print the nights with their states and primary values."""
    session = _session(spec, root)
    snapshot = session.read()
    table = Table("night", "state", box=None, pad_edge=False)
    series = [(subject, name) for subject in session.spec.subjects for name in session.spec.primary]
    for subject, name in series:
        table.add_column(f"{subject}/{name}", justify="right")
    table.add_column("why")
    for state in night_states(snapshot, session.now(), session.nightly.chart.version)[-nights:]:
        night = snapshot.files(state.night).night
        cells: list[str] = []
        for subject, name in series:
            measured = night.subjects.get(subject) if night else None
            value = measured.values.get(name) if measured else None
            cells.append(f"{value.value:.5g}" if value else "")
        marks = ", backfilled" if state.backfilled else ""
        marks += ", settled" if state.is_settled else ""
        table.add_row(state.night, state.state + marks, *cells, state.reason)
    show(table)


@app.command()
def page(
    spec: SpecArgument,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="The folder for the pages.")],
    root: RootOption = None,
    nights: Annotated[
        int | None,
        typer.Option("--nights", min=1, help="Newest nights with a page of their own; default: all."),
    ] = None,
) -> None:
    """Write static pages: a calendar, a chart per metric, and what changed from night to night."""
    require_writable(out, ANOTHER_PLACE)
    from dualtoken.pipelines.nightly.page import write_pages  # noqa: PLC0415  (templates take a moment)

    session = _session(spec, root)
    snapshot = session.read()
    version = session.nightly.chart.version
    states = night_states(snapshot, session.now(), version)
    named = (spec, *(("--root", root) if root else ()))
    index = write_pages(
        session.spec,
        snapshot,
        states,
        version,
        session.nightly.clock,
        out,
        arguments=named,
        num_nights=nights,
    )
    print_line(f"pages: {index}")
