"""Held-out samples that a training is measured on."""

import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dualtoken.model.teacher.teacher import Teacher
from dualtoken.model.vision.faults import ImageFault, UnreadableImageError
from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.config.corpora import HeldoutFraction
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.ledger import key_fraction
from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.samples import open_image_shard, scene_descriptions
from dualtoken.pipelines.images.scene_generator import (
    canonical_caption,
    describe,
    scene,
)
from dualtoken.pipelines.inference.scene_questions import ATTRIBUTES
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens.shards import read_data_shard
from dualtoken.pipelines.training import heldout_images
from dualtoken.pipelines.training.engine import train
from dualtoken.pipelines.training.heldout_images import heldout_batches, summed, sums_of
from dualtoken.pipelines.training.metrics_log import read_metrics
from dualtoken.pipelines.training.sample_index import kept_keys
from dualtoken.pipelines.training.stored_targets import decode_target
from dualtoken.pipelines.training.task import Sum
from dualtoken.pipelines.training.train import TokenizerTask
from dualtoken.pipelines.training.train_context import SingleProcessContext
from dualtoken.pipelines.training.zero_shot import FrozenTeacher, zero_shot_sums
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
    assert (
        lines[-1]["validation_zero_shot"]
        == sum(lines[-1][f"validation_zero_shot_{name}"] for name in ATTRIBUTES) / 3
    )
    (line,) = [line for line in read_metrics(planned_job(recipe, "teacher").store()) if line["step"] == 1]
    assert line["validation_loss"] > 0
    assert 0 <= line["validation_accuracy"] <= 1
    for name in ATTRIBUTES:
        assert 0 <= line[f"validation_zero_shot_{name}"] <= 1


def test_the_last_steps_zero_shot_accuracy_is_that_of_the_report(
    root: Path, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    """Both judge the trained tokenizer by the held-out samples that the filter kept."""
    (report,) = (root / "reports").glob("*/report.json")
    expected = json.loads(report.read_text())["zero_shot"]
    recipe = load_tiny(root, "train.validate_every=4")
    job = replace(planned_job(recipe, "train"), folder=str(tmp_path / "again"))
    train(job, SingleProcessContext(torch.device("cpu")), TokenizerTask)
    (line,) = [line for line in read_metrics(job.store()) if "validation_loss" in line]
    found = {name: line[f"validation_zero_shot_{name}"] for name in ATTRIBUTES}
    assert found == {of_one["name"]: of_one["quantised"] for of_one in expected["attributes"]}
    assert len(set(found.values())) > 1


def test_images_that_are_no_scenes_are_asked_about_nothing() -> None:
    drawn = scene("heldout", 0, 0)
    caption = canonical_caption(drawn.objects)
    batch = heldout_images.HeldoutBatch(torch.empty(2, 3, 8, 8), ["", ""], None, None, [1], [describe(drawn)])
    images = torch.eye(2)

    def embed(texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([images[1] if text == caption else images[0] for text in texts])

    right = Sum(2.0, 2)
    assert zero_shot_sums(batch, images, embed) == dict.fromkeys(
        ("zero_shot_shape", "zero_shot_colour", "zero_shot_size", "zero_shot"), right
    )
    assert zero_shot_sums(batch._replace(scenes=[], descriptions=[]), images, embed) == {}


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

    def brightness(batch: heldout_images.HeldoutBatch) -> dict[str, Sum]:
        return sums_of({"brightness": batch.images.double().mean().item()}, len(batch.images))

    alone = summed(whole, brightness)["brightness"]
    assert alone.number == 10
    totals = [summed(own, brightness)["brightness"] for own in of_three]
    assert sum(part.number for part in totals) == 10
    assert sum(part.total for part in totals) == pytest.approx(alone.total)


def stored_targets(job: StageJob, corpus: str) -> dict[bytes, torch.Tensor]:
    """Return the teacher's stored pooled outputs of a corpus, by key."""
    found: dict[bytes, torch.Tensor] = {}
    for file in sorted(Path(job.input("targets", corpus).root).glob("*.arrow")):
        targets = read_data_shard(file)
        for row, key in enumerate(targets["key"].to_pylist()):
            found[key] = torch.from_numpy(decode_target(targets, row).pooled.copy())
    return found


class Heldout(NamedTuple):
    """A held-out sample, as its shard has it."""

    key: bytes
    image: torch.Tensor
    caption: str
    description: dict[str, Any]


def heldout_samples(job: StageJob, corpus: str, scratch: Path) -> list[Heldout]:
    """Return the samples of a corpus that the filter kept, in the order of shards and rows."""
    images = read_manifest(job.input("download", corpus))
    assert images is not None
    samples: list[Heldout] = []
    for name in images.units:
        shard = open_image_shard(job.input("download", corpus), name, scratch)
        kept = kept_keys(job, corpus, name)
        for row, key in enumerate(shard.keys):
            if key in kept:
                image = to_tensor([decode_rgb(shard.image(row))], 32)[0]
                [description] = scene_descriptions(shard, [row])
                samples.append(Heldout(key, image, shard.captions[row], description))
    return samples


def test_each_image_has_its_own_caption_target_and_scene_and_one_that_cannot_be_decoded_is_left_out(
    root: Path, load_tiny: LoadTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = planned_job(load_tiny(root, "train.validate_every=1", "train.validation_images=7"), "train")
    samples = heldout_samples(job, "tiny-heldout", tmp_path)[:7]
    targets = stored_targets(job, "tiny-heldout")
    attempts: list[int] = []

    def fail_at_second(data: bytes) -> Any:
        attempts.append(1)
        if len(attempts) == 2:
            raise UnreadableImageError(ImageFault.NOT_AN_IMAGE, "cut short")
        return decode_rgb(data)

    monkeypatch.setattr(heldout_images, "decode_rgb", fail_at_second)
    [batch] = heldout_batches(job, Rank(0, 1), 32, "targets")
    assert len(attempts) == 7
    del samples[1]
    assert torch.equal(batch.images, torch.stack([sample.image for sample in samples]))
    assert batch.captions == [sample.caption for sample in samples]
    assert batch.scenes == list(range(6))
    assert batch.descriptions == [sample.description for sample in samples]
    assert batch.pooled is not None
    assert torch.equal(batch.pooled, torch.stack([targets[sample.key] for sample in samples]))

    def fail(_: bytes) -> Any:
        raise UnreadableImageError(ImageFault.NOT_AN_IMAGE, "cut short")

    monkeypatch.setattr(heldout_images, "decode_rgb", fail)
    with pytest.raises(UserError, match=r"^none of 7 held-out images can be decoded, such as [0-9a-f]+: "):
        heldout_batches(job, Rank(0, 1), 32, "filter")


def test_of_a_corpus_that_is_held_out_in_part_only_that_part_is_measured(
    root: Path, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    recipe = load_tiny(root, "train.validate_every=1", "train.validation_images=40")
    job = planned_job(recipe, "train")
    samples = heldout_samples(job, "tiny-train", tmp_path)
    fraction = HeldoutFraction(kind="fraction", fraction=0.4)
    corpora = {"tiny-train": recipe.corpora["tiny-train"]}
    in_part = replace(job, recipe=recipe.model_copy(update={"corpora": corpora, "heldout": fraction}))
    batches = heldout_batches(in_part, Rank(0, 1), 32, "filter")
    found = [caption for batch in batches for caption in batch.captions]
    expected = [sample.caption for sample in samples if key_fraction(sample.key) < 0.4]
    assert 0 < len(expected) < len(samples)
    assert found == expected


def test_a_validation_draws_no_random_number_and_a_frozen_teacher_reads_each_text_once(
    root: Path, load_tiny: LoadTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Sequence[str]] = []
    embed_texts = Teacher.embed_texts

    def embed(teacher: Teacher, texts: Sequence[str]) -> torch.Tensor:
        read.append(texts)
        return embed_texts(teacher, texts)

    monkeypatch.setattr(Teacher, "embed_texts", embed)
    job = planned_job(load_tiny(root, "train.validate_every=1", "train.validation_images=10"), "train")
    context = SingleProcessContext(torch.device("cpu"))
    with closing(TokenizerTask(job, context, tmp_path)) as task:
        state = torch.get_rng_state()
        first = task.validate()
        assert torch.equal(torch.get_rng_state(), state)
        assert read
        read.clear()
        assert task.validate() == first
    teacher = FrozenTeacher(job, context.device, tmp_path)
    batches = heldout_batches(job, context, 32, "filter")
    assert read == []
    teacher.embed(batches)
    assert read
    read.clear()
    [batch] = batches
    pooled = torch.zeros(len(batch.images), 32)
    assert teacher.sums(batch, pooled)["zero_shot"].number == 20
    assert read == []
