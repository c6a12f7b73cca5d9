"""Checks what checksums cannot: that the rows of a stage's folder are right, though each file is as committed.

Ledgers close; a token dataset's index, data, meta and ledger speak of the same keys, and its codes lie within their codebooks; and
a seeded sample of rows, encoded again from the image shards, gives the codes that are stored. Units whose files differ from their
receipts are left out: what is in them is not what anybody wrote; so are comparisons with an index or a manifest that is damaged.
Memory holds 32 bytes for each row of a dataset, while its keys are sorted.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.ledger import KEY_BYTES, Status, count_statuses
from dualtoken.pipelines.core.receipts import (
    LEDGERS,
    MANIFEST_FILE,
    Manifest,
    Receipt,
    done_units,
    iter_receipts,
    read_manifest,
)
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.maintenance.findings import Finding, FindingKind, Problem, VerifiedFolder
from dualtoken.pipelines.maintenance.reencode import DeepSettings, differences
from dualtoken.pipelines.runtime.stage_folder import read_stage, stage_job
from dualtoken.pipelines.tokens.captions import meta_path, resolve_meta_path
from dualtoken.pipelines.tokens.facts import STREAMS, TokenDetails, rows_of
from dualtoken.pipelines.tokens.shards import (
    INDEX_FILE,
    SCHEMA_VERSION,
    codes_of,
    data_path,
    read_data_shard,
    schema_metadata,
)


class _Shard(NamedTuple):
    """What the checks of one unit share."""

    receipt: Receipt
    table: pa.Table
    said: dict[str, str]
    """The schema's metadata."""


def deep_verify(
    checked: VerifiedFolder, settings: DeepSettings, print_line: Callable[[str], None]
) -> VerifiedFolder:
    """Add to a folder's findings those that its rows give; `print_line` hears what could not be looked at."""
    store, names = Store(checked.folder), {finding.name for finding in checked.findings}
    try:
        record = read_stage(store)
    except UserError:
        return checked  # which says so already
    units = sorted(done_units(store) - {finding.unit for finding in checked.findings})
    manifest = None if MANIFEST_FILE in names else read_manifest(store)
    index = (
        read_table(store, INDEX_FILE)
        if manifest and record.stage == "pretokenize" and INDEX_FILE not in names
        else None
    )
    tokens = _Tokens(store, manifest, index)
    rows: list[tuple[str, int]] = []
    found: list[Finding] = []
    for receipt in iter_receipts(store, units):
        problems = [
            *_check_ledger(store, receipt),
            *(tokens.check(receipt) if record.stage == "pretokenize" else ()),
        ]
        found += problems
        rows += [] if any(one.unit for one in problems) else [(receipt.unit, rows_of(receipt))]
    if record.stage == "pretokenize":
        found += tokens.keys_twice()
        again = differences(stage_job(store, record, ()), manifest, rows, settings, print_line)
        found += [_wrong(store, data_path(unit), unit, problem) for unit, problem in again]
    return replace(checked, findings=(*checked.findings, *found))


def _wrong(store: Store, name: str, unit: str | None, problem: str) -> Finding:
    return Finding(store.url, name, Problem(FindingKind.WRONG, problem), unit)


def _check_ledger(store: Store, receipt: Receipt) -> Iterator[Finding]:
    name = f"{LEDGERS}/{receipt.unit}.parquet"
    if all(file.name != name for file in receipt.files):
        return
    ledger = read_table(store, name)
    keys = ledger["key"].to_pylist()
    if not len(set(keys)) == len(keys) == receipt.rows:
        yield _wrong(
            store,
            name,
            receipt.unit,
            f"{len(set(keys))} keys in {len(keys)} rows, {receipt.rows} samples came in",
        )
    if (counts := count_statuses(ledger)) != receipt.counts:
        yield _wrong(store, name, receipt.unit, f"counts {counts}, its receipt says {receipt.counts}")


class _Tokens:
    """A token dataset's shards, compared one by one with the index and the manifest, and their keys with each other's."""

    def __init__(self, store: Store, manifest: Manifest | None, index: pa.Table | None) -> None:
        self._store, self._index, self._seen = store, index, list[np.ndarray[Any, Any]]()
        self._details = TokenDetails.of(manifest) if manifest and index else None
        self._places = {shard: row for row, shard in enumerate(index["shard"].to_pylist())} if index else {}

    def check(self, receipt: Receipt) -> Iterator[Finding]:
        """Yield what is wrong with one shard."""
        unit, name = receipt.unit, data_path(receipt.unit)
        with scratch_folder() as scratch:
            table = read_data_shard(self._store.local_copy(name, Path(scratch)))
            shard = _Shard(receipt, table, schema_metadata(table.schema))
            yield from (_wrong(self._store, name, unit, problem) for problem in _problems(self._store, shard))
            if self._index is not None and self._details is not None:
                row = (
                    self._index.slice(self._places[unit], 1).to_pylist()[0] if unit in self._places else None
                )
                yield from (
                    _wrong(self._store, INDEX_FILE, None, problem)
                    for problem in _index_problems(shard, row, self._details)
                )
            keys = b"".join(table["key"].to_pylist())
            self._seen.append(np.unique(np.frombuffer(keys, f"V{KEY_BYTES}")))

    def keys_twice(self) -> Iterator[Finding]:
        """Yield a key that is in two of the shards seen."""
        every = np.concatenate(self._seen) if self._seen else np.empty(0, f"V{KEY_BYTES}")
        self._seen.clear()
        every.sort()
        if twice := [one.tobytes().hex() for one in every[1:][every[1:] == every[:-1]][:1]]:
            yield _wrong(self._store, INDEX_FILE, None, f"the key {twice[0]} is in two shards")


def _problems(store: Store, shard: _Shard) -> Iterator[str]:
    """Yield what is wrong with one data shard and what stands beside it."""
    table, unit = shard.table, shard.receipt.unit
    keys = table["key"].to_pylist()
    if any(table[name].null_count for name in ("key", *STREAMS)):
        yield "it has nulls"
    for stream in STREAMS:
        codes, size = codes_of(table, stream), int(shard.said[f"dualtoken.{stream}_codes"])
        if len(codes) and (largest := int(codes.max())) >= size:
            row = int(np.flatnonzero((codes >= size).any(axis=1))[0])
            yield f"row {row}: {stream} code {largest} of a codebook of {size}"
    if keys != _meta_keys(store, shard.receipt):
        yield f"its keys are not those of {meta_path(shard.receipt)}, row by row"
    ledger = read_table(store, f"{LEDGERS}/{unit}.parquet")
    kept = ledger.filter(pc.field("status") == Status.OK.value)["key"].to_pylist()
    variants = len(keys) // len(kept) if kept else 1
    if keys != [key for key in kept for _ in range(variants)]:
        yield f"its keys are not those that ledger/{unit}.parquet passed on"


def _meta_keys(store: Store, receipt: Receipt) -> list[bytes]:
    """Return the keys beside a shard's captions; none where they are another dataset's, which is itself found damaged."""
    folder, name = resolve_meta_path(store, meta_path(receipt))
    try:
        return read_table(folder, name, ["key"])["key"].to_pylist()
    except (OSError, pa.ArrowInvalid):
        return []


def _index_problems(shard: _Shard, row: dict[str, Any] | None, details: TokenDetails) -> Iterator[str]:
    unit = shard.receipt.unit
    if row is None:
        yield f"shard {unit} is not in it"
        return
    record = next(file for file in shard.receipt.files if file.name == data_path(unit))
    theirs = {
        "path": record.name,
        "meta_path": meta_path(shard.receipt),
        "rows": len(shard.table),
        "bytes": record.bytes,
        "sha256": record.sha256,
        "xxh3_128": record.xxh3_128,
    }
    yield from (
        f"{name} of shard {unit} is {row[name]}, the shard's is {value}"
        for name, value in theirs.items()
        if row[name] != value
    )
    depth = int(shard.said["dualtoken.depth"])
    for stream in STREAMS:
        codes, size = codes_of(shard.table, stream).reshape(-1, depth), details.num_codes[stream]
        usage = [len(np.unique(codes[:, level])) / size for level in range(depth)]
        if not np.allclose(usage, row[f"{stream}_usage"], atol=1e-5):
            yield f"{stream}_usage of shard {unit} is not that of its codes"
    promised = {
        "schema_version": str(SCHEMA_VERSION),
        "tokenizer_sha256": details.tokenizer.sha256,
        "grid": "x".join(map(str, details.grid)),
        "depth": str(details.depth),
        **{f"{stream}_codes": str(details.num_codes[stream]) for stream in STREAMS},
    }
    for name, value in promised.items():
        if (found := shard.said[f"dualtoken.{name}"]) != value:
            yield f"shard {unit} has {name} {found}, the manifest says {value}"
