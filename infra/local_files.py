"""Local files: written atomically and durably, and listed in order."""

import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"
"""Suffix of a file that is being written."""
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_NO_LINKS = _UNSUPPORTED | {errno.EPERM, errno.EMLINK}
"""Errors of a link that say that a file system has none, or no more of them for a file."""
_NO_LOCKS = _UNSUPPORTED | {errno.EINVAL, errno.ENOLCK}
_NO_SYNC = _UNSUPPORTED | {errno.EINVAL}
"""Errors of a file system that brings no folder to disk by itself."""

_KINDS: dict[str, Callable[[Path], bool]] = {
    "a folder": Path.is_dir,
    "a file": Path.is_file,
    "a FIFO": Path.is_fifo,
    "a socket": Path.is_socket,
    "a device": Path.exists,
}


class NoLinksError(ValueError):
    """A file system that can do nothing by which the first of two writers is known."""

    exit_code = 2
    """Exit status of a command that ends with it: the root is to be elsewhere."""


def list_files(folder: str) -> Iterator[tuple[str, int, float]]:
    """Yield (path, bytes, seconds since 1970) of every regular file below a folder, in order of path."""
    try:
        with os.scandir(folder) as entries:
            children = [_sort_name(entry) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return
    children.sort()
    for child in children:
        path = f"{folder}/{child}"
        if child.endswith("/"):
            yield from list_files(path[:-1])
            continue
        with suppress(FileNotFoundError):  # removed since it was listed
            status = os.stat(path)  # noqa: PTH116  (a path per file would double the time)
            if stat.S_ISREG(status.st_mode):
                yield path, status.st_size, status.st_mtime


def _sort_name(entry: os.DirEntry[str]) -> str:
    """Return an entry's name, a folder's with a slash: with it, a folder sorts as the paths below it do."""
    if entry.is_dir(follow_symlinks=False):
        return f"{entry.name}/"
    return entry.name


def kind_of_entry(path: Path) -> str | None:
    """Return in words what is at a path that should be a folder or a file; None where nothing is."""
    for kind, is_kind in _KINDS.items():
        if is_kind(path):
            return kind
    if path.is_symlink():
        return f"a link to {path.readlink()}, which is not there"
    return None


def write_durably(target: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` make a file beside its target, and return its path once it is on disk.

    Raises `OSError` that names the target, which the system does not where a disk is full; no file is left
    then.
    """
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}{PART}")
    try:
        write(part)
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    return part


def link_or_move(part: Path, target: Path) -> None:
    """Give a finished file its name unless that is taken; raises FileExistsError where it is.

    A link, unlike a rename, never replaces a file. exFAT, and some mounts by FUSE or SMB, have no links.
    There the file is renamed while a lock of its folder keeps other writers out. Opening the name itself with
    `O_EXCL` would be no way: a process that is killed before it has written all would leave a file that
    counts as whole.
    """
    try:
        os.link(part, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with _locked_folder(target.parent):
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
            part.rename(target)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which the system releases when the process ends; its file stays for the next."""
    lock = folder / f".lock{PART}"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise NoLinksError(
                f"{folder}: its file system has neither hard links nor locks, and one of them is needed "
                "to write a receipt once: set root to a folder of another file system"
            ) from error
        os.utime(lock)  # so that it is not taken for what a killed write left long ago
        yield
    finally:
        os.close(descriptor)


def move_or_copy(source: Path, target: Path) -> None:
    """Rename a file, or copy it where a rename would cross file systems.

    A link's target is copied, and stays where it is.
    """
    if source.is_symlink():
        shutil.copyfile(source, target)
        return
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, target)


def replace_file(target: str, write: Callable[[Path], object]) -> None:
    """Let `write` make a file that replaces its target atomically."""
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, write).replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to disk.

    Without it, a power failure may take a rename back though the file itself is there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
