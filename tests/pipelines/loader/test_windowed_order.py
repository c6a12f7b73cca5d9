"""Windowed shuffle: every row once, the same everywhere, and no shard before its window or after."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtoken.pipelines.loader.windowed_order import WindowedEpochs, WindowedOrder

SHARDS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


def bounds_of(rows: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.append(0, np.cumsum(rows, dtype=np.int64))


@settings(max_examples=60, deadline=None)
@given(SHARDS, st.integers(1, 6), st.integers(0, 9), st.integers(0, 3))
def test_each_epoch_has_each_row_once_and_touches_the_windows_shards_only(
    rows: list[int], window: int, seed: int, epoch: int
) -> None:
    bounds = bounds_of(rows)
    order = WindowedOrder(bounds, window, seed, epoch, "a")(np.arange(sum(rows)))
    assert sorted(order.tolist()) == list(range(sum(rows)))
    shards = np.searchsorted(bounds, order, side="right") - 1
    left = {shard for shard, count in enumerate(rows) if count}
    taken = 0
    while taken < len(order):
        # A window's rows are those of a few whole shards. It ends where none of its shards comes again.
        end = taken + 1
        while set(shards[taken:end].tolist()) & set(shards[end:].tolist()):
            end += 1
        in_window = set(shards[taken:end].tolist())
        assert len(in_window) <= window
        assert end - taken == sum(rows[shard] for shard in in_window)
        left -= in_window
        taken = end
    assert not left


@settings(deadline=None)
@given(SHARDS, st.integers(1, 6), st.data())
def test_any_part_of_an_order_is_that_part_of_the_whole(
    rows: list[int], window: int, data: st.DataObject
) -> None:
    order = WindowedOrder(bounds_of(rows), window, 3, 1, "a")
    picked = np.array(data.draw(st.lists(st.integers(0, sum(rows) - 1), max_size=9)), np.int64)
    assert order(picked).tolist() == order(np.arange(sum(rows)))[picked].tolist()


def test_an_order_is_the_same_on_every_machine() -> None:
    order = WindowedOrder(bounds_of([4, 2, 3, 1]), 2, seed=0, epoch=0, name="a")
    assert order(np.arange(10)).tolist() == PINNED


PINNED = [4, 5, 9, 3, 8, 6, 7, 1, 0, 2]


def test_a_windows_rows_are_mixed_and_each_epoch_has_other_windows() -> None:
    bounds = bounds_of([100] * 100)
    first = WindowedOrder(bounds, 10, 0, 0, "a")(np.arange(10_000)) // 100
    second = WindowedOrder(bounds, 10, 0, 1, "a")(np.arange(10_000)) // 100
    for begin in range(0, 10_000, 1000):
        assert len(set(first[begin : begin + 1000].tolist())) == 10
        assert len(set(first[begin : begin + 200].tolist())) == 10
    assert len(set(first[:1000].tolist()) & set(second[:1000].tolist())) < 6


@settings(max_examples=60, deadline=None)
@given(SHARDS, st.integers(1, 6))
def test_windows_say_which_shards_their_positions_read(rows: list[int], size: int) -> None:
    bounds = bounds_of(rows)
    order = WindowedEpochs(bounds, size, seed=2, name="a").epoch(5)
    window = order.window_at(0)
    seen = 0
    while True:
        read = np.searchsorted(bounds, order(np.arange(window.first, window.end)), side="right") - 1
        filled = {shard for shard in window.shards.tolist() if rows[shard]}
        assert set(read.tolist()) == filled
        for position in (window.first, window.end - 1)[: window.end - window.first]:
            assert order.window_at(position).shards.tolist() == window.shards.tolist()
        seen += window.end - window.first
        following = order.window_after(window)
        if following is None:
            break
        window = following
    assert seen == sum(rows)


def test_epochs_are_those_of_one_order_each_and_two_are_kept() -> None:
    bounds = bounds_of([4, 2, 3, 1])
    epochs = WindowedEpochs(bounds, 2, seed=0, name="a")
    for number in (0, 1, 0, 2, 1):
        expected = WindowedOrder(bounds, 2, 0, number, "a")(np.arange(10))
        assert epochs.epoch(number)(np.arange(10)).tolist() == expected.tolist()
    assert epochs.epoch(1) is epochs.epoch(1)
