"""What a training's log gets from an optional part of a task."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.training.engine import train
from dualtoken.pipelines.training.metrics_log import read_metrics
from dualtoken.pipelines.training.task import StepCost
from dualtoken.pipelines.training.train_context import SingleProcessContext
from dualtoken.pipelines.training.training_log import TrainingLog
from dualtoken.pipelines.training.validation_tasks import ValidationTasks
from dualtoken.pipelines.training.worker_group import WorkerGroup
from tests.helpers.toy_training import ToyTask
from tests.helpers.training_groups import CPU
from tests.pipelines.training.test_engine import toy_job

GPU = torch.device("cuda")


class Counted(ToyTask):
    """A task that knows the operations of its steps."""

    def step_cost(self) -> StepCost:
        return StepCost(1e9, "float32")


def opened_log(job: StageJob, task: ToyTask, context: SingleProcessContext, scratch: Path) -> TrainingLog:
    workers = WorkerGroup(context, 1.0)
    return TrainingLog(job, task, context, workers, scratch, ValidationTasks(job, context, workers))


def first_line(job: StageJob, device: torch.device, scratch: Path) -> dict[str, float]:
    """Log a step of a task, as if it were taken on a device."""
    task = Counted(job, SingleProcessContext(CPU), scratch)
    context = SingleProcessContext(device)
    with opened_log(job, task, context, scratch) as log:
        task.step = 1
        log.step_taken({"loss": 1.0}, 0.0, is_last=True)
    return read_metrics(job.store())[0]


@pytest.mark.parametrize(("key", "steps"), [("train", [0, 3, 5]), ("mllm", [0, 2, 4, 5])])
def test_a_log_has_the_intervals_of_its_own_training(key: str, steps: list[int], tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", "train.steps=6", "train.log_every=3", "mllm.log_every=2")
    train(replace(job, training_key=key), SingleProcessContext(CPU), ToyTask)
    assert [line["step"] for line in read_metrics(job.store())] == steps


class SecondOfTwo(SingleProcessContext):
    """The context of a worker whose first one writes the log."""

    rank = 1


def test_only_the_first_worker_has_a_log_and_opens_the_services(tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", "train.loggers=[{kind: wandb, mode: offline}]")
    context = SecondOfTwo(CPU)
    with opened_log(job, ToyTask(job, context, tmp_path), context, tmp_path) as log:
        log.step_taken({"loss": 1.0}, 0.0, is_last=True)
    assert not list((tmp_path / "run").rglob("*"))


def test_the_share_of_a_gpus_rate_is_logged_and_of_a_cpus_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    line = first_line(toy_job(tmp_path / "gpu"), GPU, tmp_path)
    assert 0 < line["mfu"] < 1
    assert "mfu" not in first_line(toy_job(tmp_path / "cpu"), CPU, tmp_path)
