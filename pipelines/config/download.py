"""The recipe's `download` key: fetching a URL table's images into shards."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dualtoken.model.config.base import Config, PositiveInt, not_in_fingerprint


class DownloadConfig(Config):
    """Download of a URL table into image shards, with img2dataset's resizer and layout."""

    rows_per_shard: Annotated[int, Field(ge=1, le=4096)] = 4096
    """Rows of the URL table for each shard."""
    image_size: PositiveInt = 256
    resize_mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "center_crop"
    resize_only_if_bigger: bool = False
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: Annotated[int, Field(ge=0, le=100)] = 95
    """Quality of JPEG and WebP; compression of PNG, 0 to 9."""
    max_bytes: PositiveInt = 20_000_000
    """Most bytes of one response; more is refused while it streams."""
    max_pixels: PositiveInt = 100_000_000
    """Most pixels of an image; read from its header, before it is decoded."""
    max_scans: PositiveInt = 100
    """Most scans of a JPEG: progressive ones have about 10, and each draws the whole image once."""
    decode_seconds: Annotated[float, Field(gt=0)] = 30.0
    """CPU time for one image: checking, decoding, resizing and encoding it."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Time for one image in all: look-up, redirects, retries and body."""
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 5
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Retries after failures that may pass: no connection, a body cut short, HTTP 408, 429 and 5xx."""
    accept_dead_units: bool = not_in_fingerprint(default=False)
    """Whether to finish a unit of which no URL answered too.

    Off, since a network that was down would be taken for dead links.
    """
    concurrency: PositiveInt = not_in_fingerprint(default=32)
    """Requests that one worker has under way at once."""
    allow_private_addresses: bool = False
    """Whether to fetch from loopback and private networks too.

    Off, since a hostile URL table could read internal services.
    """

    @model_validator(mode="after")
    def _png_quality_is_compression(self) -> "DownloadConfig":
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError(
                f"encode_quality={self.encode_quality} with encode_format=png: "
                "PNG takes a compression of 0 to 9"
            )
        return self
