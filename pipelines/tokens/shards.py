"""Token shards and their index, which the MLLM stage trains from; FORMAT.md specifies them.

    manifest.json         schema version, tokenizer, counts, root hash; written last
    index.parquet         a row per shard
    data/00000.arrow      Arrow IPC *file*, uncompressed, batches of 256 rows
    meta/00000.parquet    caption, url, scores, in the same row order; or in another dataset's folder, see
                          `pipelines.tokens.captions`

The IPC file format fails loudly when it is cut (the stream format loses rows silently), and a row is one
contiguous read or a view of a memory map. Neither notices a flipped byte, hence the checksums.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.digests import DigestingFile, FileDigest
from dualtoken.infra.storage import Store
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.pipelines.core.ledger import KEY_BYTES
from dualtoken.pipelines.core.receipts import (
    MANIFEST_FILE,
    RECEIPTS,
    STAGE_FILE,
    Manifest,
    Receipt,
    clock_problem,
)
from dualtoken.pipelines.tokens.captions import meta_path
from dualtoken.pipelines.tokens.facts import STREAMS, TokenFacts, TokenizerIdentity, rows_of

TOKEN_STAGE = "pretokenize"  # noqa: S105
"""Stage that the manifest of a token dataset names, a part of the format."""
SCHEMA_VERSION = 1
"""Version of shards, and of datasets that have their own captions."""
SHARED_CAPTIONS_VERSION = 2
"""Version of datasets that share another one's captions: older readers do not look for them there."""
ROWS_PER_BATCH = 256
"""Rows of each batch of a data shard, but for the last one."""
INDEX_FILE = "index.parquet"

INDEX_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("meta_path", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("xxh3_128", pa.string(), nullable=False),
        pa.field("semantic_usage", pa.list_(pa.float32()), nullable=False),
        pa.field("pixel_usage", pa.list_(pa.float32()), nullable=False),
        pa.field("statuses", pa.map_(pa.string(), pa.int64()), nullable=False),
    ]
)
"""Columns of the index; usage is the share of a codebook's codes that the shard uses, per depth."""

Ids = np.ndarray[Any, np.dtype[np.uint16]]
"""Codes of any shape."""


def token_schema(
    config: TokenizerConfig, tokenizer: TokenizerIdentity, preprocessing: str, precision: str = "float32"
) -> pa.Schema:
    """Return the schema of a data shard.

    `preprocessing` says what was done to images before they were encoded, `precision` which numbers the
    encoder computed in.
    """
    codes_per_row = config.grid_size**2 * config.pixel.depth
    codes = pa.list_(pa.field("item", pa.uint16(), nullable=False), codes_per_row)
    fields = [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("semantic", codes, nullable=False),
        pa.field("pixel", codes, nullable=False),
    ]
    metadata = {
        "dualtoken.schema_version": str(SCHEMA_VERSION),
        "dualtoken.tokenizer_fingerprint": tokenizer.fingerprint,
        "dualtoken.tokenizer_sha256": tokenizer.sha256,
        "dualtoken.preprocessing": preprocessing,
        "dualtoken.grid": f"{config.grid_size}x{config.grid_size}",
        "dualtoken.depth": str(config.pixel.depth),
        "dualtoken.semantic_codes": str(config.semantic.num_codes),
        "dualtoken.pixel_codes": str(config.pixel.num_codes),
        "dualtoken.order": "position-major, depth-minor",
        "dualtoken.precision": precision,
    }
    return pa.schema(fields, metadata=metadata)


class TokenShardWriter:
    """Writes one data shard as rows come, holding at most one batch; takes its checksums on the way."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = schema
        self._codes_type = schema.field(STREAMS[0]).type
        self._keys: list[bytes] = []
        """Keys of the rows that do not fill a batch yet."""
        self._codes: list[Ids] = []
        """Codes of those rows, by stream, each with room for a whole batch."""
        for _ in STREAMS:
            self._codes.append(np.empty((ROWS_PER_BATCH, self._codes_type.list_size), np.uint16))
        self._file = DigestingFile(path)
        self._writer = pa.ipc.new_file(self._file, schema)
        self.rows = 0
        """Rows written to the file so far."""

    def __enter__(self) -> Self:
        return self

    def append(self, keys: Sequence[bytes], semantic: Ids, pixel: Ids) -> None:
        """Add rows; `semantic` and `pixel` are (rows, codes of a row)."""
        first = 0
        while first < len(keys):
            room = ROWS_PER_BATCH - len(self._keys)
            last = min(len(keys), first + room)
            streams = [semantic[first:last], pixel[first:last]]
            if last - first == ROWS_PER_BATCH:
                self._write(keys[first:last], streams)
            else:
                self._collect(keys[first:last], streams)
            first = last

    def _collect(self, keys: Sequence[bytes], streams: Sequence[Ids]) -> None:
        """Add rows to the batch that is not full yet, and write it once it is."""
        first = len(self._keys)
        last = first + len(keys)
        self._keys += keys
        for codes, ids in zip(self._codes, streams, strict=True):
            codes[first:last] = ids
        if last == ROWS_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        rows = len(self._keys)
        self._write(self._keys, [codes[:rows] for codes in self._codes])
        self._keys = []

    def _write(self, keys: Sequence[bytes], streams: Sequence[Ids]) -> None:
        lists = [_fixed_lists(ids, self._codes_type) for ids in streams]
        columns = [pa.array(keys, pa.binary(KEY_BYTES)), *lists]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self.rows += len(keys)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the file, unless the block raised: it is then left cut, and no reader takes it for whole."""
        with self._file:
            if error is None:
                if self._keys:
                    self._flush()
                self._writer.close()

    @property
    def digest(self) -> FileDigest:
        """The closed file's size and checksums."""
        assert self._file.closed, "a file's checksums are known when it is closed"
        return self._file.digest


def schema_metadata(schema: pa.Schema) -> dict[str, str]:
    """Return the metadata of a data shard's schema as text."""
    return {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}


def write_data_shard(path: Path, schema: pa.Schema, keys: list[bytes], semantic: Ids, pixel: Ids) -> None:
    """Write one data shard; `semantic` and `pixel` are (rows, codes of a row)."""
    with TokenShardWriter(path, schema) as writer:
        writer.append(keys, semantic, pixel)


def _fixed_lists(ids: Ids, kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(ids).reshape(-1)), type=kind)


def read_data_shard(path: Path) -> pa.Table:
    """Map a data shard, or any other Arrow file, into memory; a cut file raises `pa.ArrowInvalid`."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def codes_of(table: pa.Table, stream: str) -> Ids:
    """Return a stream's codes as (rows, codes of a row)."""
    column = table[stream].combine_chunks()
    codes_per_row = table.schema.field(stream).type.list_size
    if not len(column):
        return np.zeros((0, codes_per_row), np.uint16)
    return column.flatten().to_numpy().reshape(-1, codes_per_row)


class IndexBuilder:
    """Builds a corpus's index from its receipts, one at a time.

    Rows become columns `ROWS_AT_ONCE` at a time, which takes less memory than a Python object for every row.
    """

    ROWS_AT_ONCE = 4096

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._parts = [INDEX_SCHEMA.empty_table()]

    def add(self, receipt: Receipt) -> None:
        """Add a unit's row; units come in their order."""
        self._rows.append(_index_row(receipt))
        if len(self._rows) == self.ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._parts.append(pa.Table.from_pylist(self._rows, schema=INDEX_SCHEMA))
        self._rows.clear()

    def write(self, path: Path) -> pa.Table:
        """Write the index, and return it."""
        if self._rows:
            self._flush()
        index = pa.concat_tables(self._parts).combine_chunks()
        pq.write_table(index, path)
        return index


def write_index(path: Path, receipts: Iterable[Receipt]) -> pa.Table:
    """Write the index from the receipts of a finished corpus, and return it."""
    index = IndexBuilder()
    for receipt in receipts:
        index.add(receipt)
    return index.write(path)


def data_path(unit: str) -> str:
    """Name a unit's data shard in its dataset's folder."""
    return f"data/{unit}.arrow"


def _index_row(receipt: Receipt) -> dict[str, Any]:
    files = {file.name: file for file in receipt.files}
    data = files[data_path(receipt.unit)]
    usage = TokenFacts.of(receipt).usage
    return {
        "shard": receipt.unit,
        "path": data.name,
        "meta_path": meta_path(receipt),
        "rows": rows_of(receipt),
        "bytes": data.bytes,
        "sha256": data.sha256,
        "xxh3_128": data.xxh3_128,
        "semantic_usage": usage["semantic"],
        "pixel_usage": usage["pixel"],
        "statuses": list(receipt.counts.items()),
    }


def require_finished(store: Store) -> Manifest:
    """Return a token dataset's manifest.

    Raises ValueError for a dataset that is unfinished, newer than this reader or none of ours, for a damaged
    manifest, and for one whose clock was wrong.
    """
    try:
        data = store.read(MANIFEST_FILE)
    except FileNotFoundError:
        raise ValueError(_why_no_manifest(store)) from None
    _require_known(store.url, data)
    manifest = Manifest.from_bytes(data, f"{store.url}/{MANIFEST_FILE}")
    problem = clock_problem(manifest.last_finished_at, manifest.first_started_at)
    if problem:
        raise ValueError(
            f"{store.url} was {problem}: set the clock right, or, where it was wrong then, "
            "run `dualtoken verify --repair`"
        )
    return manifest


def _why_no_manifest(store: Store) -> str:
    """Say of a folder without a manifest that it is an unfinished dataset, or that it is none."""
    folders = store.folders()
    if store.exists(STAGE_FILE) or RECEIPTS in folders:
        return f"{store.url} has no {MANIFEST_FILE}: it is unfinished; run `dualtoken pretokenize` again"
    advice = "give <corpus>/tokens/<fingerprint>"
    if not folders:
        return f"{store.url} holds no token dataset: {advice}"
    return f"{store.url} is no token dataset but holds {', '.join(folders[:8])}: {advice}"


def _require_known(url: str, data: bytes) -> None:
    """Check stage and version before any other field: a newer version may have fields unknown here."""
    try:
        document = json.loads(data)
        stage = document["stage"]
        version = document["details"]["schema_version"] if stage == TOKEN_STAGE else 0
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{url}/{MANIFEST_FILE} is none of ours: give the folder of a token dataset"
        ) from None
    if stage != TOKEN_STAGE:
        raise ValueError(
            f"{url} is a folder of the stage {stage}: give one of pretokenize, <corpus>/tokens/<fingerprint>"
        )
    if not isinstance(version, int) or version > SHARED_CAPTIONS_VERSION:
        raise ValueError(
            f"{url} has schema version {version}, this reader knows {SHARED_CAPTIONS_VERSION}: "
            "update dualtoken"
        )
