"""Decodes stored and foreign images: cheap ones in this process, others in one that can be ended.

An image's own faults are an `UnreadableImageError`, which costs its row. The machine's trouble is raised as
what it is, and fails the unit.
"""

import json
from collections.abc import Callable

from PIL import Image

from dualtoken.infra import helper_process
from dualtoken.infra.helper_process import RequestCrashed, RequestTooSlow
from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.model.vision.decode import DecodeLimits, EncodedImage, use_image, without_pillow_pixel_limit
from dualtoken.model.vision.faults import ImageFault, UnreadableImageError

UNDECODABLE = "undecodable"
"""Reason of a sample whose image was stored, and gives no picture to a later stage."""
DECODE_SECONDS = 60.0
"""Time limit of decoding one image, seconds of CPU; 100 million pixels take 1 to 10."""
STORED = DecodeLimits(max_pixels=2**28, max_scans=2**30)
"""Limits of an image in a shard: `download` had the recipe's, and the time limit holds in any case."""
_CHEAP = DecodeLimits(formats=("JPEG", "PNG", "WEBP"), max_pixels=2**26, max_scans=20, max_parts=10_000)
"""What is decoded in this process, since it takes a second at most."""
_PERHAPS_COSTLY = frozenset(
    {
        ImageFault.NOT_AN_IMAGE,  # or one of another format
        ImageFault.TOO_MANY_PIXELS,
        ImageFault.TOO_MANY_SCANS,
        ImageFault.TOO_MANY_PARTS,
    }
)
_TARGET = f"{__name__}:open_decoder"


def decode_rgb(data: bytes, limits: DecodeLimits = STORED) -> Image.Image:
    """Decode an image of any format that is read to upright sRGB, transparency over white; by any thread.

    Raises `UnreadableImageError`, and MemoryError or OSError for the machine's own trouble.
    """
    try:
        return use_image(data, _cheap_within(limits), EncodedImage.decode)
    except UnreadableImageError as error:
        raise_machine_trouble(error)
        if error.fault not in _PERHAPS_COSTLY:
            raise
    return _decode_in_helper(data, limits)


def peek_size(data: bytes) -> tuple[int, int]:
    """Return the width and height that decoding will take, pixels; 0 where that is in another process."""
    try:
        return use_image(data, _CHEAP, lambda encoded: encoded.size)
    except UnreadableImageError:
        return 0, 0


def raise_machine_trouble(error: UnreadableImageError) -> None:
    """Raise what an error came from, if that says nothing about the image."""
    if is_machine_trouble(error):
        raise error.__cause__ or error


def ask_helper(target: str, request: bytes, cpu_seconds: float) -> bytes:
    """Ask a helper process about an image; raises `UnreadableImageError` where that ends the process."""
    try:
        return helper_process.ask(target, request, cpu_seconds)
    except RequestTooSlow as error:
        raise UnreadableImageError(ImageFault.TOO_SLOW, str(error)) from error
    except RequestCrashed as error:
        raise UnreadableImageError(ImageFault.DECODER_DIED, str(error)) from error


def _cheap_within(limits: DecodeLimits) -> DecodeLimits:
    formats = tuple(name for name in _CHEAP.formats if name in limits.formats)
    return _CHEAP._replace(
        formats=formats,
        max_pixels=min(_CHEAP.max_pixels or 0, limits.max_pixels or 2**62),
        max_scans=min(_CHEAP.max_scans, limits.max_scans),
    )


def _decode_in_helper(data: bytes, limits: DecodeLimits) -> Image.Image:
    request = json.dumps(limits._asdict()).encode() + b"\n" + data
    answer = ask_helper(_TARGET, request, DECODE_SECONDS)
    head, _, levels = answer.partition(b"\n")
    said = json.loads(head)
    if "fault" in said:
        raise UnreadableImageError(ImageFault(said["fault"]), said["detail"])
    return Image.frombytes("RGB", (said["width"], said["height"]), levels)


def open_decoder() -> Callable[[bytes], bytes]:
    """Return what decodes images in a helper process."""
    Image.init()
    return _answer_decoded


def _answer_decoded(request: bytes) -> bytes:
    """Decode an image: a line of JSON each way, with the limits and the size, stands before the bytes."""
    head, _, data = request.partition(b"\n")
    limits = DecodeLimits(**json.loads(head))
    try:
        with without_pillow_pixel_limit():
            picture = use_image(data, limits, EncodedImage.decode, quiet=True)
    except UnreadableImageError as error:
        raise_machine_trouble(error)
        return json.dumps({"fault": error.fault, "detail": error.detail}).encode()
    said = {"width": picture.width, "height": picture.height}
    return json.dumps(said).encode() + b"\n" + picture.tobytes()
