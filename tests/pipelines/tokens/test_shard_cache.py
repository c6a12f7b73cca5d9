"""Copies of a remote dataset are bounded on disk whatever maps them, and fetched again where that breaks."""

import itertools
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dualtoken.infra.storage import Store
from dualtoken.pipelines.tokens import caption_cache
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from tests.helpers.token_datasets import write_tokens

ROWS = 1500
PER_SHARD = 300
FIRSTS = range(0, ROWS, PER_SHARD)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokens(
        tmp_path_factory.mktemp("tokens") / "a", ROWS, rows_per_shard=PER_SHARD, grid=8, depth=8
    )


@pytest.fixture
def remote(tokens: str, tmp_path: Path) -> str:
    """The dataset in a store that is not local."""
    store = Store(f"memory://{tmp_path.name}/a")
    for name, _ in Store(tokens).files():
        store.put(Path(tokens) / name, name)
    return store.url


def mapped_bytes(folder: Path) -> int:
    """Return the bytes of a folder's files, gone ones too, that this process keeps on disk by its maps."""
    held = dict[str, int]()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if f"{folder}/" in line:
            addresses, _, _, _, inode, _ = line.split(maxsplit=5)
            begin, end = addresses.split("-")
            held[inode] = int(end, 16) - int(begin, 16)
    return sum(held.values())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_copies_that_are_let_go_are_not_kept_on_disk_by_their_maps(
    remote: str, tokens: str, tmp_path: Path
) -> None:
    size = -(-(Path(tokens) / "data/00000.arrow").stat().st_size // mmap.PAGESIZE) * mmap.PAGESIZE
    cache = ShardCache(tmp_path / "cache", max_bytes=2 * size)
    ours, others = (TokenDataset(remote, cache=cache) for _ in range(2))
    for _, first in itertools.product(range(2), FIRSTS):
        ours.read(np.array([first]))
        assert size <= mapped_bytes(cache.folder) <= 3 * size, (
            "the cache, and a shard that went to make room for the one at hand"
        )
    for first in FIRSTS:
        others.read(np.array([first]))
    ours.read(np.array([FIRSTS[-1]]))
    assert mapped_bytes(cache.folder) <= 3 * size, "what another reader let go"
    assert sum(copy.stat().st_size for copy in cache.folder.glob("*.shard")) <= cache.max_bytes


def test_a_connection_that_breaks_is_tried_again(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = MemoryFileSystem.get_file
    broken = set[str]()

    def breaking(self: MemoryFileSystem, rpath: str, lpath: str, **rest: Any) -> None:
        if rpath not in broken:
            broken.add(rpath)
            raise ConnectionError("broken")
        fetch(self, rpath, lpath, **rest)

    monkeypatch.setattr(MemoryFileSystem, "get_file", breaking)
    dataset = TokenDataset(remote, cache=ShardCache(tmp_path / "cache", 10**8))
    assert len(dataset.read(np.array(FIRSTS)).keys) == len(FIRSTS)
    assert len(broken) == len(FIRSTS)


def test_of_many_that_want_a_copy_one_makes_it_and_its_lock_outlives_it(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, max_bytes=10)
    made = list[str]()
    go_on = threading.Event()

    def get(name: str) -> Path:
        def make(folder: Path) -> Path:
            assert not list(folder.iterdir()), "two at once in one folder"
            (folder / "file").write_bytes(b"x" * 6)
            made.append(name)
            assert go_on.wait(60)
            return folder / "file"

        return cache.get(name, make)

    with ThreadPoolExecutor(4) as threads:
        copies = [threads.submit(get, "aa") for _ in range(4)]
        go_on.set()
    assert {copy.result() for copy in copies} == {tmp_path / "aa.shard"}
    assert made == ["aa"]
    lock = tmp_path / "locks/aa"
    inode = lock.stat().st_ino
    get("bb")
    assert [path.name for path in tmp_path.glob("*.shard")] == ["bb.shard"]
    assert lock.stat().st_ino == inode, "somebody may wait for it"


def test_the_least_recently_used_go_and_use_is_no_change(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, max_bytes=30)

    def get(name: str) -> Path:
        def make(folder: Path) -> Path:
            (folder / "file").write_bytes(b"x" * 10)
            return folder / "file"

        return cache.get(name, make)

    first = get("aa")
    second = get("bb")
    _ = get("cc")
    before = first.stat().st_mtime_ns
    evictions = cache.evictions()
    os.utime(second, ns=(0, second.stat().st_mtime_ns))
    get("aa")
    assert first.stat().st_mtime_ns == before
    get("dd")
    assert first.exists()
    assert not second.exists()
    assert cache.evictions() != evictions


def test_captions_are_read_from_the_dataset_once_and_then_from_copies_that_are_checked(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caption_cache, "CAPTION_BYTES", 1)
    cache = ShardCache(tmp_path / "cache", 10**8)
    rows = np.arange(0, ROWS, 70)
    expected = [f"a {row}" for row in rows]
    dataset = TokenDataset(remote, cache=cache)
    assert dataset.captions(rows) == expected
    copies = [copy for copy in cache.folder.glob("*.shard") if not copy.read_bytes().startswith(b"PAR1")]
    assert len(copies) == len(FIRSTS)
    store = Store(remote)
    kept = {name: store.read(name) for name, _ in store.files() if name.startswith(("meta/", "receipts/"))}
    for name in kept:
        store.remove(name)
    assert TokenDataset(remote, cache=cache).captions(rows) == expected
    for name, content in kept.items():
        store.put_bytes(content, name)
    data = copies[0].read_bytes()
    copies[0].write_bytes(data.replace(b"a ", b"b ", 1))
    copies[1].write_bytes(data[:500])
    copies[2].unlink()
    assert TokenDataset(remote, cache=cache).captions(rows) == expected
    assert copies[0].read_bytes() == data
