"""A bounded folder of copies of remote shards, shared by all processes of a machine."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.storage import Store

_SUFFIX = ".shard"


@dataclass(frozen=True, slots=True)
class ShardCache:
    """Copies of files by checksum; when they are more than `max_bytes`, the least recently used go.

    A copy that goes while it is memory-mapped stays readable to whoever mapped it.
    """

    folder: Path
    max_bytes: int

    def get(self, store: Store, name: str, checksum: str, *, again: bool = False) -> Path:
        """Return the local copy of a store's file, fetched unless it is there; `again` fetches it in any case.

        Raises FileNotFoundError where the store has no such file.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        copy = self.folder / f"{checksum}{_SUFFIX}"
        # One process fetches, those that want the same file wait for it.
        with _locked(self.folder / f"{checksum}.lock"):
            if again:
                copy.unlink(missing_ok=True)
            if not copy.exists():
                part = copy.with_suffix(".part")
                store.fs.get_file(store.path(name), str(part))
                part.replace(copy)
            os.utime(copy)
        self._shrink(keep=copy)
        return copy

    def _shrink(self, keep: Path) -> None:
        with _locked(self.folder / "shrink.lock"):
            copies = sorted((path for path in self.folder.glob(f"*{_SUFFIX}") if path != keep), key=lambda path: path.stat().st_mtime)
            size = keep.stat().st_size + sum(path.stat().st_size for path in copies)
            for path in copies:
                if size <= self.max_bytes:
                    return
                size -= path.stat().st_size
                path.unlink()
                path.with_suffix(".lock").unlink(missing_ok=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
