"""Any rows of a token dataset, in any order; a damaged or foreign one is refused by name and never read."""

import ctypes
import faulthandler
import json
import mmap
import multiprocessing
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, read_manifest
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens import open_shards
from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.mapped_shards import map_shard
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from tests.helpers.damage import flip_byte
from tests.helpers.s3_servers import s3_server
from tests.helpers.token_datasets import DEPTH, GRID, codes_of_rows, key_of, write_tokens

ROWS = 1500  # five shards of 300 rows: a whole batch and a short one each
WIDTH = GRID * GRID * DEPTH


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "a", ROWS)


def test_rows_come_in_the_order_asked_for_whatever_shard_and_batch_they_are_in(tokens: str) -> None:
    rows = np.array([0, 1499, 255, 256, 299, 300, 7, 7, 1100])
    read = TokenDataset(tokens).read(rows)
    assert [key.tobytes() for key in read.keys] == [key_of("a", row) for row in rows]
    for codes, offset in ((read.semantic, 0), (read.pixel, 5)):
        assert codes is not None
        assert codes.shape == (9, GRID, GRID, DEPTH)
        assert codes.reshape(9, -1).tolist() == [
            codes_of_rows(row, 1, WIDTH, offset)[0].tolist() for row in rows
        ]


def test_every_row_is_the_row_that_was_written(tokens: str) -> None:
    read = TokenDataset(tokens, streams=["semantic"]).read(np.arange(ROWS))
    assert read.semantic is not None
    assert np.array_equal(read.semantic.reshape(ROWS, -1), codes_of_rows(0, ROWS, WIDTH, 0))
    assert read.pixel is None
    assert TokenDataset(tokens).captions(np.array([3, 700])) == ["a 3", "a 700"]
    assert TokenDataset(tokens).read(np.array([], np.int64)).keys.shape == (0, 16)


def test_a_dataset_goes_to_another_process_without_its_maps(tokens: str) -> None:
    dataset = TokenDataset(tokens)
    dataset.read(np.arange(ROWS))
    sent = pickle.dumps(dataset)
    assert len(sent) < 20_000
    assert np.array_equal(pickle.loads(sent).read(np.array([9])).keys, dataset.read(np.array([9])).keys)


def swap(path: Path) -> None:
    other = path.with_name("00002.arrow")
    content = other.read_bytes()
    other.write_bytes(path.read_bytes())
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_byte, "xxh3 .*, the index says"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "5000 bytes, the index says"),
        (Path.unlink, "missing"),
        (swap, "xxh3 .*, the index says"),
    ],
    ids=["flipped byte", "truncated", "missing", "swapped"],
)
def test_a_damaged_shard_is_named_and_its_neighbours_are_read(
    damage: Callable[[Path], object], said: str, tokens: str, tmp_path: Path
) -> None:
    shutil.copytree(tokens, tmp_path / "copy")
    damage(tmp_path / "copy/data/00001.arrow")
    dataset = TokenDataset(str(tmp_path / "copy"))
    assert len(dataset.read(np.arange(300)).keys) == 300
    with pytest.raises(
        DamagedShardError, match=rf"copy/data/00001\.arrow is damaged \({said}.*\): run `dualtoken verify"
    ):
        dataset.read(np.array([0, 300]))


def test_an_unfinished_newer_or_foreign_dataset_is_refused_by_name(tokens: str, tmp_path: Path) -> None:
    shutil.copytree(tokens, tmp_path / "copy")
    store = Store(str(tmp_path / "copy"))
    with pytest.raises(
        ValueError, match="has tokens of tokenizer ffffffffffff, the model reads those of 0123456789ab"
    ):
        TokenDataset(store.url).require_tokenizer("0123456789ab")
    manifest = read_manifest(store)
    assert manifest is not None
    newer = manifest.model_copy(update={"details": {**manifest.details, "schema_version": 99}})
    with_more = json.dumps({**json.loads(newer.to_bytes()), "of_times_to_come": 1}).encode()
    store.put_bytes(with_more, MANIFEST_FILE)
    with pytest.raises(ValueError, match="has schema version 99, this reader knows"):
        TokenDataset(store.url)
    ours = manifest.to_bytes().replace(b'"rows_in"', b'"rows_inn"')
    for content, said in (
        (
            ours,
            r"copy/manifest\.json is not as it was written \(rows_in: Field required\): take it from a copy$",
        ),
        (b'{"name": "an app"}', r"copy/manifest\.json is none of ours: give the folder of a token dataset"),
        (b"[]", "is none of ours"),
        (b"\x00", "is none of ours"),
    ):
        store.put_bytes(content, MANIFEST_FILE)
        with pytest.raises(ValueError, match=said):
            TokenDataset(store.url)
    store.remove(MANIFEST_FILE)
    with pytest.raises(ValueError, match="is unfinished"):
        TokenDataset(store.url)


def test_a_stale_or_missing_index_is_refused_by_name(tokens: str, tmp_path: Path) -> None:
    shutil.copytree(tokens, tmp_path / "copy")
    older = write_tokens(tmp_path / "older", ROWS - 1)
    shutil.copy(f"{older}/index.parquet", tmp_path / "copy/index.parquet")
    with pytest.raises(ValueError, match=r"copy/index\.parquet is stale: .*; run `dualtoken verify"):
        TokenDataset(str(tmp_path / "copy"))
    (tmp_path / "copy/index.parquet").unlink()
    with pytest.raises(ValueError, match=r"copy/index\.parquet is missing"):
        TokenDataset(str(tmp_path / "copy"))


@pytest.mark.parametrize("rows", [290, 300])
def test_a_shard_of_another_dataset_is_named_though_no_checksum_is_looked_at(
    rows: int, tokens: str, tmp_path: Path
) -> None:
    shutil.copytree(tokens, tmp_path / "copy")
    other = write_tokens(tmp_path / "other", rows, tokenizer="e" * 12)
    shutil.copy(f"{other}/data/00000.arrow", tmp_path / "copy/data/00001.arrow")
    said = "codes of tokenizer e" if rows == 300 else "bytes, the index says"
    with pytest.raises(DamagedShardError, match=rf"00001\.arrow is damaged \(.*{said}"):
        TokenDataset(str(tmp_path / "copy"), check="never").read(np.array([300]))


@pytest.mark.parametrize(
    ("name", "said"), [("meta/00001.parquet", "xxh3"), ("receipts/00001.json", "missing")]
)
def test_captions_are_checked_with_their_receipt(name: str, said: str, tokens: str, tmp_path: Path) -> None:
    shutil.copytree(tokens, tmp_path / "copy")
    damage = flip_byte if name.endswith("parquet") else Path.unlink
    damage(tmp_path / "copy" / name)
    dataset = TokenDataset(str(tmp_path / "copy"))
    assert dataset.captions(np.array([0])) == ["a 0"]
    with pytest.raises(DamagedShardError, match=rf"{name} is damaged \({said}"):
        dataset.captions(np.array([0, 300]))


def test_texts_carried_along_are_read_like_captions(tmp_path: Path) -> None:
    notes = [None if row % 4 == 0 else f"note {row}" for row in range(500)]
    url = write_tokens(tmp_path / "a", 500, columns={"notes": notes, "captions": ["other"] * 500})
    rows = np.array([499, 0, 3, 301, 3])
    for cache in (None, ShardCache(tmp_path / "cache", 10**8)):
        for _ in range(2):
            dataset = pickle.loads(pickle.dumps(TokenDataset(url, cache=cache)))
            assert dataset.texts(rows, "notes") == ["note 499", "", "note 3", "note 301", "note 3"]
            assert dataset.texts(rows, "captions") == ["other"] * 5
            assert dataset.captions(rows) == dataset.texts(rows, "caption") == [f"a {row}" for row in rows]


def test_texts_are_checked_with_their_receipt(tmp_path: Path) -> None:
    url = write_tokens(tmp_path / "a", 500, columns={"notes": ["a"] * 500})
    flip_byte(tmp_path / "a/meta/00001.parquet")
    dataset = TokenDataset(url)
    assert dataset.texts(np.array([0]), "notes") == ["a"]
    with pytest.raises(DamagedShardError, match=r"meta/00001\.parquet is damaged") as damaged:
        dataset.texts(np.array([0, 300]), "notes")
    assert damaged.value.shard == (url, 1)


def test_a_column_that_is_no_text_or_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    url = write_tokens(tmp_path / "a", 500, columns={"notes": ["a"] * 500, "width": [7] * 500})
    dataset = TokenDataset(url)
    path = f"{url}/meta/00001.parquet"
    for read in (
        lambda column: dataset.texts(np.array([300]), column),
        lambda column: dataset.require_text(column, 1),
    ):
        with pytest.raises(
            UserError, match=f"^{path} has no column 'note': use one of key, caption, notes, width, or carry"
        ):
            read("note")
        with pytest.raises(UserError, match=f"^{path} has int64 in column 'width': use a column of strings$"):
            read("width")
    dataset.require_text("notes")


def test_a_shard_that_was_let_go_is_not_summed_again_unless_it_changed(
    tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tokens, tmp_path / "copy")
    monkeypatch.setattr(open_shards, "MAX_OPEN_SHARDS", 1)
    dataset = TokenDataset(str(tmp_path / "copy"))
    shard = tmp_path / "copy/data/00000.arrow"
    state = shard.stat()
    assert len(dataset.read(np.array([0, 300])).keys) == 2, "shards of one call are all mapped at once"
    dataset.read(np.array([600]))
    flip_byte(shard)
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))  # as if nothing had been written
    dataset.read(np.array([0]))
    dataset.read(np.array([600]))
    os.utime(shard)
    with pytest.raises(DamagedShardError, match=r"00000\.arrow is damaged"):
        dataset.read(np.array([0]))


@pytest.mark.parametrize(("stream", "other"), [("semantic", "pixel"), ("pixel", "semantic")])
def test_a_view_of_one_stream_touches_no_page_of_the_other(stream: str, other: str, tmp_path: Path) -> None:
    """The other column's pages may not be read at all in a child process: one touch of them kills it."""
    folder = write_tokens(tmp_path / "a", 600, grid=8, depth=8)
    for column, status in ((stream, 0), (other, -signal.SIGSEGV)):
        child = multiprocessing.get_context("fork").Process(
            target=_read_behind_bars, args=(folder, stream, other, column)
        )
        child.start()
        child.join(60)
        assert child.exitcode == status


def _read_behind_bars(folder: str, stream: str, other: str, asked: str) -> None:
    dataset = TokenDataset(folder, streams=[stream, other], check="never")
    libc = ctypes.CDLL(None, use_errno=True)
    rows = np.arange(0, 600, 7)
    dataset.read(rows)  # all is mapped
    for shard in dataset._data.maps.values():
        for begin, batch in zip(shard.addresses[other].tolist(), shard.batches, strict=True):
            first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
            pages = (begin + batch.num_rows * 2 * dataset.width(other) - first) // mmap.PAGESIZE
            assert pages > 1
            assert libc.mprotect(ctypes.c_void_p(first), ctypes.c_size_t(pages * mmap.PAGESIZE), 0) == 0
    dataset.streams = (asked,)
    faulthandler.disable()  # the fault is what the test waits for
    dataset.read(rows)
    os._exit(0)


def test_a_shard_without_a_column_is_damaged_and_says_which(tmp_path: Path) -> None:
    table = pa.table({"key": pa.array([b"x" * 16], pa.binary(16))})
    with pa.ipc.new_file(str(tmp_path / "shard"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(pa.ArrowInvalid, match="no column pixel"):
        map_shard(tmp_path / "shard", {"key": pa.binary(16), "pixel": pa.list_(pa.uint16(), 4)})


class _Hasty(ShardCache):
    """A cache that another process makes room in: each copy is gone once before it can be mapped."""

    def get(self, name: str, make: Callable[[Path], Path], *, again: bool = False) -> Path:
        copy = super().get(name, make, again=again)
        before = self.folder / "before" / name
        if not before.exists():
            before.parent.mkdir(exist_ok=True)
            before.touch()
            copy.unlink()
        return copy


def test_remote_shards_are_copied_into_a_bounded_cache_and_a_damaged_copy_is_fetched_again(
    tokens: str, tmp_path: Path
) -> None:
    with s3_server("rclone", tmp_path / "server") as bucket:
        remote = Store(f"{bucket}/a")
        for name, _ in Store(tokens).files():
            remote.put(Path(tokens) / name, name)
        size = (Path(tokens) / "data/00000.arrow").stat().st_size
        cache = ShardCache(tmp_path / "cache", max_bytes=3 * size)
        expected = TokenDataset(tokens).read(np.arange(ROWS))
        assert np.array_equal(TokenDataset(remote.url, cache=cache).read(np.arange(ROWS)).keys, expected.keys)
        copies = list((tmp_path / "cache").glob("*.shard"))
        assert len(copies) == 3
        for copy in copies:
            flip_byte(copy)
        again = TokenDataset(remote.url, cache=cache).read(np.arange(ROWS))
        assert again.pixel is not None
        assert expected.pixel is not None
        assert np.array_equal(again.pixel, expected.pixel)
        hasty = _Hasty(tmp_path / "hasty", max_bytes=3 * size)
        assert np.array_equal(TokenDataset(remote.url, cache=hasty).read(np.arange(ROWS)).keys, expected.keys)
        flip_byte(tmp_path / "server/test/a/data/00003.arrow")
        with pytest.raises(DamagedShardError, match=r"data/00003\.arrow is damaged"):
            TokenDataset(remote.url, cache=ShardCache(tmp_path / "new", 3 * size)).read(np.array([1000]))
