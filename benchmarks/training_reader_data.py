"""Data of `benchmarks/training_reader.py`: corpora of image shards by the real writer, and simulated ones.

A simulated corpus has the manifest of all of its shards, and on disk as many different ones as a window
holds. Those of the first window have a content each, those of the second the same ones. The others are hard
links to these, or, where `sparse`, not there: a run that reads two windows does not see the difference.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dualtoken.infra.digests import digest
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.core.ledger import sample_key
from dualtoken.pipelines.core.receipts import (
    MANIFEST_FILE,
    RECEIPTS,
    FileRecord,
    Manifest,
    Receipt,
    receipt_name,
)
from dualtoken.pipelines.core.stage import StageJob, Unit
from dualtoken.pipelines.images.shard_tables import SUCCESS
from dualtoken.pipelines.images.shards import ImageShardWriter, ShardRow, shard_files
from dualtoken.pipelines.training.sample_index import open_sample_index
from dualtoken.pipelines.training.sample_sequence import SampleSequence
from tests.helpers.images import encode

CORPUS = "scenes-train"
WINDOW = 8
"""Shards of a window, the default."""
NUM_IMAGES = 64
"""Different pictures of a corpus."""
MOMENT = "2026-01-01T00:00:00.000+00:00"


class CorpusShape(NamedTuple):
    """Size of a corpus."""

    num_shards: int
    rows_per_shard: int
    side: int
    """Height and width of an image, pixels."""
    num_distinct: int
    """Shards with a content of their own."""
    sparse: bool
    """Whether the others are not there."""


def open_corpus(root: Path, shape: CorpusShape) -> StageJob:
    """Return the job of a training on a corpus below `root`, which is written unless it is there."""
    recipe = load_recipe("scenes", [f"root={root}"])
    folder = root / "shards"
    inputs = {f"download/{CORPUS}": str(folder)}
    job = StageJob("teacher", None, recipe, str(root / "run"), "one", inputs, (Unit("model", 0),))
    if not (root / "whole").exists():
        write_corpus(job, root, shape)
        (root / "whole").touch()
    return job


def write_corpus(job: StageJob, root: Path, shape: CorpusShape) -> None:
    """Write the manifest, the shards with a content of their own, and the links to them."""
    folder = root / "shards"
    (folder / RECEIPTS).mkdir(parents=True)
    (folder / MANIFEST_FILE).write_bytes(_manifest(shape).to_bytes())
    contents: list[tuple[FileRecord, ...]] = []
    for number in range(shape.num_distinct):
        contents.append(_write_shard(_contents(root, shape), number, shape))
    index = open_sample_index(job, "download", root / "scratch")
    sequence = SampleSequence(index, WINDOW, 0, index.identity)
    window = sequence.window_at(0)
    order = dict.fromkeys(window.window.shards.tolist())
    order |= dict.fromkeys(sequence.window_after(window).shards.tolist())
    if not shape.sparse:
        order |= dict.fromkeys(range(shape.num_shards))
    for place, number in enumerate(order):
        _link_shard(root, index.name(number).shard, _contents(root, shape), contents[place % len(contents)])


def _contents(root: Path, shape: CorpusShape) -> Path:
    """Return the folder of the different shards, which corpora of one shape of shard share."""
    return root.parent / f"contents-{shape.rows_per_shard}-{shape.side}"


def _manifest(shape: CorpusShape) -> Manifest:
    units = {f"{number:05d}": shape.rows_per_shard for number in range(shape.num_shards)}
    num_rows = sum(units.values())
    return Manifest(
        stage="download",
        corpus=CORPUS,
        fingerprint="one",
        root_hash="0" * 64,
        rows_in=num_rows,
        counts={"ok": num_rows},
        units=units,
        bytes=0,
        seconds=1,
        first_started_at=MOMENT,
        last_finished_at=MOMENT,
        files=(),
        details={},
    )


def _write_shard(folder: Path, number: int, shape: CorpusShape) -> tuple[FileRecord, ...]:
    """Write a shard of JPEGs unless it is there; return what its files are."""
    folder.mkdir(exist_ok=True)
    name = f"{number:05d}"
    if (folder / shard_files(name)[-1]).exists():
        return _records(folder, name)
    pictures = _pictures(shape.side)
    with ImageShardWriter(folder, name, "jpg") as writer:
        for row in range(shape.rows_per_shard):
            key = sample_key(CORPUS, number * shape.rows_per_shard + row)
            caption = f"a picture of row {row} of shard {number}, with a caption of a usual length"
            size = shape.side
            image = pictures[row % len(pictures)]
            writer.write(ShardRow(None, caption, key, SUCCESS, width=size, height=size), image)
    return _records(folder, name)


def _records(folder: Path, name: str) -> tuple[FileRecord, ...]:
    records: list[FileRecord] = []
    for file in shard_files(name):
        content = digest(folder / file)
        records.append(
            FileRecord(name=file, bytes=content.bytes, sha256=content.sha256, xxh3_128=content.xxh3_128)
        )
    return tuple(records)


def _pictures(side: int) -> list[bytes]:
    """Encode pictures that are smooth, as photographs are: a noise of few pixels, enlarged."""
    random = np.random.default_rng(0)
    pictures: list[bytes] = []
    for _ in range(NUM_IMAGES):
        small = Image.fromarray(random.integers(0, 255, (side // 8, side // 8, 3), np.uint8))
        pictures.append(encode(small.resize((side, side), Image.Resampling.BICUBIC), "JPEG", quality=90))
    return pictures


def _link_shard(root: Path, name: str, contents: Path, content: tuple[FileRecord, ...]) -> None:
    """Give a shard a content, and its receipt."""
    files: list[FileRecord] = []
    for file, linked in zip(content, shard_files(name), strict=True):
        os.link(contents / file.name, root / "shards" / linked)
        files.append(file.model_copy(update={"name": linked}))
    receipt = Receipt(
        stage="download",
        corpus=CORPUS,
        unit=name,
        fingerprint="one",
        attempt="0",
        rows=0,
        counts={},
        files=tuple(files),
        facts={},
        finished_at=MOMENT,
        seconds=1,
    )
    (root / "shards" / receipt_name(name)).write_bytes(receipt.to_bytes())
