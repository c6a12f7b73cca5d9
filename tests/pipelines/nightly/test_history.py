"""A history's files: each written once, read by name, refused in one line where they cannot be."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from dualtoken.pipelines.core.receipts import DamagedRecordError
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.nightly.calendar import expected_nights
from dualtoken.pipelines.nightly.history import History, night_name, slug, spec_hash
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from tests.helpers.nights import FIRST, SmallNightly


@pytest.fixture
def small(tmp_path: Path) -> SmallNightly:
    """A nightly with one night."""
    made = SmallNightly(tmp_path)
    run_night(Session(made.spec, made.nightly))
    return made


def files(small: SmallNightly) -> list[str]:
    return [name for name, _ in History(small.spec.root, "small").store.files()]


def test_a_night_leaves_the_files_that_the_page_names(small: SmallNightly) -> None:
    version = spec_hash(small.spec, None)
    scores = f"scores/heldout/plain/{FIRST}-0001/00000.parquet"
    assert files(small) == [
        f"evaluations/{FIRST}/0001/canary/{scores}",
        f"evaluations/{FIRST}/0001/canary/summary.json",
        f"evaluations/{FIRST}/0001/model/{scores}",
        f"evaluations/{FIRST}/0001/model/summary.json",
        "history.parquet",
        f"nights/{FIRST}/attempts/0001/started.json",
        f"nights/{FIRST}/details-aaaaaaaaaaaa.json",
        f"nights/{FIRST}/night.json",
        f"nights/{FIRST}/verdict-aaaaaaaaaaaa.json",
        f"spec/{version}.json",
    ]


def test_a_second_run_of_a_night_writes_nothing_and_measures_nothing(small: SmallNightly) -> None:
    store = History(small.spec.root, "small").store
    before = {name: store.read(name) for name in files(small)}
    small.clock.pass_(hours=1)
    run_night(Session(small.spec, small.nightly))
    assert {name: store.read(name) for name in files(small)} == before
    assert len(small.measure.measured) == 2


@pytest.mark.parametrize(
    "name",
    [
        f"nights/{FIRST}/details-aaaaaaaaaaaa.json",
        f"nights/{FIRST}/night.json",
        f"nights/{FIRST}/verdict-aaaaaaaaaaaa.json",
        f"nights/{FIRST}/attempts/0001/started.json",
        "spec",
    ],
)
def test_a_newer_schema_is_refused_in_one_line(name: str, small: SmallNightly) -> None:
    store = History(small.spec.root, "small").store
    if name == "spec":
        name = f"spec/{spec_hash(small.spec, None)}.json"
    record = json.loads(store.read(name))
    store.put_bytes(json.dumps(record | {"schema_version": 2, "new": 1}).encode(), name)
    with pytest.raises(UserError) as error:
        History(small.spec.root, "small").read()
    assert str(error.value) == (
        f"{store.url}/{name} is of schema 2, and this dualtoken reads up to 1: update dualtoken"
    )


def test_a_damaged_file_is_named_in_one_line(small: SmallNightly) -> None:
    store = History(small.spec.root, "small").store
    store.put_bytes(b'{"night": ', f"nights/{FIRST}/night.json")
    with pytest.raises(
        DamagedRecordError, match=rf"nights/{FIRST}/night.json is not as it was written"
    ) as error:
        History(small.spec.root, "small").read()
    assert "\n" not in str(error.value)


def test_a_night_that_was_copied_to_another_ones_place_is_refused(small: SmallNightly) -> None:
    store = History(small.spec.root, "small").store
    store.put_bytes(store.read(f"nights/{FIRST}/night.json"), "nights/2026-11-03/night.json")
    with pytest.raises(UserError, match=rf"nights/2026-11-03/night.json is of the night {FIRST}"):
        History(small.spec.root, "small").read()


@pytest.mark.parametrize(
    "name", ["nights/.DS_Store", "nights/x/night.json", "spec/README", "baselines/a.json"]
)
def test_files_that_are_not_ours_are_left_alone(name: str, small: SmallNightly) -> None:
    history = History(small.spec.root, "small")
    before = history.read()
    history.store.put_bytes(b"?", name)
    assert history.read() == before


def test_a_spec_that_comes_back_is_in_force_again(small: SmallNightly) -> None:
    other = SmallNightly(Path(small.spec.root).parent, schedule={"cron": "0 5 * * *"})
    for night, spec in (("2026-11-03", other.spec), ("2026-11-04", small.spec)):
        small.at(night, "12:00")
        Session(spec, small.nightly).open()
    snapshot = History(small.spec.root, "small").read()
    assert [record.schedule.cron for _, record in snapshot.specs] == ["0 2 * * *", "0 5 * * *", "0 2 * * *"]
    nights = expected_nights(snapshot, small.clock() + timedelta(days=1))
    assert [night.starts.hour for night in nights] == [1, 1, 4, 1]
    Session(small.spec, small.nightly).open()
    assert len(History(small.spec.root, "small").read().specs) == 3


def test_names_are_of_one_part_and_unlike_for_unlike_series() -> None:
    names = {slug("a/b/c"), slug("a-b-c"), slug("A/b/c"), slug("../../etc"), slug("ä/b/c")}
    assert len(names) == 5
    assert not any("/" in name or name.startswith(".") for name in names)


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "../spec", ""])
def test_a_night_is_named_by_a_date(text: str) -> None:
    with pytest.raises(UserError, match="is no night: write its date, such as 2026-11-28"):
        night_name(text)


def test_specs_follow_each_other_whatever_the_clocks_of_their_writers_say(small: SmallNightly) -> None:
    other = SmallNightly(Path(small.spec.root).parent, schedule={"cron": "0 5 * * *"})
    small.clock.pass_(minutes=-10)
    Session(other.spec, small.nightly).open()
    snapshot = History(small.spec.root, "small").read()
    assert [record.schedule.cron for _, record in snapshot.specs] == ["0 2 * * *", "0 5 * * *"]
