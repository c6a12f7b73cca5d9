"""Filter, first half: decodes every sample once and scores it; rejected samples keep their scores too."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dualtoken.pipelines.core.ledger import KEY_BYTES
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.images.samples import KeptSample, open_image_shard
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.inference.adaptive_batch import AdaptiveBatchTeacher
from dualtoken.pipelines.inference.networks import (
    TeacherRunner,
    describe_device,
    open_teacher,
    prepare_process,
    threads_beside,
)
from dualtoken.pipelines.inference.shard_decoder import Seen, ShardDecoder

SCORE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("caption_words", pa.int32(), nullable=False),
        pa.field("caption_characters", pa.int32(), nullable=False),
        pa.field("pixel_hash", pa.string(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
    ]
)
"""Columns of a score file, a row for each sample that can be decoded.

Sizes are of the image as fetched, pixels; `pixel_hash` is BLAKE2b-128 of size and RGB values; similarity is a
cosine.
"""


class Worker:
    """Scores one image shard per unit."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        prepare_process(threads=1)
        self._teacher = open_teacher(job, job.recipe.filter.precision)
        self._adaptive = AdaptiveBatchTeacher(
            self._teacher, job.recipe.filter.batch_size, "filter.batch_size"
        )

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write a row of scores for every sample that can be decoded."""
        shard = open_image_shard(self._job.input("download"), unit.id, scratch)
        samples = [KeptSample(row, key) for row, key in enumerate(shard.keys)]
        self._adaptive.begin()
        view = _ScoringView(self._teacher)
        decoder = ShardDecoder(shard, view, threads=threads_beside(self._teacher.device))
        scores: list[dict[str, Any]] = []
        for batch in decoder.batches(samples, self._job.recipe.filter.batch_size):
            captions = [shard.captions[sample.row] for sample in batch.samples]
            similarities = self._adaptive.similarities(batch.levels, captions)
            for sample, similarity in zip(batch.samples, similarities, strict=True):
                scores.append(_scores(shard, sample, view.seen[sample.key], similarity))
        file = f"{unit.id}.parquet"
        pq.write_table(pa.Table.from_pylist(scores, schema=SCORE_SCHEMA), scratch / file, compression="zstd")
        facts = {**describe_device(self._teacher.device).present(), "batch_size": self._adaptive.batch_size}
        return UnitOutput((file,), decoder.ledger(samples), facts)


class _Picture(NamedTuple):
    """What a score says of a picture itself."""

    size: tuple[int, int]
    """Width and height as stored, pixels."""
    pixel_hash: str
    """Hash of size and RGB values."""


class _ScoringView:
    """The teacher's view of pictures, which are measured as they pass."""

    def __init__(self, teacher: TeacherRunner) -> None:
        self._teacher = teacher
        self.seen: dict[bytes, _Picture] = {}
        """The pictures so far, by key."""

    def __call__(self, sample: KeptSample, picture: Image.Image) -> Seen:
        content = hashlib.blake2b(f"{picture.size}".encode() + picture.tobytes(), digest_size=16)
        self.seen[sample.key] = _Picture(picture.size, content.hexdigest())
        return self._teacher.levels([picture])


def _scores(shard: ImageShard, sample: KeptSample, picture: _Picture, similarity: float) -> dict[str, Any]:
    """Return a row of the score file."""
    caption = shard.captions[sample.row]
    width, height = shard.original_sizes[sample.row] or picture.size
    return {
        "key": sample.key,
        "width": width,
        "height": height,
        "caption_words": len(caption.split()),
        "caption_characters": len(caption.strip()),
        "pixel_hash": picture.pixel_hash,
        "similarity": similarity,
    }
