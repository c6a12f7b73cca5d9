"""A bounded folder of copies of files, shared by all processes of a machine.

`<name>.shard` is a copy. What is below `making` is not one yet: a folder for each lock of `locks`, empty but while a process that holds
the lock makes a copy there. `bytes` says how many the copies are, `evictions` is a byte longer each time that some were let go.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_SUFFIX = ".shard"
_LEFT = 0.9
"""Share of the bytes that is left when copies go, so that the folder is not listed each time that one comes."""


@dataclass(frozen=True, slots=True)
class ShardCache:
    """Copies by name, 32 hexadecimal digits; when they are more than `max_bytes`, the least recently used go.

    A copy that goes while it is memory-mapped stays readable to whoever mapped it, and on disk for as long: look at `evictions`.
    """

    folder: Path
    max_bytes: int

    def get(self, name: str, make: Callable[[Path], Path], *, again: bool = False) -> Path:
        """Return a copy; unless it is there, `make` makes it in an empty folder, and returns where. `again` makes it in any case."""
        copy = self._place(name)
        if again or self.find(name) is None:
            scratch, lock = self.folder / "making" / name[:2], self.folder / "locks" / name[:2]
            # One process makes it, those that want the same file wait. Locks stay, since somebody may wait for one.
            with _locked(lock):
                if again or not copy.exists():
                    shutil.rmtree(scratch, ignore_errors=True)
                    scratch.mkdir(parents=True)
                    made = make(scratch)
                    size = made.stat().st_size
                    made.replace(copy)
                    shutil.rmtree(scratch)
                    self._count(size, keep=copy)
        return copy

    def find(self, name: str) -> Path | None:
        """Return a copy and note that it is used now; None where there is none."""
        copy = self._place(name)
        try:
            # The time of its last change stays: by it a reader knows that it has seen the copy before.
            os.utime(copy, ns=(time.time_ns(), copy.stat().st_mtime_ns))
        except FileNotFoundError:
            return None
        return copy

    def _place(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"

    def evictions(self) -> int:
        """Return a number that changes when copies are let go."""
        try:
            return os.stat(self.folder / "evictions").st_size  # noqa: PTH116  (asked for with each batch)
        except FileNotFoundError:
            return 0

    def _count(self, added: int, keep: Path) -> None:
        with _locked(self.folder / "bytes") as file:
            before = file.read()
            held = int(before or 0) + added
            if held > self.max_bytes or not before:
                held = self._shrink(keep)
            file.truncate(0)
            file.write(str(held))

    def _shrink(self, keep: Path) -> int:
        """Let copies go if they are too many; return the bytes of those that stay."""
        states = [(path.stat(), path) for path in self.folder.glob(f"*{_SUFFIX}")]
        held = sum(state.st_size for state, _ in states)
        if held <= self.max_bytes:
            return held
        for state, path in sorted(states, key=lambda pair: pair[0].st_atime_ns):
            if path != keep and held > _LEFT * self.max_bytes:
                path.unlink()
                held -= state.st_size
        with (self.folder / "evictions").open("a", encoding="ascii") as file:
            file.write(".")
        return held


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file
