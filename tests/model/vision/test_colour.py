"""Pictures with a colour profile look as it says; one that says nothing new costs nothing."""

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from dualtoken.model.vision.colour import transform_to_srgb
from dualtoken.model.vision.decode import DecodeLimits, decode_rgb, use_image
from tests.helpers.images import encode, same_picture

RAMP = Image.merge(
    "RGB",
    [
        Image.linear_gradient("L"),
        Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90),
        Image.radial_gradient("L"),
    ],
).resize((96, 96))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Return an ICC profile of version 2 with given tags (ICC.1:2001-04)."""
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249)), **tags}
    offset = 128 + 4 + 12 * len(tags)
    table = struct.pack(">I", len(tags))
    content = b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", offset + len(content), len(tag))
        content += tag
    size = offset + len(content)
    head = (
        struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp"
    )
    head += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + content


def rgb_profile(gamma: float, red: tuple, green: tuple, blue: tuple) -> bytes:
    primaries = {b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue)}
    curves = {name: curve(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")}
    return profile(b"RGB ", primaries | curves)


ADOBE = rgb_profile(
    2.2, (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)
)
PROPHOTO = rgb_profile(1.8, (0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491))
GREY = profile(b"GRAY", {b"kTRC": curve(1.0)})


def reference(image: Image.Image, icc: bytes) -> Image.Image:
    """Return what littleCMS alone makes of a picture."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    return converted


def mean_error(found: Image.Image, right: Image.Image) -> float:
    return float(np.abs(np.asarray(found).astype(int) - np.asarray(right)).mean())


@pytest.mark.parametrize("icc", [ADOBE, PROPHOTO], ids=["Adobe RGB", "ProPhoto"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_wide_colours_are_brought_to_srgb(kind: str, icc: bytes) -> None:
    data = encode(RAMP, kind, icc_profile=icc, quality=95)
    stored = decode_rgb(encode(RAMP, kind, quality=95))
    assert mean_error(stored, reference(stored, icc)) > 2
    assert mean_error(decode_rgb(data), reference(stored, icc)) < 0.1


@pytest.mark.parametrize("convert", [lambda image: image.convert("L"), lambda image: image.convert("LA")])
def test_grey_of_another_gamma_is_brought_to_srgbs(convert: Callable[[Image.Image], Image.Image]) -> None:
    found = decode_rgb(encode(convert(RAMP), icc_profile=GREY))
    assert mean_error(found, reference(RAMP.convert("L"), GREY)) < 0.1
    assert mean_error(found, RAMP.convert("L").convert("RGB")) > 20


def test_a_palette_and_transparency_are_kept_apart_from_colours() -> None:
    paletted = RAMP.quantize(16)
    found = decode_rgb(encode(paletted, icc_profile=ADOBE))
    assert mean_error(found, reference(paletted.convert("RGB"), ADOBE)) < 0.1
    clear = RAMP.convert("RGBA")
    clear.putalpha(0)
    assert np.asarray(decode_rgb(encode(clear, icc_profile=ADOBE))).min() == 255


def test_a_picture_with_srgbs_own_profile_is_as_stored() -> None:
    data = encode(RAMP, icc_profile=SRGB)
    assert same_picture(decode_rgb(data), RAMP)
    assert use_image(data, DecodeLimits(), lambda encoded: encoded.is_as_stored)
    assert not use_image(
        encode(RAMP, icc_profile=ADOBE), DecodeLimits(), lambda encoded: encoded.is_as_stored
    )


@pytest.mark.parametrize(
    "icc",
    [b"", b"noise" * 100, ADOBE[:200], ADOBE[:128] + bytes(400), GREY, ADOBE[:16] + b"CMYK" + ADOBE[20:]],
    ids=["empty", "noise", "cut short", "no tags", "of grey", "of ink"],
)
def test_a_profile_that_is_damaged_or_of_other_colours_is_ignored(icc: bytes) -> None:
    assert same_picture(decode_rgb(encode(RAMP, icc_profile=icc)), RAMP)


def test_lab_is_brought_to_srgb() -> None:
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    data = encode(to_lab.apply(RAMP), "TIFF")
    assert mean_error(decode_rgb(data), RAMP) < 3


def test_conversions_are_made_once_a_profile() -> None:
    transform_to_srgb.cache_clear()
    for _ in range(5):
        decode_rgb(encode(RAMP, icc_profile=ADOBE))
    assert transform_to_srgb.cache_info().misses == 1
