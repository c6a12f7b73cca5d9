"""Filter, first half: decodes every sample once and scores it; rejected samples keep their scores too."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dualtoken.pipelines.core.ledger import KEY_BYTES, OK_VERDICT, Status, Verdict, ledger_table
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.images.samples import batched, decode_rgb, open_image_shard
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.inference.networks import open_teacher, prepare_process

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
UNDECODABLE = "undecodable"
"""Reason for a sample without scores."""


class _Sample(NamedTuple):
    """A decoded image."""

    row: int
    """Row of the image shard."""
    image: Image.Image
    pixel_hash: str


class Worker:
    """Scores one image shard per unit."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        # On a GPU a teacher's convolutions keep PyTorch's default, TF32, which stored scores were made with.
        prepare_process(threads=1, exact_float32=False)
        self._teacher = open_teacher(job)

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write a row of scores for every sample that can be decoded."""
        shard = open_image_shard(self._job.input("download"), unit.id, scratch)
        samples, errors = _decode_all(shard)
        similarities = self._similarities(shard, samples)
        scores: list[dict[str, Any]] = []
        for sample, similarity in zip(samples, similarities, strict=True):
            scores.append(_scores(shard, sample, similarity))
        file = f"{unit.id}.parquet"
        pq.write_table(pa.Table.from_pylist(scores, schema=SCORE_SCHEMA), scratch / file, compression="zstd")
        verdicts = [OK_VERDICT] * len(shard)
        for row, error in errors.items():
            verdicts[row] = Verdict(Status.FAILED, UNDECODABLE, error)
        return UnitOutput((file,), ledger_table(shard.keys, verdicts))

    def _similarities(self, shard: ImageShard, samples: Sequence[_Sample]) -> list[float]:
        """Return the cosine of each image with its caption."""
        similarities: list[float] = []
        for batch in batched(samples, self._job.recipe.filter.batch_size):
            images = [sample.image for sample in batch]
            captions = [shard.captions[sample.row] for sample in batch]
            similarities += self._teacher.similarities(images, captions)
        return similarities


def _decode_all(shard: ImageShard) -> tuple[list[_Sample], dict[int, str]]:
    """Return the shard's decoded images, and the errors of the others by row."""
    samples: list[_Sample] = []
    errors: dict[int, str] = {}
    for row in range(len(shard)):
        try:
            image = decode_rgb(shard.image(row))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            errors[row] = str(error)
            continue
        content = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16)
        samples.append(_Sample(row, image, content.hexdigest()))
    return samples, errors


def _scores(shard: ImageShard, sample: _Sample, similarity: float) -> dict[str, Any]:
    """Return a row of the score file."""
    caption = shard.captions[sample.row]
    width, height = shard.original_sizes[sample.row] or sample.image.size
    return {
        "key": shard.keys[sample.row],
        "width": width,
        "height": height,
        "caption_words": len(caption.split()),
        "caption_characters": len(caption.strip()),
        "pixel_hash": sample.pixel_hash,
        "similarity": similarity,
    }
