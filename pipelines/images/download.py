"""Brings a range of a URL table or of a folder to one image shard, or takes over a shard that is there.

Fetches run concurrently, images are checked and resized one at a time as they arrive, and rows are written in
the table's order.
"""

import asyncio
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa

from dualtoken.infra.fetch import MAY_PASS, WITHOUT_A_NETWORK, FetchFailed, FetchLimits, FetchReason
from dualtoken.infra.image_server import serve_images
from dualtoken.infra.storage import Store
from dualtoken.model.vision.faults import ImageFault
from dualtoken.pipelines.config.corpora import FolderSource, ScenesSource, ShardsSource
from dualtoken.pipelines.core.ledger import sample_key
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.tombstones import FORGOTTEN, Tombstones, read_tombstones
from dualtoken.pipelines.images.bodies import Bodies, read_bodies, web_bodies
from dualtoken.pipelines.images.broken_text import BAD_TEXT, check_text
from dualtoken.pipelines.images.drop_samples import blank_row
from dualtoken.pipelines.images.folder_source import FolderImages, folder_images
from dualtoken.pipelines.images.prepare import Prepared, Rejected
from dualtoken.pipelines.images.prepare_apart import prepare, warm_up
from dualtoken.pipelines.images.scenes import SceneImages
from dualtoken.pipelines.images.shard_rows import failed_row, forgotten_row, ledger_of_rows
from dualtoken.pipelines.images.shards import (
    FAILED_TO_DOWNLOAD,
    FAILED_TO_RESIZE,
    SUCCESS,
    ImageShardWriter,
    ShardRow,
    shard_files,
)
from dualtoken.pipelines.images.source_shards import SourceShard, find_shards
from dualtoken.pipelines.images.take_over import take_over
from dualtoken.pipelines.images.url_table import UrlTable, url_table

_Resize = Callable[[bytes], Awaitable[Prepared | Rejected]]


class _SpoolPlace(NamedTuple):
    """Position of an encoded image in the spool, bytes."""

    offset: int
    size: int


class _Outcome(NamedTuple):
    """Result of one input row."""

    row: ShardRow
    place: _SpoolPlace | None = None
    """Place of the image; None where there is none."""
    bytes_fetched: int = 0


class Worker:
    """Fetches or reads a unit's rows, or takes over an existing shard."""

    def __init__(self, job: StageJob) -> None:
        assert job.corpus is not None, "download needs a corpus"
        self._job = job
        self._corpus = job.corpus
        self._config = job.recipe.download
        self._source = job.recipe.corpora[job.corpus].source
        self._is_scenes = isinstance(self._source, ScenesSource)
        self._tombstones = Tombstones()
        self._base_url = ""
        """Prefix of the URLs: that of this process's own server, where the images are generated scenes."""
        self._limits = FetchLimits(
            max_bytes=self._config.max_bytes,
            deadline_seconds=self._config.deadline_seconds,
            max_redirects=self._config.max_redirects,
            retries=self._config.retries,
            concurrency=self._config.concurrency,
            allow_private_addresses=self._config.allow_private_addresses or self._is_scenes,
        )

    @cached_property
    def _table(self) -> UrlTable:
        scenes_folder = self._job.input("scenes").url if self._is_scenes else None
        return url_table(self._job.recipe, self._corpus, scenes_folder)

    @cached_property
    def _folder(self) -> FolderImages | None:
        if isinstance(self._source, FolderSource):
            return folder_images(self._job.recipe, self._corpus)
        return None

    @cached_property
    def _source_shards(self) -> list[SourceShard]:
        assert isinstance(self._source, ShardsSource)
        return find_shards(self._source.folder, self._source.caption_keys)

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write the unit's three files."""
        self._tombstones = read_tombstones(Store(self._job.recipe.root), self._corpus)
        if isinstance(self._source, ShardsSource):
            shard = self._source_shards[int(unit.id)]
            return take_over(self._job, unit, shard, self._tombstones, scratch)
        return self._fetch(unit, scratch)

    def _fetch(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Fetch or read the unit's rows of the table or the folder, and write the shard in their order."""
        warm_up(self._config)  # Before the first request's clock runs, since it takes seconds.
        started = time.monotonic()
        first = int(unit.id) * self._config.rows_per_shard
        source = self._table if self._folder is None else self._folder
        rows, broken = check_text(source.rows(first, unit.rows))
        with self._serving(), tempfile.TemporaryFile(dir=scratch) as spool:
            with _first_of_group(), asyncio.Runner() as runner:
                runner.get_loop()  # which may fail for want of descriptors, before there is a coroutine
                outcomes = runner.run(self._fetch_all(rows, broken, first, spool))
            shard_rows = [outcome.row for outcome in outcomes]
            if not self._config.accept_dead_units:
                _check_any_answered(shard_rows)
            self._write_shard(scratch, unit.id, outcomes, rows.drop_columns(["url", "caption"]), spool)
        facts = {
            "bytes_fetched": sum(outcome.bytes_fetched for outcome in outcomes),
            "seconds": round(time.monotonic() - started, 3),
        }
        if self._folder is not None:
            self._folder.require_unchanged(self._job.store(), int(unit.id), first, unit.rows)
            facts |= self._folder.facts(first, unit.rows)
        return UnitOutput(shard_files(unit.id), ledger_of_rows(shard_rows), facts)

    def _bodies(self, first: int, urls: Sequence[str | None]) -> AbstractAsyncContextManager[Bodies]:
        """Return where the images of the unit's rows come from."""
        folder = self._folder
        if folder is None:
            return web_bodies(self._limits, self._base_url, urls)
        return read_bodies(lambda row: folder.image(first + row, self._config.max_bytes))

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """Serve generated scenes to this process alone, so that it may be on any node that reads them."""
        if not self._is_scenes:
            yield
            return
        with serve_images(SceneImages(self._job.input("scenes").url)) as server:
            self._base_url = f"{server}/"
            yield

    def _write_shard(
        self, folder: Path, shard: str, outcomes: Sequence[_Outcome], kept: pa.Table, spool: IO[bytes]
    ) -> None:
        """Write a shard's files from the outcomes and the kept columns, both in the table's order."""
        # Without columns, Arrow gives no rows either.
        kept_rows = kept.to_pylist() if kept.num_columns else [{}] * len(outcomes)
        with ImageShardWriter(folder, shard, self._config.encode_format, kept.schema) as writer:
            for outcome, kept_row in zip(outcomes, kept_rows, strict=True):
                image = _read(spool, outcome.place)
                if outcome.row.reason == FORGOTTEN:
                    writer.write(outcome.row, image, blank_row(kept.schema))
                else:
                    writer.write(outcome.row, image, kept_row)

    async def _fetch_all(
        self, rows: pa.Table, broken: Mapping[int, str], first: int, spool: IO[bytes]
    ) -> list[_Outcome]:
        """Fetch and resize all rows, and return their outcomes in order; encoded images go to the spool.

        Memory holds only the bodies of the requests under way. Each of `concurrency` tasks takes the next row
        that waits; one thread resizes, one image at a time.
        """
        urls = rows["url"].to_pylist()
        captions = rows["caption"].to_pylist()
        outcomes: list[_Outcome | None] = [None] * len(urls)
        waiting = iter(range(len(urls)))
        with ThreadPoolExecutor(1, thread_name_prefix="resize") as thread:

            async def resize(body: bytes) -> Prepared | Rejected:
                return await asyncio.get_running_loop().run_in_executor(thread, prepare, body, self._config)

            async with self._bodies(first, urls) as bodies, asyncio.TaskGroup() as group:

                async def fetch_rows() -> None:
                    for index in waiting:
                        key = sample_key(self._corpus, first + index)
                        row = ShardRow(urls[index], captions[index] or "", key, SUCCESS)
                        if index in broken:
                            outcomes[index] = self._without_text(row, broken[index])
                        else:
                            outcomes[index] = await self._fetch_row(bodies, index, resize, row, spool)

                for _ in range(min(self._config.concurrency, len(urls))):
                    group.create_task(fetch_rows())
        finished = [outcome for outcome in outcomes if outcome is not None]
        assert len(finished) == len(urls), "a row without an outcome"
        return finished

    def _without_text(self, row: ShardRow, column: str) -> _Outcome:
        """Give up a row of which a column is no UTF-8, unless it is forgotten."""
        if self._tombstones.match(row.sample_key, row.url):
            return _Outcome(forgotten_row(row.sample_key))
        reason = BAD_TEXT
        if column == "url":
            reason = FetchReason.BAD_URL
        return _Outcome(failed_row(row, FAILED_TO_DOWNLOAD, reason, f"{column} is not UTF-8"))

    async def _fetch_row(
        self, bodies: Bodies, index: int, resize: _Resize, row: ShardRow, spool: IO[bytes]
    ) -> _Outcome:
        """Fetch and resize one row of the unit, unless it is forgotten."""
        if self._tombstones.match(row.sample_key, row.url):
            return _Outcome(forgotten_row(row.sample_key))
        fetched = await bodies(index)
        if isinstance(fetched, FetchFailed):
            return _Outcome(failed_row(row, FAILED_TO_DOWNLOAD, fetched.reason, fetched.detail))
        prepared = await resize(fetched.body)
        num_bytes = len(fetched.body)
        row = row._replace(sha256=hashlib.sha256(fetched.body).hexdigest())
        if isinstance(prepared, Rejected):
            detail = prepared.detail
            if prepared.reason == ImageFault.NOT_AN_IMAGE and fetched.content_type:
                detail = f"{detail}; {fetched.content_type}"
            failed = failed_row(row, FAILED_TO_RESIZE, prepared.reason, detail)
            return _Outcome(failed, bytes_fetched=num_bytes)
        # No other task runs between these two, since neither waits.
        place = _SpoolPlace(spool.tell(), len(prepared.image))
        spool.write(prepared.image)
        return _Outcome(_with_sizes(row, prepared), place, num_bytes)


@contextmanager
def _first_of_group() -> Iterator[None]:
    """Raise the first error of a task group in place of the group, whose message says nothing."""
    try:
        yield
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


def _check_any_answered(rows: Sequence[ShardRow]) -> None:
    """Raise ConnectionError where all requests failed for what may pass: a receipt would make it final."""
    asked = [row for row in rows if row.reason not in WITHOUT_A_NETWORK | {FORGOTTEN, BAD_TEXT}]
    reasons = Counter(row.reason for row in asked)
    if not asked or not MAY_PASS.issuperset(reasons):
        return
    ((reason, count),) = reasons.most_common(1)
    example = next(row for row in asked if row.reason == reason)
    raise ConnectionError(
        f"none of {len(asked)} URLs gave an answer, {count} for {reason}, "
        f"such as {example.url} ({example.error_message}): look at the network and the servers, "
        "or set download.accept_dead_units=true where they are gone for good"
    )


def _with_sizes(row: ShardRow, prepared: Prepared) -> ShardRow:
    return row._replace(
        width=prepared.width,
        height=prepared.height,
        original_width=prepared.original_width,
        original_height=prepared.original_height,
    )


def _read(spool: IO[bytes], place: _SpoolPlace | None) -> bytes | None:
    if place is None:
        return None
    spool.seek(place.offset)
    return spool.read(place.size)
