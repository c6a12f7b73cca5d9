"""Images as hostile or careless hands make them: damaged metadata, and parts by the thousand."""

import io
import struct
import zlib

from PIL import Image

from tests.helpers.images import encode

ORIENTATION = 0x0112


def exif_of(orientation: int) -> Image.Exif:
    """Return EXIF data that say how a picture is to be turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def with_chunk(png: bytes, chunk: bytes, *, at_end: bool = False) -> bytes:
    """Put a chunk behind a PNG's header, or before its end."""
    place = len(png) - 12 if at_end else 33
    return png[:place] + chunk + png[place:]


def with_segment(jpeg: bytes, marker: int, payload: bytes) -> bytes:
    """Put a segment at the head of a JPEG."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def jpeg_of_many_scans(num_scans: int, side: int = 64) -> bytes:
    """Return a progressive grey JPEG that is drawn in full as often as asked."""
    image = Image.new("L", (side, side), 90)
    stream = io.BytesIO()
    image.save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    refinement = data[last:-2]
    return data[:-2] + refinement * (num_scans - data.count(b"\xff\xda")) + b"\xff\xd9"


def big_text_png(image: Image.Image, *, at_end: bool = False) -> bytes:
    """Return a PNG with a text that inflates to 3 MB."""
    text = b"Comment\0\0" + zlib.compress(bytes([65]) * 3_000_000)
    return with_chunk(encode(image), png_chunk(b"zTXt", text), at_end=at_end)
