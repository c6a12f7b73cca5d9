"""Reads tables of URLs, or names of files, and captions, by ranges of rows.

A Parquet table is read by row groups; tables of text have no index, so they are read whole, once per process.
Imports no torch, so that a plan is made at once.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.corpora import QuoteMarks, ScenesSource, UrlsSource
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.damage import naming_damage
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.json_lines import read_json_lines
from dualtoken.pipelines.images.shards import SHARD_COLUMNS, numbered
from dualtoken.pipelines.images.table_checks import (
    as_strings,
    parquet_file,
    read_row_group,
    require_column,
    require_text,
)
from dualtoken.pipelines.images.table_files import StoredTableFile, TableFile, find_table_files
from dualtoken.pipelines.images.text_tables import URL, Delimited, WantedColumns, read_delimited, text_stream

_ADVICE = "give a sound file"


class _Part(NamedTuple):
    """A part of a table that is read at once: a row group of a Parquet file, or a whole text file."""

    file: TableFile
    group: int
    """Row group in the file; 0 for a text file."""
    rows: int
    kept: pa.Schema
    """Names and types of the kept columns."""


class UrlTable:
    """One table in one or several files, whose rows are numbered across them in the files' order."""

    table_key: ClassVar = "table"
    """Recipe's key of the table, for messages."""
    url_key: ClassVar = "url_column"
    """Recipe's key of the column of URLs, for messages."""
    url_pattern: ClassVar = URL
    """What a value of that column looks like."""

    def __init__(
        self,
        files: Sequence[str | TableFile],
        url_column: str = "url",
        caption_column: str = "caption",
        keep_columns: Sequence[str] = (),
        *,
        quotes: QuoteMarks | None = None,
        keys: str = "",
    ) -> None:
        """Name the files: paths, globs or fsspec URLs (see `find_table_files`).

        `keys` is the prefix of this table's keys in a recipe, such as `corpora.web.source.`, for error
        messages.

        Raises `UserError` for a kept column that the shards have themselves. What is not there, or cannot be
        read, is told when it is read.
        """
        self._keys = keys
        self._given = tuple(files)
        self._url_column = url_column
        self._caption_column = caption_column
        self._keep_columns = tuple(dict.fromkeys(keep_columns))
        self._quotes = quotes
        # A table's columns `url` and `caption` would be hidden too, where it has these two under other names.
        for name in self._keep_columns:
            if name in SHARD_COLUMNS:
                raise UserError(
                    f"{keys}keep_columns has {name!r}, which the shards use themselves: "
                    "rename it in the table, or leave it out"
                )
        self._last_part: tuple[TableFile, int] | None = None
        self._last_table: pa.Table | None = None

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(part.rows for part in self._parts)

    @cached_property
    def files(self) -> tuple[TableFile, ...]:
        """The files, in order."""
        found: list[TableFile] = []
        for file in self._given:
            if isinstance(file, TableFile):
                found.append(file)
            else:
                found += find_table_files(file, f"{self._keys}{self.table_key}")
        return tuple(found)

    def rows(self, first: int, count: int) -> pa.Table:
        """Return `count` rows from `first` (0 is the first) on: `url` and `caption`, then the kept columns.

        Both are strings, whose bytes may be no UTF-8. A URL may be null; a missing caption is "". The types
        are those of the whole table, whichever parts the rows come from.
        """
        schema = pa.schema([("url", pa.string()), ("caption", pa.string()), *self._kept_schema])
        pieces: list[pa.Table] = []
        part_first = 0
        for part in self._parts:
            low = max(first, part_first)
            high = min(first + count, part_first + part.rows)
            if low < high:
                piece = self._read(part).slice(low - part_first, high - low)
                pieces.append(piece.cast(schema) if piece.schema != schema else piece)
            part_first += part.rows
        table = pa.concat_tables(pieces) if pieces else schema.empty_table()
        assert table.num_rows == count, f"{table.num_rows} rows from {first} on, of {count}"
        return table

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        parts: list[_Part] = []
        # Footers are small and may be far away; a text file is read whole, and only the last one is kept.
        if all(file.kind == "parquet" for file in self.files):
            for groups in map_ahead(self._row_groups, self.files):
                parts += groups
            return tuple(parts)
        for file in self.files:
            part = _Part(file, 0, 0, pa.schema([]))
            table = self._read(part)
            kept = pa.schema(list(table.schema)[2:])
            parts.append(part._replace(rows=table.num_rows, kept=kept))
        return tuple(parts)

    def _row_groups(self, file: TableFile) -> list[_Part]:
        place = self._place(file)
        with file.open() as stream, parquet_file(stream, place, _ADVICE) as table:
            schema = table.schema_arrow
            self._check_columns(file, schema.names)
            self._check_texts(file, schema)
            kept = pa.schema([(name, schema.field(name).type) for name in self._keep_columns])
            groups: list[_Part] = []
            for group in range(table.num_row_groups):
                groups.append(_Part(file, group, table.metadata.row_group(group).num_rows, kept))
            return groups

    @cached_property
    def _kept_schema(self) -> pa.Schema:
        """The kept columns of all parts; raises `UserError` where two parts have types that do not agree."""
        unified = pa.schema([])
        seen: dict[str, TableFile] = {}
        for part in self._parts:
            try:
                unified = pa.unify_schemas([unified, part.kept], promote_options="permissive")
            except pa.ArrowException:
                raise self._mixed_types(unified, part, seen) from None
            for field in part.kept:
                if field.type == unified.field(field.name).type:
                    seen[field.name] = part.file
        return unified

    def _mixed_types(self, unified: pa.Schema, part: _Part, seen: dict[str, TableFile]) -> UserError:
        for field in part.kept:
            before = unified.field(field.name).type
            if before != field.type:
                return UserError(
                    f"{self._keys}keep_columns has {field.name!r}, which is of type {before} in "
                    f"{seen[field.name].shown} and of type {field.type} in {part.file.shown}: "
                    "write it as one type, or leave it out"
                )
        raise AssertionError("schemas that do not agree have a field that differs")

    def _read(self, part: _Part) -> pa.Table:
        """Read a part; the last one is kept, since units next to each other often share it."""
        place = (part.file, part.group)
        if self._last_table is None or self._last_part != place:
            self._last_table = self._renamed(self._read_columns(part))
            self._last_part = place
        return self._last_table

    def _read_columns(self, part: _Part) -> pa.Table:
        place = self._place(part.file)
        with part.file.open() as stream:
            if part.file.kind == "parquet":
                with parquet_file(stream, place, _ADVICE) as table:
                    return read_row_group(table, part.group, self._columns, place, _ADVICE)
            with naming_damage(place, _ADVICE), text_stream(stream, place) as text:
                wanted = WantedColumns(
                    self._columns,
                    frozenset({self._url_column, self._caption_column}),
                    lambda names: self._check_columns(part.file, names),
                )
                if part.file.kind == "jsonl":
                    return read_json_lines(text, wanted, place)
                return read_delimited(text, self._form(part.file.kind), wanted, place)

    def _form(self, kind: str) -> Delimited:
        if kind == "tsv":
            return Delimited("\t", self._quotes == "csv", distrust_quotes=False, url=self.url_pattern)
        distrust_quotes = self._quotes is None
        return Delimited(",", self._quotes != "none", distrust_quotes, url=self.url_pattern)

    def _place(self, file: TableFile) -> str:
        return f"{self._keys}{self.table_key}={file.shown!r}"

    @property
    def _columns(self) -> tuple[str, ...]:
        """The columns to read, each once."""
        return tuple(dict.fromkeys((self._url_column, self._caption_column, *self._keep_columns)))

    def _check_columns(self, file: TableFile, found: Sequence[str]) -> None:
        """Raise `UserError` for a column that the file lacks or has twice, with the recipe's key for it."""
        require_column(found, f"{self._keys}{self.url_key}", self._url_column, file.shown)
        require_column(found, f"{self._keys}caption_column", self._caption_column, file.shown)
        for name in self._keep_columns:
            require_column(found, f"{self._keys}keep_columns", name, file.shown)

    def _check_texts(self, file: TableFile, schema: pa.Schema) -> None:
        for key, name in ((self.url_key, self._url_column), ("caption_column", self._caption_column)):
            require_text(schema.field(name).type, f"{self._keys}{key}", name, file.shown)

    def _renamed(self, table: pa.Table) -> pa.Table:
        """Return the columns `url` and `caption` as strings, then the kept ones."""
        urls = as_strings(table[self._url_column])
        captions = as_strings(table[self._caption_column])
        renamed = pa.table({"url": urls, "caption": pc.fill_null(captions, pa.scalar(""))})
        for name in self._keep_columns:
            renamed = renamed.append_column(name, table[name])
        return renamed


def url_table(recipe: Recipe, corpus: str, scenes_folder: str | None) -> UrlTable:
    """Open the table of a corpus that is fetched: the recipe's, or the generator's output in order."""
    source = recipe.corpora[corpus].source
    if isinstance(source, UrlsSource):
        return UrlTable(
            [source.table],
            source.url_column,
            source.caption_column,
            source.keep_columns,
            quotes=source.quotes,
            keys=f"corpora.{corpus}.source.",
        )
    assert isinstance(source, ScenesSource), f"{corpus} is not fetched"
    assert scenes_folder is not None, f"{corpus} needs its scenes"
    store = Store(scenes_folder)
    shards = numbered(name for name, _ in store.files())
    tables = [StoredTableFile(store, f"{shard}.parquet", "parquet") for shard in shards]
    return UrlTable(tables, keep_columns=("description", "questions"))
