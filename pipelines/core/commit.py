"""Runs one unit and commits it: files first, receipt last; the same on every executor."""

import errno
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dualtoken.infra.digests import FileDigest, digest
from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.ledger import Status, check_closed, count_statuses
from dualtoken.pipelines.core.receipts import (
    LEDGERS,
    MANIFEST_FILE,
    STAGE_FILE,
    FileRecord,
    Manifest,
    Receipt,
    StageRecord,
    content_line,
    hash_lines,
    iter_receipts,
    receipt_name,
)
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput, Worker
from dualtoken.pipelines.core.tombstones import Tombstones, read_tombstones, require_no_pending_forget
from dualtoken.pipelines.core.totals import Totals
from dualtoken.pipelines.errors import UserError


def write_stage_record(job: StageJob, identity: Mapping[str, Any]) -> None:
    """Write `stage.json` before the first unit, unless it is there."""
    record = StageRecord(
        stage=job.stage,
        corpus=job.corpus,
        fingerprint=job.fingerprint,
        identity=dict(identity),
        inputs=dict(job.inputs),
        recipe=job.recipe.model_dump(mode="json"),
    )
    store = job.store()
    if not store.exists(
        STAGE_FILE
    ):  # looked for first: a finished folder may be read-only, and another store may replace it
        store.put_if_absent(record.to_bytes(), STAGE_FILE)


def run_unit(job: StageJob, worker: Worker, unit: Unit) -> Receipt:
    """Do a unit and commit it; a unit that has its receipt already is only read."""
    started = time.monotonic()
    store = job.store()
    if unit.id not in job.restores and store.exists(receipt_name(unit.id)):
        return Receipt.from_bytes(store.read(receipt_name(unit.id)))
    asked = _tombstones_shown(job)
    with scratch_folder() as scratch:
        try:
            return commit_unit(job, unit, Path(scratch), worker.run(unit, Path(scratch)), started, asked)
        except OSError as error:
            if error.errno == errno.ENOSPC and error.filename is None:  # a store's own error names its file
                raise OSError(
                    errno.ENOSPC,
                    f"{os.strerror(errno.ENOSPC)}; set TMPDIR to a folder with more room",
                    scratch,
                ) from error
            raise


def commit_unit(
    job: StageJob,
    unit: Unit,
    scratch: Path,
    output: UnitOutput,
    started: float,
    asked: tuple[Tombstones, ...] | None = None,
) -> Receipt:
    """Upload a unit's files from scratch, then put its receipt; `started` is a `time.monotonic()`, `asked` of the same moment.

    Two attempts at one unit are harmless: the bytes are a function of the fingerprint, and the first receipt stays.
    Raises `OSError` where they are not after all, or where samples were forgotten meanwhile, and leaves the unit to be done again.
    """
    names, began = list(output.files), time.monotonic()
    counts: dict[str, int] = {}
    if output.ledger is not None:
        check_closed(output.ledger, unit.rows)
        counts = count_statuses(output.ledger)
        names.append(f"{LEDGERS}/{unit.id}.parquet")
        (scratch / LEDGERS).mkdir(exist_ok=True)
        pq.write_table(output.ledger, scratch / names[-1], compression="zstd")
    store = job.store()
    restores = unit.id in job.restores
    if not restores and store.exists(receipt_name(unit.id)):
        return Receipt.from_bytes(store.read(receipt_name(unit.id)))
    _require_not_forgotten(job, unit, output.ledger, asked)
    if restores:
        made = {name: output.digests.get(name) or digest(scratch / name) for name in names}
        restore_files(store, scratch, made, job.restores[unit.id], output.facts)
        if earlier := job.restores[unit.id]:
            return earlier
        store.remove(receipt_name(unit.id))
    files = [upload(store, scratch, name, output.digests.get(name)) for name in names]
    receipt = Receipt(
        stage=job.stage,
        corpus=job.corpus,
        unit=unit.id,
        fingerprint=job.fingerprint,
        attempt=uuid.uuid4().hex,
        rows=unit.rows,
        counts=counts,
        files=tuple(files),
        facts=_facts(output, began),
        finished_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seconds=round(time.monotonic() - started, 3),
    )
    if not store.put_if_absent(receipt.to_bytes(), receipt_name(unit.id)):
        return _yield_to_winner(job, receipt)
    try:
        # Once more: `forget` writes its list first and looks for receipts then, so one of the two sees the other.
        _require_not_forgotten(job, unit, output.ledger, asked)
    except OSError:
        store.remove(receipt_name(unit.id))
        raise
    return receipt


def _yield_to_winner(job: StageJob, receipt: Receipt) -> Receipt:
    """Return the receipt of the attempt that was first; raises `OSError` where its files had other bytes."""
    store = job.store()
    winner = Receipt.from_bytes(store.read(receipt_name(receipt.unit)))
    if winner.files != receipt.files:
        # Such as of URLs whose server answered one attempt only: this one's files may stand over the winner's.
        store.remove(receipt_name(receipt.unit))
        raise OSError(
            f"{job.label} unit {receipt.unit}: two attempts at once gave different bytes; it is open again"
        )
    return winner


def restore_files(
    store: Store,
    scratch: Path,
    made: Mapping[str, FileDigest],
    earlier: Receipt | None,
    facts: Mapping[str, Any],
) -> None:
    """Put those files that are missing or altered in the store, once all are known to be what they were.

    Without a receipt that says so, they must be what is stored. Raises `UserError` where they are not, and then touches nothing.
    """
    with scratch_folder() as copies:
        stored = {
            name: digest(store.local_copy(name, Path(copies))).sha256 for name in made if store.exists(name)
        }
    sums = {name: content.sha256 for name, content in made.items()}
    expected = {file.name: file.sha256 for file in earlier.files} if earlier else sums | stored
    if changed := sorted(expected.items() ^ sums.items()):
        raise UserError(
            f"{join(store.url, changed[0][0])}: done again{_device(facts)}, its unit gives other bytes than it did first"
            f"{_device(earlier.facts if earlier else {})}; what is stored stays as it is"
        )
    for name, content in sums.items():
        if stored.get(name) != content:
            store.put(scratch / name, name)


def _device(facts: Mapping[str, Any]) -> str:
    return f" on {facts['device']}, torch {facts['torch']}" if "device" in facts else ""


def _facts(output: UnitOutput, began: float) -> dict[str, Any]:
    timed = (
        {"seconds": {**output.seconds, "commit": round(time.monotonic() - began, 3)}}
        if output.seconds
        else {}
    )
    return {**output.facts, **timed}


def _tombstones_shown(job: StageJob) -> tuple[Tombstones, ...]:
    """Return who asked to be forgotten of the corpora that a unit shows; a trained model shows none."""
    root = Store(job.recipe.root)
    return tuple(read_tombstones(root, corpus) for corpus in job.shown_corpora)


def _require_not_forgotten(
    job: StageJob, unit: Unit, ledger: pa.Table | None, asked: tuple[Tombstones, ...] | None
) -> None:
    """Raise `OSError` where somebody asked to be forgotten while a unit was done, or it was made from shards of before."""
    now = _tombstones_shown(job)
    stays = ledger.filter(pc.field("status") != Status.FORGOTTEN.value)["key"].to_pylist() if ledger else []
    if (asked is not None and asked != now) or any(
        key.hex() in one.keys for one in now if one.keys for key in stays
    ):
        raise OSError(
            f"{job.label} unit {unit.id}: samples of it were forgotten since it began: it is open again"
        )


def upload(store: Store, scratch: Path, name: str, content: FileDigest | None = None) -> FileRecord:
    """Take a file from scratch to where it belongs, and return its record; `content` where its checksums are known."""
    content = content or digest(scratch / name)
    assert content.bytes == (scratch / name).stat().st_size, f"{name}: its checksums are of another file"
    store.put(scratch / name, name, move=True)
    return FileRecord(name=name, bytes=content.bytes, sha256=content.sha256, xxh3_128=content.xxh3_128)


class StageContent:
    """What the receipts of a finished stage come to; each is read once, and what is added up is all that is kept of it."""

    def __init__(self, job: StageJob) -> None:
        self.job = job
        self.totals = Totals()
        self.lines: list[bytes] = []
        """Of the root hash."""
        self.rows_out: dict[str, int] = {}
        """By unit of the next stage."""
        self._missing = {unit.id for unit in job.units}
        self._receipts = iter_receipts(job.store())

    def receipts(self) -> Iterator[Receipt]:
        """Yield the receipts that were not yet read, in order of unit."""
        for receipt in self._receipts:
            assert receipt.unit in self._missing, (
                f"{self.job.label}: a receipt of {receipt.unit}, which is no open unit"
            )
            self._missing.remove(receipt.unit)
            self.totals.add(receipt)
            self.lines += map(content_line, receipt.files)
            self.rows_out |= receipt.facts.get("rows_out_by_shard", {receipt.unit: receipt.rows_out})
            yield receipt

    def read_all(self) -> None:
        """Read the rest; every unit must have its receipt."""
        deque(self.receipts(), maxlen=0)
        assert not self._missing, f"{self.job.label}: {len(self._missing)} units have no receipt"


def commit_manifest(
    content: StageContent, details: Mapping[str, Any], stage_files: Sequence[FileRecord]
) -> Manifest:
    """Write the manifest of a stage whose every unit has its receipt; raises `UserError` where a `forget` was cut short."""
    forgotten = require_no_pending_forget(content.job.store())
    content.read_all()
    job, totals = content.job, content.totals
    manifest = Manifest(
        stage=job.stage,
        corpus=job.corpus,
        fingerprint=job.fingerprint,
        root_hash=hash_lines([*content.lines, *map(content_line, stage_files)]),
        rows_in=totals.rows,
        counts=dict(sorted(totals.counts.items())),
        units=content.rows_out,
        bytes=totals.bytes + sum(file.bytes for file in stage_files),
        seconds=round(totals.seconds, 3),
        first_started_at=totals.first_started_at,
        last_finished_at=totals.last_finished_at,
        version=forgotten.version if forgotten else 1,
        lineage=forgotten.lineage if forgotten else None,
        files=tuple(stage_files),
        details=dict(details),
    )
    job.store().put_bytes(manifest.to_bytes(), MANIFEST_FILE)
    return manifest
