"""Rows of a folder of images: each image with its caption, and the table's rows whose image is not there.

Rows are in natural order of the names. An image with several rows in the table is as many rows, in the
table's order.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dualtoken.infra.names import UnsafeNameError, relative_name
from dualtoken.infra.storage import StoredFile
from dualtoken.pipelines.images.folder_captions import CaptionRow, text_file_name
from dualtoken.pipelines.images.folder_listing import FileFault, FileReason, FolderFile, is_image
from dualtoken.pipelines.images.table_files import natural_order

_MOST_CAPTION_BYTES = 1 << 20


class FolderRow(NamedTuple):
    """One row of the source."""

    name: str
    """Name below the folder, as the file system has it; empty where the captions' table has none."""
    image: StoredFile | None
    """None where the image is not read."""
    fault: FileFault | None = None
    """Why the image is not read."""
    table_row: int | None = None
    """Number of its row in the tables of captions."""
    text: StoredFile | None = None
    """File with the caption of an image that has no row."""

    @property
    def caption_from(self) -> str:
        """Where the caption is from."""
        if self.table_row is not None:
            return "table"
        if self.text is not None:
            return "text_file"
        return "file_name"


def folder_rows(files: Mapping[str, FolderFile], captions: Sequence[CaptionRow]) -> list[FolderRow]:
    """Return all rows, in order."""
    names = _Names(files)
    rows = [_row_of_table(names, caption.name, number) for number, caption in enumerate(captions)]
    described = {row.name for row in rows}
    for name, file in files.items():
        if is_image(name) and name not in described:
            rows.append(_row_without_table(files, name, file))
    rows.sort(key=lambda row: natural_order(row.name))  # rows of one name stay as they are
    return rows


class _Names:
    """Finds the files that a table means."""

    def __init__(self, files: Mapping[str, FolderFile]) -> None:
        self._files = files
        # macOS takes the letters of a name apart, and a table may have them composed.
        self._by_letters = {unicodedata.normalize("NFC", name): name for name in files}

    def file(self, name: str) -> FolderFile | None:
        """Return the file of this name, else the one that Windows, or another form of Unicode, spells so."""
        for spelt in (name, name.replace("\\", "/")):
            if spelt in self._files:
                return self._files[spelt]
        composed = unicodedata.normalize("NFC", name)
        if composed in self._by_letters:
            return self._files[self._by_letters[composed]]
        return None


def _row_of_table(names: _Names, name: str, number: int) -> FolderRow:
    name = name.removeprefix("./")
    if not name:
        return FolderRow(name, None, FileFault(FileReason.BAD_NAME, "no name"), number)
    try:
        relative_name(name)
    except UnsafeNameError:
        fault = FileFault(FileReason.BAD_NAME, "no name of a file below the folder")
        return FolderRow(name, None, fault, number)
    file = names.file(name)
    if file is None:
        fault = FileFault(FileReason.NO_SUCH_FILE, "named by the table of captions, and not there")
        return FolderRow(name, None, fault, number)
    if file.fault is not None:
        return FolderRow(file.stored.name, None, file.fault, number)
    return FolderRow(file.stored.name, file.stored, None, number)


def _row_without_table(files: Mapping[str, FolderFile], name: str, file: FolderFile) -> FolderRow:
    if file.fault is not None:
        return FolderRow(name, None, file.fault)
    text = files.get(text_file_name(name))
    if text is None:
        return FolderRow(name, file.stored)
    if text.fault is not None:
        fault = FileFault(text.fault.reason, f"its caption's file: {text.fault.detail}")
        return FolderRow(name, None, fault)
    if text.stored.bytes > _MOST_CAPTION_BYTES:
        fault = FileFault(FileReason.LONG_CAPTION, f"its caption's file: {text.stored.bytes:,} bytes")
        return FolderRow(name, None, fault)
    return FolderRow(name, file.stored, text=text.stored)
