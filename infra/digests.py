"""Checksums of files: of a finished file, or taken while one is written."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

CHUNK_BYTES = 1 << 20
"""Bytes that are read at once; larger writes are hashed on a thread."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size and checksums that identify a file's content."""

    bytes: int
    sha256: str
    xxh3_128: str


def digest(path: Path) -> FileDigest:
    """Read a local file once and return its size and checksums."""
    with path.open("rb") as file:
        return digest_stream(file)


def digest_stream(file: Any) -> FileDigest:  # noqa: ANN401  (any file that fsspec opens)
    """Read the rest of an open file, local or remote, once, and return its size and checksums."""
    sha = hashlib.sha256()
    xxh = xxhash.xxh3_128()
    size = 0
    chunk = file.read(CHUNK_BYTES)
    while chunk:
        sha.update(chunk)
        xxh.update(chunk)
        size += len(chunk)
        chunk = file.read(CHUNK_BYTES)
    return FileDigest(size, sha.hexdigest(), xxh.hexdigest())


class DigestingFile(io.RawIOBase):
    """A new local file that takes its checksums while it is written, from first byte to last."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("xb", buffering=0)
        self._sha = hashlib.sha256()
        self._xxh = xxhash.xxh3_128()
        self._size = 0
        self._hasher = ThreadPoolExecutor(1, "sha256")

    def write(self, data: Any) -> int:  # noqa: ANN401  (any buffer)
        """Append all of the data, or raise `OSError`."""
        view = memoryview(data).cast("B")
        if len(view) < CHUNK_BYTES:
            self._sha.update(view)
            self._append(view)
        else:
            # SHA-256 takes longer than all the rest, so it runs beside it.
            hashed = self._hasher.submit(self._sha.update, view)
            self._append(view)
            hashed.result()
        return len(view)

    def _append(self, view: memoryview) -> None:
        self._xxh.update(view)
        written = 0
        while written < len(view):
            written += self._file.write(view[written:])
        self._size += written

    def writable(self) -> bool:
        """Tell that the file can be written."""
        return True

    def tell(self) -> int:
        """Return the number of bytes so far."""
        return self._size

    def close(self) -> None:
        """Close the file; its digest stays."""
        self._hasher.shutdown()
        self._file.close()
        super().close()

    @property
    def digest(self) -> FileDigest:
        """Size and checksums of what was written so far."""
        return FileDigest(self._size, self._sha.hexdigest(), self._xxh.hexdigest())
