"""Filter, first half: decodes every sample once and scores it; rejected samples keep their scores too."""

import hashlib
from pathlib import Path
from typing import NamedTuple

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
"""Sizes are of the image as fetched, pixels; `pixel_hash` is BLAKE2b-128 of size and RGB values; similarity is a cosine."""


class _Sample(NamedTuple):
    row: int
    image: Image.Image
    pixel_hash: str


class Worker:
    """Scores one image shard per unit."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        # On a GPU a teacher's convolutions keep PyTorch's default, TF32: stored scores and targets were made with it.
        prepare_process(threads=1, exact_float32=False)
        self._teacher = open_teacher(job)

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write a row of scores for every sample that can be decoded."""
        shard = open_image_shard(self._job.input("download"), unit.id, scratch)
        samples, errors = _decode_all(shard)
        similarities: list[float] = []
        for batch in batched(samples, self._job.recipe.filter.batch_size):
            captions = [shard.captions[sample.row] for sample in batch]
            similarities += self._teacher.similarities([sample.image for sample in batch], captions)
        rows = [
            _scores(shard, sample, similarity)
            for sample, similarity in zip(samples, similarities, strict=True)
        ]
        pq.write_table(
            pa.Table.from_pylist(rows, schema=SCORE_SCHEMA),
            scratch / f"{unit.id}.parquet",
            compression="zstd",
        )
        verdicts = [OK_VERDICT] * len(shard.keys)
        for row, error in errors.items():
            verdicts[row] = Verdict(Status.FAILED, "undecodable", error)
        return UnitOutput((f"{unit.id}.parquet",), ledger_table(shard.keys, verdicts))


def _decode_all(shard: ImageShard) -> tuple[list[_Sample], dict[int, str]]:
    samples, errors = [], {}
    for row in range(len(shard.keys)):
        try:
            image = decode_rgb(shard.image(row))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            errors[row] = str(error)
            continue
        content = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16)
        samples.append(_Sample(row, image, content.hexdigest()))
    return samples, errors


def _scores(shard: ImageShard, sample: _Sample, similarity: float) -> dict[str, object]:
    caption = shard.captions[sample.row]
    width, height = shard.original_sizes[sample.row]
    return {
        "key": shard.keys[sample.row],
        "width": width,
        "height": height,
        "caption_words": len(caption.split()),
        "caption_characters": len(caption.strip()),
        "pixel_hash": sample.pixel_hash,
        "similarity": similarity,
    }
