"""Held-out samples that a training is measured on."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.samples import open_image_shard
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.training import heldout_images
from dualtoken.pipelines.training.heldout_images import heldout_batches, summed
from dualtoken.pipelines.training.metrics_log import read_metrics
from tests.helpers.tiny_run import LoadTiny, planned_job


class Rank(NamedTuple):
    rank: int
    world_size: int
    device: torch.device = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, finished: Recipe) -> Path:
    return Path(shutil.copytree(finished.root, tmp_path_factory.mktemp("validation") / "data"))


def test_validation_is_logged_and_changes_neither_fingerprint_nor_weights(
    root: Path, load_tiny: LoadTiny
) -> None:
    plain = Path(planned_job(load_tiny(root), "train").folder)
    teacher = Path(planned_job(load_tiny(root), "teacher").folder)
    expected = {folder: (folder / name).read_bytes() for folder, name in weights(plain, teacher)}
    recipe = load_tiny(root, "train.validate_every=2", "train.validation_images=10")
    for stage, folder in (("teacher", teacher), ("train", plain)):
        assert planned_job(recipe, stage).folder == str(folder)
        for name in ("manifest.json", "receipts", "checkpoints", "logs"):
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        run_command(stage, recipe, LocalExecutor(), lambda _: None)
    assert {folder: (folder / name).read_bytes() for folder, name in weights(plain, teacher)} == expected
    lines = [line for line in read_metrics(planned_job(recipe, "train").store()) if "validation_loss" in line]
    assert [line["step"] for line in lines] == [1, 3]
    for name in ("loss", "psnr", "reconstruction", "semantic", "pooled", "commitment"):
        assert lines[0][f"validation_{name}"] > 0
    (line,) = [line for line in read_metrics(planned_job(recipe, "teacher").store()) if line["step"] == 1]
    assert line["validation_loss"] > 0
    assert 0 <= line["validation_accuracy"] <= 1


def weights(tokenizer: Path, teacher: Path) -> list[tuple[Path, str]]:
    return [(tokenizer, "model.safetensors"), (teacher, "open_clip_model.safetensors")]


@pytest.mark.parametrize("samples", ["download", "filter", "targets"])
def test_the_held_out_samples_are_the_same_ones_for_any_number_of_workers(
    samples: heldout_images.Selection, root: Path, load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heldout_images, "IMAGES_PER_BATCH", 3)
    recipe = load_tiny(root, "train.validate_every=1", "train.validation_images=10")
    job = planned_job(recipe, "train")
    (whole,) = [heldout_batches(job, Rank(0, 1), 32, samples)]
    images = torch.cat([batch.images for batch in whole])
    assert [len(batch.images) for batch in whole] == [3, 3, 3, 1]
    shard = open_image_shard(job.input("download", "tiny-heldout"), "00000", root)
    assert torch.equal(images[0], to_tensor([decode_rgb(shard.image(0))], 32)[0])
    has_targets = samples == "targets"
    assert all((batch.pooled is not None) == has_targets for batch in whole)

    of_three = [heldout_batches(job, Rank(rank, 3), 32, samples) for rank in range(3)]
    assert [[batch.counts for batch in own] for own in of_three] == [
        [True, True],
        [True, False],
        [True, False],
    ]
    shared = [own[turn] for turn in range(2) for own in of_three if own[turn].counts]
    assert torch.equal(torch.cat([batch.images for batch in shared]), images)

    def brightness(batch: heldout_images.HeldoutBatch) -> dict[str, float]:
        return {"brightness": batch.images.double().mean().item()}

    alone = summed(whole, brightness)["brightness"]
    assert alone.number == 10
    totals = [summed(own, brightness)["brightness"] for own in of_three]
    assert sum(part.number for part in totals) == 10
    assert sum(part.total for part in totals) == pytest.approx(alone.total)
