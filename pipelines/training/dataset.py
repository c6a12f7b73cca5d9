"""The training samples of a recipe, by number: image bytes from the shards, targets from the Arrow files.

Which samples a step takes is a pure function of (seed, step, rank). So a run resumes from one integer, and
under the same batch size gives the same batches to any number of workers.
"""

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.infra.storage import Store
from dualtoken.model.vision.faults import UnreadableImageError
from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.tables import finished_files, read_input
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.samples import is_heldout, kept_samples, open_image_shard
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.tokens.shards import read_data_shard

Array = np.ndarray[Any, Any]


class SampleLocation(NamedTuple):
    """Location of a sample's image and targets: shard and row."""

    shard: int
    """Number of the shard, over all corpora."""
    image_row: int
    target_row: int


class _TrainingShard(NamedTuple):
    """An image shard, and the targets of its kept samples."""

    images: ImageShard
    targets: pa.Table | None


class DecodedSamples(NamedTuple):
    """B samples as a network sees them."""

    numbers: list[int]
    levels: UInt8[Tensor, "B 3 S S"]


View = Callable[[int, Image.Image], UInt8[Tensor, "1 3 S S"]]
"""What a network sees of a picture, by its place in the batch."""


class TargetBatch(NamedTuple):
    """Stored teacher targets of B samples, float32: N tokens, W channels."""

    pooled: Array
    """(B, W)"""
    dense: Array | None
    """(B, N*W); None where the recipe stores no dense targets."""


class TrainingSet:
    """Random access to the samples that training sees; their order does not depend on how they were made."""

    def __init__(self, job: StageJob, scratch: Path, *, with_targets: bool = True) -> None:
        self._shards: list[_TrainingShard] = []
        self._locations: list[SampleLocation] = []
        self._undecodable: set[int] = set()
        """Samples whose image was damaged since it was scored."""
        for corpus in job.recipe.training_corpora:
            self._add_corpus(job, corpus, scratch / corpus, with_targets=with_targets)

    def __len__(self) -> int:
        return len(self._locations)

    def _add_corpus(self, job: StageJob, corpus: str, scratch: Path, *, with_targets: bool) -> None:
        images = job.input("download", corpus)
        manifest = read_manifest(images)
        assert manifest is not None, "a job is planned on finished inputs"
        for name in manifest.units:
            shard = open_image_shard(images, name, scratch)
            rows = list(range(len(shard.keys)))
            targets = None
            if with_targets:
                decisions = read_input(job.input("filter", corpus), f"{name}.parquet")
                rows = [sample.row for sample in kept_samples(shard, decisions)]
                targets = _read_targets(job.input("targets", corpus), name, scratch / "targets")
                rows = _rows_with_targets(targets, shard, rows)

            for target_row, image_row in enumerate(rows):
                if not is_heldout(job.recipe, corpus, shard.keys[image_row]):
                    self._locations.append(SampleLocation(len(self._shards), image_row, target_row))
            self._shards.append(_TrainingShard(shard, targets))

    def decode(self, numbers: Sequence[int], view: View) -> DecodedSamples:
        """Decode samples, one at a time, into what a network sees of them.

        In the place of a sample that cannot be decoded stands the next one that can: the same for any number
        of workers, and in a run that resumes. Raises `UserError` where none can.
        """
        decoded: list[int] = []
        levels: list[UInt8[Tensor, "1 3 S S"]] = []
        for place, number in enumerate(numbers):
            found, picture = self._first_decodable(number)
            decoded.append(found)
            levels.append(view(place, picture))
        return DecodedSamples(decoded, torch.cat(levels))

    def _first_decodable(self, number: int) -> tuple[int, Image.Image]:
        """Return the first sample that can be decoded from a number on, and its picture."""
        for candidate in (*range(number, len(self)), *range(number)):
            if candidate in self._undecodable:
                continue
            try:
                return candidate, decode_rgb(self._encoded(candidate))
            except UnreadableImageError as error:
                self._note_undecodable(candidate, error)
        raise UserError("no image of the training samples can be decoded: fetch the image shards again")

    def _encoded(self, number: int) -> bytes:
        location = self._locations[number]
        return self._shards[location.shard].images.image(location.image_row)

    def _note_undecodable(self, number: int, error: UnreadableImageError) -> None:
        self._undecodable.add(number)
        location = self._locations[number]
        key = self._shards[location.shard].images.keys[location.image_row]
        print(
            f"the image of sample {key.hex()} is damaged ({error}): training takes another in its place; "
            f"{len(self._undecodable)} of {len(self):,} so far",
            file=sys.stderr,
            flush=True,
        )

    def caption(self, number: int) -> str:
        """Return a sample's caption."""
        location = self._locations[number]
        return self._shards[location.shard].images.captions[location.image_row]

    def targets(self, numbers: Sequence[int]) -> TargetBatch:
        """Return the targets of samples, in their order."""
        pooled: list[Array] = []
        dense: list[Array] = []
        for number in numbers:
            row = self._target_row(number)
            pooled.append(row["pooled"])
            if "dense" in row:
                dense.append(row["dense"])
        return TargetBatch(np.stack(pooled), np.stack(dense) if dense else None)

    def _target_row(self, number: int) -> dict[str, Array]:
        location = self._locations[number]
        table = self._shards[location.shard].targets
        assert table is not None, "opened without targets"
        columns: dict[str, Array] = {}
        for name in ("pooled", "dense"):
            if name in table.column_names:
                values = table[name][location.target_row].values.to_numpy()
                columns[name] = values.astype(np.float32)
        return columns


def _read_targets(stored: Store, shard: str, scratch: Path) -> pa.Table:
    """Read the targets of an image shard, copied to `scratch` where they are remote."""
    file = f"{shard}.arrow"
    with finished_files(stored, file):
        return read_data_shard(stored.local_copy(file, scratch))


def _rows_with_targets(targets: pa.Table, shard: ImageShard, kept_rows: Sequence[int]) -> list[int]:
    """Return the kept rows that have targets, in their order: all whose image could be decoded then."""
    keys = set(targets["key"].to_pylist())
    rows = [row for row in kept_rows if shard.keys[row] in keys]
    assert targets["key"].to_pylist() == [shard.keys[row] for row in rows], "targets name other samples"
    return rows


def batch_numbers(num_samples: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Return the samples of a step: epochs are seeded permutations, laid end to end."""
    first = step * batch_size
    numbers: list[int] = []
    for position in range(first, first + batch_size):
        epoch, position_in_epoch = divmod(position, num_samples)
        numbers.append(_epoch_order(num_samples, seed, epoch)[position_in_epoch])
    return numbers


@lru_cache(maxsize=2)  # a batch may reach from one epoch into the next
def _epoch_order(num_samples: int, seed: int, epoch: int) -> Array:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_samples)
