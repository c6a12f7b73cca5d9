"""Encodes a seeded sample of a token dataset's rows again from their images, and compares the codes."""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dualtoken.infra.digests import digest
from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.store_refusals import StoreRefusal
from dualtoken.model.hub.model_name import WEIGHTS
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, Manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.samples import KeptSample, open_image_shard
from dualtoken.pipelines.tokens.facts import STREAMS, TokenDetails
from dualtoken.pipelines.tokens.shards import codes_of, data_path, read_data_shard


class DeepSettings(NamedTuple):
    """Settings of a deep check: the sample to encode again, and the tolerance of other devices."""

    sample: int = 64
    """Rows of a token dataset to encode again."""
    seed: int = 0
    """Seed that chooses them."""
    tolerance: float = 0.0
    """Share of a row's codes that may be others than stored: another kind of device rounds in other ways."""


def differences(
    job: StageJob,
    manifest: Manifest | None,
    shards: Sequence[tuple[str, int]],
    settings: DeepSettings,
    print_line: Callable[[str], None],
) -> Iterator[tuple[str, str]]:
    """Yield (shard, problem) for those of a sample of rows that differ.

    `shards` are names and rows; `print_line` tells what was done, or why nothing could be.
    """
    store = job.store()
    problem = _not_at_hand(job, manifest)
    if problem:
        print_line(f"{store.url}: no row is encoded again: {problem}")
        return
    chosen = _choose_rows(shards, settings)
    if not chosen:
        return
    from dualtoken.pipelines.inference.networks import (  # noqa: PLC0415  (PyTorch takes seconds)
        best_device,
        open_tokenizer,
        prepare_process,
    )

    prepare_process(threads=1)
    tokenizer = open_tokenizer(job, best_device())
    for unit, rows in chosen.items():
        for problem in _compare(job, tokenizer, unit, rows, settings.tolerance):
            yield unit, problem
    num_rows = sum(map(len, chosen.values()))
    print_line(f"{store.url}: {num_rows} rows of {len(chosen)} shards encoded again")


def _choose_rows(shards: Sequence[tuple[str, int]], settings: DeepSettings) -> dict[str, list[int]]:
    """Return the rows to encode again, in order, by their shard, in order."""
    ends = list(accumulate(rows for _, rows in shards))
    total = ends[-1] if ends else 0
    numbers = random.Random(settings.seed).sample(range(total), min(settings.sample, total))
    chosen: dict[str, list[int]] = {}
    for number in sorted(numbers):
        place = bisect_right(ends, number)
        unit, rows = shards[place]
        first = ends[place] - rows
        chosen.setdefault(unit, []).append(number - first)
    return dict(sorted(chosen.items()))


def _not_at_hand(job: StageJob, manifest: Manifest | None) -> str | None:
    """Return why rows cannot be encoded again, or None."""
    images = job.input("download")
    if not images.exists(MANIFEST_FILE):
        return f"{images.url} is gone or unfinished"
    model = job.input("train")
    if not model.exists(WEIGHTS):
        return f"{model.url} has no {WEIGHTS}"
    with scratch_folder() as scratch:
        sha256 = digest(model.local_copy(WEIGHTS, Path(scratch))).sha256
    if manifest is not None and sha256 != TokenDetails.of(manifest).tokenizer.sha256:
        return f"{model.url} holds other weights than the codes were made with"
    return None


def _compare(
    job: StageJob,
    tokenizer: Any,  # noqa: ANN401  (a `TokenizerRunner`, whose module imports PyTorch)
    unit: str,
    rows: list[int],
    tolerance: float,
) -> Iterator[str]:
    """Yield how a shard's rows differ from what the tokenizer gives now."""
    with scratch_folder() as name:
        scratch = Path(name)
        path = job.store().local_copy(data_path(unit), scratch / "tokens")
        table = read_data_shard(path).take(pa.array(rows, pa.int64()))
        keys = dict(zip(rows, table["key"].to_pylist(), strict=True))
        try:
            encoded, undecodable = _encode_rows(job, tokenizer, unit, keys, scratch)
        except (KeyError, OSError, UserError) as error:
            if is_machine_trouble(error) or isinstance(error, StoreRefusal):
                raise
            yield f"its images cannot be read again: {error}"
            return
    for row, problem in undecodable.items():
        yield f"row {row}: its image cannot be decoded again: {problem}"
    for stream in STREAMS:
        differs = encoded[stream] != codes_of(table, stream)
        for row, share in zip(rows, differs.mean(axis=1), strict=True):
            if share > tolerance and row not in undecodable:
                yield f"row {row}: {share:.1%} of the {stream} codes are others when it is encoded again"


def _encode_rows(
    job: StageJob,
    tokenizer: Any,  # noqa: ANN401  (as above)
    unit: str,
    keys: Mapping[int, bytes],
    scratch: Path,
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[int, str]]:
    """Encode rows of a unit, given with their keys, as the stage did; return their codes by stream.

    Codes are (rows, codes of a row). Of a sample with crops, the row's one alone is encoded. With them come
    the rows whose image cannot be decoded, and why; their codes mean nothing.
    """
    from dualtoken.pipelines.inference.image_stream import ImageStream, Undecodable  # noqa: PLC0415

    shard = open_image_shard(job.input("download"), unit, scratch)
    config = job.recipe.pretokenize
    places = {key: place for place, key in enumerate(shard.keys)}
    samples = [KeptSample(places[key], key) for key in keys.values()]
    variants = [row % config.num_variants for row in keys]
    parts: dict[str, list[np.ndarray[Any, Any]]] = {stream: [] for stream in STREAMS}
    undecodable: dict[int, str] = {}
    numbers = list(keys)
    first = 0
    stream_of_images = ImageStream(config, tokenizer.network.transform, beside_gpu=False)
    for batch in stream_of_images.batches(shard, samples):
        for row, found in zip(numbers[first:], batch.found, strict=False):
            if isinstance(found, Undecodable):
                undecodable[row] = found.detail
        levels = batch.levels.unflatten(0, (-1, config.num_variants))
        last = first + len(levels)
        codes = tokenizer.encode_levels(levels[range(len(levels)), variants[first:last]])
        first = last
        for stream, ids in zip(STREAMS, codes, strict=True):
            parts[stream].append(ids.reshape(len(ids), -1))
    codes_by_stream = {stream: np.concatenate(arrays) for stream, arrays in parts.items()}
    return codes_by_stream, undecodable
