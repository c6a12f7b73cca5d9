"""Checks what checksums cannot: that the rows of a stage's folder are right, though each file is as committed.

Ledgers close; a token dataset's index, data, meta and ledger speak of the same keys, and its codes lie within their codebooks; and
a seeded sample of rows, encoded again from the image shards, gives the codes that are stored. Units whose files differ from their
receipts are left out: what is in them is not what anybody wrote. Memory holds 16 bytes for each row of a dataset.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import Store, digest, scratch_folder
from pipelines.captions import meta_path, meta_place
from pipelines.errors import UserError
from pipelines.finish import WEIGHTS
from pipelines.ledger import KEY_BYTES, Status, count_statuses
from pipelines.receipts import LEDGERS, MANIFEST_FILE, Receipt, done_units, read_manifest, receipt_name
from pipelines.samples import KeptRow, open_shard, read_table
from pipelines.stage import StageJob
from pipelines.stage_folder import read_stage, stage_job
from pipelines.token_shards import SCHEMA_VERSION, STREAMS, codes_of, read_data_shard, rows_of, said_of
from pipelines.totals import Totals
from pipelines.verify import Finding, Verified


class DeepSettings(NamedTuple):
    """How deep to look."""

    sample: int = 64
    """Rows of a token dataset to encode again."""
    seed: int = 0
    tolerance: float = 0.0
    """Share of a row's codes that may be others than stored: another kind of device rounds in other ways."""


class _Shard(NamedTuple):
    """What the checks of one unit share."""

    receipt: Receipt
    table: pa.Table
    said: dict[str, str]
    """The schema's metadata."""


def deepen(checked: Verified, settings: DeepSettings, say: Callable[[str], None]) -> Verified:
    """Add to a folder's findings those that its rows give; `say` hears what could not be looked at."""
    store = Store(checked.folder)
    damaged = {finding.unit for finding in checked.findings}
    units = sorted(done_units(store) - damaged)
    receipts = {unit: Receipt.from_bytes(store.read(receipt_name(unit))) for unit in units}
    found = [finding for receipt in receipts.values() for finding in _check_ledger(store, receipt)]
    if read_stage(store).stage == "pretokenize":
        found += _check_tokens(store, receipts)
        wrong = {finding.unit for finding in found}
        found += _encode_again(store, [receipt for unit, receipt in receipts.items() if unit not in wrong], settings, say)
    if not damaged and (manifest := read_manifest(store)):
        totals = Totals()
        for receipt in receipts.values():
            totals.add(receipt)
        if (manifest.counts, manifest.rows_in) != (totals.counts, totals.rows):
            found.append(_wrong(store, MANIFEST_FILE, None, "its counts are not the sum of the receipts'"))
    return replace(checked, findings=(*checked.findings, *found))


def _wrong(store: Store, name: str, unit: str | None, problem: str) -> Finding:
    return Finding(store.url, name, f"wrong: {problem}", unit, as_committed=True)


def _check_ledger(store: Store, receipt: Receipt) -> Iterator[Finding]:
    name = f"{LEDGERS}/{receipt.unit}.parquet"
    if all(file.name != name for file in receipt.files):
        return
    ledger = read_table(store, name)
    keys = ledger["key"].to_pylist()
    if not len(set(keys)) == len(keys) == receipt.rows:
        yield _wrong(store, name, receipt.unit, f"{len(set(keys))} keys in {len(keys)} rows, {receipt.rows} samples came in")
    if (counts := count_statuses(ledger)) != receipt.counts:
        yield _wrong(store, name, receipt.unit, f"counts {counts}, its receipt says {receipt.counts}")


def _check_tokens(store: Store, receipts: Mapping[str, Receipt]) -> Iterator[Finding]:
    manifest = read_manifest(store)
    index = {row["shard"]: row for row in read_table(store, "index.parquet").to_pylist()} if manifest else None
    seen: list[np.ndarray[Any, Any]] = []
    for unit, receipt in receipts.items():
        name = f"data/{unit}.arrow"
        with scratch_folder() as scratch:
            table = read_data_shard(store.local_copy(name, Path(scratch)))
            shard = _Shard(receipt, table, said_of(table.schema))
            yield from (_wrong(store, name, unit, problem) for problem in _problems(store, shard))
            if index is not None and manifest is not None:
                details = manifest.details | {"tokenizer": manifest.details["tokenizer"]["sha256"]}
                yield from (_wrong(store, "index.parquet", None, problem) for problem in _index_problems(shard, index.get(unit), details))
            keys = table["key"].combine_chunks()
            seen.append(np.unique(np.frombuffer(b"".join(keys.to_pylist()), f"V{KEY_BYTES}")))
    every = np.sort(np.concatenate(seen)) if seen else np.empty(0, f"V{KEY_BYTES}")
    if twice := [one.tobytes().hex() for one in every[1:][every[1:] == every[:-1]][:1]]:
        yield _wrong(store, "index.parquet", None, f"the key {twice[0]} is in two shards")


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
    folder, name = meta_place(store, meta_path(receipt))
    try:
        return read_table(folder, name, ["key"])["key"].to_pylist()
    except (OSError, pa.ArrowInvalid):
        return []


def _index_problems(shard: _Shard, row: dict[str, Any] | None, details: dict[str, Any]) -> Iterator[str]:
    unit = shard.receipt.unit
    if row is None:
        yield f"shard {unit} is not in it"
        return
    record = next(file for file in shard.receipt.files if file.name == row["path"])
    theirs = {
        "meta_path": meta_path(shard.receipt),
        "rows": len(shard.table),
        "bytes": record.bytes,
        "sha256": record.sha256,
        "xxh3_128": record.xxh3_128,
    }
    yield from (f"{name} of shard {unit} is {row[name]}, the shard's is {value}" for name, value in theirs.items() if row[name] != value)
    depth = int(shard.said["dualtoken.depth"])
    for stream in STREAMS:
        codes, size = codes_of(shard.table, stream).reshape(-1, depth), details["codes"][stream]
        usage = [len(np.unique(codes[:, level])) / size for level in range(depth)]
        if not np.allclose(usage, row[f"{stream}_usage"], atol=1e-5):
            yield f"{stream}_usage of shard {unit} is not that of its codes"
    promised = {
        "schema_version": str(SCHEMA_VERSION),
        "tokenizer_sha256": details["tokenizer"],
        "grid": "x".join(map(str, details["grid"])),
        "depth": str(details["depth"]),
        **{f"{stream}_codes": str(details["codes"][stream]) for stream in STREAMS},
    }
    for name, value in promised.items():
        if (found := shard.said[f"dualtoken.{name}"]) != value:
            yield f"shard {unit} has {name} {found}, the manifest says {value}"


def _encode_again(store: Store, receipts: list[Receipt], settings: DeepSettings, say: Callable[[str], None]) -> Iterator[Finding]:
    """Encode a sample of rows from the image shards and compare."""
    places = [(receipt.unit, row) for receipt in receipts for row in range(rows_of(receipt))]
    chosen = random.Random(settings.seed).sample(places, min(settings.sample, len(places)))
    job = stage_job(store, read_stage(store))
    if problem := _not_at_hand(job):
        say(f"{store.url}: no row is encoded again: {problem}")
        return
    if not chosen:
        return
    from pipelines.models import open_tokenizer  # noqa: PLC0415  (PyTorch takes seconds)

    tokenizer = open_tokenizer(job)
    by_unit: dict[str, list[int]] = {}
    for unit, row in chosen:
        by_unit.setdefault(unit, []).append(row)
    for unit, rows in sorted(by_unit.items()):
        name = f"data/{unit}.arrow"
        yield from (_wrong(store, name, unit, problem) for problem in _compare(job, tokenizer, unit, sorted(rows), settings.tolerance))
    say(f"{store.url}: {len(chosen)} rows of {len(by_unit)} shards encoded again")


def _not_at_hand(job: StageJob) -> str | None:
    images, model = job.input("download"), job.input("train")
    if not images.exists(MANIFEST_FILE):
        return f"{images.url} is gone or unfinished"
    if not model.exists(WEIGHTS):
        return f"{model.url} has no {WEIGHTS}"
    with scratch_folder() as scratch:
        found, wanted = digest(model.local_copy(WEIGHTS, Path(scratch))).sha256, read_manifest(job.store())
    if wanted and found != wanted.details["tokenizer"]["sha256"]:
        return f"{model.url} holds other weights than the codes were made with"
    return None


def _compare(job: StageJob, tokenizer: Any, unit: str, rows: list[int], tolerance: float) -> Iterator[str]:  # noqa: ANN401
    with scratch_folder() as name:
        scratch = Path(name)
        table = read_data_shard(job.store().local_copy(f"data/{unit}.arrow", scratch / "tokens")).take(pa.array(rows, pa.int64()))
        try:
            parts = _encode_rows(job, tokenizer, unit, dict(zip(rows, table["key"].to_pylist(), strict=True)), scratch)
        except (KeyError, OSError, UserError) as error:
            yield f"its images cannot be read again: {error}"
            return
    for number, stream in enumerate(STREAMS):
        again = np.concatenate([part[number].reshape(len(part[number]), -1) for part in parts])
        others = (again != codes_of(table, stream)).mean(axis=1)
        for row, share in zip(rows, others, strict=True):
            if share > tolerance:
                yield f"row {row}: {share:.1%} of the {stream} codes are others when it is encoded again"


def _encode_rows(job: StageJob, tokenizer: Any, unit: str, keys: Mapping[int, bytes], scratch: Path) -> list[Any]:  # noqa: ANN401
    """Encode rows of a unit, given with their keys, as the stage did; of a sample with crops, the row's one alone."""
    from pipelines.token_stream import ImageStream, Undecodable  # noqa: PLC0415  (as above)

    shard, config = open_shard(job.input("download"), unit, scratch), job.recipe.pretokenize
    place = {key: row for row, key in enumerate(shard.keys)}
    samples = [KeptRow(place[key], key) for key in keys.values()]
    variants, parts = (row % config.num_variants for row in keys), []
    for batch in ImageStream(config, tokenizer.network.transform, beside_gpu=False).batches(shard, samples):
        if lost := next((found for found in batch.found if isinstance(found, Undecodable)), None):
            raise OSError(lost.detail)
        levels = batch.levels.unflatten(0, (-1, config.num_variants))
        parts.append(tokenizer.encode_levels(levels[range(len(levels)), list(islice(variants, len(levels)))]))
    return parts
