"""Held-out samples that a training is measured on: a recipe's first, the same for any number of workers.

B images of S by S pixels, N tokens, W channels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from dualtoken.infra.scratch import scratch_folder
from dualtoken.model.vision.faults import UnreadableImageError
from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.core.ledger import Status
from dualtoken.pipelines.core.receipts import LEDGERS, read_manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.tables import read_input
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.samples import (
    are_scenes,
    batched,
    is_heldout,
    open_image_shard,
    scene_descriptions,
)
from dualtoken.pipelines.tokens.shards import read_data_shard
from dualtoken.pipelines.training.sample_index import Selection, kept_keys
from dualtoken.pipelines.training.stored_targets import decode_target
from dualtoken.pipelines.training.task import Sum
from dualtoken.pipelines.training.train_context import RankContext

IMAGES_PER_BATCH = 32
"""Images of a batch, whatever the number of workers: some metrics compare a batch's images."""


class HeldoutBatch(NamedTuple):
    """Held-out samples; those whose image cannot be decoded are left out."""

    images: Tensor
    """(B, 3, S, S), uint8."""
    captions: list[str]
    pooled: Tensor | None
    """(B, W), the teacher's stored output; None where none is asked for."""
    dense: Tensor | None
    """(B, N, W), float16, its stored tokens; N is 0 where none are stored."""
    scenes: list[int]
    """Places in the batch, 0 to B - 1, of the images that are scenes."""
    descriptions: list[dict[str, Any]]
    """What each of these shows."""
    counts: bool = True
    """Whether this worker counts the batch; another one does where it does not."""


Measure = Callable[[HeldoutBatch], Mapping[str, Sum]]
"""Returns the sum of each metric over a batch."""


def sums_of(means: Mapping[str, float], number: int) -> dict[str, Sum]:
    """Return the sums of metrics whose means over so many samples are given."""
    return {name: Sum(mean * number, number) for name, mean in means.items()}


def summed(batches: Sequence[HeldoutBatch], measure: Measure) -> dict[str, Sum]:
    """Return the sums of metrics over those of this worker's batches that count."""
    sums: dict[str, Sum] = {}
    for batch in batches:
        for name, found in measure(batch).items():
            before = sums.get(name, Sum(0.0, 0))
            added = found if batch.counts else Sum(0.0, 0)
            sums[name] = Sum(before.total + added.total, before.number + added.number)
    return sums


class _Place(NamedTuple):
    corpus: str
    shard: str
    key: bytes


def heldout_batches(
    job: StageJob, context: RankContext, image_size: int, samples: Selection
) -> list[HeldoutBatch]:
    """Return this worker's batches of the first `train.validation_images` held-out samples.

    Batches go round the workers. Where they do not come out even, some workers have one that another counts,
    since all must call a sharded model equally often. `samples` names the stage whose samples are taken; of
    `targets` they come with the stored ones. Raises `UserError` where no image of a batch can be decoded.
    """
    places = _first_places(job, samples, job.recipe.train.validation_images)
    batches = list(batched(places, IMAGES_PER_BATCH))
    found: list[HeldoutBatch] = []
    for first in range(0, len(batches), context.world_size):
        number = first + context.rank
        batch = batches[number % len(batches)]
        read = _read(job, batch, image_size, with_targets=samples == "targets")
        found.append(read._replace(counts=number < len(batches)))
    return found


def _first_places(job: StageJob, samples: Selection, count: int) -> list[_Place]:
    places: list[_Place] = []
    for place in _places(job, samples):
        if len(places) == count:
            break
        places.append(place)
    return places


def _places(job: StageJob, samples: Selection) -> Iterator[_Place]:
    """Yield held-out samples in the order of corpora and shards."""
    for corpus in job.recipe.heldout_corpora:
        images = read_manifest(job.input("download", corpus))
        assert images is not None, "a job is planned on finished inputs"
        for shard, passed_on in images.units.items():
            if not passed_on:
                continue
            for key in _keys(job, samples, corpus, shard):
                if is_heldout(job.recipe, corpus, key):
                    yield _Place(corpus, shard, key)


def _keys(job: StageJob, samples: Selection, corpus: str, shard: str) -> list[bytes]:
    """Return the keys of the samples that a stage passed on, in the shard's order."""
    if samples == "filter":
        return kept_keys(job, corpus, shard)
    ledger = read_input(job.input(samples, corpus), f"{LEDGERS}/{shard}.parquet", ["key", "status"])
    return ledger.filter(pc.field("status") == Status.OK.value)["key"].to_pylist()


class _Samples:
    """The samples of a batch that is being read."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.captions: list[str] = []
        self.pooled: list[np.ndarray] = []
        self.dense: list[np.ndarray] = []
        self.scenes: list[int] = []
        self.descriptions: list[dict[str, Any]] = []

    def add_target(self, targets: pa.Table, row: int) -> None:
        """Add the teacher's stored outputs for an image."""
        target = decode_target(targets, row)
        tokens = np.empty(0, np.float16) if target.dense is None else target.dense
        self.pooled.append(target.pooled)
        self.dense.append(tokens.reshape(-1, len(target.pooled)))

    def batch(self) -> HeldoutBatch:
        """Return the samples as a batch."""
        pooled = torch.from_numpy(np.stack(self.pooled)) if self.pooled else None
        dense = torch.from_numpy(np.stack(self.dense)) if self.dense else None
        return HeldoutBatch(
            torch.stack(self.images), self.captions, pooled, dense, self.scenes, self.descriptions
        )


def _read(job: StageJob, places: Sequence["_Place"], image_size: int, *, with_targets: bool) -> HeldoutBatch:
    samples = _Samples()
    shards: dict[tuple[str, str], list[bytes]] = {}
    for place in places:
        shards.setdefault((place.corpus, place.shard), []).append(place.key)
    for (corpus, name), keys in shards.items():
        with scratch_folder() as scratch:
            shard = open_image_shard(job.input("download", corpus), name, Path(scratch))
            targets = _targets(job, corpus, name, Path(scratch)) if with_targets else None
            rows = {key: row for row, key in enumerate(shard.keys)}
            target_rows = _rows(targets) if targets else {}
            described = are_scenes(job.recipe, corpus)
            for key in keys:
                row = rows[key]
                try:
                    picture = decode_rgb(shard.image(row))
                except UnreadableImageError:
                    continue
                if described:
                    samples.scenes.append(len(samples.images))
                    samples.descriptions += scene_descriptions(shard, [row])
                samples.images.append(to_tensor([picture], image_size)[0])
                samples.captions.append(shard.captions[row])
                if targets is not None:
                    samples.add_target(targets, target_rows[key])
    if not samples.images:
        raise UserError(
            f"none of {len(places)} held-out images can be decoded, such as {places[0].key.hex()}: "
            "fetch the image shards again, or set train.validate_every=0"
        )
    return samples.batch()


def _targets(job: StageJob, corpus: str, shard: str, scratch: Path) -> pa.Table:
    store = job.input("targets", corpus)
    return read_data_shard(store.local_copy(f"{shard}.arrow", scratch))


def _rows(targets: pa.Table) -> dict[bytes, int]:
    return {key: row for row, key in enumerate(targets["key"].to_pylist())}
