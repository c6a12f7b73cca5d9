"""The two tricks of `mapped_shards` do what their slow, obvious twins do."""

from collections import deque

import numpy as np
import pytest
import torch

from dualtoken.pipelines.tokens.mapped_shards import Buffers, FreshBuffers, Rows, Words, copy_rows, take_rows
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.token_datasets import write_tokens

ROWS = 1500
PER_SHARD = 600  # two whole batches and a short one


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    folder = write_tokens(tmp_path_factory.mktemp("tokens") / "a", ROWS, rows_per_shard=PER_SHARD)
    dataset = TokenDataset(folder)
    dataset.read(np.arange(ROWS))  # all is mapped
    return dataset


def taken(dataset: TokenDataset, column: str, rows: Rows) -> Words:
    """Take rows one by one from the shard that each is in."""
    taken_rows = []
    for row in rows.tolist():
        number, place = divmod(row, PER_SHARD)
        taken_rows.append(take_rows(dataset._data.maps[number], column, np.array([place])))
    return np.concatenate(taken_rows)


@pytest.mark.parametrize(
    "rows",
    [
        np.arange(ROWS),
        np.arange(256, 512),
        np.arange(250, 262),
        np.arange(598, 603),
        np.array([7]),
        np.array([7, 7, 7]),
        np.array([5, 5, 7]),
        np.arange(20, 3, -1),
        np.arange(0, ROWS, 97),
        np.random.default_rng(0).integers(0, ROWS, 400),
    ],
    ids=[
        "all",
        "a batch",
        "two batches",
        "two shards",
        "one",
        "again",
        "in a span",
        "backwards",
        "far apart",
        "shuffled",
    ],
)
@pytest.mark.parametrize("column", ["key", "semantic", "pixel"])
def test_rows_copied_by_address_are_those_taken_from_the_table(
    column: str, rows: Rows, tokens: TokenDataset
) -> None:
    out = np.zeros((len(rows), tokens.width(column)), np.uint16)
    copy_rows(tokens.addresses(rows)[column], out)
    assert np.array_equal(out, taken(tokens, column, rows))


def test_copying_no_rows_touches_nothing() -> None:
    array = np.full((3, 8), 7, np.uint16)
    copy_rows(np.empty(0, np.int64), array[1:1])
    assert np.all(array == 7)


@pytest.mark.parametrize("hold", [1, 3, 40])
def test_arrays_used_again_hold_what_fresh_ones_do_for_as_long_as_anybody_has_a_view(hold: int) -> None:
    generator = np.random.default_rng(hold)
    reused = Buffers()
    fresh = FreshBuffers()
    held: deque[tuple[object, Words]] = deque(maxlen=hold)
    for step in range(200):
        rows = int(generator.integers(1, 4))
        content = generator.integers(0, 65536, (rows, 5)).astype(np.uint16)
        array = reused.take(rows, 5)
        twin = fresh.take(rows, 5)
        array[:] = content
        twin[:] = content
        views = [array, array[:1], array.reshape(-1), torch.from_numpy(array)]
        held.append((views[step % len(views)], twin))
        del array, views  # only what is held is held
        for view, expected in held:
            part = np.asarray(view).reshape(-1)
            assert np.array_equal(part, expected.reshape(-1)[: len(part)]), f"step {step}"


def test_an_array_that_nobody_holds_is_used_again() -> None:
    buffers = Buffers()
    first = buffers.take(4, 5)
    address = first.ctypes.data
    assert buffers.take(4, 5).ctypes.data != address
    del first
    assert address in {buffers.take(4, 5).ctypes.data, buffers.take(4, 5).ctypes.data}


def test_an_array_of_another_shape_is_not_used_again() -> None:
    buffers = Buffers()
    buffers.take(4, 5)
    assert buffers.take(5, 4).shape == (5, 4)
