"""The one decoder: what its callers choose, and what it leaves to the process."""

import io
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from dualtoken.model.vision.decode import (
    TooManyPixelsError,
    decode_rgb,
    open_encoded,
    without_pillow_pixel_limit,
)

ORIENTATION = 0x0112
QUARTER_TURN = 6


def turned_png() -> bytes:
    """A picture of 8 by 4 pixels, stored on its side."""
    exif = Image.Exif()
    exif[ORIENTATION] = QUARTER_TURN
    stream = io.BytesIO()
    Image.new("RGB", (4, 8), "red").save(stream, "PNG", exif=exif)
    return stream.getvalue()


def test_orientation_is_honoured_only_where_it_is_asked_for() -> None:
    assert decode_rgb(turned_png()).size == (4, 8)
    assert decode_rgb(turned_png(), upright=True).size == (8, 4)


def test_bytes_and_files_give_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    path.write_bytes(turned_png())
    with path.open("rb") as file:
        assert decode_rgb(file).tobytes() == decode_rgb(turned_png()).tobytes()


def test_pixels_are_counted_before_decoding() -> None:
    assert decode_rgb(turned_png(), max_pixels=32).size == (4, 8)
    with pytest.raises(TooManyPixelsError, match="4 x 8 pixels"):
        decode_rgb(turned_png(), max_pixels=31)


def test_only_the_formats_that_are_named_are_read() -> None:
    with pytest.raises(UnidentifiedImageError), open_encoded(turned_png(), formats=("JPEG",)):
        pass


def test_pillows_limit_is_lifted_for_a_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Image.DecompressionBombError):
        decode_rgb(turned_png())
    with without_pillow_pixel_limit():
        assert decode_rgb(turned_png()).size == (4, 8)
    assert Image.MAX_IMAGE_PIXELS == 10
