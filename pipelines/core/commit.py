"""Runs one unit and commits it: files first, receipt last; the same on every executor."""

import errno
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dualtoken.infra.digests import FileDigest, digest
from dualtoken.infra.redaction import redacted_values
from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.source_code import commit
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.config.run import RunConfig
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
from dualtoken.pipelines.core.stage import AnyJob, ConfigT_co, StageJob, Unit, UnitOutput, Worker
from dualtoken.pipelines.core.tombstones import Tombstones, read_tombstones, require_no_pending_forget
from dualtoken.pipelines.core.totals import Totals
from dualtoken.pipelines.errors import UserError


def write_stage_record(job: AnyJob, identity: Mapping[str, Any]) -> None:
    """Write `stage.json` before the first unit, unless it is there."""
    record = StageRecord(
        stage=job.stage,
        corpus=job.corpus,
        fingerprint=job.fingerprint,
        identity=dict(identity),
        inputs=redacted_values(dict(job.inputs)),
        recipe=redacted_values(job.recipe.model_dump(mode="json")),
        code=job.code,
        commit=commit(),
    )
    store = job.store()
    # Looked for first: a finished folder may be read-only, and a store without conditional puts would
    # replace the record.
    if not store.exists(STAGE_FILE):
        store.put_if_absent(record.to_bytes(), STAGE_FILE)


def run_unit(job: AnyJob, worker: Worker, unit: Unit) -> Receipt:
    """Do a unit and commit it; a unit that has its receipt already is only read."""
    started = time.monotonic()
    committed = _committed_receipt(job, unit)
    if committed is not None:
        return committed

    tombstones_before = _tombstones_shown(job)
    with scratch_folder() as scratch:
        try:
            output = worker.run(unit, Path(scratch))
            return commit_unit(job, unit, Path(scratch), output, started, tombstones_before)
        except OSError as error:
            if error.errno == errno.ENOSPC and error.filename is None:  # a store's own error names its file
                raise OSError(
                    errno.ENOSPC,
                    f"{os.strerror(errno.ENOSPC)}; set TMPDIR to a folder with more room",
                    scratch,
                ) from error
            raise


def commit_unit(
    job: AnyJob,
    unit: Unit,
    scratch: Path,
    output: UnitOutput,
    started: float,
    tombstones_before: tuple[Tombstones, ...] | None = None,
) -> Receipt:
    """Upload a unit's files from scratch, then put its receipt.

    `started` is the `time.monotonic()` at which the unit was begun, `tombstones_before` the lists of that
    moment.

    Two attempts at one unit are harmless: the bytes are a function of the fingerprint, and the first receipt
    stays. Raises `OSError` where they are not after all, or where samples were forgotten meanwhile, and
    leaves the unit to be done again.
    """
    commit_started = time.monotonic()
    names = list(output.files)
    counts: dict[str, int] = {}
    if output.ledger is not None:
        check_closed(output.ledger, unit.rows)
        counts = count_statuses(output.ledger)
        names.append(_write_ledger(output.ledger, unit, scratch))

    committed = _committed_receipt(job, unit)
    if committed is not None:
        return committed
    _require_not_forgotten(job, unit, output.ledger, tombstones_before)
    if unit.id in job.restores:
        restored = _repair(job, unit, scratch, output, names)
        if restored is not None:
            return restored

    store = job.store()
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
        facts=_facts(output, commit_started),
        finished_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seconds=round(time.monotonic() - started, 3),
        code=job.code,
    )
    if not store.put_if_absent(receipt.to_bytes(), receipt_name(unit.id)):
        return _yield_to_winner(job, receipt)
    _withdraw_if_forgotten(job, unit, output.ledger, tombstones_before)
    return receipt


def _committed_receipt(job: AnyJob, unit: Unit) -> Receipt | None:
    """Return the receipt that a unit has already; None where it has none, or its files are being restored."""
    store = job.store()
    name = receipt_name(unit.id)
    if unit.id in job.restores or not store.exists(name):
        return None
    return Receipt.read(store, name)


def _write_ledger(ledger: pa.Table, unit: Unit, scratch: Path) -> str:
    """Write a unit's ledger below scratch, and return its name."""
    name = f"{LEDGERS}/{unit.id}.parquet"
    (scratch / LEDGERS).mkdir(exist_ok=True)
    pq.write_table(ledger, scratch / name, compression="zstd")
    return name


def _facts(output: UnitOutput, commit_started: float) -> dict[str, Any]:
    """Return the receipt's facts: the worker's own, and the seconds by part where it timed them."""
    facts = dict(output.facts)
    if output.seconds:
        facts["seconds"] = {**output.seconds, "commit": round(time.monotonic() - commit_started, 3)}
    return facts


def upload(store: Store, scratch: Path, name: str, content: FileDigest | None = None) -> FileRecord:
    """Move a file from scratch into the store, and return its record.

    `content` are its checksums, where they are known.
    """
    content = content or digest(scratch / name)
    assert content.bytes == (scratch / name).stat().st_size, f"{name}: its checksums are of another file"
    store.put(scratch / name, name, move=True)
    return FileRecord(name=name, bytes=content.bytes, sha256=content.sha256, xxh3_128=content.xxh3_128)


def _yield_to_winner(job: AnyJob, receipt: Receipt) -> Receipt:
    """Return the receipt of the attempt that was first; raises `OSError` where its files had other bytes."""
    store = job.store()
    winner = Receipt.read(store, receipt_name(receipt.unit))
    if winner.files != receipt.files:
        # Such as where a server answered one attempt only: this one's files may stand over the winner's.
        store.remove(receipt_name(receipt.unit))
        raise OSError(
            f"{job.label} unit {receipt.unit}: two attempts at once gave different bytes; it is open again"
        )
    return winner


def _repair(
    job: AnyJob, unit: Unit, scratch: Path, output: UnitOutput, names: Sequence[str]
) -> Receipt | None:
    """Restore a unit's files, and return the receipt that they agree with.

    Where that is lost or unreadable, removes what is left of it and returns None: the unit is committed anew.
    """
    store = job.store()
    earlier = job.restores[unit.id]
    restore_files(store, scratch, _digests(output, names, scratch), earlier, output.facts)
    if earlier is None:
        store.remove(receipt_name(unit.id))
    return earlier


def _digests(output: UnitOutput, names: Sequence[str], scratch: Path) -> dict[str, FileDigest]:
    """Return the checksums of a unit's files; those that were not taken while writing are taken now."""
    digests: dict[str, FileDigest] = {}
    for name in names:
        digests[name] = output.digests.get(name) or digest(scratch / name)
    return digests


def restore_files(
    store: Store,
    scratch: Path,
    made: Mapping[str, FileDigest],
    earlier: Receipt | None,
    facts: Mapping[str, Any],
) -> None:
    """Put the files that are missing or altered back into the store, once all are known to be what they were.

    `made` are the checksums of the files in scratch. They must agree with the `earlier` receipt, or, where it
    is lost, with the files that are stored. Raises `UserError` where they do not, and then touches nothing.
    """
    made_sums = {name: content.sha256 for name, content in made.items()}
    stored_sums = _stored_sums(store, made)
    if earlier is not None:
        expected_sums = {file.name: file.sha256 for file in earlier.files}
        earlier_device = _device(earlier.facts)
    else:
        expected_sums = made_sums | stored_sums
        earlier_device = ""

    changed = sorted(expected_sums.items() ^ made_sums.items())
    if changed:
        first_changed = changed[0][0]
        raise UserError(
            f"{join(store.url, first_changed)}: done again{_device(facts)}, "
            f"its unit gives other bytes than it did first{earlier_device}; what is stored stays as it is"
        )
    for name, content in made_sums.items():
        if stored_sums.get(name) != content:
            store.put(scratch / name, name)


def _stored_sums(store: Store, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of those files that the store has."""
    sums: dict[str, str] = {}
    with scratch_folder() as copies:
        for name in names:
            if store.exists(name):
                sums[name] = digest(store.local_copy(name, Path(copies))).sha256
    return sums


def _device(facts: Mapping[str, Any]) -> str:
    if "device" not in facts:
        return ""
    return f" on {facts['device']}, torch {facts['torch']}"


def _tombstones_shown(job: AnyJob) -> tuple[Tombstones, ...]:
    """Return who asked to be forgotten of the corpora that a unit shows; a trained model shows none."""
    root = Store(job.recipe.root)
    return tuple(read_tombstones(root, corpus) for corpus in job.shown_corpora)


def _require_not_forgotten(
    job: AnyJob, unit: Unit, ledger: pa.Table | None, tombstones_before: tuple[Tombstones, ...] | None
) -> None:
    """Raise `OSError` where samples were forgotten while the unit was done.

    Likewise where it was made from shards that still held samples forgotten before.
    """
    tombstones = _tombstones_shown(job)
    grew_meanwhile = tombstones_before is not None and tombstones_before != tombstones
    if grew_meanwhile or _shows_forgotten(ledger, tombstones):
        raise OSError(
            f"{job.label} unit {unit.id}: samples of it were forgotten since it began: it is open again"
        )


def _shows_forgotten(ledger: pa.Table | None, tombstones: tuple[Tombstones, ...]) -> bool:
    """Tell whether a ledger holds a key of the tombstones that it does not itself call forgotten."""
    if ledger is None or not any(corpus.keys for corpus in tombstones):
        return False
    shown = ledger.filter(pc.field("status") != Status.FORGOTTEN.value)
    keys = [key.hex() for key in shown["key"].to_pylist()]
    return not all(corpus.keys.isdisjoint(keys) for corpus in tombstones)


def _withdraw_if_forgotten(
    job: AnyJob, unit: Unit, ledger: pa.Table | None, tombstones_before: tuple[Tombstones, ...] | None
) -> None:
    """Look for forgotten samples once more, now that the receipt is put; take it back where there are some.

    `forget` writes its list first and looks for receipts then, so one of the two sees the other.
    """
    try:
        _require_not_forgotten(job, unit, ledger, tombstones_before)
    except OSError:
        job.store().remove(receipt_name(unit.id))
        raise


class StageContent(Generic[ConfigT_co]):
    """Sums over a finished stage's receipts. Each is read once, and only the sums are kept of it.

    A stage that needs the receipts for files of its own reads them, and adds each::

        for receipt in content.unread_receipts():
            content.add(receipt)
    """

    def __init__(self, job: StageJob[ConfigT_co]) -> None:
        self.job = job
        self.totals = Totals()
        self.lines: list[bytes] = []
        """Lines of the root hash, one for each file."""
        self.rows_out: dict[str, int] = {}
        """Samples that went on, by unit of the next stage."""
        self.codes: set[str] = set()
        """Hashes of the sources that did the units, where receipts tell."""
        self._missing = {unit.id for unit in job.units}
        self._unread = iter_receipts(job.store())

    def unread_receipts(self) -> Iterator[Receipt]:
        """Return the receipts that were not read yet, in order of unit; give each to `add`."""
        return self._unread

    def add(self, receipt: Receipt) -> None:
        """Add one receipt to the sums; it must be of a unit that was not added yet."""
        assert receipt.unit in self._missing, (
            f"{self.job.label}: a receipt of {receipt.unit}, which is no open unit"
        )
        self._missing.remove(receipt.unit)
        if receipt.code:
            self.codes.add(receipt.code)
        self.totals.add(receipt)
        for file in receipt.files:
            self.lines.append(content_line(file))
        rows_out = receipt.facts.get("rows_out_by_shard", {receipt.unit: receipt.rows_out})
        self.rows_out.update(rows_out)

    def add_unread(self) -> None:
        """Read and add the rest; every unit must have its receipt."""
        for receipt in self._unread:
            self.add(receipt)
        assert not self._missing, f"{self.job.label}: {len(self._missing)} units have no receipt"


def commit_manifest(
    content: StageContent[RunConfig], details: Mapping[str, Any], stage_files: Sequence[FileRecord]
) -> Manifest:
    """Write the manifest of a stage whose units all have their receipts.

    `stage_files` are files of the stage as a whole. Raises `UserError` where a `forget` was cut short.
    """
    forgotten = require_no_pending_forget(content.job.store())
    version = 1
    lineage = None
    if forgotten is not None:
        version = forgotten.version
        lineage = forgotten.lineage

    content.add_unread()
    job = content.job
    totals = content.totals
    num_bytes = totals.bytes
    for file in stage_files:
        num_bytes += file.bytes
    manifest = Manifest(
        stage=job.stage,
        corpus=job.corpus,
        fingerprint=job.fingerprint,
        root_hash=hash_lines([*content.lines, *map(content_line, stage_files)]),
        rows_in=totals.rows,
        counts=dict(sorted(totals.counts.items())),
        units=content.rows_out,
        bytes=num_bytes,
        seconds=round(totals.seconds, 3),
        first_started_at=totals.first_started_at,
        last_finished_at=totals.last_finished_at,
        version=version,
        lineage=lineage,
        codes=tuple(sorted(content.codes)),
        files=tuple(stage_files),
        details=dict(details),
    )
    job.store().put_bytes(manifest.to_bytes(), MANIFEST_FILE)
    return manifest
