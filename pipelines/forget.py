"""Takes samples out of all that was made from them below a root: image shards, scores, decisions, targets, token shards.

Only the shards that hold such a sample are written again, in the bytes that their stage would have written had it been told; the
other samples' rows, codes and fingerprints stay. The order makes a kill harmless: the corpus's tombstones, then in every affected
folder `forgotten.json` and no manifest any more, so that nobody reads it; then the shards, receipts and manifests. What a
folder's later steps are fingerprinted by stays the root hash of its first version (`Manifest.lineage`).
"""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import Store, join, scratch_folder
from pipelines.captions import borrows
from pipelines.commit import upload
from pipelines.config import Recipe
from pipelines.errors import UserError
from pipelines.finish import finish
from pipelines.forget_rewrite import REWRITERS, Rewritten, rewriter
from pipelines.ledger import count_statuses
from pipelines.receipts import (
    LEDGERS,
    MANIFEST_FILE,
    RECEIPTS,
    STAGE_FILE,
    Receipt,
    StageRecord,
    done_units,
    read_manifest,
    receipt_name,
)
from pipelines.stage_folder import find_stages, in_order, input_folders, stage_job
from pipelines.tombstones import FORGOTTEN_FILE, TOMBSTONES_FILE, Forgotten, Tombstones, read_forgotten, read_tombstones

Say = Callable[[str], None]
ALL = "all"
"""The filter's one unit; its files are one per shard."""


class Affected(NamedTuple):
    """A stage's folder that holds samples to forget."""

    store: Store
    record: StageRecord
    keys: dict[str, frozenset[bytes]]
    """By shard; of those that are still in it."""
    pending: tuple[str, ...]
    """Shards that an earlier call left to be written."""

    @property
    def shards(self) -> list[str]:
        """Return the shards to write."""
        return sorted({*self.keys, *self.pending})

    @property
    def num_samples(self) -> int:
        """Return how many samples it holds of those."""
        return sum(len(keys) for keys in self.keys.values())


class Plan(NamedTuple):
    """What forgetting comes to for one corpus."""

    root: Store
    corpus: str
    tombstones: Tombstones
    affected: tuple[Affected, ...]
    """In the order of work."""
    reports: tuple[Store, ...]
    """Which may show such a sample: they are taken away, and `dualtoken report` makes them anew."""
    models: tuple[Store, ...]
    """That learnt from the corpus and stay as they are."""


def plan_forget(recipe: Recipe, corpus: str, wanted: Tombstones) -> Plan:
    """Find what holds a corpus's samples to forget, those of earlier calls included; changes nothing."""
    root = Store(recipe.root)
    wanted = read_tombstones(root, corpus) | wanted
    stages = [(store, StageRecord.from_bytes(store.read(STAGE_FILE))) for store in find_stages(root)]
    stages.sort(key=lambda pair: in_order(pair[1]))
    mine = [(store, record) for store, record in stages if record.corpus == corpus and record.stage in REWRITERS]
    keys = frozenset(bytes.fromhex(key) for key in wanted.keys)
    for store, record in mine:
        keys |= frozenset(_keys_by_url(store, record, wanted))
    held = [Affected(store, record, _held(store, record, keys), _pending(store)) for store, record in mine]
    affected = tuple(one for one in held if one.shards)
    made_from_it = [(store, record) for store, record in stages if f"download/{corpus}" in record.inputs and record.corpus is None]
    return Plan(
        root,
        corpus,
        wanted | Tombstones(keys=frozenset(key.hex() for key in keys)),
        affected,
        tuple(store for store, record in made_from_it if record.stage == "report" and affected),
        tuple(store for store, record in made_from_it if record.stage != "report" and affected),
    )


def _pending(store: Store) -> tuple[str, ...]:
    forgotten = read_forgotten(store)
    return forgotten.pending if forgotten else ()


def _keys_by_url(store: Store, record: StageRecord, wanted: Tombstones) -> Iterator[bytes]:
    """Yield the keys of rows whose address is wanted; image shards and captions' files have addresses."""
    place = {"download": ("{}.parquet", "sample_key"), "pretokenize": ("meta/{}.parquet", "key")}.get(record.stage)
    if place is None or borrows(record) or not (wanted.urls or wanted.hosts):
        return
    for unit in sorted(done_units(store)):
        table = _read(store, place[0].format(unit))
        if "url" in table.column_names:
            rows = zip(table[place[1]].to_pylist(), table["url"].to_pylist(), strict=True)
            yield from (key for key, url in rows if wanted.match(key, url))


def _held(store: Store, record: StageRecord, keys: frozenset[bytes]) -> dict[str, frozenset[bytes]]:
    """Return which of the keys a folder's shards still hold, by shard."""
    if not keys:
        return {}
    shards = _decided_shards(store) if record.stage == "filter" else sorted(done_units(store))
    found = {shard: frozenset(rewriter(record).keys(store, shard)) & keys for shard in shards}
    return {shard: mine for shard, mine in found.items() if mine}


def _decided_shards(store: Store) -> list[str]:
    return sorted(name.removesuffix(".parquet") for name, _ in store.files() if "/" not in name and name.endswith(".parquet"))


def _read(store: Store, name: str) -> pa.Table:
    with store.fs.open(store.path(name), "rb") as file:
        return pq.ParquetFile(file).read()


def forget(plan: Plan, say: Say) -> None:
    """Do what a plan says; killed at any point, it is finished by calling it again."""
    for one in plan.affected:
        if one.record.stage == "pretokenize":
            _require_inputs(one)
    plan.root.put_bytes(plan.tombstones.to_bytes(), join(plan.corpus, TOMBSTONES_FILE))
    for one in plan.affected:
        _open(one)
    keys = frozenset(bytes.fromhex(key) for key in plan.tombstones.keys)
    for one in plan.affected:
        _rewrite(one, keys)
        say(f"{one.store.url}: {one.num_samples} samples taken out of {len(one.shards)} shards")
    for store in plan.reports:
        names = [name for name, _ in store.files() if name != STAGE_FILE]
        for name in sorted(names, key=lambda name: (name != MANIFEST_FILE, not name.startswith(RECEIPTS))):
            store.remove(name)
        say(f"{store.url}: report taken away; `dualtoken report` makes it anew")


def _require_inputs(one: Affected) -> None:
    """Raise `UserError` where a token dataset could not be finished again."""
    folders = input_folders(one.store, one.record)
    needed = {"its tokenizer": (folders["train"], MANIFEST_FILE)}
    if borrows(one.record):
        needed["its captions"] = folders[f"pretokenize/{one.record.corpus}"], STAGE_FILE
    for name, (folder, file) in needed.items():
        if not Store(folder).exists(file):
            raise UserError(f"{one.store.url} cannot be written again without {name}: bring {folder} back, or delete the dataset")


def _open(one: Affected) -> None:
    """Note what is about to be done, and take the manifest away, so that nobody reads a folder half done."""
    before, manifest = read_forgotten(one.store), read_manifest(one.store)
    if before is None or not before.pending:
        lineage = manifest.stands_for if manifest else before.lineage if before else None
        before = Forgotten(version=(before.version if before else 1) + 1, lineage=lineage, finished=manifest is not None, pending=())
    one.store.put_bytes(before.model_copy(update={"pending": tuple(one.shards)}).to_bytes(), FORGOTTEN_FILE)
    one.store.remove(MANIFEST_FILE)


def _rewrite(one: Affected, keys: frozenset[bytes]) -> None:
    units = {ALL: one.shards} if one.record.stage == "filter" else {shard: [shard] for shard in one.shards}
    job = stage_job(one.store, one.record)
    for unit, shards in units.items():
        receipt = Receipt.from_bytes(one.store.read(receipt_name(unit)))
        with scratch_folder() as name:
            scratch = Path(name)
            done = rewriter(one.record).rewrite(job, receipt, shards, keys, scratch)
            _commit(one.store, receipt, done, scratch)
    forgotten = read_forgotten(one.store)
    assert forgotten is not None, "it was opened"
    one.store.put_bytes(forgotten.model_copy(update={"pending": ()}).to_bytes(), FORGOTTEN_FILE)
    if forgotten.finished:
        finish(stage_job(one.store, one.record))


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


def affected_files(one: Affected) -> list[str]:
    """Return the names of the files that would be written again."""
    return [name for shard in one.shards for name in rewriter(one.record).files(shard)]
