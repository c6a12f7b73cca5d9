"""Batches in order lie where their shard is mapped, and are nevertheless their user's own."""

import gc
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dualtoken.pipelines.loader.batches import TokenBatch
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.token_loader import TokenLoader
from dualtoken.pipelines.tokens.lent_rows import LEAST_BYTES, RowLender
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.token_datasets import write_tokens

GRID = 16
DEPTH = 8
BATCH = 64
ROWS = 512
PER_SHARD = 256
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/pagemap").exists(), reason="this system does not tell which pages were written to"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokens(tmp_path / "a", ROWS, rows_per_shard=PER_SHARD, grid=GRID, depth=DEPTH)
    return tmp_path / "a"


def in_order(folder: Path, *, epochs: int = 1, batch_size: int = BATCH) -> Iterator[TokenBatch]:
    plan = LoadPlan(datasets=(TokenDataset(str(folder)),), shuffle=False, epochs=(epochs,))
    return iter(TokenLoader(plan, batch_size))


def streams(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    assert batch.semantic is not None
    assert batch.pixel is not None
    return batch.semantic, batch.pixel


def expected(folder: Path, first: int, rows: int) -> tuple[Tensor, Tensor]:
    """Copy rows of both streams by another reader."""
    read = TokenDataset(str(folder)).read(np.arange(first, first + rows))
    assert read.semantic is not None
    assert read.pixel is not None
    return torch.from_numpy(read.semantic), torch.from_numpy(read.pixel)


def is_lent(tensor: Tensor) -> bool:
    """Tell whether a tensor lies in a private, writable map of a shard."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, mode, *rest = line.split()
        begin, end = (int(bound, 16) for bound in span.split("-"))
        if begin <= address < end:
            return mode == "rw-p" and rest[-1].endswith(".arrow")
    return False


def require_equal(batch: TokenBatch, codes: tuple[Tensor, Tensor]) -> None:
    for stream, wanted in zip(streams(batch), codes, strict=True):
        assert torch.equal(stream, wanted)


def content(folder: Path) -> list[str]:
    files = sorted((folder / "data").iterdir())
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_batches_in_order_are_views_of_the_map_with_the_right_codes_in_every_epoch(folder: Path) -> None:
    number = -1
    for number, batch in enumerate(in_order(folder, epochs=3)):
        require_equal(batch, expected(folder, number * BATCH % ROWS, BATCH))
        for stream in streams(batch):
            assert is_lent(stream), f"batch {number}"
            assert stream.dtype == torch.uint16
            assert stream.shape == (BATCH, GRID, GRID, DEPTH)
            assert stream.is_contiguous()
    assert number == 3 * ROWS // BATCH - 1


def test_what_is_written_into_a_batch_reaches_neither_the_file_nor_a_later_epoch(folder: Path) -> None:
    before = content(folder)
    for number, batch in enumerate(in_order(folder, epochs=3)):
        require_equal(batch, expected(folder, number * BATCH % ROWS, BATCH))
        for stream in streams(batch):
            stream.zero_()
    assert content(folder) == before


def test_one_code_written_is_noticed(folder: Path) -> None:
    batches = in_order(folder, epochs=2)
    stream = streams(next(batches))[1]
    assert is_lent(stream)
    stream[7, 3, 2, 1] = 65_535
    del stream
    for number, batch in enumerate(batches, start=1):
        require_equal(batch, expected(folder, number * BATCH % ROWS, BATCH))


def test_a_user_who_writes_into_batches_gets_copies_of_that_shard_from_then_on(folder: Path) -> None:
    batches = in_order(folder)
    batch = next(batches)
    batch = next(batches)
    assert is_lent(streams(batch)[0])
    streams(batch)[0].zero_()
    lent: list[bool] = []
    for batch in batches:
        lent.append(is_lent(streams(batch)[0]))
    # The third batch is made while the second is held.
    assert lent == [True, False, *[True] * (PER_SHARD // BATCH)]


def test_a_batch_that_is_held_is_lent_to_nobody_else(folder: Path) -> None:
    batches = in_order(folder, epochs=2)
    first_epoch = [next(batches) for _ in range(ROWS // BATCH)]
    kept_row = streams(first_epoch[1])[0][3]
    del first_epoch[1]
    second_epoch = list(batches)
    for stream in streams(first_epoch[0]):
        stream.zero_()
    kept_row.zero_()
    for number, batch in enumerate(second_epoch):
        require_equal(batch, expected(folder, number * BATCH, BATCH))
    for stream in streams(second_epoch[2]):
        stream.zero_()
    require_equal(first_epoch[1], expected(folder, 2 * BATCH, BATCH))


def test_a_batch_outlives_its_loader_and_its_files(folder: Path) -> None:
    wanted = expected(folder, 0, BATCH)
    batches = in_order(folder)
    batch = next(batches)
    assert is_lent(streams(batch)[0])
    del batches
    shutil.rmtree(folder)
    gc.collect()
    require_equal(batch, wanted)


def test_rows_that_are_not_side_by_side_and_few_rows_are_copied(folder: Path) -> None:
    row_bytes = 2 * GRID * GRID * DEPTH
    for batch_size in (48, LEAST_BYTES // row_bytes - 1):
        first = 0
        lent: list[bool] = []
        for batch in in_order(folder, batch_size=batch_size):
            size = len(batch.keys)
            require_equal(batch, expected(folder, first, size))
            lent.append(is_lent(streams(batch)[0]))
            first += size
        assert first == ROWS
        if batch_size == 48:
            # Rows 240 to 287 are of two shards.
            assert lent == [True] * 5 + [False] + [True] * 5
        else:
            assert not any(lent)


def test_shuffled_batches_are_copied(folder: Path) -> None:
    plan = LoadPlan(datasets=(TokenDataset(str(folder)),))
    for batch in TokenLoader(plan, BATCH):
        for stream in streams(batch):
            assert not is_lent(stream)


def test_nothing_is_lent_of_another_file_under_the_same_name(folder: Path) -> None:
    path = folder / "data/00000.arrow"
    shape = (BATCH, GRID * GRID * DEPTH)
    assert RowLender(path, path.stat().st_ino).lend(0, shape) is not None
    assert RowLender(path, path.stat().st_ino + 1).lend(0, shape) is None
    assert RowLender(folder / "gone", 1).lend(0, shape) is None


def test_nothing_is_lent_beyond_the_end_of_a_file(folder: Path) -> None:
    path = folder / "data/00000.arrow"
    lender = RowLender(path, path.stat().st_ino)
    offset = path.stat().st_size - LEAST_BYTES
    assert lender.lend(offset, (1, LEAST_BYTES // 2)) is not None
    assert lender.lend(offset + 2, (1, LEAST_BYTES // 2)) is None
