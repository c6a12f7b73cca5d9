"""Where a token dataset's captions lie: in its own folder, or in that of the dataset that they are borrowed from.

With `pretokenize.captions_of` a further tokenizer's codes are written alone. Row for row they belong to the lender's `meta/`, which
stays as it is: each receipt names the lender, the index's `meta_path` leads to its file, and that file's checksum stands in its own
receipt, so that there is one record of it. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.receipts import (
    MANIFEST_FILE,
    STAGE_FILE,
    FileRecord,
    Receipt,
    StageRecord,
    read_manifest,
    receipt_name,
)
from dualtoken.pipelines.core.stage import StageJob, Unit
from dualtoken.pipelines.core.tombstones import require_no_pending_forget
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens.facts import CAPTIONS_OF, TokenFacts


def meta_path(receipt: Receipt) -> str:
    """Return where a shard's captions are, relative to the dataset's folder."""
    lender = TokenFacts.of(receipt).captions_of
    return f"{f'../{lender}/' if lender else ''}meta/{receipt.unit}.parquet"


def resolve_meta_path(store: Store, path: str) -> tuple[Store, str]:
    """Return the dataset's folder that a `meta_path` leads to, and the name there: object stores know no `..`."""
    if not path.startswith("../"):
        return store, path
    lender, name = path.removeprefix("../").split("/", 1)
    return store.beside(lender), name


def meta_record(store: Store, path: str, shard: str) -> tuple[Store, FileRecord]:
    """Return the folder of a shard's captions and what the receipt there says of the file.

    Raises FileNotFoundError where there is no such receipt, or it names no such file.
    """
    folder, name = resolve_meta_path(store, path)
    for file in Receipt.from_bytes(folder.read(receipt_name(shard))).files:
        if file.name == name:
            return folder, file
    raise FileNotFoundError(f"{join(folder.url, receipt_name(shard))} names no {name}")


def caption_source_of(job: StageJob) -> Store | None:
    """Return the folder that a job's captions are borrowed from, or None where it writes its own."""
    name = f"{job.stage}/{job.corpus}"
    return Store(job.inputs[name]) if name in job.inputs else None


def shares_captions(record: StageRecord) -> bool:
    """Tell whether a folder is that of a token dataset with borrowed captions."""
    return f"{record.stage}/{record.corpus}" in record.inputs


def require_caption_source(lender: Store, corpus: str | None, crops: object) -> None:
    """Raise `UserError` unless a folder is a finished token dataset whose rows are such crops and whose captions are its own."""
    said = _said(lender, corpus)
    if not lender.exists(STAGE_FILE):
        top = Store(lender.url.rsplit("/", 1)[0])
        known = ", ".join(name for name in top.folders() if top.exists(f"{name}/{MANIFEST_FILE}"))
        raise UserError(
            f"{said}: {top.url} has no such dataset: {f'set it to one of {known}' if known else 'leave it out'}"
        )
    require_no_pending_forget(lender)
    record = StageRecord.from_bytes(lender.read(STAGE_FILE))
    if shares_captions(record):
        raise UserError(
            f"{said} borrows its captions itself: set it to {record.identity['settings'][CAPTIONS_OF]}"
        )
    if not lender.exists(MANIFEST_FILE):
        raise UserError(
            f"{said} is unfinished: run `dualtoken pretokenize` with the recipe that began it first"
        )
    if record.identity["settings"].get("crops") != crops:
        raise UserError(f"{said} has rows of other crops: set pretokenize.crops as they were there, {_OR}")


def require_same_samples(lender: Store, corpus: str | None, units: Sequence[Unit]) -> None:
    """Raise `UserError` where a finished lender was made from other shards than these units, or from another number of samples."""
    said, manifest, rows = _said(lender, corpus), read_manifest(lender), sum(unit.rows for unit in units)
    assert manifest is not None, "a lender is finished"
    if apart := {unit.id for unit in units} ^ manifest.units.keys():
        raise UserError(
            f"{said}: only one of the two has a shard {min(apart)}: name a dataset of the same images, {_OR}"
        )
    if manifest.rows_in != rows:
        raise UserError(
            f"{said} is of {manifest.rows_in:,} samples, the decision keeps {rows:,}: name a dataset of the same one, {_OR}"
        )


def require_same_rows(
    lender: Store, corpus: str | None, name: str, ours: Mapping[str, pa.Array], scratch: Path
) -> None:
    """Raise `UserError` unless these columns of a lender's table, a shard's ledger or captions, hold the same, row by row."""
    said, theirs = f"{_said(lender, corpus)}: {name}", _read(lender, name, scratch)
    if missing := sorted(ours.keys() - theirs.column_names):
        raise UserError(
            f"{said} has no {missing[0]}: its crops differ: set pretokenize.crops as they were there, {_OR}"
        )
    if len(theirs) != (rows := len(ours["key"])):
        raise UserError(
            f"{said} has {len(theirs)} rows, here it would have {rows}: the decision or the images differ: {_LEAVE}"
        )
    for column, values in ours.items():
        pairs = zip(theirs[column].to_pylist(), values.to_pylist(), strict=True)
        if (row := next((row for row, (one, other) in enumerate(pairs) if one != other), None)) is not None:
            what = "decision" if column == "key" else "crops"
            raise UserError(
                f"{said} has another {column} in row {row}: the {what} differs from the one there: {_LEAVE}"
            )


_LEAVE = "leave it out, and captions are written anew"
_OR = f"or {_LEAVE}"


def _read(lender: Store, name: str, scratch: Path) -> pa.Table:
    try:
        _, record = meta_record(lender, name, PurePosixPath(name).stem)
        path = lender.local_copy(name, scratch / "lender")
        if digest(path).sha256 == record.sha256:
            return pq.ParquetFile(path).read()
    except FileNotFoundError:
        pass
    raise UserError(
        f"{join(lender.url, name)} is missing or not as committed: run `dualtoken verify {lender.url} --repair` first"
    )


def _said(lender: Store, corpus: str | None) -> str:
    return f"pretokenize.captions_of.{corpus}={lender.url.rsplit('/', 1)[1]}"
