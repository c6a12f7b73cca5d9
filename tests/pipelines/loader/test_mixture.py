"""Mixtures: shares hold everywhere, every sample of a source comes once, and any sample is found by its number alone."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtoken.pipelines.loader.mixture import (
    BLOCK,
    _block_assignment,
    _earliest_counts,
    mixture_of_epochs,
    scheduled_mixture,
)

WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-4, 1e3)), min_size=1, max_size=5).filter(any)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(0, 2**31), st.integers(0, 40))
def test_shares_are_never_more_than_a_sample_per_source_off(
    weights: list[float], seed: int, blocks: int
) -> None:
    counts = scheduled_mixture({0: weights}, seed).prefix_counts(blocks * BLOCK)
    assert sum(counts) == blocks * BLOCK
    for count, weight in zip(counts, weights, strict=True):
        # Weights are rounded to fractions, so large counts may differ by that much.
        assert count == pytest.approx(
            blocks * BLOCK * weight / sum(weights), abs=len(weights) + 0.02 * blocks * BLOCK
        )
        assert count == 0 or weight > 0


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), st.integers(0, 200))
def test_counts_are_those_of_all_samples_sorted_by_time(weights: list[int], samples: int) -> None:
    times = [
        (Fraction(2 * j + 1, weight), i) for i, weight in enumerate(weights) if weight for j in range(samples)
    ]
    first = [source for _, source in sorted(times)[:samples]]
    assert _earliest_counts(tuple(weights), samples) == [
        first.count(source) for source in range(len(weights))
    ]


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, WEIGHTS, st.integers(1, 3 * BLOCK), st.integers(0, 100))
def test_each_source_is_read_in_order_without_gaps_across_phases(
    first: list[float], second: list[float], change: int, seed: int
) -> None:
    size = min(len(first), len(second))
    if not (any(first[:size]) and any(second[:size])):
        return
    order = scheduled_mixture({0: first[:size], change: second[:size]}, seed)
    chosen = order.assign(np.arange(6 * BLOCK))
    for source in range(size):
        numbers = chosen.indices[chosen.sources == source]
        assert sorted(numbers.tolist()) == list(range(len(numbers)))
    assert np.bincount(chosen.sources, minlength=size).tolist() == order.prefix_counts(6 * BLOCK)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3 * BLOCK), min_size=1, max_size=4).filter(any), st.integers(0, 9))
def test_whole_epochs_give_each_sample_of_each_source_once(rows: list[int], seed: int) -> None:
    order = mixture_of_epochs(rows, seed)
    chosen = order.assign(np.arange(sum(rows)))
    for source, count in enumerate(rows):
        assert sorted(chosen.indices[chosen.sources == source].tolist()) == list(range(count))


def test_a_sample_is_found_by_its_number_alone() -> None:
    order = scheduled_mixture({0: [3, 1, 0.5], 10_000: [1, 0, 2]}, seed=4)
    whole = order.assign(np.arange(5 * BLOCK))
    some = np.array([0, 17_000, 4095, 4096, 12_288, 17_000])
    assert [column.tolist() for column in order.assign(some)] == [column[some].tolist() for column in whole]


def test_a_single_source_is_read_in_order_as_its_blocks_say() -> None:
    for order in (
        scheduled_mixture({0: [0.3], 5000: [2]}, seed=4),
        mixture_of_epochs([2 * BLOCK + 7], seed=1),
    ):
        numbers = np.arange(order.num_samples or 3 * BLOCK)[::-3]
        chosen = order.assign(numbers)
        assert (chosen.sources.tolist(), chosen.indices.tolist()) == ([0] * len(numbers), numbers.tolist())
        for block in range(3):
            source, number = _block_assignment(order, block)
            assert set(source.tolist()) == {0}
            assert number.tolist() == list(range(BLOCK * block, BLOCK * block + len(number)))


def test_a_far_block_is_found_at_once() -> None:
    chosen = scheduled_mixture({0: [0.7, 0.2, 0.1]}).assign(np.arange(10**12, 10**12 + 100))
    assert abs(chosen.indices[chosen.sources == 0][0] / 10**12 - 0.7) < 1e-8


def test_a_source_of_weight_zero_comes_not_at_all() -> None:
    chosen = scheduled_mixture({0: [1, 0], 2 * BLOCK: [0, 1]}).assign(np.arange(4 * BLOCK))
    assert chosen.sources.tolist() == [0] * (2 * BLOCK) + [1] * (2 * BLOCK)


def test_sources_are_mixed_within_a_block() -> None:
    source = scheduled_mixture({0: [1, 1]}).assign(np.arange(BLOCK)).sources
    runs = 1 + int((np.diff(source) != 0).sum())
    assert 1900 < runs < 2200  # 2,048 expected; 4,096 were a pattern, 2 no mixture


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-9, 1e-300])
def test_shares_are_of_the_weights_however_small_all_of_them_are(scale: float) -> None:
    assert scheduled_mixture({0: [3 * scale, scale, 0]}).prefix_counts(BLOCK) == [
        3 * BLOCK // 4,
        BLOCK // 4,
        0,
    ]


def test_weights_of_before_give_the_samples_of_before() -> None:
    chosen = scheduled_mixture({0: [3.14159, 0.4142, 1e-5], BLOCK: [0.1, 0.2, 2e-6]}, seed=6).assign(
        np.arange(3 * BLOCK)
    )
    assert [hashlib.sha256(column.tobytes()).hexdigest()[:12] for column in chosen] == PINNED


PINNED = ["6179a3657d39", "423f18d8e1fe"]


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        (
            {0: [1, 1e-7]},
            r"weights=\[1, 1e-07\] from sample 0: 1e-07 is too small a share beside 1, under half of 1/1000000: raise it",
        ),
        ({0: [1, 1], 9: [1e-3, 4e-10]}, "from sample 4096: 4e-10 is too small a share beside 0.001"),
        ({0: [1, -1]}, r"weights=\[1, -1\] from sample 0: give weights of at least 0"),
        ({0: [0, 0]}, "give weights of at least 0, one of them more"),
        ({5: [1]}, "the schedule begins at sample 5: give the weights from 0 on"),
        ({0: [1], 9: [1, 2]}, "give one weight per source each time"),
    ],
)
def test_a_schedule_that_says_nothing_is_refused(schedule: dict[int, list[float]], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        scheduled_mixture(schedule)
