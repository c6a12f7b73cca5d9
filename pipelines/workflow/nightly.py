"""A nightly as Dagster definitions: an asset whose partitions are the nights, its schedule, checks, sensors.

Each run does what `dualtoken nightly run` does, or `backfill` where it is too late for that. The history says
what is done; Dagster's records are a copy for people.
"""

import warnings
from collections.abc import Iterator

import dagster as dg

from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.errors import ExitCode
from dualtoken.pipelines.nightly.backfill import backfill
from dualtoken.pipelines.nightly.calendar import Expected, expected_nights
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session, close
from dualtoken.pipelines.workflow.night_results import (
    CHECKS,
    OPEN,
    checked_night,
    data_version,
    find_state,
    night_metadata,
    states_of,
)
from dualtoken.pipelines.workflow.nightly_face import TAG, NightlyFace, OpenSession, dagster_cron_line
from dualtoken.pipelines.workflow.nightly_sensors import overdue_sensor, states_sensor


def nightly_definitions(spec: NightlySpec, open_session: OpenSession) -> dg.Definitions:
    """Return a nightly's asset with its checks, the job of one night, the schedule and both sensors."""
    face = NightlyFace(spec, open_session)
    asset = dg.AssetSelection.assets(face.asset)
    checks = dg.AssetSelection.checks_for_assets(face.asset)
    return dg.Definitions(
        assets=[_asset(face)],
        asset_checks=[_checks(face)],
        jobs=[dg.define_asset_job(face.job, asset), dg.define_asset_job(face.checks_job, checks)],
        schedules=[_schedule(face)],
        sensors=[overdue_sensor(face), states_sensor(face)],
        executor=dg.in_process_executor,
    )


def measure_partition(session: Session, night: str) -> ExitCode:
    """Run a night as `dualtoken nightly run` does, or backfill it where it is too late for a run.

    Of a night that is about to be filled, people are told first that it was missed. Raises `UserError` for
    what is no night, or one that has not started.
    """
    snapshot = session.open()
    expected = find_expected(session, night)
    is_measured = snapshot.files(night).night is not None
    if expected is None or is_measured or session.now() <= expected.closes:
        return run_night(session, night)
    close(session)
    return backfill(session, night, night)


def find_expected(session: Session, night: str) -> Expected | None:
    """Return a night that has started."""
    for expected in expected_nights(session.read(), session.now()):
        if expected.night == night:
            return expected
    return None


def _asset(face: NightlyFace) -> dg.AssetsDefinition:
    spec = face.spec

    @dg.asset(
        name=face.asset,
        description=f"Nights of {spec.name}: {', '.join(spec.subjects)} evaluated anew each night.",
        partitions_def=face.partitions(),
        group_name=face.asset,
        output_required=False,
    )
    def measure(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        night = context.partition_key
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            context.log.info(line)

        session = face.open(say)
        code = measure_partition(session, night)
        snapshot = session.read()
        state = find_state(states_of(session, snapshot), night)
        files = snapshot.files(night)
        if state is not None and files.night is not None:
            yield dg.MaterializeResult(
                metadata=night_metadata(session, state, files),
                data_version=dg.DataVersion(data_version(files.night)),
            )
        elif state is None or state.state not in OPEN or code != ExitCode.DONE:
            raise dg.Failure(said[-1] if said else f"{night} has no numbers", allow_retries=False)
        # Else it is paused, or another process is at work on it, as was said.

    return measure


def _checks(face: NightlyFace) -> dg.AssetChecksDefinition:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # checks that have partitions
        specs = [
            dg.AssetCheckSpec(name, asset=face.asset, description=text, partitions_def=face.partitions())
            for name, text in CHECKS.items()
        ]

    @dg.multi_asset_check(name=f"{face.asset}_checks", specs=specs)
    def look(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        night = context.partition_key
        session = face.open(context.log.info)
        state = find_state(states_of(session, session.read()), night)
        if state is None or state.state in OPEN:
            what = state.state if state is not None else "no night of the spec"
            raise dg.Failure(f"{night}: {what}: there is nothing to check", allow_retries=False)
        for found in checked_night(state):
            yield dg.AssetCheckResult(
                asset_key=face.asset,
                check_name=found.name,
                passed=found.passed,
                severity=found.severity,
                description=found.description,
                metadata=found.metadata,
            )

    return look


def _schedule(face: NightlyFace) -> dg.ScheduleDefinition:
    """Return the schedule, which runs unless it is switched off: ticks from before do not come later."""
    spec = face.spec

    @dg.schedule(
        name=f"{face.asset}_schedule",
        cron_schedule=dagster_cron_line(spec.schedule.line),
        execution_timezone=spec.schedule.timezone,
        job_name=face.job,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Begins each night of {spec.name}.",
    )
    def tick(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        night = context.scheduled_execution_time.astimezone(spec.schedule.zone).date().isoformat()
        session = face.open(context.log.info)
        state = find_state(states_of(session, session.read()), night)
        if state is None:
            return dg.SkipReason(f"{night} is no night of {spec.name}")
        if state.state != "planned":
            return dg.SkipReason(f"{night}: {state.state}")
        return dg.RunRequest(run_key=f"{spec.name}/{night}", partition_key=night, tags={TAG: spec.name})

    return tick
