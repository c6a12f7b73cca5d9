"""Several workers train what one does, by DDP and FSDP2, and any number goes on from a checkpoint."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dualtoken.model.teacher.teacher import build_teacher
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.teacher import TrainedTeacher
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.ray_executor import RayExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.training.engine import train
from dualtoken.pipelines.training.teacher import TeacherTask
from dualtoken.pipelines.training.train import TokenizerTask
from dualtoken.pipelines.training.train_context import SingleProcessContext
from tests.helpers.tiny_run import LoadTiny, planned_job
from tests.helpers.training_groups import CPU, GroupJob, distance, load_trained, train_as_group

PARTS = (
    "targets.dense=false",
    "train.random_crop={scale: [0.3, 0.9]}",
    "train.gan={width: 32, start_step: 10}",  # a GAN magnifies rounding in each step, for one worker too
    "train.weight_ema={decay: 0.5}",
    "train.accumulate_steps=2",
    "train.steps=12",
)
SHARDED = tuple(part for part in PARTS if "gan" not in part)
CLOSE = 2e-5
"""Largest relative distance of all weights together that sums in another order explain, after 12 steps."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, finished: Recipe) -> Path:
    return Path(shutil.copytree(finished.root, tmp_path_factory.mktemp("workers") / "data"))


def tokenizer_weights(job: StageJob, scratch: Path) -> dict[str, torch.Tensor]:
    return load_trained(job, "average.module", DualTokenizer(job.recipe.tokenizer), scratch)


def teacher_weights(job: StageJob, scratch: Path) -> dict[str, torch.Tensor]:
    assert isinstance(job.recipe.teacher, TrainedTeacher)
    return load_trained(job, "model", build_teacher(job.recipe.teacher), scratch)


def of_kind(root: Path, load_tiny: LoadTiny, parallel: str, optimizer: str) -> StageJob:
    parts = PARTS if parallel == "ddp" else SHARDED
    recipe = load_tiny(root, *parts, f"train.parallel={parallel}", f"train.optimizer={optimizer}")
    run_command("targets", recipe, LocalExecutor(), lambda _: None)
    return planned_job(recipe, "train")


def of_teacher(root: Path, load_tiny: LoadTiny) -> StageJob:
    return planned_job(load_tiny(root, "teacher.steps=12"), "teacher")


def left_by_two(root: Path, load_tiny: LoadTiny, parallel: str) -> StageJob:
    parts = ("train.optimizer=muon", "train.weight_ema={decay: 0.5}", f"train.parallel={parallel}")
    recipe = load_tiny(root, *parts, "train.steps=6", "train.batch_size=6", "train.checkpoint_every=3")
    return planned_job(recipe, "train")


KINDS = [("ddp", "adamw"), ("ddp", "muon"), ("fsdp2", "adamw"), ("fsdp2", "muon")]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory, root: Path, load_tiny: LoadTiny) -> Path:
    """Folders of trainings by two workers, and of those that one and three go on with."""
    folder = tmp_path_factory.mktemp("by two")
    jobs: list[GroupJob] = []
    for kind in KINDS:
        job = of_kind(root, load_tiny, *kind)
        jobs.append((replace(job, folder=str(folder / "-".join(kind))), TokenizerTask))
    jobs.append((replace(of_teacher(root, load_tiny), folder=str(folder / "teacher")), TeacherTask))
    for parallel in ("ddp", "fsdp2"):
        job = left_by_two(root, load_tiny, parallel)
        jobs.append((replace(job, folder=str(folder / f"whole-{parallel}")), TokenizerTask))
    train_as_group(jobs, 2, folder)
    by_three: list[GroupJob] = []
    for parallel in ("ddp", "fsdp2"):
        for num_workers in (1, 3):
            left = folder / f"left-{parallel}-{num_workers}"
            shutil.copytree(folder / f"whole-{parallel}", left)
            shutil.rmtree(left / "checkpoints" / "step-000000005")
        job = left_by_two(root, load_tiny, parallel)
        by_three.append((replace(job, folder=str(left)), TokenizerTask))
    train_as_group(by_three, 3, folder)
    return folder


@pytest.mark.parametrize(("parallel", "optimizer"), KINDS)
def test_two_workers_train_what_one_does(
    parallel: str, optimizer: str, by_two: Path, root: Path, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    job = of_kind(root, load_tiny, parallel, optimizer)
    alone = replace(job, folder=str(tmp_path / "alone"))
    together = replace(job, folder=str(by_two / f"{parallel}-{optimizer}"))
    train(alone, SingleProcessContext(CPU), TokenizerTask)
    assert distance(tokenizer_weights(together, tmp_path), tokenizer_weights(alone, tmp_path)) < CLOSE


def test_two_workers_train_the_teacher_that_one_does(
    by_two: Path, root: Path, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    job = of_teacher(root, load_tiny)
    alone = replace(job, folder=str(tmp_path / "alone"))
    together = replace(job, folder=str(by_two / "teacher"))
    train(alone, SingleProcessContext(CPU), TeacherTask)
    # AdamW divides by the size of gradients, and those of a key's bias are rounding alone.
    assert distance(teacher_weights(together, tmp_path), teacher_weights(alone, tmp_path)) < 5 * CLOSE


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_workers_are_gone_on_with_by_one_and_by_three(
    parallel: str, num_workers: int, by_two: Path, root: Path, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    job = left_by_two(root, load_tiny, parallel)
    whole = replace(job, folder=str(by_two / f"whole-{parallel}"))
    left = replace(job, folder=str(by_two / f"left-{parallel}-{num_workers}"))
    if num_workers == 1:
        train(left, SingleProcessContext(CPU), TokenizerTask)
    assert distance(tokenizer_weights(left, tmp_path), tokenizer_weights(whole, tmp_path)) < 1e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data warns of its own defaults
def test_two_workers_on_ray_train_what_one_in_this_process_does(root: Path, load_tiny: LoadTiny) -> None:
    alone = load_tiny(root, *PARTS)
    run_command("targets", alone, LocalExecutor(), lambda _: None)
    run_command("train", alone, LocalExecutor(), lambda _: None)
    expected = load_file(Path(planned_job(alone, "train").folder) / "model.safetensors")
    together = load_tiny(root, *PARTS, "train.num_workers=2", "train.seed=0")
    shutil.rmtree(planned_job(alone, "train").folder)
    with RayExecutor(together.cluster) as executor:
        run_command("train", together, executor, lambda _: None)
    found = load_file(Path(planned_job(together, "train").folder) / "model.safetensors")
    assert distance(found, expected) < CLOSE
