"""Finds the files of a URL table: one file, a folder or a glob of parts, in any store, or a web address.

Parts come in natural order of their names, so that part 2 is before part 10. The rows of a table are numbered
in this order, and their keys follow from it.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dualtoken.infra.local_files import kind_of_entry
from dualtoken.infra.redaction import redacted
from dualtoken.infra.storage import Store
from dualtoken.infra.store_refusals import naming_refusals
from dualtoken.pipelines.core.content import content_ids
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.web_copy import is_web, shown_url, web_copy, web_digest

KINDS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
"""Kinds of tables, by suffix; all but Parquet may be compressed by gzip, and end with .gz then."""
EXPECTED = "a .parquet, .csv, .tsv or .jsonl file, or a folder or a glob of such parts"
_GLOB = re.compile(r"[*?[]")


class TableFile(ABC):
    """A file of a table."""

    def __init__(self, shown: str, kind: str) -> None:
        self.shown = shown
        """Path or URL for people, without what is secret."""
        self.kind = kind
        """A value of `KINDS`."""

    @abstractmethod
    def open(self) -> AbstractContextManager[IO[bytes]]:
        """Open the file at its beginning while a block runs; it can seek."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Return what identifies its content, as JSON values."""


class StoredTableFile(TableFile):
    """A local file, or one of a store."""

    def __init__(self, store: Store, name: str, kind: str) -> None:
        super().__init__(stored_file_shown(store, name), kind)
        self._store = store
        self._name = name

    def open(self) -> AbstractContextManager[IO[bytes]]:
        """Open the file."""
        return self._store.open(self._name)

    def content(self) -> dict[str, Any]:
        """Return the file's hash, or its store's tag."""
        entry = self._store.entry(self._name)
        if entry is None:
            raise FileNotFoundError(self.shown)
        return content_ids(self._store, [entry])[self._name]


class WebTableFile(TableFile):
    """A file at a web address, often a signed one."""

    def __init__(self, url: str, kind: str, setting: str) -> None:
        super().__init__(shown_url(url), kind)
        self._url = url
        self._setting = setting

    def open(self) -> IO[bytes]:
        """Open this process's copy."""
        return web_copy(self._url, self._setting)

    def content(self) -> dict[str, Any]:
        """Return the hash: an address and its signature say nothing of the content."""
        return web_digest(self._url, self._setting)


def stored_file_shown(store: Store, name: str) -> str:
    """Return a stored file's path or URL for people, without what is secret."""
    shown = store.path(name)
    if not store.is_local:
        shown = redacted(store.fs.unstrip_protocol(shown))
    return shown


def find_table_files(table: str, setting: str) -> list[TableFile]:
    """Return the files that a path, a glob or a URL names, in their order.

    Raises `UserError` where there are none; `setting` is the recipe's key, for messages.
    """
    if is_web(table):
        return [WebTableFile(table, _required_kind(shown_url(table), table, setting), setting)]
    try:
        fs, path = fsspec.url_to_fs(table, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        reason = redacted(str(error))
        raise _mistake(setting, table, f": {reason}; set it to a path or a URL that fsspec knows") from error
    entry = _kind_of_entry(fs, path)
    with naming_refusals(fs, path):
        if entry == "directory":
            listed = {str(info["name"]): info for info in fs.ls(path, detail=True)}
            return _parts(fs, listed, table, setting, "is a folder without such a file")
        if entry is None and _GLOB.search(path):
            return _parts(fs, fs.glob(path, detail=True), table, setting, "matches no such file")
    kind = _required_kind(path, table, setting)
    if entry != "file":
        raise _mistake(setting, table, f" is {entry or 'not there'}: set it to {EXPECTED}")
    return [_stored(fs, path, kind)]


def content_of(files: Sequence[TableFile]) -> dict[str, Any]:
    """Identify a table by the content of its files, in their order, wherever they are."""
    contents = [file.content() for file in files]
    if len(contents) == 1:
        return contents[0]
    return {"parts": contents}


def table_kind(name: str) -> str | None:
    """Return a file's kind by its name; None where it is no table's."""
    plain_name = name.lower().removesuffix(".gz")
    kind = KINDS.get(Path(plain_name).suffix)
    if kind == "parquet" and plain_name != name.lower():
        return None
    return kind


def natural_order(name: str) -> list[tuple[bool, int, str]]:
    """Return a key by which names are in order, with their numbers as numbers."""
    key: list[tuple[bool, int, str]] = []
    for piece in re.split(r"([0-9]+)", name):
        is_number = piece.isdecimal()
        key.append((not is_number, int(piece) if is_number else 0, piece))
    return key


def _parts(
    fs: Any,  # noqa: ANN401
    listed: Mapping[str, Mapping[str, Any]],
    table: str,
    setting: str,
    nothing: str,
) -> list[TableFile]:
    """Return the parts among what a folder or a glob lists, all of one kind."""
    kinds: dict[str, str] = {}
    for path, info in listed.items():
        name = path.rpartition("/")[2]
        kind = table_kind(name)
        # Others put files such as _SUCCESS, _metadata and .part-0.crc beside parts.
        if kind is not None and not name.startswith((".", "_")) and _is_file(fs, path, info):
            kinds[path] = kind
    if not kinds:
        raise _mistake(setting, table, f" {nothing}: set it to {EXPECTED}")
    if len(set(kinds.values())) > 1:
        shown = " and ".join(sorted(set(kinds.values())))
        raise _mistake(
            setting, table, f" has parts of {shown}: set it to a glob of one kind, such as *.parquet"
        )
    return [_stored(fs, path, kinds[path]) for path in sorted(kinds, key=natural_order)]


def _is_file(fs: Any, path: str, info: Mapping[str, Any]) -> bool:  # noqa: ANN401
    """Tell whether a listed name is a file; a local listing does not follow links, as the hub's cache has."""
    if isinstance(fs, LocalFileSystem):
        return Path(path).is_file()
    return info["type"] == "file"


def _kind_of_entry(fs: Any, path: str) -> str | None:  # noqa: ANN401
    """Return `file`, `directory`, or words for what else is there; None where nothing is."""
    try:
        with naming_refusals(fs, path):
            info = fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        if isinstance(fs, LocalFileSystem):
            return kind_of_entry(Path(path))
        return None
    if info["type"] == "other":
        return kind_of_entry(Path(path))
    return info["type"]


def _required_kind(path: str, table: str, setting: str) -> str:
    kind = table_kind(path)
    if kind is None:
        raise _mistake(setting, table, f" is none of {', '.join(KINDS)}: set it to {EXPECTED}")
    return kind


def _stored(fs: Any, path: str, kind: str) -> TableFile:  # noqa: ANN401
    folder, _, name = path.rpartition("/")
    url = folder or "/"
    if not isinstance(fs, LocalFileSystem):
        url = fs.unstrip_protocol(folder)
    return StoredTableFile(Store(url), name, kind)


def _mistake(setting: str, table: str, words: str) -> UserError:
    shown = shown_url(table) if is_web(table) else redacted(table)
    return UserError(f"{setting}={shown!r}{words}")
