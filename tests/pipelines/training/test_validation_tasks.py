"""A task beside the training measures what the worker would; the training waits for the last one alone."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualtoken.infra.stop_request import stop_request
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import Preempted, UserError
from dualtoken.pipelines.runtime.ray_executor import RayExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.training import validation_tasks
from dualtoken.pipelines.training.checkpoints import VALIDATION_FILE
from dualtoken.pipelines.training.engine import raise_if_stopped, train
from dualtoken.pipelines.training.metrics_log import read_metrics
from dualtoken.pipelines.training.resume import job_checkpoints
from dualtoken.pipelines.training.train import TokenizerTask
from dualtoken.pipelines.training.train_context import SingleProcessContext
from dualtoken.pipelines.training.validation_tasks import give_up_validation, validate_checkpoint
from tests.helpers.tiny_run import LoadTiny, planned_job
from tests.helpers.toy_training import Validated
from tests.helpers.training_groups import CPU, train_as_group
from tests.pipelines.training.test_engine import toy_job

APART = ("train.validate_in=task", "train.validate_every=2", "train.validation_images=10")


def validations(job: StageJob) -> dict[int, dict[str, float]]:
    """Return the logged metrics of held-out samples by step."""
    found: dict[int, dict[str, float]] = {}
    for line in read_metrics(job.store()):
        metrics = {name: value for name, value in line.items() if name.startswith("validation_")}
        if metrics:
            assert line["step"] not in found
            found[line["step"]] = metrics
    return found


class Tasks(SingleProcessContext):
    """A context that measures a checkpoint as soon as it is asked to, or never."""

    def __init__(self, job: StageJob, *, do_they_run: bool = True) -> None:
        super().__init__(CPU)
        self.job = job
        self.do_they_run = do_they_run
        self.asked: list[int] = []

    def request_validation(self, checkpoint: str, step: int) -> None:
        """Measure the checkpoint, which is whole by now."""
        assert (Path(self.job.folder) / "checkpoints" / checkpoint / "receipt.json").exists()
        self.asked.append(step)
        if self.do_they_run:
            validate_checkpoint(self.job, Validated, step)


def toy(folder: Path, *overrides: str) -> StageJob:
    return toy_job(folder, "train.steps=8", "train.validate_every=2", "train.checkpoint_every=3", *overrides)


def test_each_validated_step_has_a_checkpoint_and_the_best_one_is_kept(tmp_path: Path) -> None:
    by_worker = toy(tmp_path / "worker")
    train(by_worker, SingleProcessContext(CPU), Validated)
    best = "train.keep_best={metric: validation_error, mode: max}"
    job = toy(tmp_path / "task", "train.validate_in=task", "train.keep_checkpoints=1", best)
    context = Tasks(job)
    train(job, context, Validated)
    assert context.asked == [1, 3, 5, 7]
    assert validations(job) == validations(by_worker)
    assert list(validations(job)) == [1, 3, 5, 7]
    errors = {step: metrics["validation_error"] for step, metrics in validations(job).items()}
    worst = max(errors, key=errors.__getitem__)
    kept = [int(name.rpartition("-")[2]) for name in job.store().folders("checkpoints")]
    assert sorted(kept) == sorted({worst, 7})


def test_validations_that_were_not_made_are_made_by_the_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation_tasks, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(validation_tasks, "NOTING_SECONDS", 0.0)
    job = toy(tmp_path / "run", "train.validate_in=task", "train.hang_timeout_seconds=1")
    idle = Tasks(job, do_they_run=False)
    train(job, idle, Validated)
    assert validations(job) == {}
    assert idle.asked == [1, 3, 7], "two wait, the third one is left out, and the last one is made"

    unvalidated = job_checkpoints(job).unvalidated(7)
    assert unvalidated == [1, 3, 7], "they are kept until they are measured"
    again = Tasks(job)
    train(replace(job), again, Validated)
    assert again.asked == [1, 3, 7]
    assert list(validations(job)) == [1, 3, 7]
    assert job_checkpoints(job).unvalidated(7) == []
    logged = read_metrics(job.store())
    train(replace(job), Tasks(job), Validated)
    assert read_metrics(job.store()) == logged, "each is logged once"


def test_what_was_measured_is_not_given_up_afterwards(tmp_path: Path) -> None:
    """A task may store its metrics in the moment in which it is killed for hanging."""
    job = toy(tmp_path / "run", "train.validate_in=task")
    train(job, Tasks(job), Validated)
    checkpoints = job_checkpoints(job)
    measured = checkpoints.validation(7)
    assert measured
    give_up_validation({"job": job}, 7)
    assert checkpoints.validation(7) == measured
    (Path(job.folder) / VALIDATION_FILE.format(step=7)).unlink()
    give_up_validation({"job": job}, 7)
    assert checkpoints.validation(7) == {}


class StoppedAtTheEnd(Tasks):
    """Measures nothing, and is asked to stop once the last step's validation is waited for."""

    def asked_to_stop(self) -> bool:
        if 7 in self.asked:
            stop_request.ask()
        return super().asked_to_stop()


def test_a_run_that_is_asked_to_stop_waits_for_no_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation_tasks, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(validation_tasks, "NOTING_SECONDS", 0.0)
    job = toy(tmp_path / "run", "train.validate_in=task", "train.hang_timeout_seconds=60")
    began = time.monotonic()
    assert not train(job, StoppedAtTheEnd(job, do_they_run=False), Validated), "something is left to do"
    with pytest.raises(Preempted):
        raise_if_stopped()
    assert time.monotonic() - began < 30
    assert job_checkpoints(job).unvalidated(7) == [1, 3, 7]
    assert train(job, Tasks(job), Validated)
    assert list(validations(job)) == [1, 3, 7]


def test_a_checkpoint_that_is_asked_for_again_is_measured_once_and_need_not_be_there(tmp_path: Path) -> None:
    """Workers that were started anew ask for what is missing, and it may come meanwhile."""
    job = toy(tmp_path / "run", "train.validate_in=task")
    train(job, Tasks(job), Validated)
    metrics = job_checkpoints(job).validation(3)
    assert metrics
    shutil.rmtree(Path(job.folder) / "checkpoints")
    assert validate_checkpoint(job, Validated, 3) == metrics


def test_a_context_without_tasks_lets_the_worker_measure(tmp_path: Path) -> None:
    job = toy(tmp_path / "run", "train.validate_in=task")
    train(job, SingleProcessContext(CPU), Validated)
    assert list(validations(job)) == [1, 3, 5, 7]


def test_a_cluster_without_room_for_a_validation_is_refused(tmp_path: Path, load_tiny: LoadTiny) -> None:
    with pytest.raises(UserError, match=r"train\.validate_in=task, wants 3 CPUs.*validate_in=worker"):
        load_tiny(tmp_path, *APART, "train.num_workers=2", "cluster.num_cpus=2")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data warns of its own defaults
@pytest.mark.slow
def test_on_ray_a_task_measures_what_the_worker_does_to_the_bit(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    root = Path(shutil.copytree(finished.root, tmp_path / "data"))
    recipe = load_tiny(root, *APART, "cluster.num_cpus=3")
    job = planned_job(recipe, "train")
    expected = (Path(job.folder) / "model.safetensors").read_bytes()
    shutil.rmtree(job.folder)

    by_worker = replace(job, folder=str(tmp_path / "worker"))
    train(by_worker, SingleProcessContext(CPU), TokenizerTask)
    with RayExecutor(recipe.cluster) as executor:
        run_command("train", recipe, executor, lambda _: None)
    assert (Path(job.folder) / "model.safetensors").read_bytes() == expected
    found: Mapping[int, Mapping[str, Any]] = validations(job)
    assert list(found) == [1, 3]
    assert found == validations(by_worker)
    assert (Path(job.folder) / "logs/validations/step-000000003.json").exists(), "a task measured it"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_on_ray_a_task_measures_what_two_workers_do(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    root = Path(shutil.copytree(finished.root, tmp_path / "data"))
    recipe = load_tiny(root, *APART, "train.steps=6", "train.num_workers=2", "cluster.num_cpus=3")
    job = planned_job(recipe, "train")
    by_workers = replace(job, folder=str(tmp_path / "workers"))
    train_as_group([(by_workers, TokenizerTask)], 2, tmp_path)
    with RayExecutor(recipe.cluster) as executor:
        run_command("train", recipe, executor, lambda _: None)
    found = validations(job)
    expected = validations(by_workers)
    assert list(found) == list(expected) == [1, 3, 5]
    for step, metrics in expected.items():
        assert found[step] == pytest.approx(metrics, rel=1e-5)
        assert (Path(job.folder) / f"logs/validations/step-{step:09d}.json").exists(), "a task measured it"
