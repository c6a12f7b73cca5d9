"""Scratch folders of this machine: each goes with its block, or, where its process was killed, with a later process.

Beside a folder lies its lock, which the system lets go when the process ends, in whatever way.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX, LOCK = "dualtoken-", ".lock"


@contextmanager
def scratch_folder() -> Iterator[str]:
    """Make a fresh folder for the time of a `with` block."""
    descriptor, lock = _take_new_lock()
    folder = lock.removesuffix(LOCK)
    try:
        Path(folder).mkdir(mode=0o700)
        yield folder
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        _let_go(descriptor, lock)


def remove_abandoned() -> int:
    """Remove the scratch folders whose process was killed, of this user and under this TMPDIR; return how many there were."""
    removed = 0
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*{LOCK}"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # gone by now, or another user's
        if os.fstat(descriptor).st_uid != os.getuid() or not _take(descriptor):
            os.close(descriptor)
            continue
        folder = Path(str(path).removesuffix(LOCK))
        with suppress(
            OSError
        ):  # such as a file that may not be removed: the lock stays, and a later process tries again
            shutil.rmtree(folder)
            removed += 1
        if folder.exists():
            os.close(descriptor)
        else:
            _let_go(descriptor, str(path))
    return removed


def _take_new_lock() -> tuple[int, str]:
    while True:
        descriptor, lock = tempfile.mkstemp(LOCK, PREFIX)
        # Between these two lines another process may take it for abandoned.
        if _take(descriptor) and Path(lock).exists():
            return descriptor, lock
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _let_go(descriptor: int, lock: str) -> None:
    """Remove a lock's file while it is held, so that nobody takes it for one of a folder that is there."""
    Path(lock).unlink(missing_ok=True)
    os.close(descriptor)
