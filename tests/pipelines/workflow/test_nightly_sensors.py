"""The sensors of a nightly: overdue nights one by one, and the nights of others."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.tags import PARTITION_NAME_TAG
from dagster._core.test_utils import create_run_for_test, freeze_time

from dualtoken.pipelines.nightly.backfill import backfill
from dualtoken.pipelines.nightly.decisions import Person, acknowledge
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from tests.helpers.dagster_nights import ASSET, JOB, run_partition, served
from tests.helpers.nights import SmallNightly, write_model


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as empty:
        yield empty


@pytest.fixture
def small(tmp_path: Path) -> SmallNightly:
    return SmallNightly(tmp_path)


def session(small: SmallNightly) -> Session:
    return Session(small.spec, small.nightly)


def look_for_overdue(small: SmallNightly, instance: dg.DagsterInstance) -> str:
    """Evaluate the sensor; return the partition that it requests, or why it requests none."""
    sensor = served(small).resolve_sensor_def("nightly_small_overdue")
    found = sensor.evaluate_tick(dg.build_sensor_context(instance=instance, definitions=served(small)))
    if not found.run_requests:
        return str(found.skip_message)
    (request,) = found.run_requests
    assert request.partition_key is not None
    assert request.tags["dualtoken/nightly"] == "small"
    return request.partition_key


def note_run(
    small: SmallNightly, instance: dg.DagsterInstance, night: str, status: dg.DagsterRunStatus
) -> None:
    """Record a run of a night, made by the nightly's clock."""
    with freeze_time(small.clock()):
        create_run_for_test(instance, JOB, tags={PARTITION_NAME_TAG: night}, status=status)


def test_after_an_outage_missed_nights_are_requested_one_by_one_and_filled(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    small.at("2026-11-05", "09:00")
    filled: list[str] = []
    for _ in range(4):
        night = look_for_overdue(small, instance)
        run_partition(small, night, instance)
        filled.append(night)
    assert filled == ["2026-11-02", "2026-11-03", "2026-11-04", "2026-11-05"]
    assert look_for_overdue(small, instance) == "no night is overdue"
    assert {night for night, _, _ in small.measure.measured} == set(filled)


def test_nothing_is_requested_while_a_night_is_measured(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    small.at("2026-11-04", "09:00")
    note_run(small, instance, "2026-11-04", dg.DagsterRunStatus.STARTED)
    assert look_for_overdue(small, instance).startswith("a night is being measured; overdue: 2026-11-02, ")


def test_of_a_long_outage_the_newest_nights_are_requested(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    small.at("2026-11-25", "09:00")
    assert look_for_overdue(small, instance) == "2026-11-19"


def test_the_night_that_can_still_be_begun_comes_first_once_its_schedule_had_its_time(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    run_night(session(small))
    small.at("2026-11-04", "01:10")
    assert look_for_overdue(small, instance) == "2026-11-03"
    small.at("2026-11-04", "01:16")
    assert look_for_overdue(small, instance) == "2026-11-04"
    result = run_partition(small, "2026-11-04", instance)
    (shown,) = result.asset_materializations_for_node("nightly_small")
    assert shown.metadata["backfilled"] == dg.MetadataValue.bool(False)


def test_a_night_that_failed_is_tried_again_after_a_while_and_three_times_at_most(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    small.measure.set_evaluator(fails="the disk is full")
    small.at("2026-11-02", "01:20")
    for time in ("01:20", "02:00", "02:40"):
        small.at("2026-11-02", time)
        assert look_for_overdue(small, instance) == "2026-11-02"
        with pytest.raises(RuntimeError, match="the disk is full"):
            run_night(session(small))
        note_run(small, instance, "2026-11-02", dg.DagsterRunStatus.FAILURE)
        assert look_for_overdue(small, instance) == "tried before: 2026-11-02"
    small.at("2026-11-02", "04:00")
    assert look_for_overdue(small, instance) == "tried before: 2026-11-02"


def look_for_states(
    small: SmallNightly, instance: dg.DagsterInstance
) -> tuple[list[str], dict[str, dict[str, bool]]]:
    """Evaluate the sensor and do as it says: materialized nights, and checks by night."""
    sensor = served(small).resolve_sensor_def("nightly_small_states")
    found = sensor.evaluate_tick(dg.build_sensor_context(instance=instance, definitions=served(small)))
    nights: list[str] = []
    for event in found.asset_events:
        assert isinstance(event, dg.AssetMaterialization)
        assert event.asset_key == ASSET
        instance.report_runless_asset_event(event)
        nights.append(str(event.partition))
    checks: dict[str, dict[str, bool]] = {}
    for request in found.run_requests or []:
        job = served(small).resolve_job_def("nightly_small_checks_job")
        evaluations = job.execute_in_process(
            tags=request.tags, instance=instance
        ).get_asset_check_evaluations()
        (night,) = {one.partition for one in evaluations}
        checks[str(night)] = {one.check_name: one.passed for one in evaluations}
    return nights, checks


GOOD = {"ran": True, "comparable": True, "not_regressed": True}
LOST = {"ran": False, "comparable": False, "not_regressed": False}


def test_nights_of_commands_and_missed_ones_are_shown_once_with_their_checks(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    run_night(session(small))
    run_night(session(small.at("2026-11-03")))
    small.at("2026-11-04", "09:00")
    nights, checks = look_for_states(small, instance)
    assert nights == ["2026-11-02", "2026-11-03"]
    assert checks == {"2026-11-02": GOOD, "2026-11-03": GOOD, "2026-11-04": LOST}
    assert instance.get_materialized_partitions(ASSET) == {"2026-11-02", "2026-11-03"}
    assert look_for_states(small, instance) == ([], {})
    backfill(session(small), "2026-11-04", "2026-11-04")
    nights, checks = look_for_states(small, instance)
    assert (nights, checks) == (["2026-11-04"], {"2026-11-04": GOOD})


def test_nights_from_before_the_first_partition_are_not_shown(
    small: SmallNightly, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    run_night(session(small))
    later = SmallNightly(tmp_path, schedule={"start": "2026-11-03"}).at("2026-11-03")
    run_night(session(later))
    nights, checks = look_for_states(later, instance)
    assert (nights, list(checks)) == (["2026-11-03"], ["2026-11-03"])


def test_of_tonight_nothing_is_shown_before_it_is_over(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    run_night(session(small))
    small.at("2026-11-03", "00:10")
    assert look_for_states(small, instance) == (["2026-11-02"], {"2026-11-02": GOOD})


def test_checks_wait_for_a_run_that_may_still_make_them(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    run_night(session(small))
    note_run(small, instance, "2026-11-02", dg.DagsterRunStatus.STARTED)
    assert look_for_states(small, instance) == (["2026-11-02"], {})


def test_a_night_of_dagsters_own_is_not_shown_again(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    run_partition(small, "2026-11-02", instance)
    nights, checks = look_for_states(small, instance)
    assert (nights, checks) == ([], {})


def test_a_night_that_failed_in_dagster_gets_the_checks_that_its_run_did_not_come_to(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    small.measure.set_evaluator(fails="the disk is full")
    run_partition(small, "2026-11-02", instance, fails=True)
    assert look_for_states(small, instance) == ([], {"2026-11-02": LOST})
    assert look_for_states(small, instance) == ([], {})


def test_a_regression_that_a_person_acknowledges_passes_its_check(
    small: SmallNightly, instance: dg.DagsterInstance
) -> None:
    for day in range(2, 6):
        run_night(session(small.at(f"2026-11-{day:02d}")))
    write_model(small.models / "model", psnr=29.5)
    run_night(session(small.at("2026-11-06")))
    _, checks = look_for_states(small, instance)
    assert checks["2026-11-06"] == GOOD | {"not_regressed": False}
    acknowledge(session(small), "heldout/plain/psnr", "2026-11-06", Person("eva", "a smaller model"))
    _, checks = look_for_states(small, instance)
    assert checks == {"2026-11-06": GOOD}
