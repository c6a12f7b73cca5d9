"""Refuses to share captions (`pretokenize.captions_of`) of a dataset that has other rows than the new one.

The caption source is the dataset whose captions are shared. It is checked three times: its folder when a
recipe is planned, its samples when the new dataset's units are known, its rows when a unit is encoded.
Imports no torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, STAGE_FILE, StageRecord, read_manifest
from dualtoken.pipelines.core.stage import Unit
from dualtoken.pipelines.core.tombstones import require_no_pending_forget
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens.captions import folder_fingerprint, meta_record, shares_captions
from dualtoken.pipelines.tokens.facts import CAPTIONS_OF

_LEAVE_OUT = "leave it out, and captions are written anew"
_OR_LEAVE_OUT = f"or {_LEAVE_OUT}"


def require_caption_source(source: Store, corpus: str | None, crops: object) -> None:
    """Raise `UserError` unless a folder is a finished dataset with own captions and rows of these crops."""
    setting = _setting(source, corpus)
    if not source.exists(STAGE_FILE):
        raise UserError(_no_such_dataset(source, setting))
    require_no_pending_forget(source)
    record = StageRecord.read(source, STAGE_FILE)
    settings = record.identity["settings"]
    if shares_captions(record):
        raise UserError(f"{setting} borrows its captions itself: set it to {settings[CAPTIONS_OF]}")
    if not source.exists(MANIFEST_FILE):
        raise UserError(
            f"{setting} is unfinished: run `dualtoken pretokenize` with the recipe that began it first"
        )
    if settings.get("crops") != crops:
        raise UserError(
            f"{setting} has rows of other crops: set pretokenize.crops as they were there, {_OR_LEAVE_OUT}"
        )


def _no_such_dataset(source: Store, setting: str) -> str:
    """Return the error's text where a recipe names no dataset; it tells the names there are."""
    datasets = Store(source.url.rsplit("/", 1)[0])
    finished = [name for name in datasets.folders() if datasets.exists(f"{name}/{MANIFEST_FILE}")]
    advice = f"set it to one of {', '.join(finished)}" if finished else "leave it out"
    return f"{setting}: {datasets.url} has no such dataset: {advice}"


def require_same_samples(source: Store, corpus: str | None, units: Sequence[Unit]) -> None:
    """Raise `UserError` where a caption source has other shards than these units, or other samples."""
    setting = _setting(source, corpus)
    manifest = read_manifest(source)
    assert manifest is not None, "a caption source is finished"
    unmatched = {unit.id for unit in units} ^ manifest.units.keys()
    if unmatched:
        raise UserError(
            f"{setting}: only one of the two has a shard {min(unmatched)}: "
            f"name a dataset of the same images, {_OR_LEAVE_OUT}"
        )
    rows = sum(unit.rows for unit in units)
    if manifest.rows_in != rows:
        raise UserError(
            f"{setting} is of {manifest.rows_in:,} samples, the decision keeps {rows:,}: "
            f"name a dataset of the same one, {_OR_LEAVE_OUT}"
        )


def require_same_rows(
    source: Store, corpus: str | None, name: str, columns: Mapping[str, pa.Array], scratch: Path
) -> None:
    """Raise `UserError` unless the caption source's table has these columns' values, row by row.

    `name` is the table's, a shard's ledger or captions; a copy of it is made below `scratch`.
    """
    setting = f"{_setting(source, corpus)}: {name}"
    table = _read_committed(source, name, scratch)
    missing = sorted(columns.keys() - table.column_names)
    if missing:
        raise UserError(
            f"{setting} has no {missing[0]}: its crops differ: "
            f"set pretokenize.crops as they were there, {_OR_LEAVE_OUT}"
        )
    rows = len(columns["key"])
    if len(table) != rows:
        raise UserError(
            f"{setting} has {len(table)} rows, here it would have {rows}: "
            f"the decision or the images differ: {_LEAVE_OUT}"
        )
    for column, values in columns.items():
        row = _first_difference(table[column].to_pylist(), values.to_pylist())
        if row is not None:
            cause = "decision" if column == "key" else "crops"
            raise UserError(
                f"{setting} has another {column} in row {row}: "
                f"the {cause} differs from the one there: {_LEAVE_OUT}"
            )


def _first_difference(stored: Sequence[object], expected: Sequence[object]) -> int | None:
    """Return the first place where two lists of one length differ, or None."""
    for place, (value, other) in enumerate(zip(stored, expected, strict=True)):
        if value != other:
            return place
    return None


def _read_committed(source: Store, name: str, scratch: Path) -> pa.Table:
    """Read a table of the caption source; raises `UserError` where it is not as its receipt says."""
    shard = PurePosixPath(name).stem
    try:
        _, record = meta_record(source, name, shard)
        path = source.local_copy(name, scratch / "source")
        if digest(path).sha256 == record.sha256:
            return pq.ParquetFile(path).read()
    except FileNotFoundError:
        pass
    raise UserError(
        f"{join(source.url, name)} is missing or not as committed: "
        f"run `dualtoken verify {source.url} --repair` first"
    )


def _setting(source: Store, corpus: str | None) -> str:
    """Return the recipe's setting that names a caption source, as errors show it."""
    return f"pretokenize.{CAPTIONS_OF}.{corpus}={folder_fingerprint(source)}"
