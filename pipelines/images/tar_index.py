"""Finds the samples of a webdataset tar: members by key and suffix, as webdataset itself splits their names.

The key is a member's folder and its name up to the first dot; the rest of the name is the suffix. Only
headers are read, so memory and time do not grow with the images.
"""

import os
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dualtoken.model.vision.formats import SUFFIXES
from dualtoken.pipelines.core.messages import printable
from dualtoken.pipelines.errors import UserError

IMAGE_SUFFIXES = frozenset(suffix.removeprefix(".") for suffix in SUFFIXES)


class TarMember(NamedTuple):
    """Position of a member's bytes in a tar."""

    offset: int
    size: int


class TarIndex(NamedTuple):
    """The samples of a tar."""

    samples: dict[str, dict[str, TarMember]]
    """Members by key and lower-case suffix, in the tar's order."""
    scattered: str | None
    """A key whose members do not stand together, of which webdataset would make two samples."""
    is_whole: bool
    """Whether the tar ends as tars do, with an empty block, and no member reaches over its end."""


def index_tar(path: Path) -> dict[str, TarMember]:
    """Map the keys of a tar's images to their positions; raises `UserError` where it is damaged."""
    with path.open("rb") as stream:
        samples = index_samples(stream, str(path)).samples
    images: dict[str, TarMember] = {}
    for key, members in samples.items():
        image = image_member(members, key, str(path))
        if image is not None:
            images[key] = image
    return images


def index_samples(stream: Any, place: str) -> TarIndex:  # noqa: ANN401  (a file of any store)
    """Index a tar; raises `UserError` that names `place` where it is none, or ambiguous."""
    num_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    index = _Indexing(place, num_bytes)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for header in tar:
                index.add(header)
            end = tar.offset
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place} is no whole tar ({error}): fetch it again") from error
    stream.seek(end)
    ends_well = stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    return TarIndex(index.samples, index.scattered, index.is_whole and ends_well)


class _Indexing:
    """A tar's index while its headers are read."""

    def __init__(self, place: str, num_bytes: int) -> None:
        self.samples: dict[str, dict[str, TarMember]] = {}
        self.scattered: str | None = None
        self.is_whole = True
        self._place = place
        self._num_bytes = num_bytes
        self._by_name: dict[str, TarMember] = {}
        self._last_key = ""

    def add(self, header: tarfile.TarInfo) -> None:
        """Take the next header in; raises `UserError` for a member that is there twice, and for links."""
        member = _position(header, self._by_name, self._place)
        if member is None:
            return
        if member.offset + member.size > self._num_bytes:
            self.is_whole = False
            return
        self._by_name[header.name] = member
        key, suffix = split_name(header.name)
        if not key:
            return
        if key != self._last_key and key in self.samples and self.scattered is None:
            self.scattered = key
        self._last_key = key
        members = self.samples.setdefault(key, {})
        if suffix in members:
            raise UserError(f"{self._place} has the member {printable(header.name)} twice: write it anew")
        members[suffix] = member


def image_member(members: Mapping[str, TarMember], key: str, place: str) -> TarMember | None:
    """Return a sample's image, or None; one suffix (`jpg`) is preferred to several (`input.jpg`).

    Raises `UserError` where two would do.
    """
    suffixes = [suffix for suffix in members if suffix.rpartition(".")[2] in IMAGE_SUFFIXES]
    plain = [suffix for suffix in suffixes if suffix in IMAGE_SUFFIXES]
    candidates = plain or suffixes
    if len(candidates) > 1:
        raise UserError(
            f"{place} has several images of the sample {key}, .{candidates[0]} and .{candidates[1]}: "
            "leave one of them in"
        )
    if not candidates:
        return None
    return members[candidates[0]]


def split_name(name: str) -> tuple[str, str]:
    """Return a member's key and its lower-case suffix; no key where webdataset would skip the member."""
    path = PurePosixPath(printable(name))
    stem, dot, suffix = path.name.partition(".")
    if not stem or not dot or (stem.startswith("__") and stem.endswith("__")):
        return "", ""
    return str(path.parent / stem), suffix.lower()


def member_key(name: str) -> str:
    """Return the key of a tar's member, with its folder; empty where it belongs to no sample."""
    return split_name(name)[0]


def _position(header: tarfile.TarInfo, before: Mapping[str, TarMember], place: str) -> TarMember | None:
    """Return where a member's bytes are: of a hard link, those of the member that it links to."""
    if header.isdir():
        return None
    if header.isreg() and header.sparse is None:
        return TarMember(header.offset_data, header.size)
    if header.islnk() and header.linkname in before:
        return before[header.linkname]
    key, _ = split_name(header.name)
    if not key:
        return None
    raise UserError(
        f"{place} holds {printable(header.name)} as a link, a device or a sparse file: "
        "write the tar with --dereference --hard-dereference, and without --sparse"
    )
