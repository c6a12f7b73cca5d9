"""A training on Ray that is stopped while a task validates leaves that to the run that goes on."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.runtime.ray_executor import newest_checkpoint
from dualtoken.pipelines.training.resume import job_checkpoints
from tests.end_to_end.test_stopping import SENTENCE, marked_processes
from tests.faults.test_killed_training import PARTS, RunningStage, title
from tests.helpers.tiny_run import LoadTiny, planned_job
from tests.helpers.waiting import wait_until
from tests.pipelines.training.test_validation_tasks import validations

pytestmark = pytest.mark.slow


def is_measuring(stage: RunningStage) -> bool:
    return any("ray::validate" in title(pid) for pid in marked_processes(stage.mark))


@pytest.mark.parametrize(("steps", "every"), [(400, 200), (4, 4)], ids=["amid the steps", "at the end"])
def test_a_stage_stopped_while_a_task_validates_ends_at_once_and_the_next_run_measures(
    steps: int, every: int, finished: Recipe, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(finished.root, tmp_path / "data"))
    parts = (
        f"train.steps={steps}",
        f"train.validate_every={every}",
        "train.validate_in=task",
        "train.num_workers=2",
        "cluster.num_cpus=3",
    )
    job = planned_job(load_tiny(root, *PARTS, *parts), "train")
    checkpoints = job_checkpoints(job)

    stage = RunningStage(root, *parts)
    wait_until(lambda: is_measuring(stage), seconds=300)
    stopped = time.monotonic()
    errors = stage.end(signal.SIGTERM)
    assert time.monotonic() - stopped < 25, "it has not waited for the validation"
    assert stage.process.returncode == 143
    assert errors.endswith(SENTENCE)
    last_step = newest_checkpoint(job)
    assert last_step is not None
    whole = checkpoints.latest(tmp_path / "copies")
    assert whole is not None
    assert whole.receipt.step == last_step
    assert every - 1 in checkpoints.unvalidated(last_step)
    assert validations(job) == {}

    stage = RunningStage(root, *parts)
    errors = stage.end()
    assert stage.process.returncode == 0, errors
    assert "is not validated" not in errors
    assert list(validations(job)) == list(range(every - 1, steps, every))
    assert checkpoints.unvalidated(steps - 1) == []
