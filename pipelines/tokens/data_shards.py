"""Opens the data shards of one dataset: each is checked and mapped when its first row is asked for.

B rows.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.ledger import KEY_BYTES
from dualtoken.pipelines.core.receipts import FileRecord
from dualtoken.pipelines.core.threads import map_ahead_unless_ready
from dualtoken.pipelines.tokens.checked_files import CheckedFiles, DamagedShardError
from dualtoken.pipelines.tokens.dataset_index import DatasetIndex
from dualtoken.pipelines.tokens.lent_rows import LEAST_BYTES
from dualtoken.pipelines.tokens.mapped_shards import MappedShard, Rows, Words, are_side_by_side, map_shard
from dualtoken.pipelines.tokens.open_shards import ShardMaps
from dualtoken.pipelines.tokens.shards import ROWS_PER_BATCH


class DataShards:
    """Codes and keys of a dataset in memory; a pickled copy has no shard open."""

    def __init__(
        self,
        files: CheckedFiles,
        index: DatasetIndex,
        *,
        streams: Sequence[str],
        codes_per_row: int,
        tokenizer_sha256: str,
    ) -> None:
        """Open nothing yet; shards must hold `streams`, and codes of the tokenizer with these weights."""
        self._files = files
        self._index = index
        self._tokenizer_sha256 = tokenizer_sha256
        self._streams = tuple(streams)
        self._codes_per_row = codes_per_row
        self._num_threads = files.num_threads(index.largest)
        copies = None if files.is_local else files.cache
        self._open = ShardMaps(len(index), index.max_batches, ("key", *streams), copies)

    @property
    def maps(self) -> dict[int, MappedShard]:
        """Shards that are mapped, by number."""
        return self._open.maps

    def width(self, column: str) -> int:
        """Return the 16-bit words of a row of a column."""
        return KEY_BYTES // 2 if column == "key" else self._codes_per_row

    def metadata(self, row: int) -> dict[str, str]:
        """Return the schema's metadata of a row's shard; raises as `addresses`."""
        rows = np.array([row], np.int64)
        self.addresses(rows, ())
        return self.maps[int(self._index.shards_of(rows)[0])].metadata

    def addresses(self, rows: Rows, columns: Sequence[str]) -> dict[str, Rows]:
        """Return by column where rows, (B,), lie in memory; valid until the next call.

        Raises `DamagedShardError` where a shard is not as committed.
        """
        shards = self._index.shards_of(rows)
        batches, places = np.divmod(rows - self._index.starts[shards], ROWS_PER_BATCH)
        begins = self._open.begins(shards, batches, self._map_all)
        addresses: dict[str, Rows] = {}
        for name in columns:
            row_bytes = 2 * self.width(name)
            addresses[name] = begins[name] + places * row_bytes
        return addresses

    def lend(self, row: int, column: str, addresses: Rows) -> Words | None:
        """Return rows of a column as they lie in a shard, writable; None where they must be copied.

        `row` is the first of them, and `addresses`, (B,), are what was just returned for all. See
        `lent_rows`.
        """
        width = self.width(column)
        is_large = 2 * width * len(addresses) >= LEAST_BYTES
        if not is_large or not are_side_by_side(addresses, 2 * width):
            return None
        shard = self.maps[self._index.shard_of(row)]
        return shard.lender.lend(int(addresses[0]) - shard.begin, (len(addresses), width))

    def _map_all(self, numbers: Sequence[int]) -> Iterator[MappedShard]:
        # Side by side: a batch shuffled over all shards lacks as many as it has rows at first.
        store = self._files.store()
        return map_ahead_unless_ready(
            lambda number: self._map(store, number), numbers, self._is_ready, self._num_threads
        )

    def _is_ready(self, number: int) -> bool:
        return self._files.is_ready(self._index.entry(number).data)

    def _map(self, store: Store, number: int) -> MappedShard:
        """Map a shard; raises `DamagedShardError`, which then names the shard by its number too."""
        entry = self._index.entry(number)
        types = self._types()
        try:
            shard = self._files.open(store, entry.data, lambda path: map_shard(path, types))
            self._require_own(shard, entry.data, entry.rows)
        except DamagedShardError as error:
            error.shard = (self._files.url, number)
            raise
        return shard

    def _types(self) -> dict[str, pa.DataType]:
        """Return the types of the columns to map."""
        # Not kept: a pickled type forgets that its items are never null.
        codes = pa.list_(pa.field("item", pa.uint16(), nullable=False), self._codes_per_row)
        return {"key": pa.binary(KEY_BYTES), **dict.fromkeys(self._streams, codes)}

    def _require_own(self, shard: MappedShard, file: FileRecord, rows: int) -> None:
        """Raise `DamagedShardError` where a shard is another dataset's."""
        if shard.rows != rows:
            raise DamagedShardError.of(
                self._files.url, file.name, f"{shard.rows} rows, the index says {rows}"
            )
        sha256 = shard.metadata.get("dualtoken.tokenizer_sha256")
        if sha256 != self._tokenizer_sha256:
            raise DamagedShardError.of(
                self._files.url,
                file.name,
                f"codes of tokenizer {sha256}, the manifest says {self._tokenizer_sha256}",
            )
