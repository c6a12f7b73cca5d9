"""What people decide, each with a name and a reason: baselines, acknowledgements, pauses; and new rules."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

from dualtoken.pipelines.config.mistakes import closest
from dualtoken.pipelines.core.receipts import fingerprint
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.summary import Direction
from dualtoken.pipelines.nightly.contracts import Point
from dualtoken.pipelines.nightly.history import History, Snapshot, slug
from dualtoken.pipelines.nightly.records import (
    AckRecord,
    BaselineRecord,
    NightRecord,
    PauseRecord,
    ProposalRecord,
    stamp,
)
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.verdicts import series_points


class Person(NamedTuple):
    """Who decides, and why."""

    who: str
    reason: str


class SeriesHistory(NamedTuple):
    """A primary series of all nights, as `calibrate` reads it."""

    points: Sequence[Point]
    direction: Direction
    margin: float


Propose = Callable[[Mapping[str, SeriesHistory]], Mapping[str, Any]]
"""Returns the rules that fit the histories."""


def accept(session: Session, night: str | None, person: Person) -> BaselineRecord:
    """Pin a night, by default the newest measured one, as what later nights are compared with."""
    snapshot = session.open()
    record = _measured(session, snapshot, night)
    if record.missing:
        raise UserError(
            f"{record.night} is without {', '.join(record.missing)}: accept a night that is whole"
        )
    baseline = BaselineRecord(
        night=record.night,
        evaluations={name: subject.evaluation for name, subject in record.subjects.items()},
        who=person.who,
        reason=person.reason,
        decided_at=stamp(session.now()),
    )
    number = snapshot.baselines[-1][0] + 1 if snapshot.baselines else 1
    while not session.history.put(baseline, f"baselines/{number}.json"):
        number += 1
    session.say(f"baseline {number}: {record.night}, by {person.who}: {person.reason}")
    return baseline


def acknowledge(session: Session, series: str, night: str, person: Person) -> AckRecord:
    """Write down that a person knows of a series' step at a night; it alarms no more, and begins anew."""
    snapshot = session.open()
    record = _measured(session, snapshot, night)
    ack = AckRecord(
        series=_full_name(session, series),
        night=record.night,
        who=person.who,
        reason=person.reason,
        decided_at=stamp(session.now()),
    )
    for known in snapshot.acks:
        if (known.series, known.night) == (ack.series, ack.night):
            raise UserError(f"{ack.series} of {ack.night} is acknowledged by {known.who}: {known.reason}")
    session.history.put(ack, f"acks/{slug(ack.series)}-{ack.night}.json")
    session.say(f"{ack.series} of {ack.night}: acknowledged by {person.who}: {person.reason}")
    return ack


def _full_name(session: Session, series: str) -> str:
    """Return a series with its subject; `<set>/<protocol>/<metric>` is enough where there is one subject."""
    known = [f"{subject}/{name}" for subject in session.spec.subjects for name in session.spec.primary]
    found = [name for name in known if series in (name, name.partition("/")[2])]
    if len(found) == 1:
        return found[0]
    match = closest(series, known)
    hint = f"did you mean {match}?" if match and not found else f"use one of {', '.join(found or known)}"
    raise UserError(f"{series!r} is no primary series of {session.spec.name}: {hint}")


def _measured(session: Session, snapshot: Snapshot, night: str | None) -> NightRecord:
    measured = [files.night for files in snapshot.nights.values() if files.night is not None]
    if night is None and measured:
        return measured[-1]
    for record in measured:
        if record.night == night:
            return record
    name = session.spec.name
    if night is None:
        raise UserError(f"no night of {name} was measured yet: run `dualtoken nightly run` first")
    raise UserError(f"the night {night} of {name} was not measured: see `dualtoken nightly history`")


def pause(session: Session, first: date, last: date, person: Person) -> PauseRecord:
    """Expect no nights from one date to another."""
    if last < first:
        raise UserError(f"--from {first} is after --to {last}: exchange them")
    session.open()
    record = PauseRecord(
        first=first, last=last, who=person.who, reason=person.reason, decided_at=stamp(session.now())
    )
    name = f"pauses/{first}.json"
    if not session.history.put(record, name):
        known = session.history.get(PauseRecord, name)
        raise UserError(
            f"a pause from {first} to {known.last} is there by {known.who}: begin another on another date"
        )
    session.say(f"paused from {first} to {last} by {person.who}: {person.reason}")
    return record


def calibrate(session: Session, propose: Propose) -> str:
    """Store the rules that fit the history, and return their name for the spec's `ruleset`."""
    snapshot = session.open()
    newest = _measured(session, snapshot, None)
    histories: dict[str, SeriesHistory] = {}
    for subject in session.spec.subjects:
        for series in session.spec.primary:
            measured = newest.subjects.get(subject)
            value = measured.values.get(series) if measured else None
            if value is not None:
                name = f"{subject}/{series}"
                points = series_points(snapshot, subject, series, newest)
                # What a person knows of is a step, which is no noise.
                step = max((ack.night for ack in snapshot.acks if ack.series == name), default="")
                own = [point for point in points if point.night >= step]
                histories[name] = SeriesHistory(own, value.direction, value.margin)
    if not histories:
        raise UserError(
            f"{newest.night} has none of the primary series: calibrate after a night that is whole"
        )
    rules = dict(propose(histories))
    name = fingerprint(rules)
    proposal = ProposalRecord(
        rules=rules,
        proposed_at=stamp(session.now()),
        num_nights=max(len(history.points) for history in histories.values()),
    )
    session.history.put(proposal, f"rulesets/{name}.json")
    session.say(f"rules {name} are stored: set `ruleset: {name}` in the spec to judge by them")
    return name


def stored_rules(history: History, name: str) -> dict[str, Any]:
    """Return rules that `calibrate` stored; raises `UserError` where there are none of that name."""
    try:
        return history.get(ProposalRecord, f"rulesets/{name}.json").rules
    except FileNotFoundError:
        raise UserError(
            f"ruleset={name} is not in {history.store.url}: run `dualtoken nightly calibrate`"
        ) from None
