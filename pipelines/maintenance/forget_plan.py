"""Finds all that was made from samples to forget; changes nothing."""

from collections.abc import Iterator
from typing import NamedTuple

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, StageRecord, done_units
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.core.tombstones import Forgotten, Tombstones, read_forgotten, read_tombstones
from dualtoken.pipelines.maintenance.forget_rewrite import REWRITERS, rewriter
from dualtoken.pipelines.runtime.stage_folder import in_order, read_stage, stage_folders
from dualtoken.pipelines.tokens.captions import shares_captions


class AffectedFolder(NamedTuple):
    """A stage's folder that holds samples to forget, or that an earlier call left unfinished."""

    store: Store
    record: StageRecord
    keys: dict[str, frozenset[bytes]]
    """By shard; of those that are still in it."""
    begun: Forgotten | None
    """What an earlier call left to be done."""

    @property
    def shards(self) -> list[str]:
        """Return the shards to write."""
        return sorted({*self.keys, *(self.begun.pending if self.begun else ())})

    @property
    def num_samples(self) -> int:
        """Return how many samples it holds of those."""
        return sum(len(keys) for keys in self.keys.values())


class ForgetPlan(NamedTuple):
    """What forgetting comes to for one corpus."""

    root: Store
    corpus: str
    tombstones: Tombstones
    affected: tuple[AffectedFolder, ...]
    """In the order of work."""
    reports: tuple[Store, ...]
    """Which may show such a sample: they are taken away, and `dualtoken report` makes them anew."""
    models: tuple[Store, ...]
    """That learnt from the corpus and stay as they are."""


def plan_forget(root: Store, corpus: str, wanted: Tombstones) -> ForgetPlan:
    """Find what holds a corpus's samples to forget, those of earlier calls included; changes nothing."""
    wanted = read_tombstones(root, corpus) | wanted
    stages = [(store, read_stage(store)) for store in map(Store, stage_folders(root, nameless=True))]
    stages.sort(key=lambda pair: in_order(pair[1]))
    mine = [
        (store, record) for store, record in stages if record.corpus == corpus and record.stage in REWRITERS
    ]
    keys = frozenset(bytes.fromhex(key) for key in wanted.keys)
    for store, record in mine:
        keys |= frozenset(_keys_by_url(store, record, wanted))
    held = [
        AffectedFolder(store, record, _held(store, record, keys), _begun(store)) for store, record in mine
    ]
    affected = tuple(one for one in held if one.shards or one.begun)
    made_from_it = [
        (store, record)
        for store, record in stages
        if f"download/{corpus}" in record.inputs and record.corpus is None
    ]
    return ForgetPlan(
        root,
        corpus,
        wanted | Tombstones(keys=frozenset(key.hex() for key in keys)),
        affected,
        tuple(store for store, record in made_from_it if record.stage == "report" and affected),
        tuple(store for store, record in made_from_it if record.stage != "report" and affected),
    )


def _begun(store: Store) -> Forgotten | None:
    """Return what an earlier call left to be done: shards to write, or the manifest alone."""
    forgotten = read_forgotten(store)
    return (
        forgotten
        if forgotten and (forgotten.pending or (forgotten.finished and not store.exists(MANIFEST_FILE)))
        else None
    )


def _keys_by_url(store: Store, record: StageRecord, wanted: Tombstones) -> Iterator[bytes]:
    """Yield the keys of rows whose address is wanted; image shards and captions' files have addresses."""
    place = {"download": ("{}.parquet", "sample_key"), "pretokenize": ("meta/{}.parquet", "key")}.get(
        record.stage
    )
    if place is None or shares_captions(record) or not (wanted.urls or wanted.hosts):
        return
    name, key = place

    def matching(unit: str) -> list[bytes]:
        table = read_table(store, name.format(unit), [key, "url"])
        if "url" not in table.column_names:
            return []  # Somebody else's shards may have no addresses.
        return [
            sample
            for sample, url in zip(table[key].to_pylist(), table["url"].to_pylist(), strict=True)
            if wanted.match(sample, url)
        ]

    for keys in map_ahead(matching, sorted(done_units(store))):
        yield from keys


def _held(store: Store, record: StageRecord, keys: frozenset[bytes]) -> dict[str, frozenset[bytes]]:
    """Return which of the keys a folder's shards still hold, by shard."""
    if not keys:
        return {}
    shards = _decided_shards(store) if record.stage == "filter" else sorted(done_units(store))
    found = map_ahead(lambda shard: (shard, keys.intersection(rewriter(record).keys(store, shard))), shards)
    return {shard: mine for shard, mine in found if mine}


def _decided_shards(store: Store) -> list[str]:
    return sorted(
        name.removesuffix(".parquet")
        for name, _ in store.files()
        if "/" not in name and name.endswith(".parquet")
    )


def affected_files(one: AffectedFolder) -> list[str]:
    """Return the names of the files that would be written again."""
    return [name for shard in one.shards for name in rewriter(one.record).files(shard)]
