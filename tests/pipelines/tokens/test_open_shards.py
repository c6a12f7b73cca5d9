"""What a batch lacks is opened side by side, and what is ready is not; a failure is that of one shard."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dualtoken.pipelines.core.threads import map_ahead_unless_ready
from dualtoken.pipelines.tokens.caption_cache import CaptionCache
from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.lent_rows import RowLender
from dualtoken.pipelines.tokens.mapped_shards import MappedShard, Rows
from dualtoken.pipelines.tokens.open_shards import ShardMaps
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.token_datasets import write_tokens


def shard(number: int) -> MappedShard:
    addresses = {"key": np.array([1000 * number])}
    return MappedShard(Path("none"), 0, {}, 256, addresses, [], 0, RowLender(Path("none"), 0))


class Together:
    """Gives anything only when so many are asked for at the same time."""

    def __init__(self, threads: int) -> None:
        self._barrier = threading.Barrier(threads)
        self.asked = list[int]()

    def __call__(self, number: int) -> int:
        self.asked.append(number)
        self._barrier.wait(timeout=5)
        return number


def begins(shards: ShardMaps, numbers: Rows, fetch: Together) -> list[int]:
    def open_shards(missing: list[int]) -> list[MappedShard]:
        return [shard(number) for number in map_ahead_unless_ready(fetch, missing, lambda _: False)]

    return shards.begins(numbers, np.zeros_like(numbers), open_shards)["key"].tolist()


def test_shards_that_a_batch_lacks_are_opened_side_by_side_once_each_and_no_thread_is_left() -> None:
    shards = ShardMaps(99, 1, ["key"], None)
    fetch = Together(4)
    before = threading.active_count()
    assert begins(shards, np.array([7, 3, 7, 90, 3, 8]), fetch) == [7000, 3000, 7000, 90_000, 3000, 8000]
    assert begins(shards, np.array([90, 8]), fetch) == [90_000, 8000]
    assert sorted(fetch.asked) == [3, 7, 8, 90]
    assert threading.active_count() == before


def test_captions_that_a_batch_lacks_are_read_side_by_side_and_no_thread_is_left() -> None:
    columns = CaptionCache("a", None)
    fetch = Together(3)
    before = threading.active_count()

    def read(number: int) -> pa.Array:
        return pa.array([str(fetch(number))])

    for _ in range(2):
        assert {number: column.to_pylist() for number, column in columns.get([5, 2, 9], read)} == {
            2: ["2"],
            5: ["5"],
            9: ["9"],
        }
    assert sorted(fetch.asked) == [2, 5, 9]
    assert threading.active_count() == before


def test_of_two_damaged_shards_the_first_is_named_and_those_before_it_are_kept(tmp_path: Path) -> None:
    tokens = TokenDataset(write_tokens(tmp_path / "a", 100, rows_per_shard=10))
    for number in (3, 7):
        (tmp_path / f"a/data/0000{number}.arrow").unlink()
    before = threading.active_count()
    with pytest.raises(DamagedShardError, match=r"data/00003\.arrow is damaged \(missing\)") as found:
        tokens.read(np.arange(100))
    assert found.value.shard == (tokens.url, 3)
    assert threading.active_count() == before
    for number in (0, 1, 2):
        (tmp_path / f"a/data/0000{number}.arrow").unlink()
    assert len(tokens.read(np.arange(30)).keys) == 30, "maps of shards that were opened before the failure"


def test_a_dataset_looks_at_shards_side_by_side_and_opens_those_that_it_knows_without_threads(
    tmp_path: Path,
) -> None:
    tokens = TokenDataset(write_tokens(tmp_path / "a", 100, rows_per_shard=10))
    names = set[str]()
    rows, (first, again) = np.arange(0, 100, 9), (set[str](), set[str]())
    threading.setprofile(lambda *_: names.add(threading.current_thread().name))
    try:
        for seen in (first, again):
            tokens.read(rows)
            seen.update(names)
            names.clear()
            tokens = pickle.loads(pickle.dumps(tokens))  # without its maps
        tokens.captions(rows)
    finally:
        threading.setprofile(None)
    assert any(name.startswith("ahead") for name in first)
    assert not again
    assert any(name.startswith("ahead") for name in names)
