"""Finds all that was made from samples to forget; changes nothing."""

import pkgutil
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, StageRecord, done_units
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.core.tombstones import Forgotten, Tombstones, read_forgotten, read_tombstones
from dualtoken.pipelines.maintenance.forget_rewrite import Rewriter
from dualtoken.pipelines.runtime.stage_folder import in_order, read_stage, stage_folders, stage_job
from dualtoken.pipelines.runtime.stages import get_stage


class StageFolder(NamedTuple):
    """A stage's folder below a root."""

    store: Store
    record: StageRecord


class AffectedFolder(NamedTuple):
    """A stage's folder that holds samples to forget, or that an earlier call left unfinished."""

    store: Store
    record: StageRecord
    keys: dict[str, frozenset[bytes]]
    """Keys that are still in it, by shard."""
    begun: Forgotten | None
    """Record of an earlier call that did not finish; None without one."""

    @property
    def shards(self) -> list[str]:
        """The shards to write."""
        pending = self.begun.pending if self.begun else ()
        return sorted({*self.keys, *pending})

    @property
    def num_samples(self) -> int:
        """How many samples to forget it holds."""
        return sum(len(keys) for keys in self.keys.values())


class ForgetPlan(NamedTuple):
    """Plan of a deletion from one corpus: folders to rewrite, folders to empty, and models that stay."""

    root: Store
    corpus: str
    tombstones: Tombstones
    affected: tuple[AffectedFolder, ...]
    """Folders to rewrite, in the order of work."""
    removed: tuple[StageFolder, ...]
    """Folders that may show such a sample and are not rewritten, such as a report: they are emptied and
    made anew."""
    models: tuple[Store, ...]
    """Models that learnt from the corpus and stay as they are."""


def plan_forget(root: Store, corpus: str, wanted: Tombstones) -> ForgetPlan:
    """Find what holds a corpus's samples to forget, those of earlier calls included; changes nothing."""
    wanted = read_tombstones(root, corpus) | wanted
    folders: list[StageFolder] = []
    for url in stage_folders(root, nameless=True):
        store = Store(url)
        folders.append(StageFolder(store, read_stage(store)))
    folders.sort(key=lambda folder: in_order(folder.record))

    rewritten = [
        folder
        for folder in folders
        if folder.record.corpus == corpus and get_stage(folder.record.stage).rewrite
    ]
    keys = frozenset(bytes.fromhex(key) for key in wanted.keys)
    for folder in rewritten:
        keys |= frozenset(_keys_by_url(folder, wanted))
    affected: list[AffectedFolder] = []
    for store, record in rewritten:
        found = AffectedFolder(store, record, _keys_by_shard(store, record, keys), _unfinished_forget(store))
        if found.shards or found.begun:
            affected.append(found)

    others = _others_made_from(folders, corpus) if affected else []
    removed = [folder for folder in others if _shows(folder, corpus)]
    models = [folder.store for folder in others if not _shows(folder, corpus)]
    tombstones = wanted | Tombstones(keys=frozenset(key.hex() for key in keys))
    return ForgetPlan(root, corpus, tombstones, tuple(affected), tuple(removed), tuple(models))


def rewriter_of(record: StageRecord) -> Rewriter:
    """Return how a folder's shards are written again, as its stage's declaration says."""
    return pkgutil.resolve_name(get_stage(record.stage).rewrite)(record)


def _others_made_from(folders: Sequence[StageFolder], corpus: str) -> list[StageFolder]:
    """Return the folders that were made from a corpus and cannot be rewritten."""
    others: list[StageFolder] = []
    for folder in folders:
        reads_corpus = any(name.endswith(f"/{corpus}") for name in folder.record.inputs)
        is_of_corpus = folder.record.corpus in {None, corpus}
        if reads_corpus and is_of_corpus and not get_stage(folder.record.stage).rewrite:
            others.append(folder)
    return others


def _shows(folder: StageFolder, corpus: str) -> bool:
    """Tell whether a folder shows a corpus's samples; a model that learnt from them does not."""
    return corpus in stage_job(folder.store, folder.record, ()).shown_corpora


def _unfinished_forget(store: Store) -> Forgotten | None:
    """Return what an earlier call left to be done: shards to write, or the manifest alone."""
    forgotten = read_forgotten(store)
    if forgotten is None:
        return None
    lacks_manifest = forgotten.finished and not store.exists(MANIFEST_FILE)
    if forgotten.pending or lacks_manifest:
        return forgotten
    return None


def _keys_by_url(folder: StageFolder, wanted: Tombstones) -> Iterator[bytes]:
    """Yield the keys of a folder's samples whose address is wanted."""
    if not (wanted.urls or wanted.hosts):
        return
    rewriter = rewriter_of(folder.record)

    def matching(shard: str) -> list[bytes]:
        addresses = rewriter.addresses(folder.store, shard)
        return [key for key, url in addresses if wanted.match(key, url)]

    for keys in map_ahead(matching, sorted(done_units(folder.store))):
        yield from keys


def _keys_by_shard(store: Store, record: StageRecord, keys: frozenset[bytes]) -> dict[str, frozenset[bytes]]:
    """Return which of the keys a folder's shards still hold, by shard."""
    if not keys:
        return {}
    rewriter = rewriter_of(record)

    def still_there(shard: str) -> tuple[str, frozenset[bytes]]:
        return shard, keys.intersection(rewriter.keys(store, shard))

    found: dict[str, frozenset[bytes]] = {}
    for shard, present in map_ahead(still_there, rewriter.shards(store)):
        if present:
            found[shard] = present
    return found


def affected_files(folder: AffectedFolder) -> list[str]:
    """Return the names of the files that would be written again."""
    rewriter = rewriter_of(folder.record)
    names: list[str] = []
    for shard in folder.shards:
        names += rewriter.files(shard)
    return names
