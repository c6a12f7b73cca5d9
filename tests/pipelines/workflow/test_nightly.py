"""A nightly in Dagster: the night that a tick fills, what a run of a partition does, and its checks."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._utils.schedules import cron_string_iterator

from dualtoken.pipelines.config.cron import parse_cron
from dualtoken.pipelines.config.nightly import ScheduleConfig
from dualtoken.pipelines.nightly.check import check
from dualtoken.pipelines.nightly.decisions import Person, accept, pause
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.workflow.nightly_face import dagster_cron_line, night_partitions
from tests.helpers.dagster_nights import run_partition, served
from tests.helpers.nights import PSNR, SmallNightly, write_model
from tests.helpers.tiny_run import PROJECT

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as empty:
        yield empty


@pytest.fixture
def small(tmp_path: Path) -> SmallNightly:
    return SmallNightly(tmp_path)


def checks(result: dg.ExecuteInProcessResult) -> dict[str, tuple[bool, dg.AssetCheckSeverity]]:
    found = {one.check_name: one for one in result.get_asset_check_evaluations()}
    return {name: (one.passed, one.severity) for name, one in found.items()}


def tick(small: SmallNightly, moment: datetime) -> dg.RunRequest | str:
    """Evaluate the schedule's tick of a moment, at that moment; a skipped one gives its reason."""
    small.clock.now = moment.astimezone(UTC)
    ours = served(small)
    schedule = ours.get_repository_def().get_schedule_def("nightly_small_schedule")
    context = dg.build_schedule_context(
        scheduled_execution_time=moment, repository_def=ours.get_repository_def()
    )
    found = schedule.evaluate_tick(context)
    if not found.run_requests:
        return str(found.skip_message)
    (request,) = found.run_requests
    return request


def test_everything_can_be_served(small: SmallNightly) -> None:
    ours = served(small)
    dg.Definitions.validate_loadable(ours)
    schedule = ours.get_repository_def().get_schedule_def("nightly_small_schedule")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 2 * * *", "Europe/Berlin")
    for sensor in ours.get_repository_def().sensor_defs:
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING


@pytest.mark.parametrize(
    "night",
    ["2026-11-28", "2027-03-27", "2027-03-28", "2027-03-29", "2027-10-30", "2027-10-31", "2027-11-01"],
)
def test_a_tick_fills_the_night_of_its_own_date_over_changes_of_clocks_too(
    small: SmallNightly, night: str
) -> None:
    zone = ZoneInfo("Europe/Berlin")
    before = datetime.combine(date.fromisoformat(night), datetime.min.time(), zone).timestamp()
    moment = next(cron_string_iterator(before, "0 2 * * *", "Europe/Berlin"))
    request = tick(small, moment)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == night
    assert request.run_key == f"small/{night}"
    assert request.tags["dualtoken/nightly"] == "small"
    partitions = night_partitions(small.spec.schedule)
    assert partitions.get_partition_keys(current_time=moment)[-1] == night


@pytest.mark.parametrize(
    ("zone", "time"), [("Asia/Tokyo", "0 3 * * *"), ("America/Los_Angeles", "0 22 * * *")]
)
def test_a_night_has_the_date_of_its_own_zone(tmp_path: Path, zone: str, time: str) -> None:
    small = SmallNightly(tmp_path, schedule={"cron": time, "timezone": zone})
    before = datetime(2026, 11, 20, tzinfo=ZoneInfo(zone)).timestamp()
    request = tick(small, next(cron_string_iterator(before, time, zone)))
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-11-20"


def test_a_tick_asks_for_no_night_that_is_done_or_paused_or_missed(small: SmallNightly) -> None:
    at_two = datetime(2026, 11, 3, 1, tzinfo=UTC)
    small.at("2026-11-03")
    run_night(Session(small.spec, small.nightly))
    assert tick(small, at_two) == "2026-11-03: ok"
    pause(Session(small.spec, small.nightly), date(2026, 11, 4), date(2026, 11, 4), Person("eva", "a move"))
    assert tick(small, at_two + timedelta(days=1)) == "2026-11-04: paused"
    assert tick(small, datetime(2026, 10, 30, 1, tzinfo=UTC)) == "2026-10-30 is no night of small"


def test_a_tick_that_comes_after_the_deadline_leaves_its_night_to_the_sensor(small: SmallNightly) -> None:
    repository = served(small).get_repository_def()
    small.at("2026-11-03", "12:00")
    context = dg.build_schedule_context(scheduled_execution_time=datetime(2026, 11, 3, 1, tzinfo=UTC))
    found = repository.get_schedule_def("nightly_small_schedule").evaluate_tick(context)
    assert not found.run_requests
    assert found.skip_message == "2026-11-03: missed"


def test_a_run_measures_its_night_and_shows_its_numbers(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    small.at("2026-11-03", "05:00")
    result = run_partition(small, "2026-11-03", instance)
    (shown,) = result.asset_materializations_for_node("nightly_small")
    assert shown.partition == "2026-11-03"
    assert shown.metadata[PSNR] == dg.MetadataValue.float(30.0)
    assert shown.metadata["state"] == dg.MetadataValue.text("ok")
    assert shown.metadata["backfilled"] == dg.MetadataValue.bool(False)
    assert checks(result) == {
        "ran": (True, ERROR),
        "comparable": (True, ERROR),
        "not_regressed": (True, ERROR),
    }
    run_partition(small, "2026-11-03", instance)
    assert [subject for _, _, subject in small.measure.measured] == ["canary", "model"]


def test_a_night_that_regressed_is_a_run_that_succeeds_with_a_check_that_does_not(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    for day in range(2, 6):
        small.at(f"2026-11-{day:02d}")
        run_partition(small, f"2026-11-{day:02d}", instance)
    write_model(small.models / "model", psnr=29.5)
    small.at("2026-11-06")
    result = run_partition(small, "2026-11-06", instance)
    assert checks(result) == {
        "ran": (True, ERROR),
        "comparable": (True, ERROR),
        "not_regressed": (False, ERROR),
    }
    (bad,) = [one for one in result.get_asset_check_evaluations() if not one.passed]
    assert bad.partition == "2026-11-06"
    assert bad.metadata["reason"] == dg.MetadataValue.text(f"{PSNR}: -10 margins off.")
    assert bad.metadata[PSNR] == dg.MetadataValue.text("regressed")


def test_of_a_night_that_does_not_compare_nothing_is_said_of_a_regression(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    for day in range(2, 6):
        small.at(f"2026-11-{day:02d}")
        run_partition(small, f"2026-11-{day:02d}", instance)
    small.measure.set_evaluator(offset=-1.0)
    small.at("2026-11-06")
    assert checks(run_partition(small, "2026-11-06", instance)) == {
        "ran": (True, ERROR),
        "comparable": (False, ERROR),
        "not_regressed": (False, WARN),
    }


def test_a_night_that_a_person_accepts_passes_its_checks(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    for day in range(2, 5):
        small.at(f"2026-11-{day:02d}")
        run_night(Session(small.spec, small.nightly))
    small.measure.set_evaluator(offset=-1.0)
    small.at("2026-11-05")
    run_night(Session(small.spec, small.nightly))
    accept(Session(small.spec, small.nightly), "2026-11-05", Person("eva", "a new SciPy"))
    found = checks(run_partition(small, "2026-11-05", instance))
    assert [passed for passed, _ in found.values()] == [True, True, True]


def test_a_night_whose_run_was_killed_before_its_verdict_is_judged_and_not_measured_again(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    run_night(Session(small.spec, small.nightly))
    (verdict,) = Path(small.spec.root).rglob("verdict-*.json")
    verdict.unlink()
    small.at("2026-11-02", "15:00")
    (shown,) = run_partition(small, "2026-11-02", instance).asset_materializations_for_node("nightly_small")
    assert shown.metadata["state"] == dg.MetadataValue.text("ok")
    assert len(small.measure.measured) == 2


def test_a_night_that_failed_is_a_failed_run_with_its_own_error(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    small.measure.set_evaluator(fails="the disk is full")
    small.at("2026-11-03")
    result = run_partition(small, "2026-11-03", instance, fails=True)
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "RuntimeError: the disk is full" in str(failure.step_failure_data.error)
    assert result.get_asset_check_evaluations() == []


def test_a_partition_of_an_earlier_day_is_backfilled_after_its_miss_was_told(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    log = tmp_path / "alerts.jsonl"
    small = SmallNightly(tmp_path, alerts={"log": {"kind": "file", "path": str(log)}})
    small.at("2026-11-05", "03:00")
    (shown,) = run_partition(small, "2026-11-03", instance).asset_materializations_for_node("nightly_small")
    assert shown.metadata["backfilled"] == dg.MetadataValue.bool(True)
    assert '"missed-onset"' in log.read_text()
    assert check(Session(small.spec, small.nightly), 14) == 4
    run_partition(small, "2026-11-02", instance)
    run_partition(small, "2026-11-04", instance)
    assert check(Session(small.spec, small.nightly), 14) == 0


def test_todays_partition_is_there_before_its_night_and_says_so(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    small.at("2026-11-03", "00:10")
    result = run_partition(small, "2026-11-03", instance, fails=True)
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "2026-11-03 is no night of small that has started" in str(failure.step_failure_data.error)


def test_a_paused_night_is_a_run_without_numbers(small: SmallNightly, instance: dg.DagsterInstance) -> None:
    small.at("2026-11-03")
    pause(Session(small.spec, small.nightly), date(2026, 11, 3), date(2026, 11, 3), Person("eva", "a move"))
    result = run_partition(small, "2026-11-03", instance)
    assert result.asset_materializations_for_node("nightly_small") == []
    assert small.lines[-1] == "2026-11-03: paused, a move (eva)"


def test_a_night_without_a_model_of_then_is_a_failed_run(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    subjects = {"model": {"kind": "recipe", "recipe": "scenes", "root": str(tmp_path / "empty")}}
    small = SmallNightly(tmp_path, subjects=subjects)
    small.at("2026-11-05", "03:00")
    result = run_partition(small, "2026-11-03", instance, fails=True)
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "2026-11-03: scenes has no finished model of train before" in str(failure.step_failure_data.error)


LINES = [
    "0 2 * * *",
    "30 2 * * mon-fri",
    "*/20 1-3 * * *",
    "0 2 1,15 * mon",
    "0 3 * mar,oct sat-sun",
    "0 0 29 2 *",
]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "UTC"])
def test_dagster_fires_on_the_same_dates_over_a_year(line: str, zone: str) -> None:
    cron = parse_cron(line)
    first, last = date(2027, 12, 1), date(2028, 11, 30)
    ours = {found.date() for found in cron.first_fires(first, last, ZoneInfo(zone))}
    theirs: set[date] = set()
    begin = datetime.combine(first, datetime.min.time(), ZoneInfo(zone)).timestamp()
    for moment in cron_string_iterator(begin, dagster_cron_line(cron), zone):
        if moment.date() > last:
            break
        theirs.add(moment.date())
    assert theirs == ours


@pytest.mark.parametrize("line", LINES)
def test_the_partitions_are_the_nights(line: str) -> None:
    schedule = ScheduleConfig(
        cron=line, timezone="Europe/Berlin", start=date(2027, 12, 1), end=date(2028, 11, 30)
    )
    after = datetime(2029, 1, 1, tzinfo=UTC)
    keys = night_partitions(schedule).get_partition_keys(current_time=after)
    nights = [
        found.date().isoformat()
        for found in schedule.line.first_fires(schedule.start, date(2028, 11, 30), schedule.zone)
    ]
    if line == "0 2 1,15 * mon":  # a union of days, which exclusions cannot say
        assert len(keys) == 366
    else:
        assert keys == nights


@pytest.mark.parametrize("is_named", [True, False])
def test_the_nights_are_served_beside_the_recipe_where_a_spec_is_named(
    is_named: bool, tmp_path: Path
) -> None:
    script = (
        "from dualtoken.pipelines.workflow.definitions import definitions as d; import dagster as dg;"
        "dg.Definitions.validate_loadable(d);"
        "print(sorted(key.to_user_string() for key in d.resolve_all_asset_keys()))"
    )
    environment = {**os.environ, "DUALTOKEN_RECIPE": "scenes"}
    environment.pop("DUALTOKEN_NIGHTLY", None)
    if is_named:
        environment["DUALTOKEN_NIGHTLY"] = "nightly-scenes"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "PYTHONPATH": str(PROJECT)},
        cwd=tmp_path,
    )
    assert ("'nightly_scenes'" in ended.stdout) == is_named
    assert "'pretokenize'" in ended.stdout
