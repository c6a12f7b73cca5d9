"""Files of this machine: written so that they are there as a whole or not at all, and listed in order."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

PART = ".part"


def list_files(folder: str) -> Iterator[tuple[str, int, float]]:
    """Yield (path, bytes, seconds since 1970) of every regular file below a folder, in order of path."""
    try:
        with os.scandir(folder) as entries:
            # With its slash, a folder's name sorts as the paths below it do.
            children = sorted(
                (f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name) for entry in entries
            )
    except (FileNotFoundError, NotADirectoryError):
        return
    for child in children:
        path = f"{folder}/{child}"
        if child.endswith("/"):
            yield from list_files(path[:-1])
        else:
            with suppress(FileNotFoundError):  # removed since it was listed
                found = os.stat(path)  # noqa: PTH116  (a path per file would double the time)
                if stat.S_ISREG(found.st_mode):
                    yield path, found.st_size, found.st_mtime


def write_durably(target: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` make a file beside its target, on disk when this returns, and return its path.

    Raises `OSError` that names the target, as the system does not where a disk is full; nothing is left then.
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


def move_or_copy(source: Path, target: Path) -> None:
    """Rename a file; copy it where that would cross file systems, or take away what a link points to."""
    if source.is_symlink():
        shutil.copyfile(source, target)
        return
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, target)


def replace(target: str, write: Callable[[Path], object]) -> None:
    """Let `write` make a file that takes its target's place in one step."""
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, write).replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to disk: without it, a power failure may take a rename back though the file itself is there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
