"""A pretokenize job with all that it reads, made in seconds: scenes as image shards, an untrained tokenizer, nothing filtered out."""

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


def make_job(
    recipe: Recipe, root: Path, shard_rows: tuple[int, ...], side: int, encode_format: str
) -> StageJob:
    """Write the inputs below `root` and return the job; a unit per shard, of as many rows as asked for."""
    inputs = {f"{step}/{CORPUS}": str(root / step) for step in ("download", "filter", "score")} | {
        "train": str(root / "train")
    }
    for folder in inputs.values():
        Path(folder).mkdir(parents=True)
    first = 0
    for number, rows in enumerate(shard_rows):
        _write_shard(root, f"{number:05d}", first, rows, side, encode_format)
        first += rows
    _write_tokenizer(recipe, root / "train")
    units = tuple(Unit(f"{number:05d}", rows) for number, rows in enumerate(shard_rows))
    return StageJob("pretokenize", CORPUS, recipe, str(root / "tokens"), "0" * 12, inputs, units)


def _write_shard(root: Path, name: str, first: int, rows: int, side: int, encode_format: str) -> None:
    keys = [sample_key(CORPUS, row) for row in range(first, first + rows)]
    with ImageShardWriter(root / "download", name, encode_format) as shard:
        for row, key in enumerate(keys, start=first):
            drawn, file = scene("train", 0, row), io.BytesIO()
            render(drawn).resize((side, side)).save(
                file, {"jpg": "JPEG", "png": "PNG"}[encode_format], quality=95
            )
            said = ShardRow(f"http://127.0.0.1/{row}", caption(drawn), key, SUCCESS, width=side, height=side)
            shard.write(said._replace(original_width=side, original_height=side), file.getvalue())
    columns = {"key": pa.array(keys, pa.binary(16))}
    pq.write_table(
        pa.table(columns | {"keep": [True] * rows, "reason": [""] * rows}), root / f"filter/{name}.parquet"
    )
    pq.write_table(
        pa.table(columns | {"similarity": pa.array([0.5] * rows, pa.float32())}),
        root / f"score/{name}.parquet",
    )


def _write_tokenizer(recipe: Recipe, folder: Path) -> None:
    torch.manual_seed(0)
    job = StageJob("train", None, recipe, str(folder), "0" * 12, {}, (Unit("model", 0),))
    DualTokenizer(recipe.tokenizer).save_pretrained(folder)
    files = UnitOutput(("config.json", "model.safetensors"), None)
    commit_unit(job, job.units[0], folder, files, time.monotonic())
    commit_manifest(StageContent(job), {}, [])


def forget_outputs(job: StageJob) -> None:
    """Take a job's outputs away, so that its units can be done again."""
    store = Store(job.folder)
    for name, _ in list(store.files()):
        store.remove(name)
