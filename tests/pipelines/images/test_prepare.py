"""Image files of every kind are prepared without a change of colour, or refused with a reason."""

import functools
import io
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from dualtoken.pipelines.config.download import DownloadConfig
from dualtoken.pipelines.images.prepare import ImagePreparer, Prepared, Rejected, check_image
from tests.helpers.images import encode, noise_image

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
    for body in (page, b"", b"\0" * 100, encode(PLAIN, "BMP"), encode(PLAIN, "TIFF"), b"<svg/>"):
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
