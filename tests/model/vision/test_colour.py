"""Pictures with a colour profile look as it says; one that says nothing new costs nothing."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from dualtoken.model.vision.colour import transform_to_srgb
from dualtoken.model.vision.decode import DecodeLimits, decode_rgb, use_image
from tests.helpers.icc_profiles import ADOBE, DISPLAY_P3, INKS, PROPHOTO, curve, profile
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


GREY = profile(b"GRAY", {b"kTRC": curve(1.0)})


def reference(image: Image.Image, icc: bytes) -> Image.Image:
    """Return what littleCMS alone makes of a picture."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    return converted


def mean_error(found: Image.Image, right: Image.Image) -> float:
    return float(np.abs(np.asarray(found).astype(int) - np.asarray(right)).mean())


@pytest.mark.parametrize("icc", [ADOBE, PROPHOTO, DISPLAY_P3], ids=["Adobe RGB", "ProPhoto", "Display P3"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_wide_colours_are_brought_to_srgb(kind: str, icc: bytes) -> None:
    data = encode(RAMP, kind, icc_profile=icc, quality=95)
    stored = decode_rgb(encode(RAMP, kind, quality=95))
    assert mean_error(stored, reference(stored, icc)) > 1.5
    assert mean_error(decode_rgb(data), reference(stored, icc)) < 0.1


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_are_brought_to_srgb_as_their_profile_says(kind: str) -> None:
    data = encode(RAMP.convert("CMYK"), kind, icc_profile=INKS, quality=95)
    stored = Image.open(io.BytesIO(data))
    assert stored.mode == "CMYK"
    assert mean_error(stored.convert("RGB"), reference(stored, INKS)) > 10
    assert mean_error(decode_rgb(data), reference(stored, INKS)) < 0.1


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
