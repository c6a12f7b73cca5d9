"""Work beside other work: in order, few calls at a time, and no error lost."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from dualtoken.pipelines.core.threads import MAX_WAITING_CALLS, BackgroundThread
from dualtoken.pipelines.core.timing import PARTS, TimeBreakdown, time_breakdown
from dualtoken.pipelines.core.totals import Totals


def appender(numbers: list[int], number: int) -> Callable[[], None]:
    return lambda: numbers.append(number)


@pytest.mark.parametrize("threaded", [False, True])
def test_calls_are_made_in_order_and_all_of_them(*, threaded: bool) -> None:
    made = list[int]()
    with BackgroundThread(threaded=threaded) as beside:
        for number in range(100):
            beside.submit(appender(made, number))
    assert made == list(range(100))


def test_no_more_calls_wait_than_may() -> None:
    go_on = Event()
    submitted: list[int] = []

    def submit_all() -> None:
        with BackgroundThread(threaded=True) as beside:
            for number in range(MAX_WAITING_CALLS + 3):
                beside.submit(lambda: assert_true(go_on.wait(30)))
                submitted.append(number)

    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(submit_all)
        while len(submitted) < MAX_WAITING_CALLS:
            pass
        assert not Event().wait(0.05)
        assert len(submitted) == MAX_WAITING_CALLS
        go_on.set()
        task.result(30)
    assert len(submitted) == MAX_WAITING_CALLS + 3


def assert_true(what: object) -> None:
    assert what


def test_the_first_error_is_raised_and_no_later_call_begins() -> None:
    made: list[int] = []
    waiting = Event()

    def fail() -> None:
        waiting.wait(30)
        raise OSError("no disk")

    # Raised when the block ends.
    with pytest.raises(OSError, match="no disk"), BackgroundThread(threaded=True) as beside:  # noqa: PT012
        beside.submit(fail)
        beside.submit(appender(made, 1))
        waiting.set()
    assert made == []


def test_an_error_of_the_block_is_raised_when_no_call_runs_any_more() -> None:
    made: list[int] = []
    began = Event()

    def slow() -> None:
        began.set()
        Event().wait(0.05)
        made.append(0)

    with pytest.raises(ValueError, match="of the block"), BackgroundThread(threaded=True) as beside:  # noqa: PT012
        beside.submit(slow)
        began.wait(30)
        raise ValueError("of the block")
    assert made == [0]


def test_the_parts_of_a_receipt_add_up_to_its_seconds_and_old_receipts_are_read() -> None:
    new = time_breakdown({"seconds": {"fetch": 1.0, "wait": 2.0, "encode": 4.0, "commit": 0.5}}, 8.0)
    assert new == {"fetch": 1.0, "wait": 2.0, "encode": 4.0, "commit": 0.5, "rest": 0.5}
    assert set(new) <= set(PARTS)
    old = time_breakdown({"seconds": {"wait": 2.0, "encode": 4.0, "write": 1.0, "audit": 1.0}}, 9.0)
    assert old["rest"] == 1.0
    assert time_breakdown({"seconds": 3.5}, 9.0) == {}, "a download has one number"
    assert time_breakdown({}, 9.0) == {}, "other stages have none"
    parts = TimeBreakdown(corpus="a", seconds=new)
    assert (parts.total, parts.encoder_waits, parts.longest_wait) == (8.0, 0.5, "wait")
    assert Totals(units=2, parts=new).scaled(4).parts["encode"] == 8.0
