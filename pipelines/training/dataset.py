"""The kept training samples of a recipe, by number: image bytes from the shards, targets from the Arrow files.

Which samples a step takes is a pure function of (seed, step, rank), so a run resumes from one integer and
under the same batch size gives the same batches to any number of workers.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.tables import finished_files, read_input
from dualtoken.pipelines.images.samples import decode_rgb, is_heldout, kept_samples, open_image_shard
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.tokens.shards import read_data_shard

Item = TypeVar("Item")
Array = np.ndarray[Any, Any]


class SampleLocation(NamedTuple):
    """Where a sample's parts are."""

    part: int
    """Which shard, over all corpora."""
    image_row: int
    target_row: int


class _Part(NamedTuple):
    shard: ImageShard
    targets: pa.Table | None


class TargetBatch(NamedTuple):
    """The teacher's word on a batch, float32."""

    pooled: Array
    """(B, W)"""
    dense: Array | None
    """(B, N*W); None where the recipe stores no dense targets."""


class TrainingSet:
    """Random access to the samples that training sees, in an order that does not depend on how they were made."""

    def __init__(self, job: StageJob, scratch: Path, *, with_targets: bool = True) -> None:
        self._parts: list[_Part] = []
        self._places: list[SampleLocation] = []
        for corpus in job.recipe.training_corpora:
            self._add_corpus(job, corpus, scratch / corpus, with_targets=with_targets)

    def __len__(self) -> int:
        return len(self._places)

    def _add_corpus(self, job: StageJob, corpus: str, scratch: Path, *, with_targets: bool) -> None:
        images = job.input("download", corpus)
        manifest = read_manifest(images)
        assert manifest is not None, "a job is planned on finished inputs"
        for name in manifest.units:
            shard = open_image_shard(images, name, scratch)
            if with_targets:
                rows = [
                    row.row
                    for row in kept_samples(shard, read_input(job.input("filter", corpus), f"{name}.parquet"))
                ]
                stored = job.input("targets", corpus)
                with finished_files(stored, f"{name}.arrow"):
                    targets = read_data_shard(stored.local_copy(f"{name}.arrow", scratch / "targets"))
                assert targets["key"].to_pylist() == [shard.keys[row] for row in rows], (
                    "targets and decision name other samples"
                )
            else:
                rows, targets = list(range(len(shard.keys))), None
            part = len(self._parts)
            self._parts.append(_Part(shard, targets))
            self._places += [
                SampleLocation(part, row, at)
                for at, row in enumerate(rows)
                if not is_heldout(job.recipe, corpus, shard.keys[row])
            ]

    def image(self, number: int) -> Image.Image:
        """Decode a sample's image."""
        place = self._places[number]
        return decode_rgb(self._parts[place.part].shard.image(place.image_row))

    def caption(self, number: int) -> str:
        """Return a sample's caption."""
        place = self._places[number]
        return self._parts[place.part].shard.captions[place.image_row]

    def targets(self, numbers: Sequence[int]) -> TargetBatch:
        """Return the targets of samples, in their order."""
        rows = [self._target_row(number) for number in numbers]
        dense = np.stack([row["dense"] for row in rows]) if "dense" in rows[0] else None
        return TargetBatch(np.stack([row["pooled"] for row in rows]), dense)

    def _target_row(self, number: int) -> dict[str, Array]:
        place = self._places[number]
        table = self._parts[place.part].targets
        assert table is not None, "opened without targets"
        names = [name for name in ("pooled", "dense") if name in table.column_names]
        return {name: table[name][place.target_row].values.to_numpy().astype(np.float32) for name in names}


def batch_numbers(num_samples: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Return the samples of a step: epochs are seeded permutations, laid end to end."""
    first = step * batch_size
    return [
        _permutation(num_samples, seed, at // num_samples)[at % num_samples]
        for at in range(first, first + batch_size)
    ]


@lru_cache(maxsize=2)  # a batch may reach from one epoch into the next
def _permutation(num_samples: int, seed: int, epoch: int) -> Array:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_samples)


def ahead(make: Callable[[int], Item], steps: range, depth: int = 2) -> Iterator[tuple[int, Item]]:
    """Yield (step, make(step)) in order, made in a thread up to `depth` steps ahead; an error in it is raised here."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting = deque((step, pool.submit(make, step)) for step in steps[:depth])
        for step in steps[depth:]:
            number, made = waiting.popleft()
            waiting.append((step, pool.submit(make, step)))
            yield number, made.result()
        for number, made in waiting:
            yield number, made.result()
