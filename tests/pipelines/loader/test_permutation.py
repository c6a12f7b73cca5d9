"""Orders without tables: every row once, the same everywhere, and nothing that looks like an order."""

import numpy as np
import pytest

from dualtoken.pipelines.loader.permutation import FeistelPermutation


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4096, 65_537])
def test_every_row_comes_once(size: int) -> None:
    for epoch in range(3):
        assert sorted(FeistelPermutation(size, seed=7, epoch=epoch)(np.arange(size)).tolist()) == list(
            range(size)
        )


def test_any_part_of_an_order_is_that_part_of_the_whole() -> None:
    order = FeistelPermutation(1000, seed=1)
    whole = order(np.arange(1000))
    picked = np.array([999, 0, 500, 0])
    assert order(picked).tolist() == whole[picked].tolist()


def test_an_order_is_the_same_on_every_machine() -> None:
    assert FeistelPermutation(10, seed=0)(np.arange(10)).tolist() == PINNED


PINNED = [8, 6, 0, 3, 1, 2, 7, 5, 9, 4]


def test_seed_epoch_and_name_each_give_another_order() -> None:
    orders = {
        tuple(order(np.arange(100)).tolist())
        for order in (
            FeistelPermutation(100, 0),
            FeistelPermutation(100, 1),
            FeistelPermutation(100, 0, epoch=1),
            FeistelPermutation(100, 0, name="b"),
        )
    }
    assert len(orders) == 4


def test_neighbours_are_scattered() -> None:
    rows = FeistelPermutation(100_000, seed=3)(np.arange(100_000))
    steps = np.abs(np.diff(rows))
    # Of a uniform random order: a third of the size on average, and about one pair of neighbours in fifty thousand.
    assert 0.32 < steps.mean() / 100_000 < 0.345
    assert (steps == 1).sum() < 12
    assert abs(np.corrcoef(np.arange(100_000), rows)[0, 1]) < 0.02


def test_a_billion_rows_need_no_table() -> None:
    rows = FeistelPermutation(10**9, seed=0)(np.arange(10**9 - 1000, 10**9))
    assert len(set(rows.tolist())) == 1000
    assert rows.min() >= 0
    assert rows.max() < 10**9
