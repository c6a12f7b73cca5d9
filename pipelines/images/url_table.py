"""Reads the sources of a download: tables of URLs and captions, by ranges of rows, and their row counts.

A Parquet table is read by row groups; .csv and .tsv have no index, so they are read whole, once per process.
Imports pyarrow and fsspec only, so that a plan is made at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.corpora import ScenesSource, ShardsSource, UrlsSource
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.content import content_ids
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.shards import SHARD_COLUMNS, find_shards, numbered

SUFFIXES = (".parquet", ".csv", ".tsv")


class _Part(NamedTuple):
    """A part of a table that is read at once: a row group of a Parquet file, or a whole text file."""

    file: str
    group: int
    """Row group in the file; 0 for a text file."""
    rows: int


class UrlTable:
    """One table in one or several files, whose rows are numbered across them in the files' order."""

    def __init__(
        self,
        files: Sequence[str],
        url_column: str = "url",
        caption_column: str = "caption",
        keep_columns: Sequence[str] = (),
        *,
        keys: str = "",
    ) -> None:
        """Name the files, paths or fsspec URLs.

        `keys` is the prefix of this table's keys in a recipe, such as `corpora.web.source.`, for error
        messages.

        Raises `UserError` for a file of another kind, or a kept column that the shards have themselves. What
        is not there, or cannot be read, is told when it is read.
        """
        self._keys = keys
        self._files = tuple(files)
        self._url_column = url_column
        self._caption_column = caption_column
        self._keep_columns = tuple(keep_columns)
        for file in self._files:
            if not file.lower().endswith(SUFFIXES):
                raise UserError(
                    f"{keys}table={file!r} is none of {', '.join(SUFFIXES)}: set it to such a file"
                )
        # A table's columns `url` and `caption` would be hidden too, where it has these two under other names.
        for name in self._keep_columns:
            if name in SHARD_COLUMNS:
                raise UserError(
                    f"{keys}keep_columns has {name!r}, which the shards use themselves: "
                    "rename it in the table, or leave it out"
                )
        self._last_part: tuple[str, int] | None = None
        self._last_table: pa.Table | None = None

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(part.rows for part in self._parts)

    def rows(self, first: int, count: int) -> pa.Table:
        """Return `count` rows from `first` (0 is the first) on: `url` and `caption`, then the kept columns.

        Both are strings. A URL may be null; a missing caption is "".
        """
        pieces: list[pa.Table] = []
        part_first = 0
        for part in self._parts:
            low = max(first, part_first)
            high = min(first + count, part_first + part.rows)
            if low < high:
                pieces.append(self._read(part).slice(low - part_first, high - low))
            part_first += part.rows
        if pieces:
            table = pa.concat_tables(pieces, promote_options="permissive")
        else:
            table = pa.table({"url": pa.array([], pa.string()), "caption": pa.array([], pa.string())})
        assert table.num_rows == count, f"{table.num_rows} rows from {first} on, of {count}"
        return table

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        parts: list[_Part] = []
        for file in self._files:
            if _is_parquet(file):
                parts += self._row_groups(file)
            else:
                part = _Part(file, 0, 0)
                parts.append(part._replace(rows=self._read(part).num_rows))
        return tuple(parts)

    def _row_groups(self, file: str) -> Iterator[_Part]:
        with self._reading(file) as stream:
            table = pq.ParquetFile(stream)
            self._check_columns(file, table.schema_arrow.names)
            for group in range(table.num_row_groups):
                yield _Part(file, group, table.metadata.row_group(group).num_rows)

    def _read(self, part: _Part) -> pa.Table:
        """Read a part; the last one is kept, since units next to each other often share it."""
        place = (part.file, part.group)
        if self._last_table is None or self._last_part != place:
            self._last_table = self._renamed(part.file, self._read_columns(part))
            self._last_part = place
        return self._last_table

    def _read_columns(self, part: _Part) -> pa.Table:
        if not _is_parquet(part.file):
            return self._read_text(part.file)
        with self._reading(part.file) as stream:
            return pq.ParquetFile(stream).read_row_group(part.group, columns=list(self._columns))

    def _read_text(self, file: str) -> pa.Table:
        delimiter = "\t" if file.lower().endswith(".tsv") else ","
        parse_options = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        # One thread: where a file breaks off, others may still read as the process ends, which aborts it.
        read_options = csv.ReadOptions(use_threads=False)
        with self._reading(file) as stream:
            self._check_columns(file, csv.open_csv(stream, read_options, parse_options).schema.names)
        # All as strings: a guessed type would depend on the rows that happen to be there.
        convert_options = csv.ConvertOptions(
            column_types=dict.fromkeys(self._columns, pa.string()), include_columns=list(self._columns)
        )
        with self._reading(file) as stream:
            return csv.read_csv(stream, read_options, parse_options, convert_options)

    @contextmanager
    def _reading(self, file: str) -> Iterator[Any]:
        """Open a table's file; raises `UserError`, one line that names it, for what makes it unreadable."""
        try:
            fs, path = fsspec.url_to_fs(file)
            stream = fs.open(path, "rb")
        except FileNotFoundError:
            raise UserError(
                f"{self._keys}table={file!r} is not there: set it to a .parquet, .csv or .tsv file"
            ) from None
        except (ValueError, ImportError) as error:
            raise UserError(
                f"{self._keys}table={file!r}: {error}; set it to a path or a URL that fsspec knows"
            ) from error
        with stream:
            try:
                yield stream
            except pa.ArrowInvalid as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(
                    f"{self._keys}table={file!r} cannot be read: {reason}; give a sound file"
                ) from error

    @property
    def _columns(self) -> tuple[str, ...]:
        """The columns to read, each once."""
        return tuple(dict.fromkeys((self._url_column, self._caption_column, *self._keep_columns)))

    def _check_columns(self, file: str, found: Sequence[str]) -> None:
        """Raise `UserError` for a column that the file lacks, with the recipe's key that names it."""
        wanted = [("url_column", self._url_column), ("caption_column", self._caption_column)]
        wanted += [("keep_columns", name) for name in self._keep_columns]
        for key, name in wanted:
            if name in found:
                continue
            shown = ", ".join(found[:20])
            if len(found) > 20:
                shown += ", ..."
            raise UserError(
                f"{self._keys}{key}={name!r} is no column of {file}, which has {shown}: set it to one of them"
            )

    def _renamed(self, file: str, table: pa.Table) -> pa.Table:
        """Return the columns `url` and `caption` as strings, then the kept ones."""
        urls = self._text_column(file, table, "url_column", self._url_column)
        captions = self._text_column(file, table, "caption_column", self._caption_column)
        renamed = pa.table({"url": urls, "caption": pc.fill_null(captions, pa.scalar(""))})
        for name in self._keep_columns:
            renamed = renamed.append_column(name, table[name])
        return renamed

    def _text_column(self, file: str, table: pa.Table, key: str, name: str) -> pa.ChunkedArray:
        """Return a column as strings; raises `UserError` where it is of another kind."""
        column_type = table.schema.field(name).type
        if not _is_text(column_type):
            raise UserError(
                f"{self._keys}{key}={name!r} of {file} is of type {column_type}: set it to a column of text"
            )
        return table[name].cast(pa.string())


def _is_text(column_type: pa.DataType) -> bool:
    """Tell whether a column holds text, plain or dictionary-encoded, or nothing but nulls."""
    value_type = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    return (
        pa.types.is_string(value_type)
        or pa.types.is_large_string(value_type)
        or pa.types.is_string_view(value_type)
        or pa.types.is_null(value_type)
    )


def _is_parquet(file: str) -> bool:
    return file.lower().endswith(".parquet")


def url_table(recipe: Recipe, corpus: str, scenes_folder: str | None) -> UrlTable:
    """Open the table of a corpus that is fetched: the recipe's, or the generator's output in order."""
    source = recipe.corpora[corpus].source
    if isinstance(source, UrlsSource):
        keys = f"corpora.{corpus}.source."
        return UrlTable(
            [source.table], source.url_column, source.caption_column, source.keep_columns, keys=keys
        )
    assert isinstance(source, ScenesSource), f"{corpus} is not fetched"
    assert scenes_folder is not None, f"{corpus} needs its scenes"
    store = Store(scenes_folder)
    shards = numbered(name for name, _ in store.files())
    tables = [_address(store, f"{shard}.parquet") for shard in shards]
    return UrlTable(tables, keep_columns=("description", "questions"))


def count_source_rows(recipe: Recipe, corpus: str) -> list[int]:
    """Return the rows of each unit of a corpus's download; existing shards keep their own sizes."""
    source = recipe.corpora[corpus].source
    if isinstance(source, ShardsSource):
        return [shard.rows for shard in find_shards(source.folder)]
    if isinstance(source, ScenesSource):
        total = source.num_images
    else:
        total = url_table(recipe, corpus, None).num_rows
    size = recipe.download.rows_per_shard
    return [min(size, total - first) for first in range(0, total, size)]


def source_identity(recipe: Recipe, corpus: str) -> dict[str, Any]:
    """Return what decides a corpus's rows, for its fingerprint: columns, and the files' content."""
    source = recipe.corpora[corpus].source
    identity = source.identity()
    # The content counts, not where it is.
    for location in ("table", "folder"):
        identity.pop(location, None)
    if isinstance(source, UrlsSource):
        identity["content"] = _content(source.table, f"corpora.{corpus}.source.")
    if isinstance(source, ShardsSource):
        store = Store(source.folder)
        suffixes = (".tar", ".parquet")
        shards = [file for file in store.entries() if file.name.endswith(suffixes) and not file.is_leftover]
        identity["files"] = content_ids(store, shards)
    return identity


def _content(table: str, keys: str) -> dict[str, Any]:
    """Identify a table's file by its content."""
    folder, _, name = table.replace("\\", "/").rpartition("/")
    store = Store(folder or ".")
    file = store.entry(name)
    if file is None:
        raise UserError(f"{keys}table={table!r} is not there: set it to a .parquet, .csv or .tsv file")
    return content_ids(store, [file])[name]


def _address(store: Store, name: str) -> str:
    """Return a file's path, or its URL where the store is not local."""
    path = store.path(name)
    if store.is_local:
        return path
    return store.fs.unstrip_protocol(path)
