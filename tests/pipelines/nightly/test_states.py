"""The state of a night is a pure function of files and clock, whichever machine's clock that is."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from dualtoken.pipelines.config.nightly import ScheduleConfig
from dualtoken.pipelines.nightly.calendar import expected_nights, night_at
from dualtoken.pipelines.nightly.history import Attempt, NightFiles, Snapshot
from dualtoken.pipelines.nightly.records import (
    AttemptRecord,
    FailedRecord,
    PauseRecord,
    SpecRecord,
    stamp,
)
from dualtoken.pipelines.nightly.states import NightState, night_states
from tests.helpers.nights import RULES

NIGHT = "2026-11-10"
STARTS = datetime(2026, 11, 10, 1, tzinfo=UTC)
"""02:00 in Berlin."""
DEADLINE = STARTS + timedelta(hours=6)
MINUTE = timedelta(minutes=1)
SKEW = timedelta(minutes=10)


def schedule(**changes: Any) -> ScheduleConfig:
    values = {"cron": "0 2 * * *", "timezone": "Europe/Berlin", "start": NIGHT, "deadline_hours": 6}
    return ScheduleConfig.model_validate(values | {"lease_hours": 4} | changes)


def snapshot(files: NightFiles | None = None, **given: Any) -> Snapshot:
    spec = SpecRecord(previous=None, since=stamp(STARTS), schedule=given.pop("schedule", schedule()), spec={})
    parts: dict[str, Any] = {
        "specs": (("aa", spec),),
        "pauses": (),
        "baselines": (),
        "acks": (),
        "nights": {NIGHT: files} if files else {},
    }
    return Snapshot(**(parts | given))


def attempt(started: datetime, reason: str | None = None, **changes: Any) -> Attempt:
    values: dict[str, Any] = {"host": "h", "pid": 1, "token": "t", "lease_hours": 4, "spec": "aa"}
    record = AttemptRecord.model_validate(values | {"started_at": stamp(started)} | changes)
    failed = FailedRecord(reason=reason, failed_at=stamp(started)) if reason else None
    return Attempt(record, failed)


def state_at(now: datetime, files: NightFiles | None = None, **given: Any) -> NightState:
    return night_states(snapshot(files, **given), now, RULES)[0]


def test_a_night_that_nobody_begins_is_planned_until_its_deadline_and_missed_within_a_minute() -> None:
    assert state_at(STARTS - timedelta(hours=5)).state == "planned"
    assert state_at(DEADLINE).state == "planned"
    missed = state_at(DEADLINE + MINUTE)
    assert (missed.state, missed.reason) == ("missed", "nobody began it by 2026-11-10 07:00 UTC")


def test_an_attempt_runs_until_it_fails_or_its_lease_and_the_skew_are_over() -> None:
    running = NightFiles(attempts={"0001": attempt(STARTS)})
    lease_ends = STARTS + timedelta(hours=4)
    assert state_at(STARTS, running).state == "running"
    assert state_at(lease_ends + SKEW, running).state == "running"
    stale = state_at(lease_ends + timedelta(minutes=16), running)
    assert stale.state == "failed"
    assert stale.reason == f"process 1 on h began it at {stamp(STARTS)}, and its lease went stale"
    failed = NightFiles(attempts={"0001": attempt(STARTS, "it broke"), "0002": attempt(STARTS, "again")})
    assert (state_at(STARTS, failed).state, state_at(STARTS, failed).reason) == ("failed", "again")
    failed.attempts["0003"] = attempt(STARTS)
    assert state_at(STARTS, failed).state == "running"


def test_an_attempt_that_fails_at_a_backfill_leaves_the_night_missed() -> None:
    files = NightFiles(attempts={"0001": attempt(DEADLINE + 5 * MINUTE, "no model", backfilled=True)})
    assert state_at(DEADLINE + timedelta(hours=9), files).state == "missed"


def test_a_paused_night_is_neither_planned_nor_missed() -> None:
    pause = PauseRecord(
        first=date(2026, 11, 9), last=date(2026, 11, 10), who="eva", reason="move", decided_at=stamp(STARTS)
    )
    states = night_states(snapshot(pauses=(pause,)), DEADLINE + timedelta(days=1, minutes=1), RULES)
    assert [state.state for state in states[:2]] == ["paused", "missed"]
    assert states[0].reason == "move (eva)"


@pytest.mark.parametrize("checker", [-SKEW, SKEW])
@pytest.mark.parametrize("runner", [-SKEW / 2, SKEW / 2])
def test_no_clock_apart_calls_a_night_missed_or_failed_that_another_one_runs(
    checker: timedelta, runner: timedelta
) -> None:
    # `checker` is the clock that looks, less the one that runs.
    [night] = expected_nights(snapshot(), STARTS)
    begun_last = night.closes  # by the runner's clock
    real = begun_last - runner
    looks = real + runner + checker
    assert state_at(looks).state == "planned", "the moment before it is begun"
    started = NightFiles(attempts={"0001": attempt(begun_last)})
    assert state_at(looks, started).state == "running"
    ends = looks + timedelta(hours=4)  # the runner writes its result as its lease ends
    assert state_at(ends, started).state == "running"


def test_a_run_that_the_scheduler_calls_by_a_clock_ahead_is_for_the_night_that_begins() -> None:
    nights = expected_nights(snapshot(), STARTS + timedelta(days=2))
    second = nights[1]
    found = night_at(nights, second.starts - SKEW)
    assert found == second
    early = night_at(nights, second.starts - timedelta(hours=1))
    assert early == nights[0]
    assert night_at(nights, STARTS - timedelta(hours=1)) is None


def test_a_short_deadline_can_still_be_met() -> None:
    [night] = expected_nights(snapshot(schedule=schedule(deadline_hours=0.1, end=NIGHT)), STARTS)
    assert night.closes == STARTS + timedelta(minutes=3)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"])
@pytest.mark.parametrize("cron", ["0 2 * * *", "30 2 * * *", "15 0 * * *", "59 23 * * *"])
def test_a_year_over_both_changes_of_clocks_has_365_nights_and_misses_none(cron: str, zone: str) -> None:
    first = date(2026, 1, 1)
    given = schedule(cron=cron, timezone=zone, start=first, end=first + timedelta(days=364))
    history = snapshot(schedule=given)
    nights = expected_nights(history, datetime(2027, 2, 1, tzinfo=UTC))
    assert [night.night for night in nights] == [
        (first + timedelta(days=number)).isoformat() for number in range(365)
    ]
    for night in nights:
        assert night.starts.astimezone(ZoneInfo(zone)).date().isoformat() == night.night
        begun = NightFiles(attempts={"0001": attempt(night.starts)})
        for clock in (-SKEW, timedelta(), SKEW):
            states = night_states(
                snapshot(schedule=schedule(cron=cron, timezone=zone, start=night.night), nights={}),
                night.starts + clock,
                RULES,
            )
            assert states[0].state == "planned"
            states = night_states(
                snapshot(
                    schedule=schedule(cron=cron, timezone=zone, start=night.night, end=night.night),
                    nights={night.night: begun},
                ),
                night.starts + clock,
                RULES,
            )
            assert [state.state for state in states] == ["running"]


def test_five_nights_without_a_scheduler_are_five_missed_ones() -> None:
    now = DEADLINE + timedelta(days=4) + MINUTE
    states = night_states(snapshot(), now, RULES)
    assert [state.state for state in states] == ["missed"] * 5 + ["planned"]


def test_a_new_spec_takes_over_from_its_moment_and_makes_no_night_missed_or_double() -> None:
    old = SpecRecord(previous=None, since=stamp(STARTS), schedule=schedule(), spec={})
    changed = datetime(2026, 11, 12, 10, tzinfo=UTC)
    for cron, nights in {
        "0 5 * * *": ["10T01", "11T01", "12T01", "13T04", "14T04"],
        "0 23 * * *": ["10T01", "11T01", "12T01", "13T22", "14T22"],
    }.items():
        new = SpecRecord(previous="aa", since=stamp(changed), schedule=schedule(cron=cron), spec={})
        history = snapshot(specs=(("aa", old), ("bb", new)))
        found = expected_nights(history, datetime(2026, 11, 14, 23, tzinfo=UTC))
        assert [night.starts.strftime("%dT%H") for night in found] == nights


def test_a_new_spec_that_comes_before_the_old_ones_night_has_that_night() -> None:
    old = SpecRecord(previous=None, since=stamp(STARTS), schedule=schedule(cron="0 23 * * *"), spec={})
    changed = datetime(2026, 11, 12, 10, tzinfo=UTC)
    for cron, start in {"0 22 * * *": "12T21", "0 2 * * *": "13T01"}.items():
        new = SpecRecord(previous="aa", since=stamp(changed), schedule=schedule(cron=cron), spec={})
        history = snapshot(specs=(("aa", old), ("bb", new)))
        found = expected_nights(history, datetime(2026, 11, 13, 23, tzinfo=UTC))
        assert found[2].starts.strftime("%dT%H") == start, "a night whose deadline is over is not missed"


def test_files_of_a_night_that_no_spec_expects_are_shown() -> None:
    files = NightFiles(attempts={"0001": attempt(STARTS, "it broke")})
    states = night_states(snapshot(nights={"2026-11-01": files}), STARTS, RULES)
    assert [(state.night, state.state) for state in states[:2]] == [
        ("2026-11-01", "failed"),
        (NIGHT, "planned"),
    ]
