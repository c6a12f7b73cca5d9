"""The formats of images that are read, everywhere: in downloads, in shards and in folders."""

from PIL import features

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
"""Pillow's names of the formats; of an animation, the first frame is read."""
_SUFFIXES_OF_FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
}
SUFFIXES = tuple(suffix for name in FORMATS for suffix in _SUFFIXES_OF_FORMATS[name])
"""Suffixes, in lower case, of the files that count as images."""
