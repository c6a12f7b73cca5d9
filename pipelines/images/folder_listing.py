"""Lists the files of a folder of images, local or of any store, and says which of them are not read, and why.

Names that begin with a dot are left out, and so are links to folders: what is below them may be the same
images again, or have no end. A link to a file is followed where that is in the folder too.
"""

import os
import stat
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from dualtoken.infra.names import UnsafeNameError, relative_name
from dualtoken.infra.storage import Store, StoredFile
from dualtoken.model.vision.formats import SUFFIXES
from dualtoken.pipelines.core.messages import printable
from dualtoken.pipelines.errors import UserError


class FileReason(StrEnum):
    """Why a file of a folder gave no image; with the reasons of `infra.fetch`, a closed list."""

    NO_SUCH_FILE = "no_such_file"
    """A row of the captions' table, or a link, that names a file which is not there."""
    BAD_NAME = "bad_name"
    """A name that is missing, or leads out of the folder."""
    LINK_OUTSIDE = "link_outside"
    """A link to a file outside the folder."""
    NOT_A_FILE = "not_a_file"
    """A FIFO, a socket or a device."""
    UNREADABLE_FILE = "unreadable_file"
    """A file that this user may not read."""
    LONG_CAPTION = "long_caption"
    """A text file beside an image that is no caption by its size."""


class FileFault(NamedTuple):
    """Why a file is not read."""

    reason: str
    detail: str


class FolderFile(NamedTuple):
    """A file below the folder."""

    stored: StoredFile
    """Its name may have bytes that are no UTF-8, as surrogates."""
    fault: FileFault | None = None


class FolderListing(NamedTuple):
    """What is below a folder."""

    files: dict[str, FolderFile]
    """By name."""
    skipped: Counter[str]
    """Numbers of `hidden` names, each a file or a whole folder, and of `linked_folders`."""


def is_image(name: str) -> bool:
    """Tell whether a name has an image's suffix."""
    return name.lower().endswith(SUFFIXES)


def list_folder(store: Store, setting: str) -> FolderListing:
    """List a folder and all below it; raises `UserError`, with the recipe's key, where it is none."""
    listing = FolderListing({}, Counter())
    if store.is_local:
        _list_local(Path(store.root), setting, listing)
    else:
        _list_remote(store, listing)
    if not listing.files:
        raise UserError(f"{setting}={store.url!r} has no file: set it to a folder of images")
    return listing


def _list_remote(store: Store, listing: FolderListing) -> None:
    for file in store.entries():
        if any(part.startswith(".") for part in file.name.split("/")):
            listing.skipped["hidden"] += 1
        else:
            listing.files[file.name] = FolderFile(file)


def _list_local(root: Path, setting: str, listing: FolderListing) -> None:
    def refuse(error: OSError) -> None:
        why = _why(error, root)
        raise UserError(f"{setting}={str(root)!r}: {why}; set it to a folder of images") from error

    real_root = os.path.realpath(root)
    for place, folders, names in os.walk(root, onerror=refuse):
        folders[:] = _visible(folders, listing.skipped)
        # They are listed, and not walked into.
        links = [name for name in folders if os.path.islink(f"{place}/{name}")]  # noqa: PTH114
        listing.skipped["linked_folders"] += len(links)
        for name in _visible(names, listing.skipped):
            path = os.path.join(place, name)  # noqa: PTH118  (a path per file would double the time)
            relative = path.removeprefix(str(root)).removeprefix("/")
            listing.files[relative] = _inspected(relative, path, real_root)


def _why(error: OSError, root: Path) -> str:
    if error.filename is None or Path(error.filename) == root:
        return (error.strerror or str(error)).lower()
    return f"{printable(str(error.filename))} cannot be listed, {(error.strerror or '').lower()}"


def _visible(names: list[str], skipped: Counter[str]) -> list[str]:
    visible = [name for name in names if not name.startswith(".")]
    skipped["hidden"] += len(names) - len(visible)
    return visible


def _inspected(name: str, path: str, real_root: str) -> FolderFile:
    """Return a file with its size, and with why it is not read, if so."""
    nothing = StoredFile(name, 0, 0.0)
    try:
        relative_name(name)
    except UnsafeNameError:
        return FolderFile(nothing, FileFault(FileReason.BAD_NAME, "a name that other systems read as a path"))
    is_link = os.path.islink(path)  # noqa: PTH114
    if is_link and not os.path.realpath(path).startswith(f"{real_root.rstrip('/')}/"):
        return FolderFile(nothing, FileFault(FileReason.LINK_OUTSIDE, _link(path)))
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        if is_link:
            return FolderFile(nothing, FileFault(FileReason.NO_SUCH_FILE, _link(path)))
        raise
    if not stat.S_ISREG(status.st_mode):
        return FolderFile(nothing, FileFault(FileReason.NOT_A_FILE, "no regular file"))
    if not os.access(path, os.R_OK):
        return FolderFile(nothing, FileFault(FileReason.UNREADABLE_FILE, "permission denied"))
    return FolderFile(StoredFile(name, status.st_size, status.st_mtime))


def _link(path: str) -> str:
    return f"a link to {printable(str(Path(path).readlink()))}"
