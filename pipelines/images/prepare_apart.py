"""Prepares and checks images in a helper process, so that a hostile one holds or crashes no worker."""

import json
from collections.abc import Callable
from functools import lru_cache

from dualtoken.model.vision.faults import UnreadableImageError
from dualtoken.pipelines.config.download import DownloadConfig
from dualtoken.pipelines.images.decoding import ask_helper
from dualtoken.pipelines.images.prepare import (
    EncodedSize,
    ImagePreparer,
    Prepared,
    Rejected,
    check_stored_image,
)


def prepare(body: bytes, config: DownloadConfig) -> Prepared | Rejected:
    """Return a fetched image, resized and encoded again, or why there is none.

    Raises OSError for the machine's own trouble.
    """
    answer = _ask("open_preparer", body, config)
    if isinstance(answer, Rejected):
        return answer
    head, image = answer
    return Prepared(image, *json.loads(head))


def check_stored(data: bytes, config: DownloadConfig) -> EncodedSize | Rejected:
    """Return the size of an image that is taken over as it is, or why it gives no picture.

    Raises OSError for the machine's own trouble.
    """
    answer = _ask("open_checker", data, config)
    if isinstance(answer, Rejected):
        return answer
    head, _ = answer
    return EncodedSize(*json.loads(head))


def warm_up(config: DownloadConfig) -> None:
    """Start the helper process, which takes seconds."""
    prepare(b"", config)


def _ask(function: str, data: bytes, config: DownloadConfig) -> tuple[bytes, bytes] | Rejected:
    """Send a line of JSON and an image; return the answer's line and the image behind it."""
    request = config.model_dump_json().encode() + b"\n" + data
    try:
        answer = ask_helper(f"{__name__}:{function}", request, config.decode_seconds)
    except UnreadableImageError as error:
        return Rejected(error.fault, error.detail)
    head, _, image = answer.partition(b"\n")
    said = json.loads(head)
    if isinstance(said, dict):
        return Rejected(**said)
    return head, image


def open_preparer() -> Callable[[bytes], bytes]:
    """Return what prepares images in a helper process, once the resizer is imported."""
    ImagePreparer(DownloadConfig())
    return _answer_prepared


def open_checker() -> Callable[[bytes], bytes]:
    """Return what checks images in a helper process."""
    return _answer_checked


def _answer_prepared(request: bytes) -> bytes:
    head, _, body = request.partition(b"\n")
    prepared = _preparer(head)(body)
    if isinstance(prepared, Rejected):
        return json.dumps(prepared._asdict()).encode()
    image, *sizes = prepared
    return json.dumps(sizes).encode() + b"\n" + image


def _answer_checked(request: bytes) -> bytes:
    head, _, data = request.partition(b"\n")
    checked = check_stored_image(data, DownloadConfig.model_validate_json(head))
    if isinstance(checked, Rejected):
        return json.dumps(checked._asdict()).encode()
    return json.dumps(checked).encode()


@lru_cache(maxsize=8)
def _preparer(config: bytes) -> ImagePreparer:
    return ImagePreparer(DownloadConfig.model_validate_json(config))
