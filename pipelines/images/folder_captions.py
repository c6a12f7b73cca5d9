"""Finds the captions of a folder's images: in tables, in text files beside them, or in their names."""

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import ClassVar, NamedTuple

import pyarrow as pa

from dualtoken.infra.storage import Store
from dualtoken.model.vision.formats import SUFFIXES
from dualtoken.pipelines.config.corpora import FolderSource
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.folder_listing import FolderFile
from dualtoken.pipelines.images.table_checks import parquet_file
from dualtoken.pipelines.images.table_files import StoredTableFile, TableFile, find_table_files, table_kind
from dualtoken.pipelines.images.text_tables import text_stream
from dualtoken.pipelines.images.url_table import UrlTable

_METADATA = "metadata"
"""Stem of the tables that are found by themselves, as Hugging Face's imagefolder names them."""
_CAPTION_COLUMNS = ("caption", "text")
_BETWEEN_WORDS = re.compile(r"[\s_+-]+")
_UTF_8_BOM = "utf-8-sig"


class CaptionTable(UrlTable):
    """A table of names of files and their captions."""

    table_key: ClassVar = "captions"
    url_key: ClassVar = "file_column"
    url_pattern: ClassVar = re.compile(rf"\S.*({'|'.join(map(re.escape, SUFFIXES))})", re.IGNORECASE)


class CaptionRow(NamedTuple):
    """A row of a table of captions."""

    name: str
    """Name of a file below the folder; empty where the row has none. Not checked."""
    caption: bytes
    """Not checked to be UTF-8."""


class Captions(NamedTuple):
    """All tables of captions, one after the other."""

    files: tuple[TableFile, ...]
    rows: list[CaptionRow]
    kept: pa.Table
    """The columns to carry along, a row for each of `rows`."""


def read_captions(source: FolderSource, files: Mapping[str, FolderFile], keys: str) -> Captions:
    """Read the tables that a recipe names, or those found by themselves; no rows where there are none.

    `keys` is the prefix of the source's keys, for messages. Raises `UserError` as tables of URLs do.
    """
    found: list[TableFile] = []
    rows: list[CaptionRow] = []
    pieces: list[pa.Table] = []
    for folder, file in _tables(source, files, keys):
        table = _read(source, file, keys)
        found.append(file)
        names = table["url"].cast(pa.binary()).to_pylist()
        for name, caption in zip(names, table["caption"].cast(pa.binary()).to_pylist(), strict=True):
            rows.append(CaptionRow(_below(folder, name), caption))
        pieces.append(table.drop_columns(["url", "caption"]))
    if not pieces:
        if source.keep_columns:
            raise UserError(f"{keys}keep_columns is set without a table: set {keys}captions too")
        return Captions((), [], pa.table({}))
    return Captions(tuple(found), rows, pa.concat_tables(pieces, promote_options="permissive"))


def _below(folder: str, name: bytes | None) -> str:
    if not name or not name.strip():
        return ""
    # As the system spells names that are no UTF-8.
    return f"{folder}{name.decode('utf-8', 'surrogateescape')}"


def _tables(source: FolderSource, files: Mapping[str, FolderFile], keys: str) -> list[tuple[str, TableFile]]:
    """Return each table, with the folder that its names are relative to: empty, or ending in a slash."""
    if source.captions is not None:
        return [("", file) for file in find_table_files(source.captions, f"{keys}captions")]
    store = Store(source.folder)
    tables: dict[str, TableFile] = {}
    for name in sorted(files):
        folder, slash, base = name.rpartition("/")
        kind = table_kind(base)
        if kind is None or base.partition(".")[0] != _METADATA:
            continue
        fault = files[name].fault
        if fault is not None:
            raise UserError(f"{keys}folder has {name}, {fault.detail}, which is not read: set {keys}captions")
        file = StoredTableFile(store, name, kind)
        other = tables.setdefault(f"{folder}{slash}", file)
        if other is not file:
            both = f"{other.shown} and {file.shown}"
            raise UserError(f"{keys}folder has {both}: set {keys}captions to one of them")
    return list(tables.items())


def _read(source: FolderSource, file: TableFile, keys: str) -> pa.Table:
    table = CaptionTable(
        [file],
        source.file_column,
        source.caption_column or _caption_column(file, keys),
        source.keep_columns,
        quotes=source.quotes,
        keys=keys,
    )
    return table.rows(0, table.num_rows)


def _caption_column(file: TableFile, keys: str) -> str:
    """Return the usual name of the column of captions that a file has; the first one where it has none."""
    names = _column_names(file, f"{keys}captions={file.shown!r}")
    present = [name for name in _CAPTION_COLUMNS if name in names]
    return (present or list(_CAPTION_COLUMNS))[0]


def _column_names(file: TableFile, place: str) -> list[str]:
    """Return the names of a file's columns; of JSON lines, those of the first one."""
    with file.open() as stream:
        if file.kind == "parquet":
            with parquet_file(stream, place, "give a sound file") as table:
                return table.schema_arrow.names
        with text_stream(stream, place) as text:
            first_line = text.readline().decode(_UTF_8_BOM, "replace")
    if file.kind == "jsonl":
        return list(_object(first_line))
    delimiter = "\t" if file.kind == "tsv" else ","
    return next(csv.reader(io.StringIO(first_line), delimiter=delimiter), [])


def _object(line: str) -> dict[str, object]:
    """Return a line's object; what is none is told when the whole file is read."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def text_file_name(image: str) -> str:
    """Return the name of the text file that has an image's caption, if there is one."""
    return str(PurePosixPath(image).with_suffix(".txt"))


def words_of_name(image: str) -> bytes:
    """Return a file's name as words: without folder and suffix, with spaces in place of _, - and +."""
    stem = PurePosixPath(image).stem
    # What is no UTF-8 in a name is no word in any language.
    text = stem.encode("utf-8", "surrogateescape").decode("utf-8", "ignore")
    return _BETWEEN_WORDS.sub(" ", text).strip().encode()
