"""Takes an existing image shard over as it is, once its tar has all images that its table promises."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.corpora import ShardsSource
from dualtoken.pipelines.config.download import DownloadConfig
from dualtoken.pipelines.core.ledger import sample_key
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.tombstones import Tombstones
from dualtoken.pipelines.images.drop_samples import drop_samples
from dualtoken.pipelines.images.prepare import EncodedSize, ImageReason, Rejected
from dualtoken.pipelines.images.prepare_apart import check_stored
from dualtoken.pipelines.images.shard_rows import failed_row, forgotten_row, ledger_of_rows
from dualtoken.pipelines.images.shards import (
    FAILED_TO_RESIZE,
    SHARD_SCHEMA,
    ImageShard,
    ShardRow,
    shard_files,
    write_metadata,
)
from dualtoken.pipelines.images.source_content import require_planned_content
from dualtoken.pipelines.images.source_shards import SourceShard, open_source_shard

_SIZE_COLUMNS = ("width", "height", "original_width", "original_height")


def take_over(
    job: StageJob, unit: Unit, shard: SourceShard, tombstones: Tombstones, scratch: Path
) -> UnitOutput:
    """Write the three files of a unit that is a shard of the corpus's source.

    Raises UserError where the shard is not whole, or its content is not that of the plan.
    """
    started = time.monotonic()
    assert job.corpus is not None
    source = job.recipe.corpora[job.corpus].source
    assert isinstance(source, ShardsSource)
    store = Store(source.folder)
    images, names = open_source_shard(store, shard, job.corpus, scratch / "source", source.caption_keys)
    with images:
        checked = _check_images(images, job.recipe.download)
    rows = _adopted_rows(images.table, shard, job.corpus, checked)
    forgotten = _forgotten_keys(rows, tombstones)
    _write_files(images, rows, forgotten, scratch, unit.id)
    require_planned_content(job.store(), store, names)
    facts = {
        "bytes_fetched": images.path.stat().st_size,
        "seconds": round(time.monotonic() - started, 3),
    }
    told = [forgotten_row(row.sample_key) if row.sample_key in forgotten else row for row in rows]
    return UnitOutput(shard_files(unit.id), ledger_of_rows(told), facts)


def _check_images(images: ImageShard, config: DownloadConfig) -> dict[str, EncodedSize | Rejected]:
    """Return the sizes of a shard's pictures, or why there are none, by their rows' keys."""
    keys = images.metadata["key"].to_pylist()
    return {key: check_stored(images.image(row), config) for row, key in enumerate(keys)}


def _adopted_rows(
    table: pa.Table, shard: SourceShard, corpus: str, checked: Mapping[str, EncodedSize | Rejected]
) -> list[ShardRow]:
    rows: list[ShardRow] = []
    for number, row in enumerate(table.to_pylist()):
        key = sample_key(corpus, shard.first_row + number)
        rows.append(_adopted(row, key, checked.get(row["key"])))
    return rows


def _adopted(source: Mapping[str, Any], key: bytes, checked: EncodedSize | Rejected | None) -> ShardRow:
    """Return the row of an existing shard's input, with the upright picture's sizes, or why it failed."""
    row = ShardRow(
        url=source.get("url"),
        caption=source.get("caption") or "",
        sample_key=key,
        status=source["status"],
        error_message=source.get("error_message"),
        width=source.get("width"),
        height=source.get("height"),
        original_width=source.get("original_width"),
        original_height=source.get("original_height"),
    )
    if isinstance(checked, Rejected):
        return failed_row(row, FAILED_TO_RESIZE, checked.reason, checked.detail)
    if checked is not None:
        return _with_upright_sizes(row, checked)
    return failed_row(row, source["status"], ImageReason.FAILED_IN_SOURCE, row.error_message or row.status)


def _with_upright_sizes(row: ShardRow, stored: EncodedSize) -> ShardRow:
    """Return a row with the sizes that its table says, or leaves out, as those of the upright picture.

    img2dataset writes the sizes of a picture that lies on its side as it lies.
    """
    width = row.width or stored.width
    height = row.height or stored.height
    if stored.is_on_its_side and _lies_on_its_side(width, height, stored):
        return row._replace(
            width=height,
            height=width,
            original_width=row.original_height,
            original_height=row.original_width,
        )
    return row._replace(width=width, height=height)


def _lies_on_its_side(width: int, height: int, upright: EncodedSize) -> bool:
    """Tell whether of a size and an upright picture one is wider than high, and the other is not."""
    return (width > height) != (upright.width > upright.height)


def _forgotten_keys(rows: Sequence[ShardRow], tombstones: Tombstones) -> frozenset[bytes]:
    return frozenset(row.sample_key for row in rows if tombstones.match(row.sample_key, row.url))


def _write_files(
    images: ImageShard, rows: Sequence[ShardRow], forgotten: frozenset[bytes], scratch: Path, unit: str
) -> None:
    """Write the shard with our columns, without what is forgotten; else its tar is linked, not copied."""
    table = _with_verdicts(images.table, rows)
    if forgotten:
        drop_samples(images.path, table, forgotten, scratch, unit)
        return
    # What commits this unit reads through the link.
    (scratch / shard_files(unit)[0]).symlink_to(images.path.resolve())
    write_metadata(scratch, unit, table)


def _with_verdicts(table: pa.Table, rows: Sequence[ShardRow]) -> pa.Table:
    """Return an existing shard's table with the columns that are decided here added or replaced."""
    for name in ("caption", "status", "error_message", *_SIZE_COLUMNS, "sample_key", "reason"):
        values = [getattr(row, name) for row in rows]
        column = pa.array(values, SHARD_SCHEMA.field(name).type)
        index = table.schema.get_field_index(name)
        table = table.append_column(name, column) if index < 0 else table.set_column(index, name, column)
    return table
