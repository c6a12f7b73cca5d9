"""Where a store puts a record over another one, the lowest of all living bids becomes the owner."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dualtoken.pipelines.nightly import owners
from dualtoken.pipelines.nightly.history import History
from dualtoken.pipelines.nightly.owners import become_owner
from dualtoken.pipelines.nightly.records import SendingRecord, this_process
from tests.helpers.s3_servers import s3_server

NAME = "nights/2026-11-02/alerts/missed-log.sending-1.json"
BIDS = "bids/nights/2026-11-02/alerts/missed-log.sending-1"
ELSEWHERE = {"host": "elsewhere", "pid": 7}
HERE_AND_DEAD = {"host": this_process()["host"], "pid": 2**22 + 1}
"""Linux numbers processes up to 2 ** 22."""


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[History]:
    monkeypatch.setattr(owners, "SETTLES", 1.0)
    with s3_server("rclone", tmp_path) as url:
        yield History(f"{url}/root", "small")


def record(token: str, time: str = "01:00", **changes: str | int) -> SendingRecord:
    values = {**this_process(), "started_at": f"2026-11-02T{time}:00.000+00:00", "token": token}
    return SendingRecord.model_validate(values | changes)


def bid(history: History, other: SendingRecord) -> None:
    history.put(other, f"{BIDS}/{other.token}.json")


def test_a_lower_bid_of_a_living_process_has_the_name_and_none_is_put(history: History) -> None:
    bid(history, record("aa", "00:45", **ELSEWHERE))
    assert become_owner(history, record("bb"), NAME).token == "aa"
    assert not history.store.exists(NAME)
    assert [name for name, _ in history.store.files("bids")] == [f"{BIDS}/aa.json"]


def test_higher_bids_and_those_of_the_dead_do_not_hold_a_name(history: History) -> None:
    bid(history, record("aa", "00:43", **ELSEWHERE))
    bid(history, record("ab", **HERE_AND_DEAD))
    bid(history, record("cc", **ELSEWHERE))
    assert become_owner(history, record("bb"), NAME).token == "bb"
    assert history.get(SendingRecord, NAME).token == "bb"
    assert not history.store.exists(f"{BIDS}/bb.json")


def test_a_record_that_is_there_stays_whatever_is_bid_for_it(history: History) -> None:
    history.put(record("bb", **ELSEWHERE), NAME)
    assert become_owner(history, record("aa"), NAME).token == "bb"
    assert history.get(SendingRecord, NAME).token == "bb"
