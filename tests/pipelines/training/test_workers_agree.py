"""Two workers train what one does: the whole stage, with crops, GAN, averages and accumulation."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.ray_executor import RayExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.training.checkpoints import Checkpoints
from dualtoken.pipelines.training.train import train_loop
from dualtoken.pipelines.training.train_context import SingleProcessContext
from tests.helpers.tiny_run import LoadTiny, planned_job

CPU = torch.device("cpu")
PARTS = (
    "targets.dense=false",
    "train.random_crop={scale: [0.3, 0.9]}",
    "train.gan={width: 32, start_step: 10}",  # a GAN magnifies rounding in each step, for one worker too
    "train.weight_ema={decay: 0.5}",
    "train.accumulate_steps=2",
    "train.steps=12",
)
CLOSE = 2e-5
"""Largest relative distance of all weights together that sums in another order explain."""


@dataclass(frozen=True)
class GlooContext:
    """A worker of a group, without Ray."""

    rank: int
    world_size: int
    device: torch.device = CPU

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        return DistributedDataParallel(model, forward_sync_buffers=False)


def train_as_rank(rank: int, job: StageJob, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    train_loop({"job": job}, GlooContext(rank, 2))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, finished: Recipe) -> Path:
    return Path(shutil.copytree(finished.root, tmp_path_factory.mktemp("workers") / "data"))


def weights(folder: str, scratch: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoints(Store(folder)).latest(scratch)
    assert checkpoint is not None
    return load_file(checkpoint / "model.safetensors")


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the distance of all weights together from those that they should be, relative to their norm."""
    errors = [(found[name] - tensor).norm() for name, tensor in expected.items()]
    norms = [tensor.norm() for tensor in expected.values()]
    return float(torch.stack(errors).norm() / torch.stack(norms).norm())


def test_two_workers_train_what_one_does(root: Path, load_tiny: LoadTiny, tmp_path: Path) -> None:
    recipe = load_tiny(root, *PARTS)
    run_command("targets", recipe, LocalExecutor(), lambda _: None)
    job = planned_job(recipe, "train")
    alone = replace(job, folder=str(tmp_path / "alone"))
    together = replace(job, folder=str(tmp_path / "together"))
    train_loop({"job": alone}, SingleProcessContext(CPU))
    start_processes(train_as_rank, args=(together, str(tmp_path / "meeting")), nprocs=2, start_method="spawn")
    expected = weights(alone.folder, tmp_path)
    assert distance(weights(together.folder, tmp_path), expected) < CLOSE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data warns of its own defaults
def test_two_workers_on_ray_train_what_one_in_this_process_does(root: Path, load_tiny: LoadTiny) -> None:
    alone = load_tiny(root, *PARTS)
    run_command("targets", alone, LocalExecutor(), lambda _: None)
    run_command("train", alone, LocalExecutor(), lambda _: None)
    together = load_tiny(root, *PARTS, "train.num_workers=2")
    with RayExecutor(together.cluster) as executor:
        run_command("train", together, executor, lambda _: None)
    expected = load_file(Path(planned_job(alone, "train").folder) / "model.safetensors")
    found = load_file(Path(planned_job(together, "train").folder) / "model.safetensors")
    assert distance(found, expected) < CLOSE
