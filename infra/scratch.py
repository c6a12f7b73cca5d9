"""Local scratch folders, removed with their block, or by a later process where theirs was killed.

Beside a folder lies its lock, which the system releases when the process ends, however it ends.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dualtoken.infra.names import single_name

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


@contextmanager
def shared_scratch_folder(name: str) -> Iterator[Path]:
    """Make or join the scratch folder of this name for the time of a `with` block.

    It is shared by the processes of this user under this TMPDIR, and removed by the last one that leaves it.
    Raises `OSError` where the name is taken by another user's folder or by a link.
    """
    base = f"{PREFIX}{os.getuid()}-{single_name(name)}"
    folder = Path(tempfile.gettempdir()) / base
    lock = f"{folder}{LOCK}"
    descriptor = _join_lock(lock)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        _require_own(folder)
        yield folder
    finally:
        # The others hold the lock too, so only the last one gets it for itself.
        if _take(descriptor):
            with suppress(OSError):  # such as for a folder that was not ours to join
                shutil.rmtree(folder)
            _release(descriptor, lock)
        else:
            os.close(descriptor)


def _join_lock(lock: str) -> int:
    """Open a lock that others may hold too, and hold it."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        # Meanwhile the last one that held it may have removed its file.
        if _is_at(descriptor, lock):
            return descriptor
        os.close(descriptor)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.fstat(descriptor).st_ino == os.stat(path, follow_symlinks=False).st_ino  # noqa: PTH116
    except FileNotFoundError:
        return False


def _require_own(folder: Path) -> None:
    state = folder.stat(follow_symlinks=False)
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        raise FileExistsError(f"{folder} is a link, or another user's: set TMPDIR to a folder of your own")


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
