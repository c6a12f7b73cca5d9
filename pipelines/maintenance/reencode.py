"""Encodes a seeded sample of a token dataset's rows again from the image shards, and compares the codes with those stored."""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dualtoken.infra.digests import digest
from dualtoken.infra.scratch import scratch_folder
from dualtoken.model.hub.model_name import WEIGHTS
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, Manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.samples import KeptSample, open_image_shard
from dualtoken.pipelines.tokens.facts import STREAMS, TokenDetails
from dualtoken.pipelines.tokens.shards import codes_of, data_path, read_data_shard


class DeepSettings(NamedTuple):
    """How deep to look."""

    sample: int = 64
    """Rows of a token dataset to encode again."""
    seed: int = 0
    tolerance: float = 0.0
    """Share of a row's codes that may be others than stored: another kind of device rounds in other ways."""


def differences(
    job: StageJob,
    manifest: Manifest | None,
    shards: Sequence[tuple[str, int]],
    settings: DeepSettings,
    print_line: Callable[[str], None],
) -> Iterator[tuple[str, str]]:
    """Yield (shard, problem) for those of a sample of rows that differ; `shards` are names and rows, `print_line` hears what was done."""
    store, ends = job.store(), list(accumulate(rows for _, rows in shards))
    total = ends[-1] if ends else 0
    chosen = random.Random(settings.seed).sample(range(total), min(settings.sample, total))
    if problem := _not_at_hand(job, manifest):
        print_line(f"{store.url}: no row is encoded again: {problem}")
        return
    if not chosen:
        return
    from dualtoken.pipelines.inference.networks import (  # noqa: PLC0415  (PyTorch takes seconds)
        best_device,
        open_tokenizer,
        prepare_process,
    )

    prepare_process(threads=1, exact_float32=True)
    tokenizer = open_tokenizer(job, best_device())
    by_unit: dict[str, list[int]] = {}
    for number in chosen:
        unit, rows = shards[place := bisect_right(ends, number)]
        by_unit.setdefault(unit, []).append(number - ends[place] + rows)
    for unit, chosen_rows in sorted(by_unit.items()):
        yield from (
            (unit, problem)
            for problem in _compare(job, tokenizer, unit, sorted(chosen_rows), settings.tolerance)
        )
    print_line(f"{store.url}: {len(chosen)} rows of {len(by_unit)} shards encoded again")


def _not_at_hand(job: StageJob, manifest: Manifest | None) -> str | None:
    images, model = job.input("download"), job.input("train")
    if not images.exists(MANIFEST_FILE):
        return f"{images.url} is gone or unfinished"
    if not model.exists(WEIGHTS):
        return f"{model.url} has no {WEIGHTS}"
    with scratch_folder() as scratch:
        found = digest(model.local_copy(WEIGHTS, Path(scratch))).sha256
    if manifest and found != TokenDetails.of(manifest).tokenizer.sha256:
        return f"{model.url} holds other weights than the codes were made with"
    return None


def _compare(job: StageJob, tokenizer: Any, unit: str, rows: list[int], tolerance: float) -> Iterator[str]:  # noqa: ANN401
    with scratch_folder() as name:
        scratch = Path(name)
        table = read_data_shard(job.store().local_copy(data_path(unit), scratch / "tokens")).take(
            pa.array(rows, pa.int64())
        )
        try:
            parts = _encode_rows(
                job, tokenizer, unit, dict(zip(rows, table["key"].to_pylist(), strict=True)), scratch
            )
        except (KeyError, OSError, UserError) as error:
            yield f"its images cannot be read again: {error}"
            return
    for number, stream in enumerate(STREAMS):
        again = np.concatenate([part[number].reshape(len(part[number]), -1) for part in parts])
        others = (again != codes_of(table, stream)).mean(axis=1)
        for row, share in zip(rows, others, strict=True):
            if share > tolerance:
                yield f"row {row}: {share:.1%} of the {stream} codes are others when it is encoded again"


def _encode_rows(
    job: StageJob,
    tokenizer: Any,  # noqa: ANN401
    unit: str,
    keys: Mapping[int, bytes],
    scratch: Path,
) -> list[Any]:
    """Encode rows of a unit, given with their keys, as the stage did; of a sample with crops, the row's one alone."""
    from dualtoken.pipelines.inference.image_stream import ImageStream, Undecodable  # noqa: PLC0415  (as above)

    shard, config = open_image_shard(job.input("download"), unit, scratch), job.recipe.pretokenize
    place = {key: row for row, key in enumerate(shard.keys)}
    samples = [KeptSample(place[key], key) for key in keys.values()]
    variants, parts = (row % config.num_variants for row in keys), []
    for batch in ImageStream(config, tokenizer.network.transform, beside_gpu=False).batches(shard, samples):
        if lost := next((found for found in batch.found if isinstance(found, Undecodable)), None):
            raise OSError(lost.detail)
        levels = batch.levels.unflatten(0, (-1, config.num_variants))
        parts.append(tokenizer.encode_levels(levels[range(len(levels)), list(islice(variants, len(levels)))]))
    return parts
