"""Download: a range of a URL table to one image shard; or take over a shard that img2dataset wrote.

Fetches run concurrently, images are checked and resized one at a time as they arrive, and rows are written in
the table's order. img2dataset's resizer is used as it is; the checks before it are for what it does not tell:
images cut short (OpenCV before 4.14 decodes them without a complaint), and images too large to decode.
"""

import asyncio
import hashlib
import io
import os
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from infra.fetch import Fetcher, FetchFailed, FetchLimits, FetchReason
from infra.storage import Store
from pipelines.config import DownloadConfig, ScenesSource, ShardsSource
from pipelines.image_shards import (
    FAILED_TO_DOWNLOAD,
    FAILED_TO_RESIZE,
    SHARD_SCHEMA,
    SUCCESS,
    ImageShard,
    ShardRow,
    ShardWriter,
    SourceShard,
    find_shards,
    read_metadata,
    shard_files,
    write_metadata,
)
from pipelines.ledger import Status, ledger_table, sample_key
from pipelines.stage import StageJob, Unit, UnitOutput
from pipelines.url_table import UrlTable, url_table

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_PNG_DEPTH = 24
"""Offset of the bit depth in a PNG's header."""


class ImageReason(StrEnum):
    """Why a fetched body gave no image; with the reasons of `infra.fetch`, a closed list."""

    NOT_AN_IMAGE = "not_an_image"
    """Such as a page of HTML, or a format that is none of JPEG, PNG, WebP and GIF."""
    TOO_MANY_PIXELS = "too_many_pixels"
    TRUNCATED_IMAGE = "truncated_image"
    BROKEN_IMAGE = "broken_image"
    RESIZE_FAILED = "resize_failed"
    FAILED_IN_SOURCE = "failed_in_source"
    """An existing shard's own record says that this row failed."""


class Rejected(NamedTuple):
    """No image, and why."""

    reason: str
    detail: str


class Prepared(NamedTuple):
    """An encoded image of the size that the recipe asks for."""

    image: bytes
    width: int
    height: int
    original_width: int
    original_height: int


class ImagePreparer:
    """Checks and resizes; one image at a time per process, since the resizer redirects the process's output."""

    def __init__(self, config: DownloadConfig) -> None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # Read on import, which else asks a server for the latest version.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from img2dataset.resizer import Resizer  # noqa: PLC0415  (takes seconds)
        self._config = config
        self._resize = Resizer(
            image_size=config.image_size,
            resize_mode=config.resize_mode,
            resize_only_if_bigger=config.resize_only_if_bigger,
            encode_format=config.encode_format,
            encode_quality=config.encode_quality,
        )
        # The recipe's max_pixels takes the place of Pillow's own limit, which is one per process.
        Image.MAX_IMAGE_PIXELS = None

    def __call__(self, body: bytes) -> Prepared | Rejected:
        """Return the image, resized and encoded again, or why there is none."""
        sound = check_image(body, self._config)
        if isinstance(sound, Rejected):
            return sound
        image, width, height, original_width, original_height, error = self._resize(io.BytesIO(sound))
        if error is not None:
            return Rejected(ImageReason.RESIZE_FAILED, " ".join(error.split())[:200])
        return Prepared(image, width, height, original_width, original_height)


def check_image(body: bytes, config: DownloadConfig, *, decode: bool = True) -> bytes | Rejected:
    """Return bytes that OpenCV reads as 8-bit grey, RGB or RGBA, or why not; without `decode` only the header counts."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on odd metadata, which is left behind here.
            with Image.open(io.BytesIO(body), formats=FORMATS) as image:
                if too_many := _too_many_pixels(image.width, image.height, config):
                    return Rejected(ImageReason.TOO_MANY_PIXELS, too_many)
                return _decoded(image, body) if decode else body
    except UnidentifiedImageError:
        return Rejected(ImageReason.NOT_AN_IMAGE, f"{len(body)} bytes, none of {', '.join(FORMATS)}")
    except Exception as error:  # noqa: BLE001  (a decoder of hostile bytes may raise anything; it is this row's reason)
        text = " ".join(str(error).split())[:200] or type(error).__name__
        # Pillow has no class of its own for an early end, and does not tell it from damage in WebP, whose head has the length.
        short_riff = body.startswith(b"RIFF") and len(body) < int.from_bytes(body[4:8], "little") + 8
        cut = short_riff or isinstance(error, EOFError) or any(word in text.lower() for word in ("truncated", "unexpected end"))
        return Rejected(ImageReason.TRUNCATED_IMAGE if cut else ImageReason.BROKEN_IMAGE, text)


def _too_many_pixels(width: int, height: int, config: DownloadConfig) -> str | None:
    pixels = width * height
    shorter, longer = sorted((width, height))
    enlarged = config.resize_mode in {"keep_ratio", "center_crop"} and not config.resize_only_if_bigger and shorter < config.image_size
    if enlarged and shorter:
        # A line one pixel wide grows to image_size before it is cropped.
        pixels = max(pixels, config.image_size**2 * longer // shorter)
    return f"{width} x {height}, max_pixels={config.max_pixels}" if pixels > config.max_pixels else None


def _decoded(image: Image.Image, body: bytes) -> bytes:
    """Decode to the last byte; return the body if OpenCV makes the same of it, else the picture as a plain PNG."""
    clear = "transparency" in image.info or image.mode in {"LA", "PA", "RGBA", "La", "RGBa"}
    plain = image.mode == "RGBA" or (image.mode in {"RGB", "L"} and not clear)
    deep = image.format == "PNG" and body[_PNG_DEPTH] == 16
    animated = image.format == "GIF" or getattr(image, "is_animated", False)
    if plain and not deep and not animated:
        if image.format == "JPEG":
            image.draft(image.mode, (1, 1))  # Reads all the data at an eighth of the size, which is faster.
        image.load()
        return body
    image.load()
    if image.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    else:
        picture = image.convert("RGBA" if clear else "L" if image.mode in {"1", "L"} else "RGB")
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=0)
    return stream.getvalue()


_Resize = Callable[[bytes], Awaitable[Prepared | Rejected]]


class _Outcome(NamedTuple):
    row: ShardRow
    place: tuple[int, int] | None
    """Offset and size of the image in the spool."""
    fetched: int
    """Bytes."""


class Worker:
    """Fetches a unit's rows, or takes over an existing shard."""

    def __init__(self, job: StageJob) -> None:
        assert job.corpus is not None, "download needs a corpus"
        self._job, self._corpus, self._config = job, job.corpus, job.recipe.download
        self._source = job.recipe.corpora[job.corpus].source
        self._is_scenes = isinstance(self._source, ScenesSource)
        # Generated scenes are served by this machine to itself.
        self._base_url = job.runtime["base_url"].rstrip("/") + "/" if self._is_scenes else ""
        self._limits = FetchLimits(
            max_bytes=self._config.max_bytes,
            deadline_seconds=self._config.deadline_seconds,
            max_redirects=self._config.max_redirects,
            retries=self._config.retries,
            concurrency=self._config.concurrency,
            allow_private_addresses=self._config.allow_private_addresses or self._is_scenes,
        )

    @cached_property
    def _prepare(self) -> ImagePreparer:
        return ImagePreparer(self._config)

    @cached_property
    def _table(self) -> UrlTable:
        return url_table(self._job.recipe, self._corpus, self._job.input("scenes").url if self._is_scenes else None)

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write the unit's three files."""
        if isinstance(self._source, ShardsSource):
            return self._adopt(unit, scratch)
        prepare = self._prepare  # Before the first request's clock runs, since it takes seconds to import.
        start, first = time.monotonic(), int(unit.id) * self._config.rows_per_shard
        rows = self._table.rows(first, unit.rows)
        kept = rows.drop_columns(["url", "caption"])
        with tempfile.TemporaryFile(dir=scratch) as spool:
            outcomes = asyncio.run(self._fetch_all(rows, first, prepare, spool))
            with ShardWriter(scratch, unit.id, self._config.encode_format, kept.schema) as writer:
                for outcome, columns in zip(outcomes, kept.to_pylist() if kept.num_columns else [{}] * unit.rows, strict=True):
                    writer.write(outcome.row, _read(spool, outcome.place), columns)
        facts = {"bytes_fetched": sum(outcome.fetched for outcome in outcomes), "seconds": round(time.monotonic() - start, 3)}
        ledger = _ledger([outcome.row for outcome in outcomes])
        return UnitOutput(shard_files(unit.id), ledger, facts)

    async def _fetch_all(self, rows: pa.Table, first: int, prepare: ImagePreparer, spool: IO[bytes]) -> list[_Outcome]:
        """Fetch and resize all rows; memory holds the bodies of the requests under way, the spool what came of them."""
        inputs = list(zip(rows["url"].to_pylist(), rows["caption"].to_pylist(), strict=True))
        outcomes: list[_Outcome | None] = [None] * len(inputs)
        waiting = iter(range(len(inputs)))
        with ThreadPoolExecutor(1, thread_name_prefix="resize") as thread:

            async def resize(body: bytes) -> Prepared | Rejected:
                return await asyncio.get_running_loop().run_in_executor(thread, prepare, body)

            async with Fetcher(self._limits) as fetcher, asyncio.TaskGroup() as group:

                async def drain() -> None:
                    for index in waiting:
                        url, caption = inputs[index]
                        row = ShardRow(url, caption, sample_key(self._corpus, first + index), SUCCESS)
                        outcomes[index] = await self._one(fetcher, resize, row, spool)

                for _ in range(min(self._config.concurrency, len(inputs))):
                    group.create_task(drain())
        done = [outcome for outcome in outcomes if outcome is not None]
        assert len(done) == len(inputs), "a row without an outcome"
        return done

    async def _one(self, fetcher: Fetcher, resize: _Resize, row: ShardRow, spool: IO[bytes]) -> _Outcome:
        if row.url is None or not row.url.strip():
            return _Outcome(_failed(row, FAILED_TO_DOWNLOAD, FetchReason.BAD_URL, "no URL"), None, 0)
        fetched = await fetcher.fetch(self._base_url + row.url)
        if isinstance(fetched, FetchFailed):
            return _Outcome(_failed(row, FAILED_TO_DOWNLOAD, fetched.reason, fetched.detail), None, 0)
        prepared = await resize(fetched.body)
        row = row._replace(sha256=hashlib.sha256(fetched.body).hexdigest())
        if isinstance(prepared, Rejected):
            detail = f"{prepared.detail}; {fetched.content_type}" if prepared.reason == ImageReason.NOT_AN_IMAGE else prepared.detail
            return _Outcome(_failed(row, FAILED_TO_RESIZE, prepared.reason, detail), None, len(fetched.body))
        offset = spool.tell()
        spool.write(prepared.image)
        return _Outcome(row._replace(**_sizes(prepared)), (offset, len(prepared.image)), len(fetched.body))

    @cached_property
    def _shards(self) -> list[SourceShard]:
        assert isinstance(self._source, ShardsSource)
        return find_shards(self._source.folder)

    def _adopt(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Take an existing shard over as it is, once its tar has all images that its table promises."""
        assert isinstance(self._source, ShardsSource)
        start, shard, store = time.monotonic(), self._shards[int(unit.id)], Store(self._source.folder)
        tar, parquet = (store.local_copy(f"{shard.name}.{suffix}", scratch / "source") for suffix in ("tar", "parquet"))
        names = shard_files(unit.id)
        # Not a copy: what commits this unit reads through the link.
        (scratch / names[0]).symlink_to(tar.resolve())
        table = read_metadata(parquet)
        with ImageShard(tar, parquet, self._corpus, shard.first_row) as images:
            damaged = self._damaged(images)
        keys = [sample_key(self._corpus, shard.first_row + row) for row in range(table.num_rows)]
        rows = [_adopted(row, key, damaged.get(row["key"])) for row, key in zip(table.to_pylist(), keys, strict=True)]
        for name in ("caption", "status", "error_message", "sample_key", "reason"):
            field = ShardRow._fields.index(name)
            column = pa.array([row[field] for row in rows], _type_of(name))
            place = table.schema.get_field_index(name)
            table = table.append_column(name, column) if place < 0 else table.set_column(place, name, column)
        write_metadata(scratch, unit.id, table)
        facts = {"bytes_fetched": tar.stat().st_size, "seconds": round(time.monotonic() - start, 3)}
        return UnitOutput(names, _ledger(rows), facts)

    def _damaged(self, images: ImageShard) -> dict[str, Rejected]:
        checked = zip(images.metadata["key"].to_pylist(), map(images.image, range(len(images))), strict=True)
        verdicts = {key: check_image(image, self._config, decode=False) for key, image in checked}
        return {key: verdict for key, verdict in verdicts.items() if isinstance(verdict, Rejected)}


def _type_of(name: str) -> pa.DataType:
    return SHARD_SCHEMA.field(name).type


def _adopted(source: dict[str, Any], key: bytes, damage: Rejected | None) -> ShardRow:
    row = ShardRow(source.get("url"), source.get("caption") or "", key, source["status"], error_message=source.get("error_message"))
    if damage:
        return _failed(row, FAILED_TO_RESIZE, damage.reason, damage.detail)
    return row if row.status == SUCCESS else _failed(row, row.status, ImageReason.FAILED_IN_SOURCE, row.error_message or row.status)


def _failed(row: ShardRow, status: str, reason: str, detail: str) -> ShardRow:
    return row._replace(status=status, reason=str(reason), error_message=detail or str(reason))


def _sizes(prepared: Prepared) -> dict[str, Any]:
    return {name: value for name, value in prepared._asdict().items() if name != "image"}


def _read(spool: IO[bytes], place: tuple[int, int] | None) -> bytes | None:
    if place is None:
        return None
    spool.seek(place[0])
    return spool.read(place[1])


def _ledger(rows: Sequence[ShardRow]) -> pa.Table:
    verdicts = [(Status.OK, "", "") if row.status == SUCCESS else (Status.FAILED, row.reason, row.error_message or "") for row in rows]
    return ledger_table([row.sample_key for row in rows], verdicts)
