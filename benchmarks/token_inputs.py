"""A pretokenize job with all that it reads, made in seconds.

Its inputs are scenes as image shards, an untrained tokenizer, and a decision that keeps every image.
"""

import io
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dualtoken.infra.storage import Store
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.commit import StageContent, commit_manifest, commit_unit
from dualtoken.pipelines.core.ledger import sample_key
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.images.scene_generator import caption, render, scene
from dualtoken.pipelines.images.shards import SUCCESS, ImageShardWriter, ShardRow

CORPUS = "scenes-train"
PILLOW_FORMATS = {"jpg": "JPEG", "png": "PNG"}


def make_job(
    recipe: Recipe, root: Path, shard_rows: tuple[int, ...], side: int, encode_format: str
) -> StageJob:
    """Write the inputs below `root` and return the job; a unit per shard, of as many rows as asked for."""
    inputs = {f"{stage}/{CORPUS}": str(root / stage) for stage in ("download", "filter", "score")}
    inputs["train"] = str(root / "train")
    for folder in inputs.values():
        Path(folder).mkdir(parents=True)
    units: list[Unit] = []
    first = 0
    for number, rows in enumerate(shard_rows):
        unit = Unit(f"{number:05d}", rows)
        _write_shard(root, unit, first, side, encode_format)
        units.append(unit)
        first += rows
    _write_tokenizer(recipe, root / "train")
    return StageJob("pretokenize", CORPUS, recipe, str(root / "tokens"), "0" * 12, inputs, tuple(units))


def _write_shard(root: Path, unit: Unit, first: int, side: int, encode_format: str) -> None:
    """Write a unit's image shard, its decision, which keeps all rows, and its scores."""
    keys = [sample_key(CORPUS, row) for row in range(first, first + unit.rows)]
    with ImageShardWriter(root / "download", unit.id, encode_format) as shard:
        for row, key in enumerate(keys, start=first):
            drawn = scene("train", 0, row)
            file = io.BytesIO()
            image = render(drawn).resize((side, side))
            image.save(file, PILLOW_FORMATS[encode_format], quality=95)
            metadata = ShardRow(
                f"http://127.0.0.1/{row}",
                caption(drawn),
                key,
                SUCCESS,
                width=side,
                height=side,
                original_width=side,
                original_height=side,
            )
            shard.write(metadata, file.getvalue())
    key_column = pa.array(keys, pa.binary(16))
    decision = {"key": key_column, "keep": [True] * unit.rows, "reason": [""] * unit.rows}
    scores = {"key": key_column, "similarity": pa.array([0.5] * unit.rows, pa.float32())}
    pq.write_table(pa.table(decision), root / f"filter/{unit.id}.parquet")
    pq.write_table(pa.table(scores), root / f"score/{unit.id}.parquet")


def _write_tokenizer(recipe: Recipe, folder: Path) -> None:
    torch.manual_seed(0)
    job = StageJob("train", None, recipe, str(folder), "0" * 12, {}, (Unit("model", 0),))
    DualTokenizer(recipe.tokenizer).save_pretrained(folder)
    files = UnitOutput(("config.json", "model.safetensors"), None)
    commit_unit(job, job.units[0], folder, files, time.monotonic())
    commit_manifest(StageContent(job), {}, [])


def forget_outputs(job: StageJob) -> None:
    """Remove the outputs of a job, so that its units can be done again."""
    store = Store(job.folder)
    for name, _ in list(store.files()):
        store.remove(name)
