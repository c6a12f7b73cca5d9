"""Reads tables of text, whole: .csv, .tsv and JSON lines, plain or compressed by gzip.

Every row is read or the file is refused by the row's number; 1 is the first row of data.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple

import pyarrow as pa

from dualtoken.pipelines.errors import UserError

ROWS_AT_ONCE = 1 << 16
"""Rows that become one chunk of a table."""
_LONGEST_FIELD = 1 << 28
"""Letters of a field; only a quote mark that is never closed makes a longer one."""
_GZIP = b"\x1f\x8b"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
URL = re.compile(r"https?://\S+")


class Delimited(NamedTuple):
    """How the rows of a .csv or .tsv file are written."""

    delimiter: str
    quoted: bool
    """Whether a field may stand in quote marks, with delimiters, line ends and doubled marks in it."""
    distrust_quotes: bool
    """Whether a quoted field that seems to hold rows of the table is refused."""
    url: re.Pattern[str] = URL
    """What a value of the column of URLs looks like."""


class WantedColumns(NamedTuple):
    """The columns to read."""

    names: tuple[str, ...]
    """Their names, each once; the first has the URLs."""
    texts: frozenset[str]
    """Those of URLs and captions."""
    check: Callable[[Sequence[str]], None]
    """Raises `UserError` unless all columns of a file are as they must be."""


@contextmanager
def text_stream(stream: IO[bytes], place: str) -> Iterator[IO[bytes]]:
    """Return a file's bytes, decompressed; raises `UserError` where they are empty, damaged, or UTF-16."""
    start = stream.read(2)
    stream.seek(0)
    if not start:
        raise UserError(f"{place} is empty, 0 bytes: give a sound file")
    if start in _UTF_16:
        raise UserError(f"{place} is UTF-16: save it as UTF-8")
    if start != _GZIP:
        yield stream
        return
    with gzip.GzipFile(fileobj=stream) as decompressed:
        try:
            yield io.BufferedReader(decompressed)  # type: ignore[arg-type]
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{place} cannot be read: {error}; give a sound file") from error


def read_delimited(stream: IO[bytes], form: Delimited, wanted: WantedColumns, place: str) -> pa.Table:
    """Read columns of a .csv or .tsv file, as strings."""
    # A limit of the whole process, and a small one by default: a field is as long as it is.
    csv.field_size_limit(_LONGEST_FIELD)
    # Bytes that are no UTF-8 matter in the columns that are read only.
    with io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="") as text:
        return _read_rows(_Rows(text, form, place), wanted, place)


def _read_rows(rows: "_Rows", wanted: WantedColumns, place: str) -> pa.Table:
    wanted.check(rows.header)
    columns = [rows.header.index(name) for name in wanted.names]
    rows.url_column = columns[0]
    schema = pa.schema([(name, pa.string()) for name in wanted.names])
    batches: list[pa.RecordBatch] = []
    picked: list[list[str]] = []
    first = 1
    for row in rows:
        picked.append([row[column] for column in columns])
        if len(picked) == ROWS_AT_ONCE:
            batches.append(_batch(picked, schema, first, place))
            first += len(picked)
            picked = []
    if picked:
        batches.append(_batch(picked, schema, first, place))
    return pa.Table.from_batches(batches, schema)


class _Rows:
    """The rows of a delimited file, each with as many fields as its header."""

    def __init__(self, text: Iterable[str], form: Delimited, place: str) -> None:
        self._form = form
        self._place = place
        quoting = csv.QUOTE_NONE
        if form.quoted:
            quoting = csv.QUOTE_MINIMAL
        self._reader = csv.reader(text, delimiter=form.delimiter, quoting=quoting, strict=True)
        self._row = 0
        self._first_line = 1
        """First line of the row at hand; 1 is the first of the file."""
        header = self._next()
        if header is None:
            raise UserError(f"{place} has no header: give a file whose first line names its columns")
        self.header = header
        """Names of the columns."""
        self.url_column = 0
        """Number of the column of URLs."""

    def __iter__(self) -> Iterator[list[str]]:
        """Yield the rows; raises `UserError`, with the row's number, for one that is not like the header."""
        while True:
            self._row += 1
            row = self._next()
            if row is None:
                return
            if len(row) != len(self.header):
                raise self._mistake(
                    f"has {len(row)} fields where the header has {len(self.header)}: mend the row"
                )
            spans_lines = self._reader.line_num > self._first_line
            if spans_lines and self._form.distrust_quotes and self._swallows_rows(row):
                raise self._mistake(
                    f"holds what looks like the rows up to line {self._reader.line_num} as one quoted field: "
                    "close its quote mark; set quotes=csv where the field is meant so, or quotes=none where "
                    "quote marks are letters"
                )
            yield row

    def _next(self) -> list[str] | None:
        """Return the next row that is no empty line; None at the end."""
        self._first_line = self._reader.line_num + 1
        try:
            for row in self._reader:
                if row:
                    return row
                self._first_line = self._reader.line_num + 1
        except csv.Error as error:
            advice = "double or close it, or set quotes=none where quote marks are letters"
            if "unexpected end" in str(error) or "larger than field limit" in str(error):
                raise self._mistake(f"opens a quote mark that is never closed: {advice}") from None
            raise self._mistake(f"has a quote mark in the wrong place ({error}): {advice}") from None
        return None

    def _swallows_rows(self, row: Sequence[str]) -> bool:
        """Tell whether a field has a URL where another row, of the file's own form, would have its own."""
        for column, field in enumerate(row):
            lines = field.splitlines()
            if len(lines) < 2:
                continue
            first, *others = lines
            starts_row = column < self.url_column and self._has_url(first, self.url_column - column)
            if starts_row or any(self._has_url(line, self.url_column) for line in others):
                return True
        return False

    def _has_url(self, line: str, column: int) -> bool:
        """Tell whether a line, split at delimiters, has several fields and a URL in one of them."""
        fields = line.split(self._form.delimiter)
        return 1 < len(fields) > column and self._form.url.fullmatch(fields[column]) is not None

    def _mistake(self, words: str) -> UserError:
        row = "the header"
        if self._row:
            row = f"row {self._row}"
        return UserError(f"{self._place}, {row} (line {self._first_line}), {words}")


def _batch(rows: Sequence[Sequence[str]], schema: pa.Schema, first: int, place: str) -> pa.RecordBatch:
    """Return rows as a chunk of a table; raises `UserError` for one that is not UTF-8."""
    columns = list(zip(*rows, strict=True))
    try:
        return pa.record_batch([pa.array(column, pa.string()) for column in columns], schema)
    except UnicodeEncodeError:
        number, name = _first_without_utf_8(rows, schema.names)
        raise UserError(
            f"{place}, row {first + number}, has a {name!r} that is not UTF-8: save the file as UTF-8"
        ) from None


def _first_without_utf_8(rows: Sequence[Sequence[str]], names: Sequence[str]) -> tuple[int, str]:
    for number, row in enumerate(rows):
        for name, field in zip(names, row, strict=True):
            try:
                field.encode()
            except UnicodeEncodeError:
                return number, name
    raise AssertionError("all rows are UTF-8")
