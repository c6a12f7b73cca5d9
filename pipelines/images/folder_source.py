"""A folder of images as a source of a download: its rows, what identifies them, and their images."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from dualtoken.infra.fetch import Fetched, FetchFailed, FetchReason
from dualtoken.infra.storage import Store, StoredFile
from dualtoken.model.vision.formats import SUFFIXES
from dualtoken.pipelines.config.corpora import FolderSource
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.content import content_ids
from dualtoken.pipelines.core.messages import printable
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.folder_captions import Captions, read_captions, words_of_name
from dualtoken.pipelines.images.folder_listing import FolderListing, list_folder
from dualtoken.pipelines.images.folder_rows import FolderRow, folder_rows
from dualtoken.pipelines.images.source_content import require_planned_rows
from dualtoken.pipelines.images.source_store import open_source
from dualtoken.pipelines.images.table_checks import as_strings
from dualtoken.pipelines.images.table_files import content_of, stored_file_shown

_UTF_8_BOM = b"\xef\xbb\xbf"


class FolderImages:
    """The images of a folder with their captions, as they are when they are first looked at."""

    def __init__(self, source: FolderSource, keys: str = "") -> None:
        """Name the folder; `keys` is the prefix of the source's keys in a recipe, for messages."""
        self._source = source
        self._keys = keys
        self._store = open_source(source.folder, f"{keys}folder")

    @cached_property
    def _listing(self) -> FolderListing:
        return list_folder(self._store, f"{self._keys}folder")

    @cached_property
    def _captions(self) -> Captions:
        return read_captions(self._source, self._listing.files, self._keys)

    @cached_property
    def _rows(self) -> list[FolderRow]:
        rows = folder_rows(self._listing.files, self._captions.rows)
        if not rows:
            raise UserError(
                f"{self._keys}folder={self._store.url!r} has no image in it ({', '.join(SUFFIXES)}): "
                "set it to a folder of images"
            )
        return rows

    @property
    def num_rows(self) -> int:
        """Number of rows; raises `UserError` for a folder without images, and for tables as they are read."""
        return len(self._rows)

    def rows(self, first: int, count: int) -> pa.Table:
        """Return `count` rows from `first` (0 is the first) on: `url`, `caption`, then the kept columns.

        `url` is a file's name below the folder, with what is no UTF-8 escaped; null where it has none.
        Captions may be no UTF-8. A kept column is null where an image has no row in the tables.
        """
        rows = self._rows[first : first + count]
        urls = [printable(row.name) or None for row in rows]
        captions = pa.chunked_array([pa.array(map_ahead(self._caption, rows), pa.binary())])
        table = pa.table({"url": pa.array(urls, pa.string()), "caption": as_strings(captions)})
        kept = self._captions.kept.take(pa.array([row.table_row for row in rows], pa.int64()))
        for name in kept.column_names:
            table = table.append_column(kept.schema.field(name), kept[name])
        return table

    def _caption(self, row: FolderRow) -> bytes:
        if row.table_row is not None:
            return self._captions.rows[row.table_row].caption
        if row.text is not None:
            return self._store.read(row.text.name).removeprefix(_UTF_8_BOM).strip()
        return words_of_name(row.name)

    def image(self, row: int, max_bytes: int) -> Fetched | FetchFailed:
        """Return the image of a row (0 is the first of all), or why there is none.

        Raises OSError for the machine's own trouble.
        """
        _, image, fault, *_ = self._rows[row]
        if fault is not None:
            return FetchFailed(fault.reason, fault.detail)
        assert image is not None, "a row has an image or a fault"
        if image.bytes > max_bytes:
            return FetchFailed(FetchReason.TOO_MANY_BYTES, f"{image.bytes:,} bytes, max_bytes={max_bytes}")
        return Fetched(self._store.read(image.name), "")

    def identity(self, rows_per_shard: int) -> dict[str, Any]:
        """Return what identifies the rows' content, as JSON values: of the tables, and of each shard."""
        ids = content_ids(self._store, _files(self._rows))
        shards: list[str] = []
        for first in range(0, self.num_rows, rows_per_shard):
            shards.append(self._digest(first, rows_per_shard, ids))
        identity: dict[str, Any] = {"shards": shards}
        if self._captions.files:
            identity["content"] = content_of(self._captions.files)
        return identity

    def require_unchanged(self, stage: Store, shard: int, first: int, count: int) -> None:
        """Raise `UserError` where a shard's files are not those that the stage's folder was planned with."""
        now = [self._store.entry(file.name) for file in _files(self._rows[first : first + count])]
        ids = content_ids(self._store, [file for file in now if file is not None])
        require_planned_rows(stage, shard, self._digest(first, count, ids), self._store.url)

    def _digest(self, first: int, count: int, ids: Mapping[str, dict[str, Any]]) -> str:
        """Hash a range of rows: names, content of files, and captions of tables."""
        digest = hashlib.sha256()
        for row in self._rows[first : first + count]:
            image = ids.get(row.image.name) if row.image else None
            text = ids.get(row.text.name) if row.text else None
            caption = None
            if row.table_row is not None:
                caption = self._captions.rows[row.table_row].caption.hex()
            reason = row.fault.reason if row.fault else None
            digest.update(json.dumps([row.name, image, reason, text, caption]).encode("ascii") + b"\n")
        return digest.hexdigest()

    def facts(self, first: int, count: int) -> dict[str, Any]:
        """Return where a range of rows has its captions from, and what the whole folder has left out."""
        rows = self._rows[first : first + count]
        return {
            "captions_from": dict(Counter(row.caption_from for row in rows)),
            "skipped": {**self._listing.skipped, "other_files": self._num_other_files},
            "tables": len(self._captions.files),
        }

    @cached_property
    def _num_other_files(self) -> int:
        """How many files are no image, and have no captions either."""
        used = {row.name for row in self._rows}
        used |= {row.text.name for row in self._rows if row.text is not None}
        tables = {file.shown for file in self._captions.files}
        number = 0
        for name, file in self._listing.files.items():
            is_table = file.fault is None and stored_file_shown(self._store, name) in tables
            number += name not in used and not is_table
        return number


def folder_images(recipe: Recipe, corpus: str) -> FolderImages:
    """Open the folder of a corpus."""
    source = recipe.corpora[corpus].source
    assert isinstance(source, FolderSource), f"{corpus} is no folder of images"
    return FolderImages(source, f"corpora.{corpus}.source.")


def _files(rows: Sequence[FolderRow]) -> list[StoredFile]:
    """Return the files that rows are made of, each once."""
    files: dict[str, StoredFile] = {}
    for row in rows:
        for file in (row.image, row.text):
            if file is not None:
                files[file.name] = file
    return list(files.values())
