"""Files as people have them: every kind that should work, and every kind that should be named."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualtoken.model.vision.image_files import ImageFileError, find_images, open_image

COLOURS = (
    np.array([[[200, 30, 30], [30, 200, 30]], [[30, 30, 200], [120, 120, 120]]], np.uint8)
    .repeat(16, 0)
    .repeat(16, 1)
)


def picture() -> Image.Image:
    return Image.fromarray(COLOURS)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def deep_colour_png() -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in COLOURS)
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def save_cmyk(path: Path) -> None:
    picture().convert("CMYK").save(path.with_suffix(".jpg"), quality=98)


def save_palette(path: Path) -> None:
    picture().quantize(8).save(path.with_suffix(".png"))


def save_clear(path: Path) -> None:
    clear = picture().convert("RGBA")
    clear.putalpha(255)
    clear.save(path.with_suffix(".webp"), lossless=True)


def save_clear_palette(path: Path) -> None:
    paletted = picture().quantize(8)
    unused = len(paletted.getcolors() or ())
    paletted.save(path.with_suffix(".png"), transparency=unused)


def save_animated(path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("white", "black")]
    picture().save(path.with_suffix(".gif"), save_all=True, append_images=frames)


def save_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().rotate(90, expand=True).save(path.with_suffix(".png"), exif=exif)


def save_deep_colour(path: Path) -> None:
    path.with_suffix(".png").write_bytes(deep_colour_png())


def save_tiff(path: Path) -> None:
    picture().save(path.with_suffix(".tif"))


@pytest.mark.parametrize(
    "save",
    [
        save_cmyk,
        save_palette,
        save_clear,
        save_clear_palette,
        save_animated,
        save_turned,
        save_deep_colour,
        save_tiff,
    ],
)
def test_every_kind_of_image_keeps_its_colours(save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path / "image")
    (file,) = tmp_path.iterdir()
    opened = open_image(file)
    assert opened.mode == "RGB"
    middles = np.asarray(opened)[8::16, 8::16].astype(int)
    assert np.abs(middles - COLOURS[8::16, 8::16]).max() <= 4


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_of_16_bits_is_scaled_not_clipped(suffix: str, tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"grey{suffix}")
    assert (
        np.asarray(open_image(tmp_path / f"grey{suffix}"))[..., 1].tolist()
        == np.arange(256).reshape(16, 16).tolist()
    )


def test_what_is_clear_shows_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(open_image(tmp_path / "clear.png")) == 255).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif"])
def test_a_file_cut_short_is_refused(suffix: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    file = tmp_path / f"image{suffix}"
    noise.save(file)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageFileError, match=rf"image{suffix}: (is cut short|cannot be decoded)"):
        open_image(file)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"this is a text\n" * 20, "is no image that can be read"),
        (
            png_header(60_000, 60_000),
            "pixels: make it smaller|pixels, more than 134,217,728: make it smaller",
        ),
        (
            png_header(12_000, 12_000),
            r"has 12000 x 12000 = 144,000,000 pixels, more than 134,217,728: make it smaller",
        ),
        (png_header(64, 64), "is cut short|cannot be decoded"),
    ],
)
def test_what_is_no_picture_is_named_in_one_line(content: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    file.write_bytes(content)
    with pytest.raises(ImageFileError, match=problem) as raised:
        open_image(file)
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)


def test_levels_whose_range_nothing_says_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageFileError, match=r"float.tif: .*levels of 32 bits \(mode F\)"):
        open_image(tmp_path / "float.tif")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match=r"nowhere\.png: there is no such file"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageFileError, match="Is a directory"):
        open_image(tmp_path)


def test_a_folder_stands_for_its_images_in_order(tmp_path: Path) -> None:
    (tmp_path / "some/deep").mkdir(parents=True)
    (tmp_path / "none").mkdir()
    for name in ("some/b.PNG", "some/a.jpg", "some/deep/c.webp"):
        picture().save(tmp_path / name)
    (tmp_path / "some/notes.txt").write_text("no image")
    *found, empty = find_images([tmp_path / "some", tmp_path / "alone.png", tmp_path / "none"])
    assert found == [
        tmp_path / "some" / "a.jpg",
        tmp_path / "some/b.PNG",
        tmp_path / "some/deep/c.webp",
        tmp_path / "alone.png",
    ]
    assert isinstance(empty, ImageFileError)
    assert "none: has no image in it" in str(empty)
