"""Exported datasets, read back with their own libraries, hold every row's codes, key and caption."""

import gc
import json
import struct
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from dualtoken.infra.digests import digest
from dualtoken.pipelines.core.receipts import FileRecord
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.export import export_tokens
from tests.helpers.token_datasets import DEPTH, GRID, codes_of_rows, key_of, write_tokens

ROWS = 25
WIDTH = GRID * GRID * DEPTH
SEMANTIC = codes_of_rows(0, ROWS, WIDTH, 0)
PIXEL = codes_of_rows(0, ROWS, WIDTH, 5)
HEX_KEYS = [key_of("a", row).hex() for row in range(ROWS)]
CAPTIONS = [f"a {row}" for row in range(ROWS)]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "a", ROWS, rows_per_shard=10)


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset's
def test_webdataset_reads_back_every_row_in_order(tokens: str, tmp_path: Path) -> None:
    export_tokens(tokens, "webdataset", str(tmp_path))
    urls = sorted(map(str, tmp_path.glob("*.tar")))
    assert len(urls) == 3
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    gc.collect()  # so that the files it left open are told of here
    assert [sample["__key__"] for sample in samples[:11]] == [
        *(f"00000{row:04d}" for row in range(10)),
        "000010000",
    ]
    assert np.array_equal(
        [sample["semantic.npy"] for sample in samples], SEMANTIC.reshape(ROWS, GRID, GRID, DEPTH)
    )
    assert np.array_equal([sample["pixel.npy"] for sample in samples], PIXEL.reshape(ROWS, GRID, GRID, DEPTH))
    assert samples[0]["semantic.npy"].dtype == np.uint16
    assert [sample["txt"] for sample in samples] == CAPTIONS
    assert [sample["json"]["key"] for sample in samples] == HEX_KEYS


def test_parquet_reads_back_every_row_in_order(tokens: str, tmp_path: Path) -> None:
    export_tokens(tokens, "parquet", str(tmp_path))
    table = pq.read_table(sorted(tmp_path.glob("*.parquet")))
    assert np.array_equal(table["semantic"].to_pylist(), SEMANTIC)
    assert np.array_equal(table["pixel"].to_pylist(), PIXEL)
    assert (table["key"].to_pylist(), table["caption"].to_pylist()) == (HEX_KEYS, CAPTIONS)


def test_hugging_face_datasets_loads_the_folder(tokens: str, tmp_path: Path) -> None:
    export_tokens(tokens, "hf", str(tmp_path))
    loaded = datasets.load_from_disk(str(tmp_path))
    assert isinstance(loaded, datasets.Dataset)
    columns = loaded[:]
    assert np.array_equal(columns["semantic"], SEMANTIC)
    assert np.array_equal(columns["pixel"], PIXEL)
    assert (columns["key"], columns["caption"]) == (HEX_KEYS, CAPTIONS)
    assert str(loaded.data.schema.field("pixel").type.value_type) == "uint16"


@pytest.mark.parametrize(
    ("first_id", "kind", "code"), [(0, np.uint16, 8), (32_000, np.uint16, 8), (40_000, np.int32, 4)]
)
def test_megatron_files_are_laid_out_as_its_reader_expects(
    tokens: str, tmp_path: Path, first_id: int, kind: type, code: int
) -> None:
    export_tokens(tokens, "megatron", str(tmp_path), first_id=first_id)
    index = (tmp_path / "tokens.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack("<QBQQ", index[9:34]) == (1, code, ROWS, ROWS + 1)
    lengths = np.frombuffer(index, np.int32, ROWS, 34)
    pointers = np.frombuffer(index, np.int64, ROWS, 34 + 4 * ROWS)
    documents = np.frombuffer(index, np.int64, ROWS + 1, 34 + 12 * ROWS)
    assert len(index) == 34 + 12 * ROWS + 8 * (ROWS + 1)
    assert documents.tolist() == list(range(ROWS + 1))
    ids = np.memmap(tmp_path / "tokens.bin", np.uint8, "r")
    sequences = [
        np.frombuffer(ids, kind, length, offset) for length, offset in zip(lengths, pointers, strict=True)
    ]
    expected = np.concatenate(
        [SEMANTIC.astype(np.int64) + first_id, PIXEL.astype(np.int64) + first_id + 16384], axis=1
    )
    assert np.array_equal(sequences, expected)
    assert len(ids) == expected.size * np.dtype(kind).itemsize
    assert pq.read_table(tmp_path / "tokens.parquet")["key"].to_pylist() == HEX_KEYS


def test_ids_beyond_what_megatron_can_hold_are_refused(tokens: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--first-id 2147483647: ids would go up to 2,147,516,414, beyond"):
        export_tokens(tokens, "megatron", str(tmp_path), first_id=2**31 - 1)


def test_one_stream_alone_can_be_exported(tokens: str, tmp_path: Path) -> None:
    export_tokens(tokens, "megatron", str(tmp_path), streams=("pixel",))
    assert np.array_equal(np.fromfile(tmp_path / "tokens.bin", np.uint16).reshape(ROWS, WIDTH), PIXEL)


def test_the_list_of_files_has_their_checksums_and_the_same_rows_give_the_same_bytes(
    tokens: str, tmp_path: Path
) -> None:
    first, second = (export_tokens(tokens, "webdataset", str(tmp_path / name)) for name in ("a", "b"))
    assert first.files == second.files
    said = json.loads((tmp_path / "a/export.json").read_text())
    assert (said["rows"], said["codes"]) == (ROWS, {"semantic": 16384, "pixel": 16384})
    for file in map(FileRecord.model_validate, said["files"]):
        found = digest(tmp_path / "a" / file.name)
        assert (found.bytes, found.sha256) == (file.bytes, file.sha256)


def test_unfinished_foreign_and_other_datasets_are_refused_by_name(tmp_path: Path) -> None:
    folder = Path(write_tokens(tmp_path / "a", 10))
    with pytest.raises(
        UserError, match="has tokens of tokenizer ffffffffffff, the model reads those of 0123456789ab"
    ):
        export_tokens(str(folder), "parquet", str(tmp_path / "out"), tokenizer="0123456789ab")
    manifest = (folder / "manifest.json").read_text()
    for text, problem in (
        ('"stage": "train"', "is a folder of the stage train"),
        ('"stages": "pretokenize"', "is none of ours"),
    ):
        (folder / "manifest.json").write_text(manifest.replace('"stage": "pretokenize"', text))
        with pytest.raises(UserError, match=problem):
            export_tokens(str(folder), "parquet", str(tmp_path / "out"))
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"has no manifest\.json: it is unfinished"):
        export_tokens(str(folder), "parquet", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_ends_an_export_without_its_list_of_files(tmp_path: Path) -> None:
    folder = Path(write_tokens(tmp_path / "a", 20, rows_per_shard=10))
    shard = folder / "data/00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedShardError, match=r"data/00001\.arrow is damaged"):
        export_tokens(str(folder), "parquet", str(tmp_path / "out"))
    assert not (tmp_path / "out/export.json").exists()
    with pytest.raises(UserError, match="holds files already"):
        export_tokens(str(folder), "parquet", str(tmp_path / "out"))
