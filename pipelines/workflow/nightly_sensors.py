"""Sensors of a nightly: one requests the nights that are overdue, one shows the nights of others.

Dagster's schedules catch up with nothing: after an outage they fire the newest tick alone, and one that was
lost for another reason never comes. So what is overdue is read from the history, and asked for night by
night: a week of outage must not start seven runs at once.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import PARTITION_NAME_TAG

from dualtoken.pipelines.nightly.calendar import Expected, expected_nights
from dualtoken.pipelines.nightly.history import Snapshot
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.states import UNMEASURED, NightState
from dualtoken.pipelines.workflow.night_results import (
    CHECKS,
    OPEN,
    data_version,
    night_metadata,
    state_metadata,
    states_of,
)
from dualtoken.pipelines.workflow.nightly_face import TAG, NightlyFace

SECONDS_BETWEEN_LOOKS = 60
MOST_OVERDUE = 7
"""Newest nights that are asked for; older ones are for people to backfill."""
MOST_RUNS = 3
"""Runs of a night, whoever asked for them, after which it is left to people."""
SECONDS_BETWEEN_RUNS = 1800
"""Seconds from one run of a night to the next."""
LATE = timedelta(minutes=15)
"""Time that the schedule has to begin a night."""
MOST_SHOWN = 30
"""Newest nights that are shown."""
MOST_CHECKED = 7
"""Newest nights whose checks are made anew when their states change."""


def overdue_sensor(face: NightlyFace) -> dg.SensorDefinition:
    """Return a sensor, running by default, that requests overdue nights one after the other."""

    @dg.sensor(
        name=f"{face.asset}_overdue",
        description="Requests nights that nobody began or that failed, one at a time.",
        job_name=face.job,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
    )
    def look(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        session = face.open(context.log.info)
        wanted = list(overdue_nights(session))
        if not wanted:
            return dg.SkipReason("no night is overdue")
        at_work = dg.RunsFilter(job_name=face.job, statuses=NOT_FINISHED_STATUSES)
        if context.instance.get_runs_count(at_work):
            return dg.SkipReason(f"a night is being measured; overdue: {', '.join(wanted)}")
        for name in wanted:
            number = _number_of_next_run(context.instance, face, name, session.now().timestamp())
            if number is not None:
                return dg.RunRequest(
                    run_key=f"{name} {number}",
                    partition_key=name,
                    tags={TAG: face.spec.name},
                )
        return dg.SkipReason(f"tried before: {', '.join(wanted)}")

    return look


def overdue_nights(session: Session) -> Iterator[str]:
    """Yield the nights that are to be asked for: first the one that can still be begun, then from the oldest.

    Of nights that could only be backfilled, the newest few are.
    """
    snapshot = session.read()
    expected = {found.night: found for found in expected_nights(snapshot, session.now())}
    states = [state for state in states_of(session, snapshot) if state.night in expected]
    newest = states[-MOST_OVERDUE:]
    for state in newest:
        if _is_late(state, expected[state.night], session):
            yield state.night
    for state in newest:
        if state.state in UNMEASURED and session.now() > expected[state.night].closes:
            yield state.night


def _is_late(state: NightState, expected: Expected, session: Session) -> bool:
    """Tell whether a night can still be begun, or begun again, and its schedule had its time."""
    grace = min(LATE, (expected.closes - expected.starts) / 2)
    if not expected.starts + grace < session.now() <= expected.closes:
        return False
    return state.state in {"planned", "failed"}


def _number_of_next_run(instance: dg.DagsterInstance, face: NightlyFace, name: str, now: float) -> int | None:
    """Return which run of a night the next one is; None where it had enough, or one just before."""
    runs = dg.RunsFilter(job_name=face.job, tags={PARTITION_NAME_TAG: name})
    records = instance.get_run_records(runs, limit=MOST_RUNS)
    if len(records) == MOST_RUNS:
        return None
    if records and now - records[0].create_timestamp.timestamp() < SECONDS_BETWEEN_RUNS:
        return None
    return len(records) + 1


def states_sensor(face: NightlyFace) -> dg.SensorDefinition:
    """Return a sensor, running by default, that shows nights of cron and commands, and what people decide.

    It keeps no cursor: Dagster's own records say what it knows. Of a partition they hold one evaluation per
    run and check, so that what changed is evaluated anew by a run of the checks alone.
    """

    @dg.sensor(
        name=f"{face.asset}_states",
        description="Shows nights that were not run by Dagster, those that were missed, and decisions.",
        job_name=face.checks_job,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        session = face.open(context.log.info)
        snapshot = session.read()
        partitions = set(face.partitions().get_partition_keys(current_time=session.now()))
        over = [state for state in states_of(session, snapshot) if state.state not in OPEN]
        shown = [state for state in over[-MOST_SHOWN:] if state.night in partitions]
        known = context.instance.get_materialized_partitions(dg.AssetKey(face.asset))
        unknown = [state for state in shown if state.night not in known]
        events = list(_materializations(face, session, snapshot, unknown))
        requests: list[dg.RunRequest] = []
        if not _is_at_work(context.instance, face):
            requests = list(_check_requests(face, context.instance, shown[-MOST_CHECKED:]))
        if not events and not requests:
            return dg.SkipReason("no night changed since")
        return dg.SensorResult(run_requests=requests, asset_events=events)

    return look


def _is_at_work(instance: dg.DagsterInstance, face: NightlyFace) -> bool:
    """Tell whether a run is at work whose checks are still to come."""
    for job in (face.job, face.checks_job):
        if instance.get_runs_count(dg.RunsFilter(job_name=job, statuses=NOT_FINISHED_STATUSES)):
            return True
    return False


def _materializations(
    face: NightlyFace, session: Session, snapshot: Snapshot, states: Sequence[NightState]
) -> Iterator[dg.AssetMaterialization]:
    for state in states:
        files = snapshot.files(state.night)
        if files.night is not None:
            yield dg.AssetMaterialization(
                asset_key=dg.AssetKey(face.asset),
                partition=state.night,
                description=f"{state.night}: measured outside this Dagster",
                metadata=night_metadata(session, state, files),
                tags={DATA_VERSION_TAG: data_version(files.night)},
            )


def _check_requests(
    face: NightlyFace, instance: dg.DagsterInstance, states: Sequence[NightState]
) -> Iterator[dg.RunRequest]:
    """Yield a run of the checks for each night whose last ones were of another state."""
    for state in states:
        key = dg.AssetCheckKey(dg.AssetKey(face.asset), next(iter(CHECKS)))
        last = instance.event_log_storage.get_asset_check_execution_history(
            key, limit=1, partition_filter=PartitionKeyFilter(key=state.night)
        )
        evaluation = last[0].evaluation if last else None  # that of a run which failed is only planned
        known = evaluation.metadata if isinstance(evaluation, dg.AssetCheckEvaluation) else {}
        if dict(known) != state_metadata(state):
            number = last[0].id if last else 0
            yield dg.RunRequest(
                run_key=f"{state.night} after {number}",
                # A job of checks alone has no partitions that could be named by `partition_key`.
                tags={TAG: face.spec.name, PARTITION_NAME_TAG: state.night},
            )
