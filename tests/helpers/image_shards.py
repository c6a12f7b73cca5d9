"""Image shards written by img2dataset's own class, and small images to fill shards with."""

import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from tests.helpers.images import encode

TEXT_COLUMNS = ("url", "caption", "key", "status", "error_message")
SIZE_COLUMNS = ("width", "height", "original_width", "original_height")
SIDE = 8
"""Height and width of an image, pixels."""


def png_of_red(level: int) -> bytes:
    """Encode a small image of one shade of red."""
    return encode(Image.new("RGB", (SIDE, SIDE), (level, 0, 0)))


def write_img2dataset_shard(folder: Path, rows: int = 12) -> None:
    """Write shard 00002 as img2dataset's downloader does: in order of arrival, with failed rows between.

    The second half of the rows comes first. Every third row failed.
    """
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from img2dataset.writer import WebDatasetSampleWriter  # noqa: PLC0415
    fields = [pa.field(name, pa.string()) for name in TEXT_COLUMNS]
    fields += [pa.field(name, pa.int32()) for name in SIZE_COLUMNS]
    writer: Any = WebDatasetSampleWriter(2, str(folder), True, 5, pa.schema(fields), "png")
    for number in [*range(rows // 2, rows), *range(rows // 2)]:
        key = f"{2 * 10**4 + number:09d}"
        caption = f"caption {number}"
        meta: dict[str, Any] = {"url": f"http://h/{number}", "caption": caption, "key": key}
        if number % 3 == 0:
            image = None
            meta |= dict.fromkeys(SIZE_COLUMNS)
            meta |= {"status": "failed_to_download", "error_message": "HTTP Error 404"}
        else:
            image = png_of_red(number)
            meta |= dict.fromkeys(SIZE_COLUMNS, SIDE)
            meta |= {"status": "success", "error_message": None}
        writer.write(image, key, caption, meta)
    writer.close()
    writer.tar_fd.close()
