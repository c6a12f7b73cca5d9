"""A bounded folder of copies of files, shared by all processes of a machine.

| name | what |
|---|---|
| `<name>.shard` | a copy |
| `making/<lock>/` | what is not a copy yet; empty but while the process that holds the lock makes one there |
| `locks/<lock>` | locks, by the first two digits of a copy's name |
| `bytes` | size of all copies, as text |
| `evictions` | grows by a byte each time that copies are evicted |
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dualtoken.infra.names import UnsafeNameError

_SUFFIX = ".shard"
_NAME = re.compile("[0-9a-f]{2,}")
_LEFT = 0.9
"""Share of the bytes that is left when copies are evicted, so that the folder is not listed each time that
one comes."""


@dataclass(frozen=True, slots=True)
class ShardCache:
    """Copies by name, 32 hexadecimal digits; the least recently used are evicted beyond `max_bytes`.

    A copy that is evicted while it is memory-mapped stays readable to whoever mapped it, and on disk for as
    long: look at `evictions`.
    """

    folder: Path
    max_bytes: int

    def get(self, name: str, make: Callable[[Path], Path], *, again: bool = False) -> Path:
        """Return a copy; `make` makes it, unless it is there, in an empty folder, and returns where.

        With `again` it is made in any case.
        """
        copy = self._path(name)
        if not again and self.find(name) is not None:
            return copy
        lock = name[:2]
        # One process makes it, those that want the same file wait. Locks stay, since somebody may wait for
        # one.
        with _locked(self.folder / "locks" / lock):
            if again or not copy.exists():
                self._make(copy, self.folder / "making" / lock, make)
        return copy

    def _make(self, copy: Path, scratch: Path, make: Callable[[Path], Path]) -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        made = make(scratch)
        # It is moved: a file from elsewhere would be taken away from its owner.
        assert made.parent == scratch or scratch in made.parents, f"{made} was not made in {scratch}"
        assert ".." not in made.parts, f"{made} was not made in {scratch}"
        size = made.stat().st_size
        made.replace(copy)
        shutil.rmtree(scratch)
        self._count(size, keep=copy)

    def find(self, name: str) -> Path | None:
        """Return a copy and note that it is used now; None where there is none."""
        copy = self._path(name)
        try:
            # The time of its last change stays: by it a reader knows that it has checked the copy before.
            modified = copy.stat().st_mtime_ns
            os.utime(copy, ns=(time.time_ns(), modified))
        except FileNotFoundError:
            return None
        return copy

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise UnsafeNameError(f"{name!r} is no checksum that a copy is named by: the dataset is damaged")
        return self.folder / f"{name}{_SUFFIX}"

    def evictions(self) -> int:
        """Return a number that changes when copies are evicted."""
        try:
            return os.stat(self.folder / "evictions").st_size  # noqa: PTH116  (asked for with each batch)
        except FileNotFoundError:
            return 0

    def _count(self, added: int, keep: Path) -> None:
        """Add a new copy's bytes to the sum, and evict others where there are too many."""
        with _locked(self.folder / "bytes") as file:
            before = file.read()
            total = int(before or 0) + added
            if total > self.max_bytes or not before:
                total = self._evict(keep)
            file.truncate(0)
            file.write(str(total))

    def _evict(self, keep: Path) -> int:
        """Evict copies if they are too many; return the bytes of those that stay."""
        copies = [(path.stat(), path) for path in self.folder.glob(f"*{_SUFFIX}")]
        total = sum(state.st_size for state, _ in copies)
        if total <= self.max_bytes:
            return total
        copies.sort(key=lambda copy: copy[0].st_atime_ns)
        for state, path in copies:
            if path != keep and total > _LEFT * self.max_bytes:
                path.unlink()
                total -= state.st_size
        with (self.folder / "evictions").open("a", encoding="ascii") as file:
            file.write(".")
        return total


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    """Hold a lock between processes; yields its file, open at the beginning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file
