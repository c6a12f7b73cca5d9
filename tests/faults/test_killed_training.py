"""Whatever is killed of a training stage on Ray, it ends with the weights of an undisturbed one."""

import os
import shutil
import signal
import subprocess
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dualtoken.infra.storage import Store
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.ray_executor import newest_checkpoint
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.training.train import TokenizerTask
from tests.end_to_end.test_stopping import SENTENCE, marked_processes
from tests.helpers.command_line import dualtoken_command
from tests.helpers.tiny_run import PROJECT, TINY, LoadTiny, planned_job
from tests.helpers.training_groups import distance, load_trained, train_as_group
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow
STEPS = 400
PARTS = (f"train.steps={STEPS}", "train.checkpoint_every=10", "train.optimizer=muon", "train.weight_ema={}")


@pytest.fixture
def root(tmp_path: Path, finished: Recipe) -> Path:
    return Path(shutil.copytree(finished.root, tmp_path / "data"))


class RunningStage:
    """The train stage of a recipe on a cluster of its own, as a user starts it."""

    def __init__(self, root: Path, *overrides: str) -> None:
        self.mark = uuid.uuid4().hex
        options = [option for override in (*PARTS, *overrides) for option in ("--set", override)]
        self.process = subprocess.Popen(
            dualtoken_command("train", TINY, "--root", root, *options),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env={**os.environ, "TEST_MARK": self.mark},
        )

    def end(self, sent: signal.Signals | None = None) -> str:
        """Send the driver a signal, wait until all of the run's processes are gone; return its errors."""
        if sent is not None:
            self.process.send_signal(sent)
        _, errors = self.process.communicate(timeout=600)
        wait_until(lambda: not marked_processes(self.mark), seconds=60)
        return errors

    def kill_worker(self) -> None:
        """Kill one of the processes that train."""
        workers = [pid for pid in marked_processes(self.mark) if "RayTrainWorker" in title(pid)]
        os.kill(workers[-1], signal.SIGKILL)


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def wait_for_checkpoint(job: StageJob, after: int) -> int:
    """Return the step of the first checkpoint after a step."""

    def has_come() -> bool:
        newest = newest_checkpoint(job)
        return newest is not None and newest > after

    wait_until(has_come, seconds=300)
    newest = newest_checkpoint(job)
    assert newest is not None
    return newest


def test_a_stage_whose_worker_and_whose_drivers_were_killed_ends_with_the_same_bits(
    root: Path, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    whole = load_tiny(Path(shutil.copytree(root, tmp_path / "whole")), *PARTS)
    run_command("train", whole, LocalExecutor(), lambda _: None)
    expected = (Path(planned_job(whole, "train").folder) / "model.safetensors").read_bytes()
    job = planned_job(load_tiny(root, *PARTS), "train")

    stage = RunningStage(root)
    step = wait_for_checkpoint(job, after=0)
    killed = time.monotonic()
    stage.kill_worker()
    step = wait_for_checkpoint(job, after=step)
    assert time.monotonic() - killed < 60
    print(f"the next checkpoint came {time.monotonic() - killed:.1f} s after the worker was killed")
    errors = stage.end(signal.SIGTERM)
    assert stage.process.returncode == 143
    assert errors.endswith(SENTENCE)  # after Ray's words of the killed worker
    stopped_after = wait_for_checkpoint(job, after=step - 1)

    stage = RunningStage(root)
    step = wait_for_checkpoint(job, after=stopped_after)
    stage.end(signal.SIGKILL)

    job.store().put_bytes(b'{"ray_version": "2.', "checkpoints/checkpoint_manager_snapshot.json")
    stage = RunningStage(root)
    errors = stage.end()
    assert stage.process.returncode == 0, errors
    assert newest_checkpoint(job) == STEPS - 1
    assert (Path(job.folder) / "model.safetensors").read_bytes() == expected


def test_two_workers_one_of_which_was_killed_end_with_the_same_weights(
    root: Path, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    two = "train.num_workers=2"
    job = planned_job(load_tiny(root, *PARTS, two), "train")
    undisturbed = replace(job, folder=str(tmp_path / "undisturbed"))
    train_as_group([(undisturbed, TokenizerTask)], 2, tmp_path)
    model = DualTokenizer(job.recipe.tokenizer)
    expected = load_trained(undisturbed, "average.module", model, tmp_path)

    stage = RunningStage(root, two)
    wait_for_checkpoint(job, after=0)
    stage.kill_worker()
    errors = stage.end()
    assert stage.process.returncode == 0, errors
    assert distance(load_file(Path(job.folder) / "model.safetensors"), expected) < 1e-6
    assert Store(job.folder).exists("checkpoints/step-000000399/receipt.json")
