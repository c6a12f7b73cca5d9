"""Image files of every kind are prepared without a change of colour, or refused with a reason."""

import functools
import io
import re
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from dualtoken.model.vision.decode import decode_rgb
from dualtoken.pipelines.config.download import DownloadConfig
from dualtoken.pipelines.images.prepare import ImagePreparer, Prepared, Rejected, check_image
from tests.helpers.hostile_images import big_text_png, exif_of, jpeg_of_many_scans, png_chunk, with_chunk
from tests.helpers.images import encode, noise_image, same_picture

RED = (200, 30, 40)
WHITE = (255, 255, 255)


@functools.cache
def preparer(**settings: Any) -> ImagePreparer:
    return ImagePreparer(DownloadConfig(image_size=32, encode_format="png", encode_quality=1, **settings))


def prepared(body: bytes, **settings: Any) -> Image.Image:
    result = preparer(**settings)(body)
    assert isinstance(result, Prepared), result
    image = Image.open(io.BytesIO(result.image))
    assert image.size == (result.width, result.height) == (32, 32)
    assert image.mode in {"RGB", "L"}
    # 8 bits: Pillow calls 16-bit colour RGB too.
    assert result.image[24] == 8
    return image


def rejected(body: bytes, **settings: Any) -> str:
    result = preparer(**settings)(body)
    assert isinstance(result, Rejected), "an image came back"
    return result.reason


def near(image: Image.Image, colour: tuple[int, ...], slack: int = 3) -> bool:
    levels = np.asarray(image.convert("RGB")).astype(int)
    return bool(abs(levels - colour).max() <= slack)


PLAIN = Image.new("RGB", (64, 48), RED)
CLEAR = Image.new("RGBA", (64, 48), (*RED, 0))


BLACK = Image.new("RGB", (64, 48))
DEEP_RED = [40 * 257, 30 * 257, 200 * 257]
"""RED as OpenCV writes it: blue, green, red, 16 bits each."""


def deep_png(levels: list[int]) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write."""
    return cv2.imencode(".png", np.full((48, 64, len(levels)), levels, np.uint16))[1].tobytes()


COLOURED = {
    "png": encode(PLAIN),
    "jpeg": encode(PLAIN, "JPEG", quality=95),
    "webp": encode(PLAIN, "WEBP", lossless=True),
    "gif": encode(PLAIN, "GIF"),
    "bmp": encode(PLAIN, "BMP"),
    "tiff": encode(PLAIN, "TIFF"),
    "avif": encode(PLAIN, "AVIF", quality=95),
    "palette": encode(PLAIN.quantize(4)),
    "rgba": encode(PLAIN.convert("RGBA")),
    "cmyk": encode(PLAIN.convert("CMYK"), "JPEG", quality=95),
    "apng": encode(PLAIN, "PNG", save_all=True, append_images=[CLEAR.convert("RGB")]),
    "animated gif": encode(PLAIN, "GIF", save_all=True, append_images=[BLACK]),
    "animated webp": encode(PLAIN, "WEBP", lossless=True, save_all=True, append_images=[BLACK]),
    "16-bit": deep_png(DEEP_RED),
    "16-bit rgba": deep_png([*DEEP_RED, 65535]),
}


@pytest.mark.parametrize("kind", COLOURED)
def test_every_kind_of_file_keeps_its_colour(kind: str) -> None:
    assert near(prepared(COLOURED[kind]), RED, 4)


GREY = {
    "grey": encode(PLAIN.convert("L")),
    "grey jpeg": encode(PLAIN.convert("L"), "JPEG", quality=95),
    "grey alpha": encode(PLAIN.convert("LA")),
    "16-bit grey": encode(Image.fromarray(np.full((48, 64), 84 * 257, np.uint16))),
}


@pytest.mark.parametrize("kind", GREY)
def test_every_kind_of_grey_keeps_its_level(kind: str) -> None:
    level = int(np.asarray(PLAIN.convert("L"))[0, 0])
    assert near(prepared(GREY[kind]), (level, level, level))


def test_one_bit_images_keep_black_and_white() -> None:
    assert near(prepared(encode(Image.new("1", (40, 40), 1))), WHITE)


TRANSPARENT = {
    "rgba": encode(CLEAR),
    "webp": encode(CLEAR, "WEBP", lossless=True),
    "palette": encode(PLAIN.quantize(4), transparency=0),
    "rgb key": encode(PLAIN, transparency=RED),
    "grey alpha": encode(Image.new("LA", (40, 40), (90, 0))),
    "grey key": encode(Image.new("L", (40, 40), 90), transparency=90),
    "gif": encode(CLEAR, "GIF"),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_is_white(kind: str) -> None:
    assert near(prepared(TRANSPARENT[kind]), WHITE)


def test_half_transparent_is_half_white() -> None:
    assert near(prepared(encode(Image.new("RGBA", (40, 40), (0, 0, 0, 128)))), (127, 127, 127))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {})],
    ids=["png", "jpeg", "progressive", "webp", "gif"],
)
def test_images_cut_short_are_told_from_whole_ones(kind: str, settings: dict[str, Any], share: float) -> None:
    body = encode(noise_image(), kind, **settings)
    assert preparer()(body)[0]
    assert rejected(body[: int(len(body) * share)]) == "truncated_image"


def test_what_is_no_image_has_its_reason() -> None:
    page = b"<!doctype html><title>Gone</title>"
    for body in (page, b"", b"\0" * 100, encode(PLAIN, "PPM"), encode(PLAIN, "ICO"), b"<svg/>"):
        assert rejected(body) == "not_an_image"
    broken = bytearray(encode(noise_image()))
    broken[len(broken) // 2] ^= 0xFF
    assert rejected(bytes(broken)) == "broken_image"


def test_pixels_are_counted_before_decoding() -> None:
    huge = bytearray(encode(Image.new("1", (8, 8))))
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    assert rejected(bytes(huge)) == "too_many_pixels"
    assert rejected(encode(Image.new("L", (1000, 1001))), max_pixels=1_000_000) == "too_many_pixels"
    assert prepared(encode(Image.new("L", (1000, 1000))), max_pixels=1_000_000)


def test_a_line_is_not_blown_up_to_a_wall() -> None:
    line = encode(Image.new("L", (60_000, 1)))
    assert rejected(line, max_pixels=1_000_000) == "too_many_pixels"


def test_a_huge_image_of_a_source_shard_has_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a process that prepares no image; Pillow refuses twice as many.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    verdict = check_image(encode(Image.new("L", (70, 70))), DownloadConfig(max_pixels=4000))
    assert isinstance(verdict, Rejected)
    assert verdict.reason == "too_many_pixels"


SMOOTH = Image.radial_gradient("L").resize((60, 40)).convert("RGB")
NOT_RESIZED: dict[str, Any] = {"resize_mode": "no", "encode_format": "png", "encode_quality": 1}
SEEN_ALIKE = {
    "jpeg": encode(SMOOTH, "JPEG"),
    "turned jpeg": encode(SMOOTH, "JPEG", exif=exif_of(6)),
    "mirrored png": encode(SMOOTH, exif=exif_of(5)),
    "turned webp": encode(SMOOTH, "WEBP", exif=exif_of(8)),
    "turned mpo": encode(SMOOTH, "MPO", exif=exif_of(3), save_all=True, append_images=[BLACK]),
    "mpo": encode(SMOOTH, "MPO", save_all=True, append_images=[BLACK]),
    "turned cmyk": encode(SMOOTH.convert("CMYK"), "JPEG", exif=exif_of(6)),
    "turned tiff": encode(SMOOTH, "TIFF", exif=exif_of(6)),
    "turned avif": encode(SMOOTH, "AVIF", exif=exif_of(6)),
    "half clear": encode(Image.merge("RGBA", (*SMOOTH.split(), SMOOTH.getchannel(0)))),
    "progressive": encode(SMOOTH, "JPEG", progressive=True),
    "large text": big_text_png(SMOOTH),
    "damaged text": with_chunk(encode(SMOOTH), png_chunk(b"tEXt", b"a\0b")[:-1] + b"?"),
}


@pytest.mark.parametrize("kind", SEEN_ALIKE)
def test_a_stored_picture_is_what_the_opener_makes_of_its_file(kind: str) -> None:
    result = ImagePreparer(DownloadConfig(**NOT_RESIZED))(SEEN_ALIKE[kind])
    assert isinstance(result, Prepared), result
    picture = decode_rgb(SEEN_ALIKE[kind])
    assert same_picture(decode_rgb(result.image), picture)
    assert (result.original_width, result.original_height) == picture.size
    assert not Image.open(io.BytesIO(result.image)).getexif()


def test_a_picture_is_upright_before_it_is_resized() -> None:
    wide_on_its_side = encode(SMOOTH, "JPEG", exif=exif_of(6))
    config = DownloadConfig(image_size=20, resize_mode="keep_ratio", encode_format="png", encode_quality=1)
    result = ImagePreparer(config)(wide_on_its_side)
    assert result[1:] == (20, 30, 40, 60)


def test_a_jpeg_of_more_scans_than_the_recipe_allows_is_refused() -> None:
    assert rejected(jpeg_of_many_scans(101)) == "too_many_scans"
    assert prepared(jpeg_of_many_scans(101), max_scans=101)


@pytest.mark.parametrize(("kind", "longest"), [("webp", 16_383), ("jpg", 65_500)])
def test_a_side_that_a_format_cannot_hold_is_a_reason(kind: Any, longest: int) -> None:
    preparer_of_kind = ImagePreparer(DownloadConfig(resize_mode="no", encode_format=kind))
    held = preparer_of_kind(encode(Image.new("L", (longest, 1), 90)))
    assert isinstance(held, Prepared), held
    too_long = preparer_of_kind(encode(Image.new("L", (1, longest + 1), 90)))
    assert too_long == Rejected(
        "side_too_long", f"a side of {longest + 1:,} pixels, {kind} holds {longest:,}"
    )


@pytest.mark.parametrize(
    "said", ["[Errno 24] Too many open files: '/dev/null'", "", "(-4:Insufficient memory)"]
)
def test_the_machines_trouble_is_no_reason_of_a_row(said: str) -> None:
    prepare = ImagePreparer(DownloadConfig())
    prepare._resize = lambda _: (None, None, None, None, None, said)
    with pytest.raises(OSError, match=re.escape(said) or "^$"):
        prepare(encode(PLAIN))
