"""A small corpus of image shards, as `download` leaves it, and jobs of trainings that read it.

Sample n is a picture of one colour that encodes n, with the caption "sample n".
"""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.commit import StageContent, commit_manifest, commit_unit
from dualtoken.pipelines.core.ledger import OK_VERDICT, ledger_table, sample_key
from dualtoken.pipelines.core.receipts import FileRecord, Manifest, Receipt
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.images.shard_tables import SUCCESS
from dualtoken.pipelines.images.shards import ImageShardWriter, ShardRow, shard_files
from tests.helpers.images import encode
from tests.helpers.tiny_run import TINY

CORPUS = "tiny-train"
SIDE = 32
"""Height and width of an image, pixels."""


def training_job(
    root: Path, shards: Sequence[int], *overrides: str, unreadable: Sequence[int] = ()
) -> StageJob:
    """Return the job of a teacher's training on a corpus with so many samples in each shard.

    The corpus is written below `root` unless it is there. The images of `unreadable` samples are none.
    """
    recipe = load_recipe(TINY, [f"root={root}", *overrides])
    folder = root / "shards"
    units = tuple(Unit(f"{number:05d}", rows) for number, rows in enumerate(shards))
    download = StageJob("download", CORPUS, recipe, str(folder), "corpus", {}, units)
    if not folder.exists():
        write_corpus(download, root / "scratch", unreadable)
    return StageJob(
        "teacher",
        None,
        recipe,
        str(root / "models/teacher/one"),
        "one",
        dict.fromkeys(_inputs(recipe), str(folder)),
        (Unit("model", 0),),
    )


def _inputs(recipe: Recipe) -> list[str]:
    """Name the corpora that training reads: both of the recipe's where a fraction of each is held out."""
    return [f"download/{corpus}" for corpus in recipe.training_corpora]


def write_corpus(download: StageJob, scratch: Path, unreadable: Sequence[int]) -> None:
    """Write and commit every shard of a `download` job, and its manifest."""
    first = 0
    for unit in download.units:
        numbers = range(first, first + unit.rows)
        first += unit.rows
        folder = scratch / unit.id
        folder.mkdir(parents=True)
        images = [b"none" if number in unreadable else picture_of(number) for number in numbers]
        write_shard(folder, unit.id, images, numbers)
        keys = [sample_key(CORPUS, number) for number in numbers]
        output = UnitOutput(shard_files(unit.id), ledger_table(keys, [OK_VERDICT] * len(keys)))
        commit_unit(download, unit, folder, output, time.monotonic())
    commit_manifest(StageContent(download), {}, [])


def link_shards(root: Path, num_shards: int) -> None:
    """Make a written corpus of one shard one of many shards, which are all the same file."""
    folder = root / "shards"
    receipt = Receipt.from_bytes((folder / "receipts/00000.json").read_bytes())
    for number in range(1, num_shards):
        name = f"{number:05d}"
        files: list[FileRecord] = []
        for file in receipt.files:
            linked = file.name.replace("00000", name)
            os.link(folder / file.name, folder / linked)
            files.append(file.model_copy(update={"name": linked}))
        one = receipt.model_copy(update={"unit": name, "files": tuple(files)})
        (folder / f"receipts/{name}.json").write_bytes(one.to_bytes())
    manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes())
    (rows,) = manifest.units.values()
    units = {f"{number:05d}": rows for number in range(num_shards)}
    (folder / "manifest.json").write_bytes(manifest.model_copy(update={"units": units}).to_bytes())


def write_shard(folder: Path, name: str, images: Sequence[bytes], numbers: Sequence[int]) -> None:
    """Write a shard of encoded images, whose samples have these numbers."""
    with ImageShardWriter(folder, name, "png") as writer:
        for image, number in zip(images, numbers, strict=True):
            row = ShardRow(
                url=None,
                caption=f"sample {number}",
                sample_key=sample_key(CORPUS, number),
                status=SUCCESS,
                width=SIDE,
                height=SIDE,
            )
            writer.write(row, image)


def picture_of(number: int) -> bytes:
    """Encode the picture of a sample."""
    return encode(Image.new("RGB", (SIDE, SIDE), (number % 256, number // 256, 7)))


def numbers_of(images: Tensor) -> list[int]:
    """Return the numbers of the samples that images, (B, 3, S, S) uint8, show."""
    corners = images[:, :, 0, 0].long()
    return (corners[:, 0] + 256 * corners[:, 1]).tolist()


def in_remote_copy(job: StageJob, bucket: str) -> StageJob:
    """Copy a job's corpus into a bucket, and return the job that reads it there."""
    (local,) = set(job.inputs.values())
    remote = Store(f"{bucket}/shards")
    for name, _ in Store(local).files():
        remote.put(Path(local) / name, name)
    return replace(job, inputs=dict.fromkeys(job.inputs, remote.url))
