"""Reads the sources of a download: tables of URLs and captions, by ranges of rows, and how many rows there are.

A Parquet table is read by row groups; .csv and .tsv have no index, so they are read whole, once per process.
Imports pyarrow and fsspec only, so that a plan is made at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.corpora import ScenesSource, ShardsSource, UrlsSource
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.shards import SHARD_COLUMNS, find_shards, numbered

SUFFIXES = (".parquet", ".csv", ".tsv")


class _Part(NamedTuple):
    file: str
    group: int
    """Row group in the file."""
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
        """Name the files, paths or fsspec URLs; `keys`, such as `corpora.web.source.`, is where a recipe has its own.

        Raises `UserError` for a file or column that is not there.
        """
        self._keys = keys
        self._files, self._keep = tuple(files), tuple(keep_columns)
        self._url, self._caption = url_column, caption_column
        for file in self._files:
            if not file.lower().endswith(SUFFIXES):
                raise UserError(
                    f"{keys}table={file!r} is none of {', '.join(SUFFIXES)}: set it to such a file"
                )
        # url and caption under other names would be hidden by ours too.
        if taken := [name for name in self._keep if name in SHARD_COLUMNS]:
            raise UserError(
                f"{keys}keep_columns has {taken[0]!r}, which the shards use themselves: rename it in the table, or leave it out"
            )
        self._last: tuple[tuple[str, int], pa.Table] | None = None

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(part.rows for part in self._parts)

    def rows(self, first: int, count: int) -> pa.Table:
        """Return rows `first` (0 is the first) and on: `url` and `caption`, both strings, then the kept columns.

        A URL may be null; a missing caption is "".
        """
        wanted, start = [], 0
        for part in self._parts:
            low, high = max(first, start), min(first + count, start + part.rows)
            if low < high:
                wanted.append(self._read(part).slice(low - start, high - low))
            start += part.rows
        table = pa.concat_tables(wanted, promote_options="permissive") if wanted else self._read_empty()
        assert table.num_rows == count, f"{table.num_rows} rows from {first} on, of {count}"
        return table

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        return tuple(part for file in self._files for part in self._parts_of(file))

    def _parts_of(self, file: str) -> Iterator[_Part]:
        if not _is_parquet(file):
            part = _Part(file, 0, 0)
            yield part._replace(rows=self._read(part).num_rows)
            return
        with self._reading(file) as stream:
            table = pq.ParquetFile(stream)
            self._check_columns(file, table.schema_arrow.names)
            for group in range(table.num_row_groups):
                yield _Part(file, group, table.metadata.row_group(group).num_rows)

    def _read(self, part: _Part) -> pa.Table:
        """Read a part; the last one is kept, since units next to each other often share it."""
        if self._last is None or self._last[0] != (part.file, part.group):
            table = self._read_group(part) if _is_parquet(part.file) else self._read_csv(part.file)
            self._last = (part.file, part.group), self._named(part.file, table)
        return self._last[1]

    def _read_group(self, part: _Part) -> pa.Table:
        with self._reading(part.file) as stream:
            return pq.ParquetFile(stream).read_row_group(part.group, columns=list(self._columns))

    def _read_csv(self, file: str) -> pa.Table:
        parse = csv.ParseOptions(
            delimiter="\t" if file.lower().endswith(".tsv") else ",", newlines_in_values=True
        )
        # One thread: where a file breaks off, others may still read as the process ends, which aborts it.
        read = csv.ReadOptions(use_threads=False)
        with self._reading(file) as stream:
            self._check_columns(file, csv.open_csv(stream, read, parse).schema.names)
        # All as strings: a guessed type would depend on the rows that happen to be there.
        kinds = csv.ConvertOptions(
            column_types=dict.fromkeys(self._columns, pa.string()), include_columns=list(self._columns)
        )
        with self._reading(file) as stream:
            return csv.read_csv(stream, read, parse, kinds)

    @contextmanager
    def _reading(self, file: str) -> Iterator[Any]:
        """Open a table's file; what makes it unreadable becomes one line that names it."""
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

    def _read_empty(self) -> pa.Table:
        return pa.table({"url": pa.array([], pa.string()), "caption": pa.array([], pa.string())})

    @property
    def _columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self._url, self._caption, *self._keep)))

    def _check_columns(self, file: str, found: Sequence[str]) -> None:
        for key, name in (
            ("url_column", self._url),
            ("caption_column", self._caption),
            *(("keep_columns", name) for name in self._keep),
        ):
            if name not in found:
                shown = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
                raise UserError(
                    f"{self._keys}{key}={name!r} is no column of {file}, which has {shown}: set it to one of them"
                )

    def _named(self, file: str, table: pa.Table) -> pa.Table:
        texts = []
        for key, name in (("url_column", self._url), ("caption_column", self._caption)):
            kind = table.schema.field(name).type
            value = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (
                pa.types.is_string(value)
                or pa.types.is_large_string(value)
                or pa.types.is_string_view(value)
                or pa.types.is_null(value)
            ):
                raise UserError(
                    f"{self._keys}{key}={name!r} of {file} is of type {kind}: set it to a column of text"
                )
            texts.append(table[name].cast(pa.string()))
        named = pa.table({"url": texts[0], "caption": pc.fill_null(texts[1], pa.scalar(""))})
        for name in self._keep:
            named = named.append_column(name, table[name])
        return named


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
    tables = [_address(store, f"{shard}.parquet") for shard in numbered(name for name, _ in store.files())]
    return UrlTable(tables, keep_columns=("description", "questions"))


def count_source_rows(recipe: Recipe, corpus: str) -> list[int]:
    """Return the rows of each unit of a corpus's download; existing shards keep their own sizes."""
    source, size = recipe.corpora[corpus].source, recipe.download.rows_per_shard
    if isinstance(source, ShardsSource):
        return [shard.rows for shard in find_shards(source.folder)]
    total = (
        source.num_images if isinstance(source, ScenesSource) else url_table(recipe, corpus, None).num_rows
    )
    return [min(size, total - first) for first in range(0, total, size)]


def source_identity(recipe: Recipe, corpus: str) -> dict[str, Any]:
    """Return what decides a corpus's rows: the columns taken, and the content or sizes of the files."""
    source = recipe.corpora[corpus].source
    identity = source.identity()
    for place in {"table", "folder"} & identity.keys():
        del identity[place]  # the content counts, not where it is
    if isinstance(source, UrlsSource):
        identity["content"] = _content(source.table, f"corpora.{corpus}.source.")
    if isinstance(source, ShardsSource):
        store = Store(source.folder)
        identity["files"] = {
            name: size for name, size in store.files() if name.endswith((".tar", ".parquet"))
        }
    return identity


def _content(table: str, keys: str) -> dict[str, Any]:
    """Identify a table's file: by its hash where it is local, else by the store's own checksum and size."""
    folder, _, name = table.replace("\\", "/").rpartition("/")
    store = Store(folder or ".")
    if store.size(name) is None:
        raise UserError(f"{keys}table={table!r} is not there: set it to a .parquet, .csv or .tsv file")
    if store.is_local:
        stat = Path(store.path(name)).stat()
        return {"sha256": _sha256(store.path(name), stat.st_mtime_ns, stat.st_size)}
    info = store.fs.info(store.path(name))
    return {
        "bytes": int(info["size"]),
        "checksum": str(info.get("ETag") or store.fs.checksum(store.path(name))),
    }


@lru_cache(maxsize=64)  # a run plans often, and a table may be large
def _sha256(path: str, _modified: int, _size: int) -> str:
    return digest(Path(path)).sha256


def _address(store: Store, name: str) -> str:
    return store.path(name) if store.is_local else store.fs.unstrip_protocol(store.path(name))
