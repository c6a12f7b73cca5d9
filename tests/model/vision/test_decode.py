"""The one opener of pictures: upright, whole, whatever their metadata are, within its callers' limits."""

import io
from typing import Any

import pytest
from PIL import Image, ImageOps

from dualtoken.model.vision.decode import DecodeLimits, decode_rgb, use_image, without_pillow_pixel_limit
from dualtoken.model.vision.faults import ImageFault, UnreadableImageError
from tests.helpers.hostile_images import (
    ORIENTATION,
    big_text_png,
    exif_of,
    jpeg_of_many_scans,
    png_chunk,
    with_chunk,
    with_segment,
)
from tests.helpers.images import encode, noise_image, same_picture

MAKER = 0x010F
WIDE = noise_image((24, 16))
SMOOTH = Image.radial_gradient("L").resize((48, 32)).convert("RGB")
KINDS: dict[str, dict[str, Any]] = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {},
    "MPO": {"save_all": True, "append_images": [SMOOTH]},
}


def faults(data: bytes, limits: DecodeLimits = DecodeLimits()) -> ImageFault:  # noqa: B008
    with pytest.raises(UnreadableImageError) as caught:
        decode_rgb(data, limits)
    return caught.value.fault


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_every_format_are_turned_upright(kind: str, orientation: int) -> None:
    data = encode(SMOOTH, kind, exif=exif_of(orientation), **KINDS[kind])
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert same_picture(decode_rgb(data), upright.convert("RGB"))
    assert use_image(data, DecodeLimits(), lambda encoded: encoded.size) == upright.size


def test_pictures_in_cmyk_are_turned_upright() -> None:
    data = encode(SMOOTH.convert("CMYK"), "JPEG", exif=exif_of(6))
    assert decode_rgb(data).size == (32, 48)


def test_pixels_are_counted_before_decoding() -> None:
    data = encode(WIDE)
    assert decode_rgb(data, DecodeLimits(max_pixels=24 * 16)).size == (24, 16)
    assert faults(data, DecodeLimits(max_pixels=24 * 16 - 1)) == ImageFault.TOO_MANY_PIXELS


def test_only_the_formats_that_are_named_are_read() -> None:
    assert faults(encode(WIDE), DecodeLimits(formats=("JPEG",))) == ImageFault.NOT_AN_IMAGE


def test_pillows_limit_is_lifted_for_a_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert faults(encode(WIDE)) == ImageFault.TOO_MANY_PIXELS
    with without_pillow_pixel_limit():
        assert decode_rgb(encode(WIDE)).size == (24, 16)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    assert faults(jpeg_of_many_scans(101)) == ImageFault.TOO_MANY_SCANS
    assert decode_rgb(jpeg_of_many_scans(100)).size == (64, 64)
    assert decode_rgb(encode(WIDE, "JPEG", progressive=True)).size == (24, 16)


def test_scans_behind_metadata_and_in_mpo_are_counted_and_those_of_thumbnails_are_not() -> None:
    many = jpeg_of_many_scans(150)
    assert faults(with_segment(many, 0xE1, b"Exif\0\0" + b"\xff\xd9" * 50)) == ImageFault.TOO_MANY_SCANS
    assert faults(many + many) == ImageFault.TOO_MANY_SCANS
    thumbnail = with_segment(encode(WIDE, "JPEG"), 0xE1, b"Exif\0\0" + b"\xff\xda\0\x02" * 200)
    assert decode_rgb(thumbnail).size == (24, 16)


@pytest.mark.parametrize("chunk", [b"tEXt", b"zTXt", b"eXIf"])
def test_parts_are_counted_where_a_limit_is_set(chunk: bytes) -> None:
    data = with_chunk(encode(WIDE), png_chunk(chunk, b"a\0\0") * 40)
    assert faults(data, DecodeLimits(max_parts=40)) == ImageFault.TOO_MANY_PARTS
    assert decode_rgb(data, DecodeLimits(max_parts=43)).size == (24, 16)


DAMAGED_METADATA = {
    "large text": big_text_png(WIDE),
    "large text at the end": big_text_png(WIDE, at_end=True),
    "large profile": with_chunk(
        encode(WIDE), png_chunk(b"iCCP", b"x\0\0" + encode(noise_image((900, 900)))[60:])
    ),
    "wrong checksum of a text": with_chunk(encode(WIDE), png_chunk(b"tEXt", b"a\0b")[:-1] + b"?"),
    "empty physical size": with_chunk(encode(WIDE), png_chunk(b"pHYs", b"")),
    "profile that does not inflate": with_chunk(encode(WIDE), png_chunk(b"iCCP", b"x\0\0nonsense")),
    "text of no method": with_chunk(encode(WIDE), png_chunk(b"zTXt", b"a\0\7b")),
    "exif of noise": with_chunk(encode(WIDE), png_chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")),
    "webp exif of noise": encode(WIDE, "WEBP", lossless=True, exif=b"Exif\0\0II*\0\xff\xff\xff\xffjunk"),
    "webp profile of noise": encode(WIDE, "WEBP", lossless=True, icc_profile=b"noise" * 100),
}


@pytest.mark.parametrize("kind", DAMAGED_METADATA)
def test_metadata_that_are_thrown_away_cost_no_picture(kind: str) -> None:
    assert same_picture(decode_rgb(DAMAGED_METADATA[kind]), WIDE)


JUNK = [b"", b"\0", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"ICC_PROFILE\0", b"ICC_PROFILE\0\1\2x"]
JUNK += [b"JFIF\0", b"MPF\0", b"MPF\0MM\0*\0\0\0\x08\0\1\xb0\0", b"Photoshop 3.0\x008BIM\xff\xff", b"Adobe"]


@pytest.mark.parametrize("payload", JUNK)
@pytest.mark.parametrize("marker", [0xE1, 0xE2, 0xED, 0xEF, 0xFE])
def test_junk_in_a_jpegs_segments_costs_no_picture(marker: int, payload: bytes) -> None:
    plain = encode(SMOOTH, "JPEG")
    assert same_picture(decode_rgb(with_segment(plain, marker, payload)), decode_rgb(plain))


def test_an_avif_with_damaged_exif_is_read() -> None:
    exif = Image.Exif()
    exif[MAKER] = "of cameras"
    whole = encode(SMOOTH, "AVIF", exif=exif)
    start = whole.index(exif.tobytes()[6:14])
    damaged = whole[:start] + b"junk" + whole[start + 4 :]
    with pytest.raises(ValueError, match="Invalid Exif"):
        Image.open(io.BytesIO(damaged))
    assert same_picture(decode_rgb(damaged), decode_rgb(encode(SMOOTH, "AVIF")))


def test_a_png_whose_exif_stands_behind_its_pixels_is_turned() -> None:
    exif = exif_of(6).tobytes().removeprefix(b"Exif\0\0")
    assert decode_rgb(with_chunk(encode(WIDE), png_chunk(b"eXIf", exif), at_end=True)).size == (16, 24)


def test_a_picture_is_turned_although_other_metadata_are_damaged() -> None:
    turned = encode(WIDE, "PNG", exif=exif_of(6))
    damaged = with_chunk(turned, png_chunk(b"tEXt", b"a\0b")[:-1] + b"?")
    assert decode_rgb(damaged).size == (16, 24)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_orientations_that_do_not_exist_turn_nothing(value: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    assert decode_rgb(encode(WIDE, "JPEG", exif=exif)).size == (24, 16)


def test_a_damaged_pixel_is_no_damaged_metadata() -> None:
    broken = bytearray(encode(noise_image()))
    broken[len(broken) // 2] ^= 0xFF
    assert faults(bytes(broken)) == ImageFault.BROKEN_IMAGE
    assert faults(encode(noise_image(), "JPEG")[:-500]) == ImageFault.TRUNCATED_IMAGE


def test_an_error_keeps_what_the_decoder_met() -> None:
    with pytest.raises(UnreadableImageError, match="truncated_image: image file is truncated") as caught:
        decode_rgb(encode(noise_image(), "JPEG")[:-500])
    assert isinstance(caught.value.__cause__, OSError)
