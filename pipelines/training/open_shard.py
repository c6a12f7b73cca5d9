"""One image shard that is open for training: its images by descriptor, its rows and targets by memory map.

N tokens, W channels.
"""

import os
import weakref
from pathlib import Path

import pyarrow as pa

from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.training.row_table import RowTable
from dualtoken.pipelines.training.stored_targets import StoredTarget, decode_target


class OpenTar:
    """A tar's descriptor, closed with the last reference: a shard may be put away while a thread reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the tar, fewer where it ends; may be called by several threads."""
        return os.pread(self._descriptor, size, offset)

    def is_there(self) -> bool:
        """Tell whether the path still leads to this file."""
        try:
            return os.stat(self.path).st_ino == os.fstat(self._descriptor).st_ino  # noqa: PTH116
        except FileNotFoundError:
            return False


class OpenShard:
    """The training samples of one shard, by their place among them."""

    def __init__(self, url: str, name: str, tar: OpenTar, rows: RowTable, targets: pa.Table | None) -> None:
        """Take what was opened; `url` and `name` are those of the tar's folder and file."""
        self._url = url
        self._name = name
        self.tar = tar
        self.rows = rows
        self._targets = targets

    def key(self, row: int) -> bytes:
        """Return a sample's key."""
        return self.rows.keys[row].as_py()

    def caption(self, row: int) -> str:
        """Return a sample's caption; empty where the shard was opened without captions."""
        return self.rows.captions[row].as_py()

    def encoded(self, row: int) -> bytes:
        """Return a sample's encoded image; raises `DamagedShardError` where the tar is cut."""
        size = int(self.rows.sizes[row])
        data = self.tar.read(int(self.rows.offsets[row]), size)
        if len(data) != size:
            end = int(self.rows.offsets[row]) + len(data)
            raise DamagedShardError.of(self._url, self._name, f"cut short at {end} bytes")
        return data

    def target(self, row: int) -> StoredTarget:
        """Return a sample's stored targets."""
        assert self._targets is not None, "opened without targets"
        return decode_target(self._targets, int(self.rows.target_rows[row]))
