"""Takes samples out of all that was made from them below a root: image shards, scores, decisions, targets, token shards.

Only the shards that hold such a sample are written again, in the bytes that their stage would have written had it been told; the
other samples' rows, codes and fingerprints stay. The order makes a kill harmless: the corpus's tombstones; then in every affected
folder `forgotten.json` and no manifest any more, so that nobody reads it; then, folder by folder, the shards, receipts and manifest.
What a folder's later steps are fingerprinted by stays the root hash of its first version (`Manifest.lineage`).

A unit that is done meanwhile is not committed once the tombstones are there (`pipelines.core.commit`), and those before it are
looked for after.
"""

import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.commit import upload
from dualtoken.pipelines.core.ledger import count_statuses
from dualtoken.pipelines.core.receipts import (
    LEDGERS,
    MANIFEST_FILE,
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
from dualtoken.pipelines.maintenance.forget_plan import AffectedFolder, ForgetPlan, plan_forget
from dualtoken.pipelines.maintenance.forget_rewrite import Rewritten, rewriter
from dualtoken.pipelines.runtime.finish import finish
from dualtoken.pipelines.runtime.stage_folder import input_folders, stage_job
from dualtoken.pipelines.tokens.captions import shares_captions

PrintLine = Callable[[str], None]
ALL = "all"
"""The filter's one unit; its files are one per shard."""


def forget(plan: ForgetPlan, print_line: PrintLine) -> None:
    """Do what a plan says; killed at any point, or ended by an error, it is finished by calling it again, with any samples or none.

    Raises `TokenAlarm` at the end where a recipe stops at alarms, and a token dataset now has some.
    """
    _require_inputs(plan)
    plan = _write_tombstones(plan)
    _require_inputs(plan)
    for one in plan.affected:
        _begin(one)
    for store in plan.reports:
        names = [name for name, _ in store.files() if name != STAGE_FILE]
        for name in sorted(names, key=lambda name: (name != MANIFEST_FILE, not name.startswith(RECEIPTS))):
            store.remove(name)
        print_line(f"{store.url}: report taken away; `dualtoken report` makes it anew")
    keys = frozenset(bytes.fromhex(key) for key in plan.tombstones.keys)
    alarms: list[TokenAlarm] = []
    for one in plan.affected:
        _rewrite(one, keys)
        print_line(f"{one.store.url}: {one.num_samples} samples taken out of {len(one.shards)} shards")
        try:
            _finish(one)
        except TokenAlarm as alarm:
            alarms.append(alarm)
    if alarms:
        raise alarms[0]


def _write_tombstones(plan: ForgetPlan) -> ForgetPlan:
    """Write the tombstones, and look again for what was committed before they were there, until there is nothing new."""
    while True:
        plan.root.put_bytes(plan.tombstones.to_bytes(), join(plan.corpus, TOMBSTONES_FILE))
        again = plan_forget(plan.root, plan.corpus, Tombstones())
        if again.tombstones == plan.tombstones:
            return again
        plan = again


def _require_inputs(plan: ForgetPlan) -> None:
    """Raise `UserError` where a token dataset could not be finished again."""
    for store, record in (
        (one.store, one.record) for one in plan.affected if one.record.stage == "pretokenize"
    ):
        folders = input_folders(store, record)
        needed = {"its tokenizer": (folders["train"], MANIFEST_FILE)}
        if shares_captions(record):
            needed["its captions"] = folders[f"pretokenize/{record.corpus}"], STAGE_FILE
        for name, (folder, file) in needed.items():
            if not Store(folder).exists(file):
                raise UserError(
                    f"{store.url} cannot be written again without {name}: bring {folder} back, or delete the dataset"
                )


def _begin(one: AffectedFolder) -> None:
    """Note what is about to be done, and take the manifest away, so that nobody reads a folder half done."""
    begun = one.begun
    if begun is None:
        before, manifest = read_forgotten(one.store), read_manifest(one.store)
        lineage = manifest.lineage_hash if manifest else before.lineage if before else None
        begun = Forgotten(
            version=(before.version if before else 1) + 1,
            lineage=lineage,
            finished=manifest is not None,
            pending=(),
        )
    _note(one.store, begun, pending=tuple(one.shards))
    one.store.remove(MANIFEST_FILE)


def _noted(store: Store) -> Forgotten:
    forgotten = read_forgotten(store)
    assert forgotten is not None, "it was begun"
    return forgotten


def _note(store: Store, forgotten: Forgotten, **changed: object) -> None:
    store.put_bytes(forgotten.model_copy(update=changed).to_bytes(), FORGOTTEN_FILE)


def _rewrite(one: AffectedFolder, keys: frozenset[bytes]) -> None:
    units = {ALL: one.shards} if one.record.stage == "filter" else {shard: [shard] for shard in one.shards}
    job = stage_job(one.store, one.record, ())
    for unit, shards in units.items():
        try:
            receipt = Receipt.from_bytes(one.store.read(receipt_name(unit)))
        except FileNotFoundError:
            continue  # Its run has seen the tombstones too: it is open again.
        with scratch_folder() as name:
            scratch = Path(name)
            done = rewriter(one.record).rewrite(job, receipt, shards, keys, scratch)
            _commit(one.store, receipt, done, scratch)
    _note(one.store, _noted(one.store), pending=())


def _finish(one: AffectedFolder) -> None:
    """Write the manifest again where there was one; until that is noted too, the folder counts as begun."""
    if (forgotten := _noted(one.store)).finished:
        finish(stage_job(one.store, one.record))
        _note(one.store, forgotten, finished=False)


def _commit(store: Store, receipt: Receipt, done: Rewritten, scratch: Path) -> None:
    """Put a unit's new files, then its new receipt; files that hold no such sample keep their records."""
    ledger = f"{LEDGERS}/{receipt.unit}.parquet"
    (scratch / LEDGERS).mkdir(exist_ok=True)
    pq.write_table(done.ledger, scratch / ledger, compression="zstd")
    records = {file.name: file for file in receipt.files}
    records |= {name: upload(store, scratch, name) for name in (*done.files, ledger)}
    new = receipt.model_copy(
        update={
            "attempt": uuid.uuid4().hex,
            "rows": len(done.ledger),
            "counts": count_statuses(done.ledger),
            "files": tuple(records.values()),
            "facts": dict(done.facts),
        }
    )
    store.put_bytes(new.to_bytes(), receipt_name(receipt.unit))
