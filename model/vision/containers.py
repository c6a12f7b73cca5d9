"""Walks the segments of a JPEG and the chunks of a PNG undecoded: to count them, or to leave some out.

JPEG: ITU-T T.81, annex B. PNG: W3C PNG, chapter 5.
"""

import re
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""A marker that is neither a stuffed byte of a scan's data nor a restart within it."""
_SCAN = 0xDA
_END_OF_IMAGE = 0xD9
_WITHOUT_LENGTH = frozenset({0x01, 0xD8, _END_OF_IMAGE})
_EXIF_SEGMENT = 0xE1
_PROFILE_SEGMENT = 0xE2
_METADATA_SEGMENTS = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
"""Application segments and comments, but for JFIF's and Adobe's, which say how colours are coded."""
_EXIF_START = b"Exif\0\0"
_PROFILE_START = b"ICC_PROFILE\0"
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
"""Chunks that decide a PNG's pixels."""
_MAX_PROFILE_BYTES = 2**24
"""Size limit of a colour profile, inflated; that of a JPEG's profile too, by its format."""
_AVIF_EXIF = re.compile(rb"(infe.{8})Exif", re.DOTALL)
"""The entry of an AVIF's index that names its EXIF block."""


class Part(NamedTuple):
    """A segment of a JPEG, or a chunk of a PNG."""

    kind: int | bytes
    """Marker of a segment, or name of a chunk."""
    start: int
    """Offset of its first byte."""
    payload: bytes
    """Content of a segment or chunk; empty for pixels."""
    end: int
    """Offset behind its last byte; of a scan, behind its header."""


class BarePicture(NamedTuple):
    """An encoded image without its metadata, and what of them decides its look."""

    data: bytes
    exif: bytes | None
    profile: bytes | None
    """ICC profile."""


def count_scans(data: bytes, most: int) -> int:
    """Return how often a JPEG draws its picture, or `most` + 1 where that is more; 0 for other formats."""
    count = 0
    if not data.startswith(JPEG_START):
        return count
    for part in _segments(data):
        if part.kind == _SCAN:
            count += 1
        if count > most:
            break
    return count


def has_more_parts(data: bytes, most: int) -> bool:
    """Tell whether a JPEG has more segments, or a PNG more chunks, than `most`."""
    return any(number >= most for number, _ in enumerate(_parts(data)))


def png_exif(data: bytes) -> bytes | None:
    """Return the EXIF block of a PNG, which may also stand behind the pixels."""
    if not data.startswith(PNG_START):
        return None
    for part in _chunks(data):
        if part.kind == b"eXIf":
            return _EXIF_START + part.payload
    return None


def without_metadata(data: bytes) -> BarePicture | None:
    """Return an image with nothing but what its pixels need; None where its format is not taken apart."""
    if data.startswith(JPEG_START):
        return _bare_jpeg(data)
    if data.startswith(PNG_START):
        return _bare_png(data)
    masked = _AVIF_EXIF.sub(rb"\1none", data[: 2**16])
    if data[4:8] == b"ftyp" and masked != data[: 2**16]:
        return BarePicture(masked + data[2**16 :], None, None)
    return None


def _parts(data: bytes) -> Iterator[Part]:
    if data.startswith(JPEG_START):
        return _segments(data)
    if data.startswith(PNG_START):
        return _chunks(data)
    return iter(())


def _segments(data: bytes) -> Iterator[Part]:
    """Yield a JPEG's segments up to the end of its first image."""
    end = len(JPEG_START)
    while True:
        found = _JPEG_MARKER.search(data, end)
        if found is None:
            return
        marker = found[1][0]
        if marker == _END_OF_IMAGE:
            return
        payload_start = found.end() + 2
        end = found.end()
        if marker not in _WITHOUT_LENGTH:
            end += int.from_bytes(data[end:payload_start], "big")
        payload = data[payload_start:end] if marker in _METADATA_SEGMENTS else b""
        yield Part(marker, found.start(), payload, end)


def _chunks(data: bytes) -> Iterator[Part]:
    """Yield a PNG's chunks up to its end, or to where it is cut short."""
    start = len(PNG_START)
    while start + 8 <= len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        end = start + size + 12
        payload = b"" if kind in _PNG_PIXELS else data[start + 8 : end - 4]
        yield Part(kind, start, payload, end)
        if kind == b"IEND":
            return
        start = end


def _bare_jpeg(data: bytes) -> BarePicture:
    kept = [JPEG_START]
    exif = None
    profile_parts: dict[bytes, bytes] = {}
    rest = len(data)
    for part in _segments(data):
        if part.kind == _SCAN:
            rest = part.start
            break
        if part.kind not in _METADATA_SEGMENTS:
            kept.append(data[part.start : part.end])
        elif part.kind == _EXIF_SEGMENT and part.payload.startswith(_EXIF_START):
            exif = exif or part.payload
        elif part.kind == _PROFILE_SEGMENT and part.payload.startswith(_PROFILE_START):
            number = part.payload[len(_PROFILE_START) : len(_PROFILE_START) + 1]
            profile_parts[number] = part.payload[len(_PROFILE_START) + 2 :]
    profile = b"".join(profile_parts[number] for number in sorted(profile_parts)) or None
    return BarePicture(b"".join(chain(kept, [data[rest:]])), exif, profile)


def _bare_png(data: bytes) -> BarePicture:
    kept = [PNG_START]
    exif = None
    profile = None
    for part in _chunks(data):
        if part.kind in _PNG_PIXELS:
            kept.append(data[part.start : part.end])
        elif part.kind == b"eXIf":
            exif = _EXIF_START + part.payload
        elif part.kind == b"iCCP":
            profile = _inflated_profile(part.payload)
    return BarePicture(b"".join(kept), exif, profile)


def _inflated_profile(payload: bytes) -> bytes | None:
    """Return the profile of an iCCP chunk: a name, a zero, the method 0, and deflated data."""
    _, _, deflated = payload.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(deflated[1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return None
