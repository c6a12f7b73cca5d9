"""Local scratch folders, removed with their block, or by a later process where theirs was killed.

Beside a folder lies its lock, which the system releases when the process ends, however it ends.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "dualtoken-"
LOCK = ".lock"


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
        _release(descriptor, lock)


def remove_abandoned() -> int:
    """Remove the scratch folders of killed processes, of this user and under this TMPDIR.

    Returns how many folders were removed.
    """
    removed = 0
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*{LOCK}"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # gone by now, or another user's
        is_ours = os.fstat(descriptor).st_uid == os.getuid()
        if not is_ours or not _take(descriptor):
            os.close(descriptor)
            continue

        folder = Path(str(path).removesuffix(LOCK))
        with suppress(OSError):
            shutil.rmtree(folder)
            removed += 1
        if folder.exists():
            # Such as for a file that may not be removed: the lock stays, and a later process tries again.
            os.close(descriptor)
        else:
            _release(descriptor, str(path))
    return removed


def _take_new_lock() -> tuple[int, str]:
    while True:
        descriptor, lock = tempfile.mkstemp(LOCK, PREFIX)
        # Between these two lines another process may take it for abandoned.
        if _take(descriptor) and Path(lock).exists():
            return descriptor, lock
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    """Take a lock without waiting; return whether that worked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _release(descriptor: int, lock: str) -> None:
    """Remove a lock's file while the lock is held, so that nobody takes it for that of an existing folder."""
    Path(lock).unlink(missing_ok=True)
    os.close(descriptor)
