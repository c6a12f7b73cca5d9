"""Batches of the tokenizer's training: every image with its own targets, as they are stored."""

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.tokens.shards import read_data_shard
from dualtoken.pipelines.training.dataset import Sample
from dualtoken.pipelines.training.train_batches import TrainDataLoader
from dualtoken.pipelines.training.train_context import SingleProcessContext
from tests.helpers.tiny_run import LoadTiny, planned_job

ALONE = SingleProcessContext(torch.device("cpu"))


def all_targets(recipe: Recipe) -> dict[bytes, dict[bytes, torch.Tensor]]:
    """Return by picture, as bytes of its levels, the stored targets of the samples with that picture."""
    job = planned_job(recipe, "train")
    images = Path(job.inputs["download/tiny-train"])
    found: dict[bytes, dict[bytes, torch.Tensor]] = {}
    for file in sorted(Path(job.inputs["targets/tiny-train"]).glob("*.arrow")):
        table: pa.Table = read_data_shard(file)
        with ImageShard(images / f"{file.stem}.tar", images / f"{file.stem}.parquet") as shard:
            rows = {key: row for row, key in enumerate(shard.keys)}
            for place, key in enumerate(table["key"].to_pylist()):
                picture = decode_rgb(shard.image(rows[key])).tobytes()
                dense = torch.tensor(table["dense"][place].values.to_numpy())
                found.setdefault(picture, {})[table["pooled"][place].values.to_numpy().tobytes()] = dense
    return found


@pytest.mark.parametrize("num_threads", [1, 3])
def test_every_image_has_its_own_targets_as_they_are_stored(
    finished: Recipe, load_tiny: LoadTiny, tmp_path: Path, num_threads: int
) -> None:
    root = Path(shutil.copytree(finished.root, tmp_path / "data"))
    recipe = load_tiny(root, f"reader.decode_threads={num_threads}")
    stored = all_targets(recipe)
    with closing(TrainDataLoader(planned_job(recipe, "train"), ALONE, tmp_path)) as loader:
        for step in range(5):
            batch = loader.load(step)
            assert batch.pooled is not None
            assert batch.dense is not None
            assert batch.images.shape == (8, 3, 32, 32)
            assert batch.dense.dtype == torch.float16
            targets = loader.targets(batch, batch.images)
            assert targets.dense.dtype == torch.float16
            for image, pooled, dense in zip(batch.images, batch.pooled, batch.dense, strict=True):
                picture = image.permute(1, 2, 0).contiguous().numpy().tobytes()
                expected = stored[picture][pooled.numpy().tobytes()]
                assert torch.equal(dense.flatten(), expected)


def test_a_filter_that_keeps_nothing_is_told_in_one_line(finished: Recipe, tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished.root, tmp_path / "data"))
    job = planned_job(finished, "train")
    targets = Path(job.inputs["targets/tiny-train"])
    moved = root / targets.relative_to(finished.root)
    manifest = moved / "manifest.json"
    text = manifest.read_text()
    units = text.index('"units"')
    head, tail = text[:units], text[units:]
    manifest.write_text(head + '"units": {}' + tail[tail.index("}") + 1 :])
    inputs = {**job.inputs, "targets/tiny-train": str(moved)}
    empty = replace(job, folder=str(tmp_path / "train"), inputs=inputs)
    with pytest.raises(UserError, match=r"loosen filter\.rules"):
        TrainDataLoader(empty, ALONE, tmp_path)


def test_a_crop_is_of_its_sample_and_epoch(finished: Recipe, tmp_path: Path) -> None:
    job = replace(planned_job(finished, "train"), folder=str(tmp_path / "train"))
    with closing(TrainDataLoader(job, ALONE, tmp_path)) as loader:
        taken: list[Sample] = []
        loader.samples.read(0, range(2), lambda _, sample: taken.append(sample))
    first, second = taken
    draw = first.generator(0).random()
    assert first.generator(0).random() == draw
    assert first._replace(epoch=1).generator(0).random() != draw
    assert first.generator(1).random() != draw
    assert second.generator(0).random() != draw
