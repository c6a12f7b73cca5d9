"""Cron lines fire when Dagster's and croniter's do, and once at each change of clocks."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dagster._utils.schedules import schedule_execution_time_iterator
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtoken.pipelines.config.cron import Cron, first_instant, parse_cron

LINES = (
    "0 2 * * *",
    "30 1-5/2 * * *",
    "*/20 4,16 * * mon-fri",
    "15 3 1,15 * *",
    "15 3 1,15 * sun",
    "0 0 29 feb *",
    "59 23 31 1-12/2 sat-sun",
    "0 6 * jan,JUL 7",
    "0 2 28-31 2 *",
)
BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.parametrize("line", LINES)
def test_a_line_fires_when_dagster_fires_it(line: str) -> None:
    start = datetime(2027, 11, 29, tzinfo=UTC)
    ticks = schedule_execution_time_iterator(start.timestamp(), line, "UTC", ascending=True)
    ours = list(parse_cron(line).fires(start.date(), date(2028, 12, 31), ZoneInfo("UTC")))
    theirs: list[datetime] = []
    for tick in ticks:
        if tick.year > 2028:
            break
        theirs.append(tick.astimezone(UTC))
    assert ours
    assert ours == theirs


def fields(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high).map(str)
    ranges = st.tuples(st.integers(low, high - 1), st.integers(1, 4)).map(
        lambda ends: f"{ends[0]}-{min(ends[0] + ends[1], high)}"
    )
    steps = st.tuples(ranges, st.integers(1, 3)).map(lambda parts: f"{parts[0]}/{parts[1]}")
    lists = st.lists(st.one_of(number, ranges, steps), min_size=1, max_size=3).map(",".join)
    return st.one_of(st.just("*"), lists)


@settings(max_examples=100, deadline=None)
@given(st.tuples(fields(0, 59), fields(0, 23), fields(1, 28), fields(1, 12), fields(0, 6)))
def test_any_line_fires_as_dagsters_evaluator_does(parts: tuple[str, ...]) -> None:
    line = " ".join(parts)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    try:
        cron = parse_cron(line)
    except ValueError as error:
        assert "which schedulers read in different ways" in str(error)  # noqa: PT017
        return
    ours = cron.fires(start.date(), date(2033, 12, 31), ZoneInfo("UTC"))
    theirs = schedule_execution_time_iterator(start.timestamp(), line, "UTC", ascending=True)
    for _ in range(40):
        tick = next(theirs)
        if tick.year > 2033:
            break
        assert next(ours) == tick


@pytest.mark.parametrize(
    ("zone", "skipped", "instant"),
    [
        (NEW_YORK, "2026-03-08T02:30", "2026-03-08T07:00:00"),
        (BERLIN, "2026-03-29T02:00", "2026-03-29T01:00:00"),
        (ZoneInfo("Australia/Lord_Howe"), "2026-10-04T02:10", "2026-10-03T15:30:00"),
    ],
)
def test_a_time_that_clocks_skip_is_the_first_instant_after_the_gap(
    zone: ZoneInfo, skipped: str, instant: str
) -> None:
    assert first_instant(datetime.fromisoformat(skipped), zone).isoformat() == f"{instant}+00:00"


def test_a_time_that_comes_twice_is_its_first_occurrence() -> None:
    assert first_instant(datetime.fromisoformat("2026-10-25T02:30"), BERLIN) == datetime(
        2026, 10, 25, 0, 30, tzinfo=UTC
    )


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "America/Havana", "Asia/Kolkata"])
@pytest.mark.parametrize("line", ["0 2 * * *", "30 2 * * *", "30 0 * * *", "*/15 * * * *"])
def test_each_day_of_a_year_fires_first_once_over_both_changes_of_clocks(line: str, zone: str) -> None:
    days = [date(2026, 1, 1) + timedelta(days=number) for number in range(365)]
    cron = parse_cron(line)
    firsts = list(cron.first_fires(days[0], days[-1], ZoneInfo(zone)))
    assert [moment.date() for moment in firsts] == days
    by_day: dict[date, datetime] = {}
    for moment in cron.fires(days[0], days[-1], ZoneInfo(zone)):
        by_day.setdefault(moment.date(), moment)
    assert firsts == list(by_day.values())


def test_a_date_that_a_zone_leaves_out_is_no_night() -> None:
    samoa = ZoneInfo("Pacific/Apia")  # it had no 30 December 2011
    firsts = parse_cron("0 2 * * *").first_fires(date(2011, 12, 28), date(2012, 1, 1), samoa)
    assert [(moment.day, moment.hour) for moment in firsts] == [(28, 2), (29, 2), (31, 0), (1, 2)]


def test_no_two_ticks_are_one_instant_and_none_goes_back() -> None:
    cron = parse_cron("*/10 * * * *")
    ticks = list(cron.fires(date(2026, 3, 7), date(2026, 3, 9), NEW_YORK))
    instants = [tick.astimezone(UTC) for tick in ticks]
    assert instants == sorted(set(instants))
    # A gap of an hour has six ticks less, of which one stands for the gap's end, which is a tick itself.
    assert len(ticks) == 3 * 144 - 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 2 30 2 *", "never fires: no such month has a day 30"),
        ("0 2 31 4,6,9,11 *", "never fires: no such month has a day 31"),
        ("0 2 * *", "has 4 fields"),
        ("60 2 * * *", "60 is no minute: use 0 to 59"),
        ("0 2 * * funday", "'funday' is no day of week"),
        ("0 2 * * L", "'l' is no day of week"),
        ("0 22-2 * * *", "a range goes up"),
        ("5/10 2 * * *", "write the range, as 5-59/10"),
        ("*/0 2 * * *", "set the step of the minute above 0"),
        ("0 2 */2 * mon", "which schedulers read in different ways"),
        ("0 2 2 * 0-6", "which schedulers read in different ways"),
        ("@daily", "has 1 fields"),
        ("0 2 * * 1#2", "is no day of week"),
    ],
)
def test_what_is_no_line_that_fires_is_refused_in_one_sentence(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_cron(line)
    assert "\n" not in str(error.value)


def test_a_day_of_month_and_a_day_of_week_are_a_union() -> None:
    cron: Cron = parse_cron("0 2 30 2 mon")
    assert cron.is_on(date(2026, 2, 2))
    assert not cron.is_on(date(2026, 2, 3))
