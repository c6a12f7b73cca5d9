"""The sequence of a training's samples: exact epochs, and everything a function of the sample's number."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtoken.pipelines.tokens.shard_bounds import ShardBounds
from dualtoken.pipelines.training.sample_sequence import TRIES, TRIES_IN_WINDOW, SampleSequence

SHARDS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def sequence_of(shards: list[int], window: int = 2, seed: int = 0) -> SampleSequence:
    return SampleSequence(ShardBounds(np.array(shards, np.int64)), window, seed, "corpus")


@settings(max_examples=50, deadline=None)
@given(SHARDS, st.integers(1, 6), st.integers(0, 9), st.integers(0, 3))
def test_every_epoch_has_each_sample_once(shards: list[int], window: int, seed: int, epoch: int) -> None:
    size = sum(shards)
    samples = np.arange(epoch * size, (epoch + 1) * size)
    sequence = sequence_of(shards, window, seed)
    assert sorted(sequence.rows(samples).tolist()) == list(range(size))
    assert {sequence.epoch_of(sample) for sample in samples.tolist()} == {epoch}


@settings(max_examples=50, deadline=None)
@given(SHARDS, st.data())
def test_any_samples_in_any_order_are_those_of_the_run(shards: list[int], data: st.DataObject) -> None:
    sequence = sequence_of(shards)
    run = sequence.rows(np.arange(4 * sum(shards)))
    picked = data.draw(st.lists(st.integers(0, len(run) - 1), max_size=20))
    assert sequence_of(shards).rows(np.array(picked, np.int64)).tolist() == run[picked].tolist()


def test_epochs_and_seeds_and_corpora_have_other_orders() -> None:
    shards = [20] * 10
    first = sequence_of(shards).rows(np.arange(200)).tolist()
    assert sequence_of(shards).rows(np.arange(200, 400)).tolist() != first
    assert sequence_of(shards, seed=1).rows(np.arange(200)).tolist() != first
    bounds = ShardBounds(np.array(shards, np.int64))
    assert SampleSequence(bounds, 2, 0, "another").rows(np.arange(200)).tolist() != first


@settings(max_examples=30, deadline=None)
@given(SHARDS, st.integers(1, 6))
def test_windows_follow_each_other_from_epoch_to_epoch(shards: list[int], size: int) -> None:
    sequence = sequence_of(shards, size)
    bounds = np.append(0, np.cumsum(shards))
    for sample in range(2 * sum(shards) + 1):
        window = sequence.window_at(sample)
        row = int(sequence.rows(np.array([sample]))[0])
        assert np.searchsorted(bounds, row, side="right") - 1 in window.window.shards.tolist()
        position = sample - window.epoch * sum(shards)
        length = window.window.end - window.window.first
        assert window.done == pytest.approx((position - window.window.first) / length)
        if position == window.window.end - 1:
            after = sequence.window_at(sample + 1).window
            assert sequence.window_after(window).shards.tolist() == after.shards.tolist()


def test_substitutes_are_drawn_anew_for_each_sample_and_from_its_window_first() -> None:
    shards = [40] * 10
    sequence = sequence_of(shards)
    firsts: list[int] = []
    last: list[int] = []
    for sample in range(40):
        drawn = list(sequence.substitutes(sample))
        assert len(drawn) == TRIES
        window = set(sequence.window_at(sample).window.shards.tolist())
        assert {row // 40 for row in drawn[:TRIES_IN_WINDOW]} == window
        assert len({row // 40 for row in drawn[TRIES_IN_WINDOW:]}) > 6
        firsts += islice(drawn, 1)
        last = drawn
    # One sample in the place of a whole lost shard's would be a training on that one.
    assert len(set(firsts)) > 25
    assert list(sequence_of(shards).substitutes(39)) == last
