"""Deletes samples from every dataset that was made from them (right to erasure).

Only the shards that hold such a sample are written again, in the bytes that their stage would have written
had it been told; the other samples' rows, codes and fingerprints stay. The order makes a kill harmless:
first the corpus's tombstones; then in every affected folder `forgotten.json` and no manifest any more, so
that nobody reads it; then, folder by folder, the shards, receipts and manifest. Later stages' fingerprints
go on being made from the root hash of a folder's first version (`Manifest.lineage`).

A unit that is done meanwhile is not committed once the tombstones are there (`pipelines.core.commit`);
units that were committed before are looked for after.
"""

import uuid
from pathlib import Path

import pyarrow.parquet as pq

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.commit import upload
from dualtoken.pipelines.core.ledger import count_statuses
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.core.receipts import (
    LEDGERS,
    MANIFEST_FILE,
    PICTURES,
    RECEIPTS,
    STAGE_FILE,
    Receipt,
    read_manifest,
    receipt_name,
)
from dualtoken.pipelines.core.tombstones import (
    FORGOTTEN_FILE,
    TOMBSTONES_FILE,
    Forgotten,
    Tombstones,
    read_forgotten,
)
from dualtoken.pipelines.errors import TokenAlarm, UserError
from dualtoken.pipelines.maintenance.forget_plan import (
    AffectedFolder,
    ForgetPlan,
    StageFolder,
    plan_forget,
    rewriter_of,
)
from dualtoken.pipelines.maintenance.forget_rewrite import Rewritten
from dualtoken.pipelines.runtime.finish import finish
from dualtoken.pipelines.runtime.stage_folder import input_folders, stage_job


def forget(plan: ForgetPlan, print_line: PrintLine) -> None:
    """Do what a plan says; killed at any point, or ended by an error, it is finished by calling it again.

    Raises `TokenAlarm` at the end where a recipe stops at alarms, and a token dataset now has some.
    """
    _require_inputs(plan)
    plan = _write_tombstones(plan)
    _require_inputs(plan)
    for folder in plan.affected:
        _begin(folder)
    for folder in plan.removed:
        _empty(folder)
        stage = folder.record.stage
        print_line(f"{folder.store.url}: {stage} taken away; `dualtoken {stage}` makes it anew")
    for model in plan.models:
        _remove_pictures(model, print_line)
    keys = frozenset(bytes.fromhex(key) for key in plan.tombstones.keys)
    alarms: list[TokenAlarm] = []
    for folder in plan.affected:
        _rewrite(folder, keys)
        print_line(
            f"{folder.store.url}: {folder.num_samples} samples taken out of {len(folder.shards)} shards"
        )
        try:
            _finish(folder)
        except TokenAlarm as alarm:
            alarms.append(alarm)
    if alarms:
        raise alarms[0]


def _write_tombstones(plan: ForgetPlan) -> ForgetPlan:
    """Write the tombstones, and look again for what was committed meanwhile, until there is nothing new."""
    while True:
        plan.root.put_bytes(plan.tombstones.to_bytes(), join(plan.corpus, TOMBSTONES_FILE))
        again = plan_forget(plan.root, plan.corpus, Tombstones())
        if again.tombstones == plan.tombstones:
            return again
        plan = again


def _require_inputs(plan: ForgetPlan) -> None:
    """Raise `UserError` where a folder could not be finished again."""
    for affected in plan.affected:
        folders = input_folders(affected.store, affected.record)
        for needed in rewriter_of(affected.record).needs(affected.record, folders):
            if not Store(needed.folder).exists(needed.file):
                raise UserError(
                    f"{affected.store.url} cannot be written again without {needed.what}: "
                    f"bring {needed.folder} back, or delete the dataset"
                )


def _empty(folder: StageFolder) -> None:
    """Remove all files but `stage.json`, the manifest first, so that a kill leaves the stage unfinished."""
    names = [name for name, _ in folder.store.files() if name != STAGE_FILE]
    for name in sorted(names, key=_removal_order):
        folder.store.remove(name)


def _remove_pictures(model: Store, print_line: PrintLine) -> None:
    """Remove the pictures in a training's log: any of them may be of a sample to forget."""
    names = [name for name, _ in model.files(PICTURES)]
    for name in names:
        model.remove(name)
    if names:
        print_line(f"{model.url}/{PICTURES}: pictures of training images taken away")


def _removal_order(name: str) -> tuple[bool, bool]:
    return name != MANIFEST_FILE, not name.startswith(RECEIPTS)


def _begin(folder: AffectedFolder) -> None:
    """Note what is about to be done, and take the manifest away, so that nobody reads a folder half done."""
    begun = folder.begun or _next_version(folder.store)
    _note(folder.store, begun, pending=tuple(folder.shards))
    folder.store.remove(MANIFEST_FILE)


def _next_version(store: Store) -> Forgotten:
    before = read_forgotten(store)
    manifest = read_manifest(store)
    version = before.version if before else 1
    lineage = before.lineage if before else None
    if manifest:
        lineage = manifest.lineage_hash
    return Forgotten(version=version + 1, lineage=lineage, finished=manifest is not None, pending=())


def _noted(store: Store) -> Forgotten:
    forgotten = read_forgotten(store)
    assert forgotten is not None, "it was begun"
    return forgotten


def _note(store: Store, forgotten: Forgotten, **changed: object) -> None:
    store.put_bytes(forgotten.model_copy(update=changed).to_bytes(), FORGOTTEN_FILE)


def _rewrite(folder: AffectedFolder, keys: frozenset[bytes]) -> None:
    """Write the folder's pending shards without the samples of these keys, unit by unit."""
    rewriter = rewriter_of(folder.record)
    job = stage_job(folder.store, folder.record, ())
    for unit, shards in rewriter.units(folder.shards).items():
        try:
            receipt = Receipt.read(folder.store, receipt_name(unit))
        except FileNotFoundError:
            continue  # Its run has seen the tombstones too: it is open again.
        with scratch_folder() as name:
            scratch = Path(name)
            rewritten = rewriter.rewrite(job, receipt, shards, keys, scratch)
            _commit(folder.store, receipt, rewritten, scratch)
    _note(folder.store, _noted(folder.store), pending=())


def _finish(folder: AffectedFolder) -> None:
    """Write the manifest again where there was one; until that is noted too, the folder counts as begun."""
    forgotten = _noted(folder.store)
    if forgotten.finished:
        finish(stage_job(folder.store, folder.record))
        _note(folder.store, forgotten, finished=False)


def _commit(store: Store, receipt: Receipt, rewritten: Rewritten, scratch: Path) -> None:
    """Put a unit's new files, then its new receipt; files that hold no such sample keep their records."""
    ledger = f"{LEDGERS}/{receipt.unit}.parquet"
    (scratch / LEDGERS).mkdir(exist_ok=True)
    pq.write_table(rewritten.ledger, scratch / ledger, compression="zstd")
    records = {file.name: file for file in receipt.files}
    for name in (*rewritten.files, ledger):
        records[name] = upload(store, scratch, name)
    changes = {
        "attempt": uuid.uuid4().hex,
        "rows": len(rewritten.ledger),
        "counts": count_statuses(rewritten.ledger),
        "files": tuple(records.values()),
        "facts": dict(rewritten.facts),
    }
    store.put_bytes(receipt.model_copy(update=changes).to_bytes(), receipt_name(receipt.unit))
