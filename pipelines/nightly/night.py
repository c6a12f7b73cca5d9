"""The steps of one night: its lease, its numbers, its verdict. Whatever fails is written down."""

from datetime import datetime

from dualtoken.pipelines.nightly.attempts import Claim, Taken, Terms, claim, claim_again, fail
from dualtoken.pipelines.nightly.contracts import SubjectRequest
from dualtoken.pipelines.nightly.details import night_details
from dualtoken.pipelines.nightly.history import NIGHT_FILE, NightFiles, Snapshot, night_path
from dualtoken.pipelines.nightly.measuring import measure_subject, missing_parts
from dualtoken.pipelines.nightly.records import Confirmation, NightRecord, VerdictRecord, stamp
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.subjects import find_subjects
from dualtoken.pipelines.nightly.verdicts import LOUD, judge_night


def begin(
    session: Session, snapshot: Snapshot, night: str, files: NightFiles, *, backfilled: bool
) -> Claim | None:
    """Take the lease of a night; None, and a line, where another run has it."""
    terms = Terms(snapshot.specs[-1][0], session.spec.schedule.lease_hours, backfilled)
    own = claim(session.history, night, files, terms, session.nightly.clock)
    if isinstance(own, Taken):
        session.say(f"{night}: another run ({own.where}) is at work on it")
        return None
    return own


def find_subjects_or_fail(
    session: Session, own: Claim, as_of: datetime | None = None
) -> list[SubjectRequest]:
    """Return the subjects of an attempt, which has failed where they cannot be found."""
    try:
        return find_subjects(session.spec, as_of)
    except BaseException as error:
        fail(session.history, own, error, session.now())
        raise


def measure_night(session: Session, own: Claim, requests: list[SubjectRequest]) -> NightRecord:
    """Measure a night's subjects, and put its record; returns the one of the attempt that was first."""
    history = session.history
    try:
        subjects = {
            request.name: measure_subject(history, session.nightly.measure, request, own)
            for request in requests
        }
        record = NightRecord(
            night=own.night,
            attempt=own.name,
            spec=own.spec,
            subjects=subjects,
            missing=missing_parts(session.spec, subjects),
            finished_at=stamp(session.now()),
            backfilled=requests[0].backfilled,
        )
        name = night_path(own.night, NIGHT_FILE)
        if not history.store.exists(name) and history.put(record, name):
            return record
    except BaseException as error:
        fail(history, own, error, session.now())
        raise
    session.say(f"{own.night}: another attempt was complete first, its numbers stay")
    return history.get(NightRecord, name)


def judge(session: Session, own: Claim, night: NightRecord) -> VerdictRecord:
    """Judge a night and write the verdict. One that looks bad is measured once more before."""
    chart = session.nightly.chart
    try:
        verdict = judge_night(session.read(), session.spec, night, chart, stamp(session.now()))
        if verdict.state in LOUD and not night.backfilled:
            session.say(f"{night.night}: {verdict.state}, {verdict.reason}; it is measured once more")
            confirmation = _measure_again(session, own, night)
            verdict = judge_night(
                session.read(), session.spec, night, chart, stamp(session.now()), confirmation
            )
        if verdict.series:
            _put_details(session, night)
        session.history.put(verdict, night_path(night.night, f"verdict-{chart.version}.json"))
    except BaseException as error:
        fail(session.history, own, error, session.now())
        raise
    session.say(f"{night.night}: {verdict.state}{', ' + verdict.reason if verdict.reason else ''}")
    for change in verdict.changes if verdict.state == "evaluator-changed" else ():
        session.say(f"    {change}")
    return verdict


def _put_details(session: Session, night: NightRecord) -> None:
    """Write what is told beside the verdict; before it, since a night with a verdict is done."""
    chart = session.nightly.chart
    details = night_details(session.history, session.read(), session.spec, night, chart, session.say)
    session.history.put(details, night_path(night.night, f"details-{chart.version}.json"))


def _measure_again(session: Session, own: Claim, night: NightRecord) -> Confirmation:
    """Measure the same models by another attempt, and compare all score tables bit by bit."""
    terms = Terms(night.spec, session.spec.schedule.lease_hours)
    again = claim_again(session.history, own, terms, session.now())
    differing: list[str] = []
    for name, first in night.subjects.items():
        request = SubjectRequest(
            name=name,
            kind=first.kind,
            place=first.place,
            evaluation=session.spec.evaluation,
            sets=session.spec.sets,
            protocols=session.spec.protocols,
        )
        second = measure_subject(session.history, session.nightly.measure, request, again)
        if second.digest != first.digest:
            differing.append(f"{name} (its files were overwritten meanwhile)")
        elif second.scores != first.scores:
            differing.append(name)
    return Confirmation(attempt=again.name, differing=tuple(differing))
