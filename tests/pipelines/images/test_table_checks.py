"""Checks of tables from outside."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.table_checks import (
    as_strings,
    is_text,
    parquet_file,
    read_row_group,
    require_column,
    require_text,
)
from tests.helpers.damage import cut_short, damage_column

CODECS = ["none", "snappy", "gzip", "zstd", "lz4", "brotli"]
URLS = pa.table({"url": [f"http://h/{row}" for row in range(100)]})
TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_binary()),
    pa.json_(),
]


@pytest.mark.parametrize("column_type", TEXT_TYPES, ids=str)
def test_every_type_of_text_becomes_strings(column_type: pa.DataType) -> None:
    column = pa.chunked_array([pa.array(["1", None, '"two"']).cast(column_type)])
    assert is_text(column_type)
    strings = as_strings(column)
    assert strings.type == pa.string()
    assert strings.to_pylist() == ["1", None, '"two"']


def test_nulls_are_text_and_bytes_that_are_no_utf8_stay_as_they_are() -> None:
    assert as_strings(pa.chunked_array([pa.nulls(2)])).to_pylist() == [None, None]
    strings = as_strings(pa.chunked_array([pa.array([b"caf\xe9"])]))
    assert pc.cast(strings, pa.binary()).to_pylist() == [b"caf\xe9"]


@pytest.mark.parametrize(
    "column_type",
    [pa.int64(), pa.list_(pa.string()), pa.float32(), pa.struct([("en", pa.string())])],
    ids=str,
)
def test_numbers_and_lists_are_no_text(column_type: pa.DataType) -> None:
    with pytest.raises(UserError, match=r"^caption_column='caption' of t\.parquet is of type .*: set it to"):
        require_text(column_type, "caption_column", "caption", "t.parquet")


def test_a_column_is_there_once() -> None:
    require_column(["url", "other", "other"], "url_column", "url", "t.csv")
    with pytest.raises(UserError, match=r"^url_column='link' is no column of t\.csv, which has url, other"):
        require_column(["url", "other"], "url_column", "link", "t.csv")
    with pytest.raises(UserError, match=r"^caption_column='caption': t\.csv has 2 columns of this name"):
        require_column(["url", "caption", "caption"], "caption_column", "caption", "t.csv")


def open_and_read(path: Path, group: int = 0) -> pa.Table:
    with path.open("rb") as stream, parquet_file(stream, str(path), "fetch it again") as table:
        return read_row_group(table, group, ["url"], str(path), "fetch it again")


def test_damage_names_the_file_and_the_row_group(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"url": [f"http://h/{row}" for row in range(100)]}), path, row_group_size=50)
    damage_column(path, 1, 0)
    assert open_and_read(path).num_rows == 50
    with pytest.raises(UserError, match=r"t\.parquet, row group 1, cannot be read: .*; fetch it again$"):
        open_and_read(path, 1)


def test_a_page_with_a_wrong_checksum_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"url": [f"http://h/{row}" for row in range(100)]})
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"http://h/42", b"http://h/24", 1))
    with pytest.raises(UserError, match=r"t\.parquet, row group 0, cannot be read: .*checksum"):
        open_and_read(path)


def parquet_bytes(**options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(URLS, file, **options)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def read_after_each_flip(content: bytes) -> Iterator[pa.Table | str]:
    """Flip a bit of each byte of the pages and their headers in turn; yield what is read, or the refusal."""
    chunk = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(0)
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    for position in range(first, first + chunk.total_compressed_size):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        try:
            with parquet_file(io.BytesIO(flipped), "t.parquet", "fetch it again") as table:
                yield read_row_group(table, 0, ["url"], "t.parquet", "fetch it again")
        except UserError as error:
            yield str(error)


def tables_that_are_read(content: bytes) -> list[pa.Table]:
    """Return what is read after each flip; a line that names file and row group refuses the others."""
    tables: list[pa.Table] = []
    num_refusals = 0
    for outcome in read_after_each_flip(content):
        if isinstance(outcome, str):
            assert re.fullmatch(r"t\.parquet, row group 0, .*; fetch it again", outcome)
            num_refusals += 1
        else:
            tables.append(outcome)
    assert num_refusals > 0
    return tables


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_flipped_bit_of_a_page_with_a_checksum_is_refused_or_changes_nothing(
    codec: str, version: str
) -> None:
    content = parquet_bytes(compression=codec, data_page_version=version, write_page_checksum=True)
    assert all(table.equals(URLS) for table in tables_that_are_read(content))


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("codec", CODECS)
def test_a_flipped_bit_of_a_page_without_a_checksum_is_refused_or_costs_no_row(
    codec: str, *, dictionary: bool
) -> None:
    content = parquet_bytes(compression=codec, use_dictionary=dictionary)
    assert all(table.num_rows == URLS.num_rows for table in tables_that_are_read(content))


def test_an_empty_file_and_one_without_its_end_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.touch()
    with pytest.raises(UserError, match=r"t\.parquet is empty, 0 bytes; fetch it again$"):
        open_and_read(path)
    pq.write_table(pa.table({"url": ["http://h/1"] * 100}), path)
    cut_short(path, 150)
    with pytest.raises(UserError, match=r"t\.parquet cannot be read: .*; fetch it again$"):
        open_and_read(path)
    path.write_bytes(b"PAR1" + bytes(100) + b"\x40\0\0\0PAR1")
    with pytest.raises(UserError, match=r"t\.parquet cannot be read: .*; fetch it again$"):
        open_and_read(path)
