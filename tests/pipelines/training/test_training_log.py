"""What a training's log gets from an optional part of a task."""

import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.training import step_window, training_log
from dualtoken.pipelines.training.engine import train
from dualtoken.pipelines.training.metrics_log import read_metrics
from dualtoken.pipelines.training.step_cost import flop_utilization
from dualtoken.pipelines.training.task import StepCost
from dualtoken.pipelines.training.train_context import SingleProcessContext
from dualtoken.pipelines.training.training_log import TrainingLog
from dualtoken.pipelines.training.validation_tasks import ValidationTasks
from dualtoken.pipelines.training.worker_group import WorkerGroup
from tests.helpers.toy_training import ToyTask, Validated
from tests.helpers.training_groups import CPU
from tests.pipelines.training.test_engine import AskedAtStep, toy_job

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
        log.step_taken({"loss": 1.0}, 0.0)
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
        log.step_taken({"loss": 1.0}, 0.0)
    assert not list((tmp_path / "run").rglob("*"))


def test_the_share_of_a_gpus_rate_is_logged_and_of_a_cpus_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    line = first_line(toy_job(tmp_path / "gpu"), GPU, tmp_path)
    assert 0 < line["mfu"] < 1
    assert "mfu" not in first_line(toy_job(tmp_path / "cpu"), CPU, tmp_path)


class Clock:
    """The time, set by hand, in place of Python's module."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Return it, seconds."""
        return self.now


def test_rates_and_stalls_are_of_the_time_that_they_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 2 s, 1 s, 1 s and 1 s, the third of them a bad one, and lines after the first and the last."""
    clock = Clock()
    for module in (training_log, step_window):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    job = toy_job(tmp_path / "run", "train.steps=9", "train.log_every=3")
    task = Costly(job, SingleProcessContext(CPU), tmp_path)
    context = SingleProcessContext(GPU)
    with opened_log(job, task, context, tmp_path) as log:
        for step, (seconds, metrics) in enumerate([(2, ONE), (1, ONE), (1, {}), (1, ONE)]):
            clock.now += seconds
            task.step = step + 1
            log.step_taken(metrics, stalled_seconds=0.25 * step)
    first, second = read_metrics(job.store())
    assert (first["images_per_second"], second["images_per_second"]) == (6.0, 12.0)
    assert (first["checkpoint_stall"], second["checkpoint_stall"]) == (0.0, 0.15), (
        "of the time since the start"
    )
    shares = [flop_utilization(COST, steps_per_second, context) for steps_per_second in (0.5, 1.0)]
    assert [first["mfu"], second["mfu"]] == pytest.approx(shares, abs=1e-4)
    assert (second["num_steps"], second["num_bad_steps"]) == (3, 1)


ONE = {"loss": 1.0}
COST = StepCost(1e13, "float32")


class Costly(ToyTask):
    """A task whose steps have much to compute."""

    def step_cost(self) -> StepCost:
        return COST


class ShownAndCounted(Validated):
    """A task with a picture, codes and held-out samples."""

    def pictures(self) -> Mapping[str, Tensor]:
        return {"shown": torch.zeros(3, 2, 2, dtype=torch.uint8)}

    def code_counts(self) -> Mapping[str, Tensor]:
        return {"toy": torch.tensor([[1, 0]])}


def shown_steps(job: StageJob) -> tuple[list[int], list[int]]:
    """Return the steps that TensorBoard has pictures of, and those with the use of codes."""
    pictures = EventAccumulator(f"{job.folder}/logs/tensorboard/pictures", {"images": 0})
    scalars = EventAccumulator(f"{job.folder}/logs/tensorboard", {"scalars": 0})
    pictures.Reload()
    scalars.Reload()
    usage = scalars.Scalars("codes/toy/usage/depth_0")
    return [picture.step for picture in pictures.Images("shown")], [line.step for line in usage]


def test_pictures_and_codes_are_shown_at_their_interval_and_after_the_last_step(tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", "train.steps=8", "train.log_images_every=3")
    train(job, SingleProcessContext(CPU), ShownAndCounted)
    assert shown_steps(job) == ([2, 5, 7], [2, 5, 7])


def test_a_run_that_is_asked_to_stop_has_a_line_and_no_validation_or_picture_before_its_checkpoint(
    tmp_path: Path,
) -> None:
    every = ("train.log_every=9", "train.validate_every=4", "train.log_images_every=4")
    job = toy_job(tmp_path / "run", "train.steps=9", *every)
    train(job, AskedAtStep(CPU), ShownAndCounted)
    assert [line["step"] for line in read_metrics(job.store())] == [0, 2]
    assert not (tmp_path / "run/logs/tensorboard/pictures").exists()
    train(job, SingleProcessContext(CPU), ShownAndCounted)
    lines = read_metrics(job.store())
    assert [line["step"] for line in lines if "validation_error" in line] == [3, 7, 8]
    assert shown_steps(job) == ([3, 7, 8], [3, 7, 8])


class ReadsItsLog(ToyTask):
    """Looks at its own log in storage before each step."""

    def __init__(self, job: StageJob, *rest: Any) -> None:
        super().__init__(job, *rest)
        self.num_lines: list[int] = []
        READERS.append(self)

    def train_step(self, batch: Tensor, check: Any) -> Mapping[str, float]:
        self.num_lines.append(len(read_metrics(self.job.store())))
        return super().train_step(batch, check)


READERS: list[ReadsItsLog] = []


def test_a_log_is_stored_with_each_checkpoint() -> None:
    job = toy_job(f"memory://{uuid.uuid4().hex}/run", "train.steps=5", "train.checkpoint_every=2")
    train(job, SingleProcessContext(CPU), ReadsItsLog)
    assert READERS.pop().num_lines == [0, 0, 2, 2, 4]
    assert len(read_metrics(job.store())) == 5
