"""The train stage with every optional part on, and stage 2 from what it made."""

import shutil
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dualtoken.infra.storage import Store
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.lpips import Lpips
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UnitsFailed
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.samples import open_image_shard
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens.shards import read_data_shard
from dualtoken.pipelines.training.metrics_log import read_metrics
from dualtoken.pipelines.training.stored_targets import stored_mode
from dualtoken.pipelines.training.train import NUM_SHOWN
from dualtoken.pipelines.training.train_batches import TrainDataLoader
from tests.helpers.tiny_run import LoadTiny, planned_job


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, finished: Recipe) -> Path:
    return Path(shutil.copytree(finished.root, tmp_path_factory.mktemp("train") / "data"))


def train(recipe: Recipe) -> Path:
    run_command("train", recipe, LocalExecutor(), lambda _: None)
    job = planned_job(recipe, "train")
    return Path(job.folder)


def test_every_part_of_training_runs_from_a_recipe_and_stage_2_goes_on_from_it(
    root: Path, load_tiny: LoadTiny
) -> None:
    torch.manual_seed(0)
    backbone = {name: tensor for name, tensor in Lpips().state_dict().items() if name.startswith("features.")}
    torch.save(backbone, root / "vgg.pth")
    parts = (
        "train.gan={width: 32, start_step: 1}",
        "train.weight_ema={decay: 0.5}",
        "train.accumulate_steps=2",
    )
    first = train(load_tiny(root, *parts, f"train.perceptual={{kind: lpips, backbone: {root / 'vgg.pth'}}}"))
    lines = read_metrics(Store(str(first)))
    assert all(line["perceptual"] > 0 for line in lines)
    assert ["adaptive_weight" in line for line in lines] == [False, True, True, True]

    second = train(
        load_tiny(root, "train.stage=2", "train.checkpoint_tower=true", f"train.start_from={first}")
    )
    before = load_file(first / "model.safetensors")
    after = load_file(second / "model.safetensors")
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"tower", "reduce_semantic", "expand_semantic", "quantize_semantic"}


def test_a_trained_tokenizer_goes_on_at_another_image_size(root: Path, load_tiny: LoadTiny) -> None:
    first = train(load_tiny(root))
    larger = ("teacher.image_size=64", "tokenizer.image_size=64", "tokenizer.decoder.latent_size=8")
    unlike = load_tiny(root, *larger, f"train.start_from={first}", "tokenizer.pixel.num_codes=8")
    recipe = load_tiny(root, *larger, f"train.start_from={first}", "targets.mode=online")
    for command in ("teacher", "filter"):
        run_command(command, recipe, LocalExecutor(), lambda _: None)
    second = train(recipe)
    before = load_file(first / "model.safetensors")
    after = load_file(second / "model.safetensors")
    resized = {name for name in before if before[name].shape != after[name].shape}
    assert resized == {"tower.pos_embed"}

    with pytest.raises(UnitsFailed, match=r"train.start_from='.*': tokenizer.pixel.num_codes is another one"):
        train(unlike.model_copy(update={"targets": recipe.targets}))


class Rank(NamedTuple):
    rank: int
    world_size: int
    device: torch.device = torch.device("cpu")


def test_crops_follow_the_seed_the_epoch_and_the_key(root: Path, load_tiny: LoadTiny, tmp_path: Path) -> None:
    small = load_tiny(root, "targets.dense=false", "train.random_crop={scale: [0.3, 0.9]}")
    large = load_tiny(
        root, "targets.dense=false", "train.random_crop={scale: [0.3, 0.9]}", "train.batch_size=12"
    )
    run_command("targets", small, LocalExecutor(), lambda _: None)
    job = planned_job(small, "train")

    with closing(TrainDataLoader(job, Rank(0, 1), tmp_path)) as alone:
        images = [alone.load(step).images for step in range(9)]
        first = TrainDataLoader(job, Rank(0, 2), tmp_path)
        second = TrainDataLoader(job, Rank(1, 2), tmp_path)
        with closing(first), closing(second):
            assert torch.equal(first.load(2).images, images[2][:4])
            assert torch.equal(second.load(2).images, images[2][4:])
        with closing(TrainDataLoader(planned_job(large, "train"), Rank(0, 1), tmp_path)) as other:
            in_twelves = torch.cat([other.load(step).images for step in range(6)])
        in_eights = torch.cat(images)
        assert torch.equal(in_twelves, in_eights)
        num_samples = len(alone.samples)
        assert num_samples == 36
        epochs = in_eights.flatten(1)[: 2 * num_samples].split(num_samples)
    # The second epoch has the same pictures, cropped otherwise.
    assert not {row.numpy().tobytes() for row in epochs[0]} & {row.numpy().tobytes() for row in epochs[1]}


def test_a_teacher_beside_the_training_computes_in_its_precision(
    root: Path, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    dense: list[torch.Tensor] = []
    for precision in ("float32", "bfloat16"):
        recipe = load_tiny(root, "targets.dense=false", f"train.precision={precision}")
        run_command("targets", recipe, LocalExecutor(), lambda _: None)
        job = planned_job(recipe, "train")
        with closing(TrainDataLoader(job, Rank(0, 1), tmp_path / precision)) as batches:
            batch = batches.load(0)
            dense.append(batches.targets(batch, batch.images).dense)
    assert not torch.equal(dense[1], dense[0])
    torch.testing.assert_close(dense[1].float(), dense[0], rtol=0.1, atol=0.1)


def events(folder: Path) -> EventAccumulator:
    """Read TensorBoard's files as TensorBoard does."""
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0})
    found.Reload()
    return found


def test_tensorboard_shows_reconstructions_beside_their_originals_and_the_use_of_codes(
    root: Path, load_tiny: LoadTiny
) -> None:
    folder = train(load_tiny(root, "train.seed=5", "train.log_images_every=3"))
    pictures = events(folder / "logs/tensorboard/pictures").Images("reconstructions")
    assert [picture.step for picture in pictures] == [2, 3]
    assert (pictures[0].width, pictures[0].height) == (NUM_SHOWN * 32, 2 * 32)
    first, last = [np.array(decode_rgb(picture.encoded_image_string)) for picture in pictures]
    assert np.array_equal(first[:32], last[:32]), "the originals are the same ones"
    assert not np.array_equal(first[32:], last[32:])
    job = planned_job(load_tiny(root), "train")
    shard = open_image_shard(job.input("download", "tiny-train"), "00000", folder)
    image = np.array(decode_rgb(shard.image(0)))
    assert any(np.array_equal(first[:32, left : left + 32], image) for left in range(0, NUM_SHOWN * 32, 32))

    log = events(folder / "logs/tensorboard")
    for stream in ("pixel", "semantic"):
        for depth in range(2):
            tag = f"codes/{stream}/counts/depth_{depth}"
            histogram = log.Histograms(tag)[-1].histogram_value
            assert histogram.num == 16
            assert histogram.sum == 8 * 16, "each token of the batch has a code"
            perplexity = log.Scalars(f"codes/{stream}/perplexity/depth_{depth}")[-1].value
            assert 1 <= perplexity <= 16


def test_pictures_are_not_made_where_the_recipe_says_so_and_change_no_bit(
    root: Path, load_tiny: LoadTiny
) -> None:
    parts = ("train.seed=6", "train.weight_ema={decay: 0.5}")
    without = train(load_tiny(root, *parts, "train.log_images_every=0"))
    weights = (without / "model.safetensors").read_bytes()
    assert not (without / "logs/tensorboard/pictures").exists()
    shutil.rmtree(without)
    assert train(load_tiny(root, *parts, "train.log_images_every=1")) == without
    assert (without / "model.safetensors").read_bytes() == weights
    assert len(events(without / "logs/tensorboard/pictures").Images("reconstructions")) == 4


@pytest.mark.parametrize(
    "settings",
    [
        ("targets.mode=online",),
        ("targets.mode=dense_int8",),
        ("targets.mode=pooled", "train.losses.semantic=0"),
    ],
)
def test_a_training_takes_its_targets_from_where_the_recipe_says(
    settings: tuple[str, ...], root: Path, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    recipe = load_tiny(root, *settings, "train.steps=2")
    stored = recipe.targets.stored
    if stored is not None:
        run_command("targets", recipe, LocalExecutor(), lambda _: None)
        file = next(Path(planned_job(recipe, "targets", "tiny-train").folder).glob("*.arrow"))
        assert stored_mode(read_data_shard(file).schema) == stored
    planned_stages = {planned.stage for planned in Planner(recipe).plan()}
    assert ("targets" in planned_stages) == (stored is not None)
    train(recipe)
    job = planned_job(recipe, "train")
    batches = TrainDataLoader(job, Rank(0, 1), tmp_path / "read")
    batch = batches.load(0)
    found = batches.targets(batch, batch.images)
    with_teacher = load_tiny(root, "targets.mode=online", "train.steps=2")
    teacher = TrainDataLoader(planned_job(with_teacher, "train"), Rank(0, 1), tmp_path / "taught")
    expected = teacher.targets(teacher.load(0), batch.images)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-3, atol=1e-4)
    if stored == "pooled":
        assert found.dense.shape[1] == 0, "no loss reads tokens, and none are kept"
        assert "semantic" not in read_metrics(job.store())[0]
    else:
        cosines = torch.nn.functional.cosine_similarity(found.dense.float(), expected.dense, dim=-1)
        assert cosines.min() > 0.999


def test_channels_last_weights_are_saved_as_any_others(finished: Recipe, tmp_path: Path) -> None:
    job = planned_job(finished, "train")
    model = DualTokenizer.from_pretrained(job.folder)
    model.save_pretrained(tmp_path / "plain")
    model.decoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model.save_pretrained(tmp_path / "last")
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == (
        tmp_path / "last" / "model.safetensors"
    ).read_bytes()
