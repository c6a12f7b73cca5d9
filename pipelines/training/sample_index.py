"""Index of a recipe's training samples: how many of them each image shard has.

An Arrow IPC file with a row per shard, beside the run's logs, so that it is built once; every rank maps it.
It is built from the manifests of earlier stages. Where a fraction of each corpus is held out, the keys in
their ledgers decide how many samples are left. Nothing here opens a shard.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.corpora import HeldoutFraction
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.ledger import Status, key_fractions
from dualtoken.pipelines.core.receipts import LEDGERS, Manifest, fingerprint, read_manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.tables import read_input
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.images.samples import is_heldout
from dualtoken.pipelines.tokens.mapped_shards import Rows
from dualtoken.pipelines.tokens.shard_bounds import ShardBounds
from dualtoken.pipelines.tokens.shards import read_data_shard

INDEX_VERSION = 1
_SCHEMA = pa.schema(
    [
        pa.field("corpus", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("samples", pa.int64(), nullable=False),
    ]
)


Selection = Literal["download", "filter", "targets"]
"""Stage whose samples a training takes: all that were downloaded, those that the filter kept, or of these the
ones with stored targets."""


class ShardName(NamedTuple):
    """One image shard of one corpus."""

    corpus: str
    shard: str


class SampleIndex(ShardBounds):
    """The samples of all corpora, laid end to end in the order of corpora and shards."""

    def __init__(self, table: pa.Table, identity: str) -> None:
        """Read a table of `_SCHEMA`; `identity` changes with the corpora's content."""
        super().__init__(table["samples"].to_numpy())
        self._table = table
        self.identity = identity

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self._table)

    def name(self, number: int) -> ShardName:
        """Return which shard has a number."""
        return ShardName(self._table["corpus"][number].as_py(), self._table["shard"][number].as_py())

    def num_samples(self, number: int) -> int:
        """Return how many samples training sees of a shard."""
        return self._table["samples"][number].as_py()


def open_sample_index(job: StageJob, stage: Selection, scratch: Path) -> SampleIndex:
    """Open the index of the samples that a stage passed on; build it if need be.

    Ranks that build it at once write the same bytes.
    """
    manifests: dict[str, Manifest] = {}
    for corpus in job.recipe.training_corpora:
        manifest = read_manifest(job.input(stage, corpus))
        assert manifest is not None, "a job is planned on finished inputs"
        manifests[corpus] = manifest

    identity = _identity(job.recipe, stage, manifests)
    name = f"logs/samples-{identity}.arrow"
    store = job.store()
    table = _read_if_whole(store, name, scratch)
    if table is None:
        table = _build(job, stage, manifests)
        _write(table, store, name, scratch)
    return SampleIndex(table, identity)


def _identity(recipe: Recipe, stage: Selection, manifests: dict[str, Manifest]) -> str:
    heldout = None
    if isinstance(recipe.heldout, HeldoutFraction):
        heldout = recipe.heldout.identity()
    contents = {corpus: manifest.root_hash for corpus, manifest in manifests.items()}
    return fingerprint({"version": INDEX_VERSION, "stage": stage, "heldout": heldout, "corpora": contents})


def _read_if_whole(store: Store, name: str, scratch: Path) -> pa.Table | None:
    if not store.exists(name):
        return None
    try:
        return read_data_shard(store.local_copy(name, scratch))
    except pa.ArrowInvalid:
        return None


def _write(table: pa.Table, store: Store, name: str, scratch: Path) -> None:
    file = scratch / "samples.arrow"
    scratch.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        writer.write_table(table)
    store.put(file, name, move=True)


def _build(job: StageJob, stage: Selection, manifests: dict[str, Manifest]) -> pa.Table:
    corpora: list[str] = []
    shards: list[str] = []
    samples: list[int] = []
    for corpus, manifest in manifests.items():
        counts = _counts(job, stage, corpus, manifest)
        for shard, count in counts:
            if count:  # a shard without samples would take a place in a window
                corpora.append(corpus)
                shards.append(shard)
                samples.append(count)
    names = pa.array(corpora, pa.string()).dictionary_encode()
    columns = [names.cast(_SCHEMA.field("corpus").type), pa.array(shards, pa.string())]
    columns.append(pa.array(samples, pa.int64()))
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def _counts(job: StageJob, stage: Selection, corpus: str, manifest: Manifest) -> Iterator[tuple[str, int]]:
    """Yield each shard of a corpus with the number of its training samples."""
    if stage == "filter":
        # It has one unit, with a file of decisions for each image shard.
        images = read_manifest(job.input("download", corpus))
        assert images is not None, "a job is planned on finished inputs"
        names = [shard for shard, downloaded in images.units.items() if downloaded]
        yield from zip(names, map_ahead(lambda shard: _num_kept(job, corpus, shard), names), strict=True)
        return
    fraction = job.recipe.heldout_fraction
    if not fraction:
        yield from manifest.units.items()
        return
    store = job.input(stage, corpus)
    shards = [shard for shard, passed_on in manifest.units.items() if passed_on]
    counts = map_ahead(lambda shard: _num_not_heldout(store, shard, fraction), shards)
    yield from zip(shards, counts, strict=True)


def _num_kept(job: StageJob, corpus: str, shard: str) -> int:
    return sum(not is_heldout(job.recipe, corpus, key) for key in kept_keys(job, corpus, shard))


def kept_keys(job: StageJob, corpus: str, shard: str) -> list[bytes]:
    """Return the keys of a shard's samples that the filter kept, in the shard's order."""
    decisions = read_input(job.input("filter", corpus), f"{shard}.parquet", ["key", "keep"])
    return decisions.filter(decisions["keep"])["key"].to_pylist()


def _num_not_heldout(store: Store, shard: str, fraction: float) -> int:
    ledger = read_input(store, f"{LEDGERS}/{shard}.parquet", ["key", "status"])
    passed_on = ledger.filter(pc.field("status") == Status.OK.value)
    return int((key_fractions(passed_on["key"].to_pylist()) >= fraction).sum())


def places_in_shards(index: SampleIndex, rows: Rows) -> tuple[Rows, Rows]:
    """Return the shard of each row, and its place among the samples of the shard, (B,) each."""
    shards = index.shards_of(rows)
    return shards, rows - index.starts[shards]
