"""Download: a range of a URL table to one image shard; or take over a shard that img2dataset wrote.

Fetches run concurrently, images are checked and resized one at a time as they arrive, and rows are written in
the table's order.
"""

import asyncio
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa

from dualtoken.infra.fetch import MAY_PASS, WITHOUT_A_NETWORK, Fetcher, FetchFailed, FetchLimits, FetchReason
from dualtoken.infra.image_server import serve_images
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.corpora import ScenesSource, ShardsSource
from dualtoken.pipelines.core.ledger import (
    FORGOTTEN_VERDICT,
    OK_VERDICT,
    Status,
    Verdict,
    ledger_table,
    sample_key,
)
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.tombstones import FORGOTTEN, Tombstones, read_tombstones
from dualtoken.pipelines.images.drop_samples import blank_row, drop_samples
from dualtoken.pipelines.images.prepare import ImagePreparer, ImageReason, Prepared, Rejected, check_image
from dualtoken.pipelines.images.scenes import SceneImages
from dualtoken.pipelines.images.shards import (
    FAILED_TO_DOWNLOAD,
    FAILED_TO_RESIZE,
    SHARD_SCHEMA,
    SUCCESS,
    ImageShard,
    ImageShardWriter,
    ShardRow,
    SourceShard,
    find_shards,
    read_metadata,
    shard_files,
    write_metadata,
)
from dualtoken.pipelines.images.url_table import UrlTable, url_table

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
        self._tombstones = Tombstones()
        self._base_url = ""
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
        return url_table(
            self._job.recipe, self._corpus, self._job.input("scenes").url if self._is_scenes else None
        )

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write the unit's three files."""
        self._tombstones = read_tombstones(Store(self._job.recipe.root), self._corpus)
        if isinstance(self._source, ShardsSource):
            return self._take_over(unit, scratch)
        prepare = self._prepare  # Before the first request's clock runs, since it takes seconds to import.
        start, first = time.monotonic(), int(unit.id) * self._config.rows_per_shard
        rows = self._table.rows(first, unit.rows)
        kept = rows.drop_columns(["url", "caption"])
        with self._serving(), tempfile.TemporaryFile(dir=scratch) as spool:
            outcomes = asyncio.run(self._fetch_all(rows, first, prepare, spool))
            if not self._config.accept_dead_units:
                _check_any_answered([outcome.row for outcome in outcomes])
            with ImageShardWriter(scratch, unit.id, self._config.encode_format, kept.schema) as writer:
                for outcome, columns in zip(
                    outcomes, kept.to_pylist() if kept.num_columns else [{}] * unit.rows, strict=True
                ):
                    carried = blank_row(kept.schema) if outcome.row.reason == FORGOTTEN else columns
                    writer.write(outcome.row, _read(spool, outcome.place), carried)
        facts = {
            "bytes_fetched": sum(outcome.fetched for outcome in outcomes),
            "seconds": round(time.monotonic() - start, 3),
        }
        ledger = _ledger([outcome.row for outcome in outcomes])
        return UnitOutput(shard_files(unit.id), ledger, facts)

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """Serve generated scenes to this process alone, so that it may be on any node that reads them."""
        if not self._is_scenes:
            yield
            return
        with serve_images(SceneImages(self._job.input("scenes").url)) as server:
            self._base_url = f"{server}/"
            yield

    async def _fetch_all(
        self, rows: pa.Table, first: int, prepare: ImagePreparer, spool: IO[bytes]
    ) -> list[_Outcome]:
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
                        outcomes[index] = await self._process_row(fetcher, resize, row, spool)

                for _ in range(min(self._config.concurrency, len(inputs))):
                    group.create_task(drain())
        done = [outcome for outcome in outcomes if outcome is not None]
        assert len(done) == len(inputs), "a row without an outcome"
        return done

    async def _process_row(
        self, fetcher: Fetcher, resize: _Resize, row: ShardRow, spool: IO[bytes]
    ) -> _Outcome:
        if self._tombstones.match(row.sample_key, row.url):
            return _Outcome(_forgotten(row.sample_key), None, 0)
        if row.url is None or not row.url.strip():
            return _Outcome(_failed(row, FAILED_TO_DOWNLOAD, FetchReason.BAD_URL, "no URL"), None, 0)
        fetched = await fetcher.fetch(self._base_url + row.url)
        if isinstance(fetched, FetchFailed):
            return _Outcome(_failed(row, FAILED_TO_DOWNLOAD, fetched.reason, fetched.detail), None, 0)
        prepared = await resize(fetched.body)
        row = row._replace(sha256=hashlib.sha256(fetched.body).hexdigest())
        if isinstance(prepared, Rejected):
            detail = (
                f"{prepared.detail}; {fetched.content_type}"
                if prepared.reason == ImageReason.NOT_AN_IMAGE
                else prepared.detail
            )
            return _Outcome(_failed(row, FAILED_TO_RESIZE, prepared.reason, detail), None, len(fetched.body))
        offset = spool.tell()
        spool.write(prepared.image)
        return _Outcome(row._replace(**_sizes(prepared)), (offset, len(prepared.image)), len(fetched.body))

    @cached_property
    def _shards(self) -> list[SourceShard]:
        assert isinstance(self._source, ShardsSource)
        return find_shards(self._source.folder)

    def _take_over(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Take an existing shard over as it is, once its tar has all images that its table promises."""
        assert isinstance(self._source, ShardsSource)
        start, shard, store = time.monotonic(), self._shards[int(unit.id)], Store(self._source.folder)
        tar, parquet = (
            store.local_copy(f"{shard.name}.{suffix}", scratch / "source") for suffix in ("tar", "parquet")
        )
        names = shard_files(unit.id)
        # Not a copy: what commits this unit reads through the link.
        (scratch / names[0]).symlink_to(tar.resolve())
        table = read_metadata(parquet)
        keys = [sample_key(self._corpus, shard.first_row + row) for row in range(table.num_rows)]
        with ImageShard(tar, parquet, self._corpus, shard.first_row) as images:
            damaged = self._damaged(images)
        rows = [
            _adopted(row, key, damaged.get(row["key"]))
            for row, key in zip(table.to_pylist(), keys, strict=True)
        ]
        for name in ("caption", "status", "error_message", "sample_key", "reason"):
            field = ShardRow._fields.index(name)
            column = pa.array([row[field] for row in rows], _type_of(name))
            place = table.schema.get_field_index(name)
            table = table.append_column(name, column) if place < 0 else table.set_column(place, name, column)
        write_metadata(scratch, unit.id, table)
        urls = [row.url for row in rows]
        if gone := frozenset(
            key for key, url in zip(keys, urls, strict=True) if self._tombstones.match(key, url)
        ):
            (scratch / names[0]).unlink()
            drop_samples(tar, table, gone, scratch, unit.id)
            rows = [_forgotten(row.sample_key) if row.sample_key in gone else row for row in rows]
        facts = {"bytes_fetched": tar.stat().st_size, "seconds": round(time.monotonic() - start, 3)}
        return UnitOutput(names, _ledger(rows), facts)

    def _damaged(self, images: ImageShard) -> dict[str, Rejected]:
        checked = zip(images.metadata["key"].to_pylist(), map(images.image, range(len(images))), strict=True)
        verdicts = {key: check_image(image, self._config) for key, image in checked}
        return {key: verdict for key, verdict in verdicts.items() if isinstance(verdict, Rejected)}


def _check_any_answered(rows: Sequence[ShardRow]) -> None:
    """Raise ConnectionError where each URL that was asked for failed for what may pass: a receipt would make it final."""
    asked = [row for row in rows if row.reason not in WITHOUT_A_NETWORK | {FORGOTTEN}]
    if not asked or any(row.reason not in MAY_PASS for row in asked):
        return
    (reason, count), *_ = Counter(row.reason for row in asked).most_common(1)
    example = next(row for row in asked if row.reason == reason)
    raise ConnectionError(
        f"none of {len(asked)} URLs gave an answer, {count} for {reason}, such as {example.url} ({example.error_message}): "
        "look at the network and the servers, or set download.accept_dead_units=true where they are gone for good"
    )


def _type_of(name: str) -> pa.DataType:
    return SHARD_SCHEMA.field(name).type


def _adopted(source: dict[str, Any], key: bytes, damage: Rejected | None) -> ShardRow:
    row = ShardRow(
        source.get("url"),
        source.get("caption") or "",
        key,
        source["status"],
        error_message=source.get("error_message"),
    )
    if damage:
        return _failed(row, FAILED_TO_RESIZE, damage.reason, damage.detail)
    return (
        row
        if row.status == SUCCESS
        else _failed(row, row.status, ImageReason.FAILED_IN_SOURCE, row.error_message or row.status)
    )


def _failed(row: ShardRow, status: str, reason: str, detail: str) -> ShardRow:
    return row._replace(status=status, reason=str(reason), error_message=detail or str(reason))


def _forgotten(key: bytes) -> ShardRow:
    return ShardRow(None, "", key, FAILED_TO_DOWNLOAD, FORGOTTEN, FORGOTTEN)


def _sizes(prepared: Prepared) -> dict[str, Any]:
    return {name: value for name, value in prepared._asdict().items() if name != "image"}


def _read(spool: IO[bytes], place: tuple[int, int] | None) -> bytes | None:
    if place is None:
        return None
    spool.seek(place[0])
    return spool.read(place[1])


def _ledger(rows: Sequence[ShardRow]) -> pa.Table:
    return ledger_table([row.sample_key for row in rows], map(_verdict, rows))


def _verdict(row: ShardRow) -> Verdict:
    if row.reason == FORGOTTEN:
        return FORGOTTEN_VERDICT
    if row.status == SUCCESS:
        return OK_VERDICT
    return Verdict(Status.FAILED, row.reason, row.error_message or "")
